"""Conformance finds what is wrong with a scorer: each test breaks a task in one way that stock tasks are broken in."""

import json
import re
import textwrap

import pytest

from hf_cascade import assets
from hf_cascade.cli import main
from hf_cascade.evaluate.conformance import check
from hf_cascade.evaluate.conformance.case import Case
from hf_cascade.evaluate.conformance.cases import all_cases
from hf_cascade.evaluate.conformance.check import Prover
from hf_cascade.evaluate.conformance.command import table
from hf_cascade.evaluate.conformance.judging import serve
from hf_cascade.evaluate.conformance.prove import is_green, prove, record, scorers_sha256
from hf_cascade.evaluate.harness import open_tasks, quiet
from hf_cascade.rewards.endpoint import ChatEndpoint, choices_of

ROWS = [{"question": f"Which one is {number}?", "answer": "ABCD"[number % 4]} for number in range(8)]
CASE = Case(
    right=lambda doc: [f"Answer: {doc['answer']}", f"A careful look says it.\nAnswer: **{doc['answer']}**"],
    wrong=lambda doc: [f"Answer: {other(doc)}", "Answer: A or B or C or D", f"not {doc['answer']}"],
)
SOUND = """
import re
from datasets import Dataset
from hf_cascade.evaluate.benchmarks.sampled import Verdict, once, several

def rows(**metadata):
    return {"test": Dataset.from_list(ROWS)}

def verdict(doc, answer):
    found = re.findall(r"Answer: \\**([A-D])\\**$", answer)
    return Verdict(float(found[-1:] == [doc["answer"]]), found[-1] if found else None)

def score(doc, results):
    return once(results, lambda answer: verdict(doc, answer))

def sampled(doc, results):
    found = several(results, lambda answer: verdict(doc, answer))
    return {"acc": found["avg_at_k"], "unparsed": found["unparsed"], "unfinished": found["unfinished"]}
"""
TASK = """
task: tried
custom_dataset: !function scorer.rows
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
filter_list: [{name: none, filter: [{function: keep_all}]}]
process_results: !function scorer.score
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: unparsed, aggregation: mean, higher_is_better: false}
  - {metric: unfinished, aggregation: mean, higher_is_better: false}
metadata: {version: 1.0}
"""


def other(doc: dict) -> str:
    return "ABCD"["ABCD".index(doc["answer"]) - 1]


def failed(tmp_path, monkeypatch, scorer: str = SOUND, task: str = TASK, case: Case = CASE) -> set[str]:
    """Names of the checks that fail for a task of these files."""
    (tmp_path / "scorer.py").write_text(f"ROWS = {ROWS!r}\n" + textwrap.dedent(scorer))
    (tmp_path / "tried.yaml").write_text(task)
    real = tmp_path / check.REAL
    real.mkdir(parents=True, exist_ok=True)
    lines = [{"doc": ROWS[0], "response": f"Answer: {letter}", "correct": int(letter == "A")} for letter in "ABA"]
    text = "".join(json.dumps({**line, "source": "a test"}) + "\n" for line in lines)
    (real / "tried.jsonl").write_text(text)
    monkeypatch.setattr(check.assets, "root", lambda: tmp_path)
    with quiet():
        findings = Prover("tried", case, open_tasks(["tried"], str(tmp_path))).findings()
    assert len(findings) > 10
    return {finding.check for finding in findings if not finding.passed}


def test_a_sound_scorer_is_green(tmp_path, monkeypatch):
    assert failed(tmp_path, monkeypatch) == set()
    assert failed(tmp_path, monkeypatch, task=TASK.replace("scorer.score", "scorer.sampled") + "repeats: 3\n") == set()


FIND, EQUAL = 'r"Answer: \\**([A-D])\\**$"', 'found[-1:] == [doc["answer"]]'


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (FIND, 'r"([A-D])"', {"deceptions", "hostile"}),
        (FIND, 'r"Answer: ([A-D])$"', {"formats"}),
        (EQUAL, 'doc["answer"] in answer', {"anti-oracle", "deceptions", "hostile"}),
        ("return once(results, lambda", "return once([strip(results[0][0])], lambda", {"thinking"}),
        ("Dataset.from_list(ROWS)", "Dataset.from_list(ROWS).shuffle()", {"stable"}),
        (EQUAL, 'found[-1:] == ["A"]', {"oracle", "anti-oracle"}),
        (EQUAL, 'found[-1:] != [doc["answer"]]', {"oracle", "anti-oracle", "real responses", "hostile"}),
    ],
    ids=["any letter", "one format", "anywhere", "thinking counts", "shuffled", "wrong gold", "upside down"],
)
def test_a_broken_scorer_is_found(before, after, found, tmp_path, monkeypatch):
    assert before in SOUND
    strip = '\n\ndef strip(text):\n    return re.sub(r"</?think>|\\[/?THINK\\]", "", text)\n'
    assert found <= failed(tmp_path, monkeypatch, SOUND.replace(before, after) + strip)


