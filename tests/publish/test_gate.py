"""The gate: a folder that passes, every line failing alone, and what an override lifts."""

import json
import random

import pytest
from safetensors.numpy import load_file, save_file

from hf_cascade import manifest
from hf_cascade.publish.gate import decide
from hf_cascade.publish.targets import Targets
from hf_cascade.publish.verdict import Decision
from tests.publish import finished
from tests.publish.finished import judged, record, tiny_tasks
from tests.publish.gate_lines import (
    INSTRUCT,
    REASONING,
    TINY,
    change,
    failed,
    only,
    table4,
    table5,
)

# A folder that passes


def test_a_whole_folder_passes(folder):
    decision = decide(folder, TINY)
    assert decision.passed and not decision.failed and len(decision.lines) == 12
    text = decision.text()
    assert "GATE PASSED: 12 of 12 lines hold." in text and "mend" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert decision.as_dict()["passed"] is True and decision.as_dict()["override"] is None


def test_suites_with_samples_and_judges_pass(folder, of_the_papers_size):
    record(folder, "reasoning", table5())
    assert not failed(folder, REASONING)
    assert len([line for line in decide(folder, REASONING).lines if line.name.endswith("the paper's")]) == 6
    record(folder, "instruct", table4())
    assert not failed(folder, INSTRUCT)


# The folder itself


def test_any_changed_byte_of_the_weights_closes_the_gate(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in random.Random(0).sample(range(len(whole)), 25):
        broken = bytearray(whole)
        broken[place] ^= 1 << random.Random(place).randrange(8)
        path.write_bytes(broken)
        decision = decide(folder, TINY)
        assert not decision.passed
        if place >= start:
            assert "evaluation is of these weights" in [line.name for line in decision.failed]
    path.write_bytes(whole)
    assert decide(folder, TINY).passed


def test_changed_config(folder):
    change(folder, "config.json", rms_norm_eps=1e-3)
    only(folder, "evaluation is of these weights", "measured", "and the folder has", "hf-cascade evaluate --model")


def test_weights_that_are_not_finite(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    record(folder)
    output = json.loads((folder / "cascade.json").read_text())["output"]
    change(folder, "cascade.json", output=manifest.describe(folder, output["num_parameters"]))
    only(folder, "weights are finite", "model.norm.weight (model.safetensors)")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": None, "run": "evaluate"}, "is of 'evaluate', which makes no model"),
        ({"output": {"hidden_size": 99}}, "hidden_size is 16, recorded 99"),
        ({"schema": 9}, "has schema 9"),
        ({"output": {"bytes": 1}}, "bytes is"),
    ],
)
def test_runs_that_are_not_complete(folder, changes, words):
    if changes.get("output"):
        changes["output"] = {**json.loads((folder / "cascade.json").read_text())["output"], **changes["output"]}
    change(folder, "cascade.json", **changes)
    lines = failed(folder, Targets(suites=("tiny",), retention=TINY.retention, contamination=False))
    assert list(lines) == ["run is complete"] and words in lines["run is complete"].figure


def test_no_manifest_and_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    lines = failed(folder)
    assert list(lines) == ["run is complete", "tokenizer and templates as measured"]
    assert "no tokenizer" in lines["run is complete"].figure
    (folder / "cascade.json").unlink()
    lines = failed(folder)
    assert list(lines) == ["run is complete", "tokenizer and templates as measured", "contamination is reported"]
    assert "has not finished" in lines["run is complete"].figure
    assert "for a model of other code, hf_cascade.manifest.write" in lines["run is complete"].remedy


def test_torn_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    names = ["files are safe", "run is complete", "weights are finite", "evaluation is of these weights"]
    assert list(failed(folder)) == names


def test_no_folder(tmp_path):
    assert list(failed(tmp_path / "none")) == ["files are safe"]
    assert not decide(tmp_path / "none", TINY, "because").passed


# The evaluation


@pytest.mark.parametrize(("text", "words"), [(None, "no evals.json"), ("{", "is not JSON"), ("[]", "no JSON object")])
def test_no_evaluation(folder, text, words):
    (folder / "evals.json").unlink()
    if text is not None:
        (folder / "evals.json").write_text(text)
    lines = failed(folder)
    assert words in lines.pop("evaluation is of these weights").figure
    assert all(name == "files are safe" for name in lines)  # of what is no JSON


def test_an_evaluation_without_suites(folder):
    record(folder, weights_sha256=None, suites={})
    lines = failed(folder, Targets(contamination=False))
    assert list(lines) == ["evaluation is of these weights", "suites were run"]
    assert "no row was run" in lines["suites were run"].figure


