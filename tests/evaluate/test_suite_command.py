"""`hf-cascade evaluate --suite` end to end on a tiny family, and its refusals."""

import json
import os

import pytest

from hf_cascade import assets, manifest
from hf_cascade.evaluate.benchmarks.data import VARIABLE
from hf_cascade.evaluate.command import main
from hf_cascade.evaluate.config import EvaluateArguments
from hf_cascade.evaluate.suite import figures
from hf_cascade.evaluate.suite.command_part import Suites, nothing_ran

from .conftest import tiny_model

LABELS = ["continuation", "bits per byte"]


@pytest.fixture
def here(family, monkeypatch):
    monkeypatch.chdir(family)
    for path in family.glob("*/config.json"):  # the longest passage of the suite has more tokens than 512
        path.write_text(path.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 1024'))
    for name in [name for name in os.environ if name == VARIABLE or name.startswith("HFC_JUDGE_")]:
        monkeypatch.delenv(name)
    return family


def evaluate(*flags: str, out: str = "out") -> int:
    return main([*flags, "--output_dir", out])


def read(path) -> dict:
    return json.loads(path.read_text())


def test_a_suite_is_run_reported_and_kept(here, capsys):
    argv = ["--model", "small", "tiny", "--teacher", "parent", "--suite", "tiny", "--limit", "4"]
    assert evaluate(*argv) == 0
    results = read(here / "out" / "results.json")
    parent, small, _ = results["models"]
    assert (results["suite_parent"], [suite["name"] for suite in results["suites"]]) == ("parent", ["tiny"])
    assert parent["heldout"] is None and parent["retention"] is None  # no text was given
    rows = small["suites"]["tiny"]["rows"]
    assert list(rows) == LABELS and all(row["status"] == "run" for row in rows.values())
    theirs = parent["suites"]["tiny"]["rows"]["bits per byte"]["value"]
    assert rows["bits per byte"]["retention"] == pytest.approx(100 * theirs / rows["bits per byte"]["value"])
    assert rows["continuation"]["short"] == ["figures of 4 of 200 rows"]

    report = (here / "out" / "report.md").read_text()
    assert "## Tiny tasks" in report and "of parent" in report and "](suite_tiny.png)" in report
    assert (here / "out" / "suite_tiny.png").stat().st_size > 5000
    assert manifest.read(here / "out")["config"]["suite"] == ["tiny"]
    assert "continuation" in capsys.readouterr().out

    evals = read(here / "small" / "evals.json")
    assert evals["suites"]["tiny"]["rows"] == rows and set(evals["suites"]["tiny"]["tasks"]) == {
        *("cascade_tiny_bits", "cascade_tiny_continuation")
    }
    assert evals["weights_sha256"] == manifest.weights_sha256(here / "small")
    assert not (here / "parent" / "evals.json").exists()  # no stage made it
    assert read(here / "out" / "suites" / "parent" / "evals.json")["name"] == "parent"

    assert evaluate(*argv) == 0  # again, from what is kept
    again = read(here / "out" / "results.json")["models"][1]["suites"]["tiny"]["rows"]
    assert [again[label]["value"] for label in LABELS] == [rows[label]["value"] for label in LABELS]

    assert evaluate("--model", "tiny", "--suite", "tiny", "--limit", "4", "--parent", "out/suites/parent", out="b") == 0
    row = read(here / "b" / "results.json")["models"][0]["suites"]["tiny"]["rows"]["bits per byte"]
    assert (
        row["parent"] == theirs
        and "| benchmark | parent | tiny | of parent |" in (here / "b" / "report.md").read_text()
    )


def test_the_parent_that_cascade_json_names(here):
    made = {"config": {}, "inputs": {}, "metrics": {}}
    manifest.write(here / "parent", stage="parent", run="pretrain", **made)  # as if it were a stage of ours
    assert evaluate("--model", "parent", "small-pruned", "--suite", "tiny", "--limit", "4", out="a") == 0
    assert evaluate("--model", "small", "--suite", "tiny", "--limit", "4", out="b") == 0
    (small,) = read(here / "b" / "results.json")["models"]
    theirs = read(here / "parent" / "evals.json")["suites"]["tiny"]["rows"]["continuation"]["value"]
    assert small["suites"]["tiny"]["rows"]["continuation"]["parent"] == theirs  # not the pruned model's
    (here / "parent" / manifest.FILE).write_text((here / "parent" / manifest.FILE).read_text() + " ")
    assert evaluate("--model", "small", "--suite", "tiny", "--limit", "4", out="c") == 0
    (small,) = read(here / "c" / "results.json")["models"]
    assert small["suites"]["tiny"]["rows"]["continuation"]["parent"] is None  # made anew since


def test_other_figures_of_the_same_weights_stay(here, texts, capsys):
    (here / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:3]))
    assert evaluate("--model", "small", "--suite", "tiny", "--limit", "4", out="a") == 0
    assert evaluate("--model", "small", "--dataset", "text.jsonl", "--max_length", "64", out="b") == 0
    evals = read(here / "small" / "evals.json")
    assert evals["heldout"]["perplexity"] > 1 and list(evals["suites"]["tiny"]["rows"]) == LABELS
    tiny_model(7, intermediate_size=16).save_pretrained(here / "small")
    assert evaluate("--model", "small", "--dataset", "text.jsonl", "--max_length", "64", out="c") == 0
    assert not read(here / "small" / "evals.json")["suites"]
    assert "tiny dropped: they were measured on other weights" in capsys.readouterr().out


