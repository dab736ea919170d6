"""`hf-cascade evaluate --suite` end to end on a tiny family, and its refusals."""

import json
import os
import shutil
from functools import partial
from types import SimpleNamespace

import pytest

from hf_cascade import assets, companions, manifest
from hf_cascade.evaluate.backends import opening
from hf_cascade.evaluate.benchmarks.data import VARIABLE
from hf_cascade.evaluate.command import main
from hf_cascade.evaluate.config import EvaluateArguments
from hf_cascade.evaluate.suite import figures
from hf_cascade.evaluate.suite.command_part import Suites, nothing_ran

from ..rewards.chat_server import serving
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
    assert evals["companions"] == companions.digests(here / "small") and evals["companions"]["tokenizer"]
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


def test_what_will_not_be_run_is_told_before_any_work(here, monkeypatch, capsys):
    def stop(*_):
        raise SystemExit

    monkeypatch.setattr("hf_cascade.evaluate.conformance.prove.record", stop)
    monkeypatch.setenv(VARIABLE, str(assets.find("evals/rows")))
    with pytest.raises(SystemExit):
        evaluate("--model", "small", "--suite", "table3", "extra")
    told = capsys.readouterr().err
    assert "will not be run: MMMU 2-shot, MathVista: small reads no images" in told
    assert "Retrieval at 256K tokens: small has a window of 1,024 tokens" in told and "MMLU 5-shot" not in told
    monkeypatch.setenv(VARIABLE, str(here / "nowhere"))
    with pytest.raises(FileNotFoundError, match=f"{VARIABLE}=.*nowhere: it is no folder"):
        evaluate("--model", "small", "--suite", "table3")
    with pytest.raises(SystemExit):  # whose rows ship
        evaluate("--model", "small", "--suite", "tiny")


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
        "hf_cascade.evaluate.backends.opening.open_backend",
        lambda *a, **k: opened.append((a, k)) or SimpleNamespace(check_server=lambda: None),
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


def test_ctrl_c_says_how_to_go_on(here, monkeypatch, proved, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    def ended(status):
        raise SystemExit(status)

    monkeypatch.setattr("hf_cascade.evaluate.suite.run.run_suite", interrupted)
    monkeypatch.setattr("os._exit", ended)
    with pytest.raises(SystemExit, match="130"):
        evaluate("--model", "small", "--suite", "tiny")
    assert "stopped. The answers so far are in out/suites; the same command goes on" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_told_before_any_work(here, monkeypatch):
    monkeypatch.setattr("hf_cascade.evaluate.conformance.prove.record", None)
    monkeypatch.setattr(opening, "open_backend", partial(opening.open_backend, retries=0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    flags = ["--model", "org/m", "--suite", "tiny", "--backend", "openai", "--base_url"]
    with serving(lambda body, number: (404, "no model m")) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        with pytest.raises(ValueError, match=f"base_url={url}: org/m at .* does not answer: status 404: no model m"):
            evaluate(*flags, url)
    with pytest.raises(ValueError, match=f"base_url={url}: .* does not answer: .*--served_model_name"):
        evaluate(*flags, url)
    assert not (here / "out").exists()


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
CHATTY = ["--model", "chatty"]
OPENAI = ["--model", "small", "--suite", "tiny", "--backend", "openai"]
BAD = {
    "an unknown suite": (["--model", "small", "--suite", "table9"], "suite=table9.*table2"),
    "a suite twice": (["--model", "small", "--suite", "tiny", "tiny"], "suite: tiny given more than once"),
    "no chat template": (["--model", "small", "--suite", "table5"], "suite table5.*small has none"),
    "a chat template without system prompt": (
        [*CHATTY, "--suite", "table4", "--system_prompt", "Be brief."],
        "system_prompt='Be brief.': .*: .*refuses messages of system, user: no system here. Leave it out",
    ),
    "data that is not there": ([*SUITE, "--data", "nowhere"], "data=nowhere: it is no folder"),
    "data that is a file": ([*SUITE, "--data", "small/config.json"], "no folder"),
    "data without any dataset": (
        ["--model", "small", "--suite", "table3", "--data", "."],
        "can be run.*has no cais/mmlu",
    ),
    "an adapter": (
        ["--model", "adapter", "--suite", "tiny"],
        "adapter is a PEFT adapter of base/model.*merge_and_unload",
    ),
    "an unknown model of the paper": ([*SUITE, "--paper_row", "Ministral 9"], "paper_row=Ministral 9.*Ministral 3 8B"),
    "paper rows for others": ([*SUITE, "--paper_row", "a", "b"], "paper_row has 2 names"),
    "a parent without figures": ([*SUITE, "--parent", "parent"], "parent=parent.*evals.json"),
    "parent and teacher": ([*SUITE, "--parent", "parent", "--teacher", "parent"], "give one of them"),
    "data without a suite": (["--model", "small", "--tasks", "cascade_tiny", "--data", "."], "give --suite too"),
    "greedy, without a suite": (
        ["--model", "small", "--tasks", "cascade_tiny", "--suite_temperature", "0"],
        "suite_temperature=0.0.*give --suite too",
    ),
    "a judge without an address": (
        [*SUITE, "--judge_url", "x", "--judge_model", "j"],
        "'x': give the server's address",
    ),
    "a judge without a name": ([*SUITE, "--judge_url", "http://x/v1"], "judge_model"),
    "a cache without a judge": ([*SUITE, "--judge_cache", "x"], "there is no judge"),
    "no samples": ([*SUITE, "--samples", "0"], "samples=0"),
    "greedy samples": ([*SUITE, "--samples", "4", "--suite_temperature", "0"], "all responses are equal"),
    "top_p": ([*SUITE, "--suite_top_p", "1.5"], "suite_top_p=1.5"),
    "a back end that is not installed": ([*SUITE, "--backend", "vllm"], "backend=vllm: .*pip install vllm"),
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
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    (shutil.copytree(here / "small", here / "chatty") / "chat_template.jinja").write_text(refuses)
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "base/model"}')
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