@pytest.mark.parametrize(
    ("conformance", "words"),
    [
        (None, ["no conformance", "hf-cascade evaluate --conformance --tasks cascade_tiny_bits"]),
        ({"cascade_tiny_bits": {"status": "green"}}, ["cascade_tiny_continuation: not run"]),
        ({"cascade_tiny_bits": {"status": "red"}, "cascade_tiny_continuation": {"status": "green"}}, ["bits: red"]),
    ],
)
def test_scorers_that_are_not_proved(folder, conformance, words):
    told = conformance and {"scorers_sha256": finished.scorers(), "tasks": conformance}
    change(folder, "evals.json", conformance=told)
    only(folder, "scorers are proved", *words)


def test_scorers_that_have_changed_since(folder):
    tasks = {name: {"status": "green", "reason": None} for name in tiny_tasks()}
    change(folder, "evals.json", conformance={"scorers_sha256": "0" * 64, "tasks": tasks})
    only(folder, "scorers are proved", "have changed since")


def test_rows_that_were_not_run(folder):
    missing = {**tiny_tasks(), "cascade_tiny_bits": {"status": "not run", "reason": "no rows here"}}
    record(folder, tasks=missing)
    lines = failed(folder)
    assert list(lines) == ["suites were run", "bits per byte: of the parent's"]
    assert "bits per byte (no rows here)" in lines["suites were run"].figure
    retention = {"perplexity": 0.8, "continuation": 0.8}
    optional = Targets(suites=("tiny",), optional=["bits per byte"], retention=retention)
    assert not failed(folder, optional)
    (ran,) = (line for line in decide(folder, optional).lines if line.name == "suites were run")
    assert "not run: bits per byte (no rows here)" in ran.figure
    assert not failed(folder, Targets(retention=retention))  # no suite is required: it is only told
    only(folder, "suites were run", "suite table5 was not run", targets=Targets(suites=("table5",), retention={}))


def test_a_part_of_a_set(folder):
    tasks = tiny_tasks()
    tasks["cascade_tiny_bits"] |= {"rows": 8, "samples": 8}
    record(folder, tasks=tasks)
    only(folder, "sets are whole", "bits per byte: figures of 8 of 100 rows", "without --limit")
    tasks["cascade_tiny_bits"] |= {"rows": 100, "rows_full": None}
    record(folder, tasks=tasks)
    only(folder, "sets are whole", "not known how many rows")
    entry = {"rows": 12, "full_rows": 14042, "sha256": "0" * 64}
    tasks["cascade_tiny_bits"] |= {"rows": 12, "rows_full": 12, "data": {"org/set/test": entry}}
    record(folder, tasks=tasks)
    only(folder, "sets are whole", "org/set test: 12 of 14,042 rows", "--data")


def test_a_part_of_a_set_that_no_target_requires(folder, of_the_papers_size):
    other = record(folder, "table5", table5(rows=8, samples=128))["suites"]
    evals = record(folder, "tiny")
    change(folder, "evals.json", suites={**evals["suites"], **other})
    lines = failed(folder, Targets(suites=("tiny",), retention=TINY.retention, paper=False))
    assert "sets are whole" not in lines and "scorers are proved" in lines  # the card says the first


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"samples": 479}, "samples are all there", ["cascade_aime24: 479 of 480", "asks only what is missing"]),
        ({"distinct": 0.0625}, "samples are distinct", ["cascade_aime24: 6.2%", "at least 90.0%", "seed"]),
        ({"distinct": None}, "samples are distinct", ["not counted"]),
        ({"distinct": float("nan")}, "samples are distinct", ["nan%"]),
        ({"unparsed": 0.03}, "answers are read", ["cascade_aime24: 3.0%", "at most 2.0%"]),
        ({"truncated": None}, "unfinished and cut off", ["truncated not counted in cascade_aime24"]),
        ({"unfinished": None}, "unfinished and cut off", ["unfinished not counted"]),
        ({"unfinished": float("nan")}, "unfinished and cut off", ["unfinished not counted"]),
        ({"unparsed": float("nan")}, "answers are read", ["cascade_aime24: nan%"]),
    ],
)
def test_samples(folder, of_the_papers_size, changes, name, words):
    record(folder, "reasoning", table5(**changes))
    only(folder, name, *words, targets=REASONING)


def test_unfinished_and_truncated_are_shown_and_limited_only_where_asked(folder, of_the_papers_size):
    record(folder, "reasoning", table5(unfinished=0.2, truncated=0.1))
    assert not failed(folder, REASONING)
    (line,) = (line for line in decide(folder, REASONING).lines if line.name == "unfinished and cut off")
    assert line.figure == "at most unfinished 20.0% (cascade_aime24), truncated 10.0% (cascade_aime24)"
    strict = Targets(suites=("reasoning",), unfinished=0.1)
    only(folder, "unfinished and cut off", "unfinished 20.0%", "at most 10.0%", targets=strict)
    strict = Targets(suites=("reasoning",), truncated=0.05)
    only(folder, "unfinished and cut off", "truncated 10.0%", targets=strict)