def fake(status: str):
    """A runner that gives every task this."""
    ran = {"status": "run", "reason": None, "metric": "acc", "value": 0.7, "stderr": 0.01, "rows": 10, "rows_full": 10}
    ran |= {"samples_per_row": 1, "samples": 10, "all": {"acc": {"value": 0.7, "stderr": 0.01}}}
    missing = {"status": "not run", "reason": "there is no folder"}
    return lambda lm, tasks, *_: dict.fromkeys(tasks, ran if status == "run" else missing)


def test_without_any_data_nothing_ran_and_the_status_says_so(here, monkeypatch, capsys):
    monkeypatch.setattr("hf_cascade.evaluate.suite.run.run_suite", fake("not run"))
    assert evaluate("--model", "small", "--suite", "tiny") == 2
    assert "no benchmark was run" in capsys.readouterr().err
    assert "Not run:" in (here / "out" / "report.md").read_text() and not (here / "out" / manifest.FILE).exists()
    assert evaluate("--model", "small", "--suite", "tiny", "--tasks", "cascade_tiny_copy", "--limit", "2") == 0


@pytest.fixture
def proved(monkeypatch):
    """Scorers that were proved already: a minute for a whole table, which test_conformance.py spends."""
    green = {"status": "green", "reason": None}
    monkeypatch.setattr(
        "hf_cascade.evaluate.conformance.prove.prove", lambda tasks, report=None: dict.fromkeys(tasks, green)
    )


def test_the_papers_row_is_chosen_or_named(here, monkeypatch, proved):
    monkeypatch.setattr("hf_cascade.evaluate.suite.run.run_suite", fake("run"))
    flags = ["--model", "small", "tiny", "--suite", "table3", "--paper_row"]
    assert evaluate(*flags, "Ministral 3 14B", "Ministral 3 3B") == 0
    rows = [m["suites"]["table3"]["rows"]["MMLU 5-shot"] for m in read(here / "out" / "results.json")["models"]]
    assert [row["paper"] for row in rows] == [79.4, 70.7]
    assert evaluate(*flags, "Ministral 3 8B", out="b") == 0
    rows = [m["suites"]["table3"]["rows"]["MMLU 5-shot"] for m in read(here / "b" / "results.json")["models"]]
    assert [row["paper"] for row in rows] == [76.1, 76.1]
    assert evaluate("--model", "small", "--suite", "table3", out="c") == 0
    (model,) = read(here / "c" / "results.json")["models"]
    assert model["suites"]["table3"]["rows"]["MMLU 5-shot"]["paper"] is None  # none of the paper's sizes


def test_only_the_first_process_writes(here, monkeypatch):
    monkeypatch.setattr("hf_cascade.evaluate.suite.run.run_suite", lambda *_: {})  # as on other processes
    monkeypatch.setenv("RANK", "1")
    assert evaluate("--model", "small", "--suite", "tiny") == 0
    assert not (here / "out").exists() and not (here / "small" / "evals.json").exists()


def test_a_server_is_measured_without_loading_anything(here, monkeypatch, proved):
    opened = []
    monkeypatch.setattr("hf_cascade.evaluate.suite.run.run_suite", fake("run"))
    monkeypatch.setattr(
        "hf_cascade.evaluate.backends.opening.open_backend", lambda *a, **k: opened.append((a, k)) or object()
    )
    for name in ("load_model", "load_tokenizer", "load_config"):
        monkeypatch.setattr(f"hf_cascade.evaluate.command.{name}", None)
    flags = ["--suite", "table3", "--backend", "openai", "--base_url", "http://localhost:1/v1"]
    assert evaluate("--model", "someone/served", *flags) == 0
    (model,) = read(here / "out" / "results.json")["models"]
    assert model["num_parameters"] is None and model["weights_sha256"] is None
    assert evaluate("--model", "small", *flags, "--served_model_name", "x", out="b") == 0
    (model,) = read(here / "b" / "results.json")["models"]
    assert model["hidden_size"] == 16 and model["num_parameters"] > 0  # of its folder
    url = {"url": "http://localhost:1/v1"}
    assert opened == [(("someone/served", "openai"), url), (("x", "openai"), url)]