def test_samples_that_do_not_reach_the_scorer_are_found(tmp_path, monkeypatch):
    first = TASK.replace("scorer.score", "scorer.sampled").replace("keep_all", "take_first") + "repeats: 4\n"
    assert failed(tmp_path, monkeypatch, task=first) == {"samples"}


def test_a_likelihood_task_with_the_wrong_gold_is_found(tmp_path, monkeypatch):
    task = """
task: tried
custom_dataset: !function scorer.rows
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: GOLD
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
    (tmp_path / "scorer.py").write_text(f"ROWS = {ROWS!r}\n" + SOUND)
    case = Case(gold=lambda doc: doc["answer"])
    for gold, found in (("\"{{ 'ABCD'.index(answer) }}\"", set()), ("0", {"oracle", "anti-oracle"})):
        (tmp_path / "tried.yaml").write_text(task.replace("GOLD", gold))
        with quiet():
            findings = Prover("tried", case, open_tasks(["tried"], str(tmp_path))).findings()
        assert {finding.check for finding in findings if not finding.passed} == found
        assert "positions" in {finding.check for finding in findings}


@pytest.mark.parametrize("name", sorted(all_cases()))
def test_every_task_of_ours_is_green(name):
    proved = prove([name])
    if proved[name]["status"] == "not run":
        pytest.skip(proved[name]["reason"])
    assert not proved[name]["failed"], "\n".join(proved[name]["failed"][:10])
    assert is_green(proved) and proved[name]["checks"]["oracle"] == [1, 1]
    shown = assets.find("evals/README.md").read_text().partition("<!-- conformance -->")[2]
    (row,) = [line for line in shown.splitlines() if line.startswith(f"| `{name}` |")]
    assert re.findall(r"\d+/\d+|green", row) == re.findall(r"\d+/\d+|green", table(proved).splitlines()[2])


def test_every_task_of_ours_has_a_case():
    tasks = {name for name in open_tasks([], "evals/tasks").all_subtasks if name.startswith("cascade_")}
    assert tasks == set(all_cases()) and len(tasks) > 30


def test_the_command_prints_the_table_and_fails_for_red_tasks(tmp_path, capsys, monkeypatch):
    arguments = ["evaluate", "--conformance", "--tasks", "cascade_tiny_copy", "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 0
    record = json.loads((tmp_path / "out" / "conformance.json").read_text())
    assert record["scorers_sha256"] == scorers_sha256()
    assert table(record["tasks"]) in capsys.readouterr().out
    wrong = Case(gold=lambda doc: "something else")
    monkeypatch.setattr("hf_cascade.evaluate.conformance.prove.all_cases", lambda: {"cascade_tiny_copy": wrong})
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "| red |" in out and "0 of 1 tasks are green; not: cascade_tiny_copy" in out


def test_a_record_is_kept_for_the_scorers_that_it_proves(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "hf_cascade.evaluate.conformance.prove.prove",
        lambda tasks, report: asked.extend(tasks) or {task: {"status": "green", "reason": None} for task in tasks},
    )
    first = record(["a", "b"])
    assert first == {
        "scorers_sha256": scorers_sha256(),
        "tasks": dict.fromkeys("ab", {"status": "green", "reason": None}),
    }
    assert record(["b", "c"], first)["tasks"].keys() == {"b", "c"} and asked == ["a", "b", "c"]
    record(["a"], {**first, "scorers_sha256": "of other scorers"})
    assert asked == ["a", "b", "c", "a"]


def test_nothing_is_measured_with_a_wrong_scorer(monkeypatch, tmp_path, capsys):
    cases = all_cases()
    cases["cascade_tiny_continuation"] = Case(gold=lambda doc: "something else", metric="acc_bytes")
    monkeypatch.setattr("hf_cascade.evaluate.conformance.prove.all_cases", lambda: cases)
    arguments = ["--model", "recipes/tiny/parent", "--suite", "tiny", "--output_dir", str(tmp_path / "out")]
    assert main(["evaluate", *arguments]) == 2
    assert "fail their conformance" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_task_without_a_case_is_refused(capsys):
    assert main(["evaluate", "--conformance", "--tasks", "hellaswag"]) == 2
    assert "nothing proves their scorers" in capsys.readouterr().err


def test_the_judge_is_a_real_server():
    with serve(lambda body: body["messages"][0]["content"].upper()) as url:
        endpoint = ChatEndpoint(url, "any")
        bodies = [{"messages": [{"role": "user", "content": text}]} for text in ("yes", "no")]
        assert endpoint.ask(bodies, lambda answer: choices_of(answer)[0]["message"]["content"]) == ["YES", "NO"]


def test_a_case_is_of_one_kind():
    with pytest.raises(ValueError, match="either gold"):
        Case()


def test_the_readme_shows_the_stock_scorers_figures():
    readme = assets.find("evals/README.md").read_text().partition("<!-- stock -->")[2].partition("<!-- /stock -->")[0]
    measured = assets.find("benchmarks/results/stock_scorers.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    assert len(rows) > 15 and all(row in measured for row in rows)