@pytest.mark.parametrize(
    ("arena", "name", "words"),
    [
        (judged(0.4, "win_rate", failures=0.02, agreement=0.9), "judge answers", ["arena_hard: 2.0%", "at most 1.0%"]),
        (judged(0.4, "win_rate", agreement=0.6), "judge agrees with itself", ["60.0%", "at least 70.0%"]),
        (judged(0.4, "win_rate"), "judge agrees with itself", ["not counted"]),
        (judged(0.4, "win_rate", agreement=0.9, all={"swap_agreement": {"value": 0.9, "stderr": None}}),
         "judge answers", ["arena_hard: not counted"]),
    ],
)  # fmt: skip
def test_judges(folder, arena, name, words):
    record(folder, "instruct", table4(**arena))
    only(folder, name, *words, targets=INSTRUCT)


def test_rows_that_a_judge_failed_on_are_the_judges_line(folder):
    record(folder, "instruct", table4(rows=495, rows_full=500, samples=500))
    assert not failed(folder, INSTRUCT)
    record(folder, "instruct", table4(rows=400, rows_full=500, samples=500))
    only(folder, "sets are whole", "figures of 400 of 500 rows", targets=INSTRUCT)


# Contamination


def test_contamination(folder):
    path = folder / "contamination.json"
    report = json.loads(path.read_text())
    strict = Targets(suites=("tiny",), retention=TINY.retention, contamination={"mostly": 0.005})
    only(folder, "contamination is reported", "1 of 100 rows mostly", "at most 0.50%", targets=strict)
    change(folder, "contamination.json", text=[])
    only(folder, "contamination is reported", "not about text.jsonl, train", "hf-cascade contamination --model")
    path.write_text("{}")
    only(folder, "contamination is reported", "cannot be used")
    path.unlink()
    only(folder, "contamination is reported", "no contamination.json", "--suite tiny")
    assert not failed(folder, Targets(suites=("tiny",), retention=TINY.retention, contamination=False))
    entry = {"rows": 100, "full_rows": 100, "sha256": "0" * 64}
    tasks = tiny_tasks()
    tasks["cascade_tiny_bits"]["data"] = {"org/set/test": entry}
    record(folder, tasks=tasks)
    path.write_text(json.dumps(report))
    assert not failed(folder)
    path.write_text(json.dumps({**report, "splits": {"org/set/test": {**report["splits"]["org/set/test"], "rows": 8}}}))
    only(folder, "contamination is reported", "org/set/test (8 of 100 rows)")
    path.write_text(json.dumps({**report, "splits": {}}))
    only(folder, "contamination is reported", "not about org/set/test")


def test_unknown_text_is_told(folder):
    (line,) = (line for line in decide(folder, TINY).lines if line.name == "contamination is reported")
    assert line.figure == "1 of 100 rows mostly in 1 sources; text of org/parent is not known"


# The override


def test_an_override_needs_a_reason(folder):
    for reason in ("", "  "):
        with pytest.raises(ValueError, match="give the reason"):
            decide(folder, TINY, reason)


def test_an_override_is_loud_and_recorded(folder):
    record(folder, retention=79.0)
    decision = decide(folder, TINY, "a demonstration from /home/ann/runs/x")
    assert decision.passed and [line.name for line in decision.failed] == ["held-out perplexity: of the parent's"]
    text = decision.text()
    assert "FORCED  held-out perplexity" in text and "!!! GATE OVERRIDDEN: 1 of 12 lines fail" in text
    assert "!!! Reason given: a demonstration" in text and "The card says so" in text
    told = decision.as_dict()
    assert told["override"] == "a demonstration from x" and told["passed"]
    assert told["overridden"] == ["held-out perplexity: of the parent's"]
    assert str(folder) not in json.dumps(told)  # remedies name the folder; the card has none
    assert [line["passed"] for line in told["lines"]].count(False) == 1


def test_an_override_that_is_not_needed_is_not_recorded(folder):
    decision = decide(folder, TINY, "in case")
    assert decision.passed and decision.as_dict()["override"] is None and "was not needed" in decision.text()


def test_no_override_lifts_what_is_unsafe(folder):
    token = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz12345678"
    (folder / "modeling.py").write_text("print(1)")
    (folder / "chat_template.jinja").write_text(token)
    decision = decide(folder, TINY, "I know what I do")
    assert not decision.passed and "No override lifts: files are safe" in decision.text()
    assert token not in decision.text() and token not in json.dumps(decision.as_dict())
    assert "chat_template.jinja, line 1" in decision.text()


def test_nothing_asked_is_not_passed():
    assert not Decision([]).passed