def test_the_runner_gets_the_flags(here, monkeypatch):
    monkeypatch.setenv("HFC_JUDGE_CONCURRENCY", "3")
    flags = {"samples": 4, "suite_temperature": 0.6, "suite_top_p": 0.9, "max_gen_tokens": 99, "limit": 5}
    flags |= {"system_prompt": "Be brief.", "judge_url": "http://j/v1", "judge_model": "j", "judge_max_requests": 9}
    flags |= {"judge_cache": "cache.db", "judge_max_tokens": 77, "judge_api_key_variable": "KEY", "data": "rows"}
    (here / "rows").mkdir()
    part = Suites(EvaluateArguments(model=["m"], output_dir="out", suite=["table4", "tiny"], **flags), [], None, {})
    settings = part.settings(chat=True)
    assert (settings.samples, settings.temperature, settings.top_p, settings.max_gen_tokens) == (4, 0.6, 0.9, 99)
    assert (settings.limit, settings.chat, settings.system_prompt) == (5, True, "Be brief.")
    assert settings.data == str(here / "rows")
    judge = settings.judge
    assert (judge.url, judge.model, judge.cache, judge.max_requests) == ("http://j/v1", "j", "cache.db", 9)
    assert (judge.max_tokens, judge.key_variable) == (77, "KEY")
    assert judge.concurrency == 3  # what no flag says is read from the environment
    assert part.settings(chat=False).system_prompt is None


SUITE = ["--model", "small", "--suite", "tiny"]
OPENAI = ["--model", "small", "--suite", "tiny", "--backend", "openai"]
BAD = {
    "an unknown suite": (["--model", "small", "--suite", "table9"], "suite=table9.*table2"),
    "a suite twice": (["--model", "small", "--suite", "tiny", "tiny"], "suite: tiny given more than once"),
    "no chat template": (["--model", "small", "--suite", "table5"], "suite table5.*small has none"),
    "data that is not there": ([*SUITE, "--data", "nowhere"], "nowhere"),
    "data that is a file": ([*SUITE, "--data", "small/config.json"], "no folder"),
    "an unknown model of the paper": ([*SUITE, "--paper_row", "Ministral 9"], "paper_row=Ministral 9.*Ministral 3 8B"),
    "paper rows for others": ([*SUITE, "--paper_row", "a", "b"], "paper_row has 2 names"),
    "a parent without figures": ([*SUITE, "--parent", "parent"], "parent=parent.*evals.json"),
    "parent and teacher": ([*SUITE, "--parent", "parent", "--teacher", "parent"], "give one of them"),
    "data without a suite": (["--model", "small", "--tasks", "cascade_tiny", "--data", "."], "give --suite too"),
    "greedy, without a suite": (
        ["--model", "small", "--tasks", "cascade_tiny", "--suite_temperature", "0"],
        "suite_temperature=0.0.*give --suite too",
    ),
    "a judge without a name": ([*SUITE, "--judge_url", "http://x/v1"], "judge_model"),
    "a cache without a judge": ([*SUITE, "--judge_cache", "x"], "there is no judge"),
    "no samples": ([*SUITE, "--samples", "0"], "samples=0"),
    "greedy samples": ([*SUITE, "--samples", "4", "--suite_temperature", "0"], "all responses are equal"),
    "top_p": ([*SUITE, "--suite_top_p", "1.5"], "suite_top_p=1.5"),
    "no address": (OPENAI, "--base_url"),
    "an address of nothing": ([*SUITE, "--base_url", "http://x/v1"], "for --backend openai"),
    "text behind a server": ([*OPENAI, "--base_url", "u", "--dataset", "x.jsonl"], "dataset=x.jsonl.*--backend hf"),
    "prompts with vllm": (
        [*SUITE, "--backend", "vllm", "--prompts", "x.jsonl", "--reward", "exact_match"],
        "prompts=x.jsonl.*--backend hf",
    ),
    "tasks with vllm": ([*SUITE, "--backend", "vllm", "--tasks", "cascade_tiny"], "tasks=.*--backend hf"),
    "two served models": (
        ["--model", "small", "tiny", "--suite", "tiny", "--backend", "openai", "--base_url", "u"],
        "one --model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(case, here, monkeypatch):
    argv, message = BAD[case]
    monkeypatch.setattr("hf_cascade.evaluate.backends.opening.open_backend", None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(*argv)
    assert not (here / "out").exists()


def test_a_suite_in_yaml_is_a_list():
    with pytest.raises(ValueError, match=r"suite: \[tiny\]"):
        EvaluateArguments(model=["m"], output_dir="out", suite="tiny")
    with pytest.raises(ValueError, match="backend=jax: allowed are hf, vllm, openai"):
        EvaluateArguments(model=["m"], output_dir="out", suite=["tiny"], backend="jax")


def test_what_counts_as_nothing():
    row = {"status": figures.NOT_RUN}
    results = {"suites": [{}], "heldout": None, "tasks": [], "comparison": None}
    results["models"] = [{"suites": {"a": {"rows": {"A": row}}}}, {"suites": {}}]
    assert nothing_ran(results) and not nothing_ran({**results, "heldout": {"bytes": 1}})
    assert not nothing_ran({**results, "suites": []})
    row["status"] = figures.RUN
    assert not nothing_ran(results)


def test_the_tiny_recipe_measures_the_tiny_suite():
    text = assets.find("recipes/tiny/evaluate.yaml").read_text()
    assert "suite: [tiny]" in text and "tasks:" not in text
