"""GPQA Diamond: prompts word for word, options in one order for ever, and rows that are not as they should be."""

import json
import math
import os
import random
import subprocess
import sys

import pytest

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import gpqa
from hf_cascade.evaluate.benchmarks.data import VARIABLE
from hf_cascade.evaluate.conformance.knowing import Responding
from hf_cascade.evaluate.conformance.prove import GREEN, prove
from hf_cascade.evaluate.harness import open_tasks, quiet

REPO = {"repo": "Idavidrein/gpqa", "config": "gpqa_diamond", "split": "train"}
ROW = {"Question": " What is 1 + 1? \n", "Correct Answer": "2\n", "Incorrect Answer 1": " 1"}
ROW |= {"Incorrect Answer 2": "3 ", "Incorrect Answer 3": "11"}


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    monkeypatch.setenv(VARIABLE, str(assets.find("evals/rows")))


def load(tmp_path, monkeypatch, rows: list[dict]) -> list[dict]:
    folder = tmp_path / REPO["repo"] / REPO["config"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return list(gpqa.load(**REPO)["test"])


def rows_here() -> list[dict]:
    text = (assets.find("evals/rows/Idavidrein/gpqa/gpqa_diamond/train.jsonl")).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def orders(docs: list[dict]) -> dict[str, tuple]:
    return {doc["Question"]: (doc["options"], doc["right"]) for doc in docs}


def test_the_prompts_are_word_for_word(tmp_path, monkeypatch):
    (doc,) = load(tmp_path, monkeypatch, [ROW])
    assert doc["options"] == ["11", "3", "1", "2"] and doc["right"] == ["D"] and doc["target"] == 3  # by sha256sum
    assert gpqa.prompt(doc) == "What is 1 + 1?\nA. 11\nB. 3\nC. 1\nD. 2\nAnswer:"
    assert gpqa.prompt_cot(doc) == (
        "Answer the following multiple choice question. The last line of your response should be of the following "
        "format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before answering."
        "\n\nWhat is 1 + 1?\n\nA) 11\nB) 3\nC) 1\nD) 2"
    )


def test_no_order_of_rows_or_columns_and_no_space_changes_the_options(tmp_path, monkeypatch):
    rows = rows_here()
    first = orders(load(tmp_path, monkeypatch, rows))
    shuffled = random.Random(3).sample(rows, len(rows))
    assert orders(load(tmp_path, monkeypatch, shuffled)) == first
    turned = [
        dict(zip(row, row.values(), strict=True))
        | {f"Incorrect Answer {place + 1}": row[f"Incorrect Answer {(place + 1) % 3 + 1}"] for place in range(3)}
        for row in rows
    ]
    assert orders(load(tmp_path, monkeypatch, turned)) == first
    spaced = [{name: f"  {text}\n" for name, text in row.items()} for row in rows]
    assert list(orders(load(tmp_path, monkeypatch, spaced)).values()) == list(first.values())
    assert orders(load(tmp_path, monkeypatch, rows[:3])) == orders(load(tmp_path, monkeypatch, rows)[:3])


def test_a_second_process_sees_the_same_options():
    program = (
        "import json, random; random.seed(5); from hf_cascade.evaluate.benchmarks import gpqa;"
        f"print(json.dumps([[doc['options'], doc['right']] for doc in gpqa.load(**{REPO!r})['test']]))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    output = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    here = [[doc["options"], doc["right"]] for doc in gpqa.load(**REPO)["test"]]
    assert json.loads(output.stdout.splitlines()[-1]) == here


def test_no_place_is_likelier_to_be_right():
    options = ["the right one", "x", "y", "z"]
    places = [gpqa.ordered(f"Question {number}?", options).index("the right one") for number in range(4000)]
    for place in range(4):
        assert abs(places.count(place) / 4000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)


def test_an_option_that_is_there_twice_is_right_twice(tmp_path, monkeypatch):
    (doc,) = load(tmp_path, monkeypatch, [ROW | {"Incorrect Answer 1": " 2 "}])
    assert doc["options"] == ["11", "3", "2", "2"] and doc["right"] == ["C", "D"]
    for place, expected in enumerate((0.0, 0.0, 1.0, 1.0)):
        assert gpqa.process(doc, [(-1.0 - (place != other), False) for other in range(4)]) == {"acc": expected}
        assert gpqa.process_cot(doc, [[f"Answer: {'ABCD'[place]}"]])["avg_at_k"] == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({name: text for name, text in ROW.items() if name != "Incorrect Answer 2"}, "no column Incorrect Answer 2"),
        (ROW | {"Incorrect Answer 2": " "}, "row 0: 'Incorrect Answer 2' is ' ': give text"),
        (ROW | {"Question": None}, "row 0: 'Question' is None: give text"),
    ],
)
def test_rows_of_another_schema_are_refused(tmp_path, monkeypatch, row, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, monkeypatch, [row])


def test_all_samples_of_a_question_count():
    from lm_eval import evaluate

    task = open_tasks(["cascade_gpqa_diamond_cot"], "evals/tasks").load(["cascade_gpqa_diamond_cot"])["tasks"]
    said = ["Answer: {right}"] * 9 + ["Answer: {wrong}"] * 4 + ["<think>Answer: {right}", "I cannot say.", ""]

    def respond(doc: dict, sample: int) -> str:
        right = "ABCD"[doc["target"]]
        return said[sample].format(right=right, wrong="ABCD".replace(right, "")[0])

    with quiet():
        results = evaluate(Responding(respond), {"tasks": dict(task)}, bootstrap_iters=0)["results"]
    found = results["cascade_gpqa_diamond_cot"]
    assert found["avg_at_k,none"] == 9 / 16
    assert found["pass_at_k,none"] == found["maj_at_k,none"] == 1.0
    assert found["unfinished,none"] == 1 / 16 and found["unparsed,none"] == 2 / 16
    assert found["within_problem,none"] == pytest.approx(math.sqrt(9 / 16 * 7 / 16 / (10 * 16)))


def test_the_tasks_conform():
    proved = prove(["cascade_gpqa_diamond", "cascade_gpqa_diamond_cot"])
    assert {name: task["failed"] for name, task in proved.items() if task["status"] != GREEN} == {}
    assert proved["cascade_gpqa_diamond_cot"]["checks"]["real responses"][1] >= 20
