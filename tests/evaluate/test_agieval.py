"""AGIEval: the shots, none of which is the row itself; letters against the official rule; one mean over subsets."""

import json

import pytest

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import agieval
from hf_cascade.evaluate.benchmarks.data import VARIABLE, MissingData
from hf_cascade.evaluate.conformance.knowing import Knowing, Responding
from hf_cascade.evaluate.conformance.prove import GREEN, prove
from hf_cascade.evaluate.harness import open_tasks, quiet

REPO = "hails/agieval-sat-math"


def row(number: int, gold: list[int], options: int = 4) -> dict:
    choices = [f"({letter}){number + place}" for place, letter in enumerate("ABCDEFG"[:options])]
    query = f"Q: What is {number}? Answer Choices: {' '.join(choices)}\nA: Among A through D, the answer is"
    return {"query": query, "choices": choices, "gold": gold}


def load(tmp_path, monkeypatch, rows: list[dict], repo: str = REPO, loader=agieval.load) -> list[dict]:
    folder = tmp_path / repo
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return list(loader(repo, "test")["test"])


def test_a_prompt_word_for_word(tmp_path, monkeypatch):
    rows = [row(number, [number % 4]) for number in range(8)]
    docs = load(tmp_path, monkeypatch, rows)
    solved = [f"{one['query']} {'ABCD'[one['gold'][0]]}\n\n" for one in rows]
    assert docs[0]["context"] == "".join(solved[1:6]) + rows[0]["query"]
    assert docs[3]["context"] == "".join([*solved[:3], *solved[4:6]]) + rows[3]["query"]
    assert docs[7]["context"] == "".join(solved[:5]) + rows[7]["query"]
    assert docs[7]["letters"] == [" A", " B", " C", " D"] and docs[7]["target"] == 3


def test_no_row_is_its_own_shot_nor_a_copy_of_it(tmp_path, monkeypatch):
    rows = [row(number, [0]) for number in range(9)]
    rows[2] = {**rows[0], "query": rows[0]["query"].replace(" ", "  ") + "\n"}  # the same words
    for doc in load(tmp_path, monkeypatch, rows):
        words = " ".join(doc["context"].split())
        assert words.count(" ".join(doc["query"].split())) == 1
        assert words.count("the answer is") == 6 and words.endswith("the answer is")


def test_rows_with_several_right_options_are_asked_but_are_no_shots(tmp_path, monkeypatch):
    docs = load(tmp_path, monkeypatch, [row(0, [1, 3]), *(row(number, [2]) for number in range(1, 8))])
    assert all(docs[0]["query"] not in doc["context"] for doc in docs[1:])
    for place, expected in enumerate((0.0, 1.0, 0.0, 1.0)):
        results = [(-2.0 + (place == other), False) for other in range(4)]
        assert agieval.process(docs[0], results) == {"acc": expected}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"query": "Q", "choices": ["(A)1", "(B)2"]}, "no column gold"),
        (row(0, [4]), r"row 0: gold \[4\] of 4 options"),
        (row(0, []), r"row 0: gold \[\] of 4 options"),
        (row(0, [0], options=1), "of 1 options"),
    ],
)
def test_rows_of_another_schema_are_refused(tmp_path, monkeypatch, bad, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, monkeypatch, [bad])


def test_too_few_rows_are_told_and_none_is_no_data(tmp_path, monkeypatch, caplog):
    docs = load(tmp_path, monkeypatch, [row(0, [0]), row(1, [1])])
    assert docs[0]["context"].count("the answer is") == 2
    assert f"{REPO}: shots are 1 in place of 5, as it has 2 rows" in caplog.text
    with pytest.raises(MissingData, match="has no rows"):
        agieval.with_shots([], [], REPO)


def test_maths_goes_on_after_the_query(tmp_path, monkeypatch):
    rows = [{"query": f"Q: What is {number} + 1?\nA: The answer is", "answer": str(number + 1)} for number in range(7)]
    docs = load(tmp_path, monkeypatch, rows, "hails/agieval-math", agieval.load_math)
    assert docs[6]["context"].startswith(
        "Q: What is 0 + 1?\nA: The answer is 1\n\nQ: What is 1 + 1?\nA: The answer is 2"
    )
    assert docs[6]["context"].endswith("\n\nQ: What is 6 + 1?\nA: The answer is")
    for response, right in {
        " 7": 1, " 7.\n\n": 1, " $7$, since 6 + 1 = 7": 1, " \\boxed{7}": 1, "we add.\n\nThe answer is $7$.": 1,
        " 8": 0, " 8\n\n7": 0, " 7 or 8": 0, " 17": 0, "": 0, " 7 and we are done": 1, " the value $7$.": 1,
        " 7.\nSo the next is 8.": 1, " 8.\nSo it was 7.": 0, " [THINK]\\boxed{7}": 0, " [THINK]8[/THINK]7": 1,
    }.items():  # fmt: skip
        assert agieval.process_math(docs[6], [[response]])["acc"] == right, response


def test_the_group_is_the_mean_of_its_subsets_whatever_their_sizes(tmp_path, monkeypatch):
    """Sizes differ, and only MATH is right: a mean over rows would be another number."""
    from lm_eval import evaluate

    monkeypatch.setenv(VARIABLE, str(assets.find("evals/rows")))
    loaded = open_tasks(["cascade_agieval"], "evals/tasks").load(["cascade_agieval"])
    assert set(loaded["tasks"]) == {name for name in agieval.CASES} and len(loaded["tasks"]) == 9

    class OnlyMaths(Responding):
        def loglikelihood(self, requests):
            return Knowing(False, lambda doc: "ABCDEFG"[doc["gold"][0]]).loglikelihood(requests)

    with quiet():
        results = evaluate(OnlyMaths(lambda doc, _: f" {doc['answer']}"), loaded, bootstrap_iters=0)
    assert results["results"]["cascade_agieval_math"]["acc,none"] == 1.0
    assert results["groups"]["cascade_agieval"]["acc,none"] == pytest.approx(1 / 9)
    chances = [task.config.metadata["chance"] for task in loaded["tasks"].values()]
    assert sum(chances) / 9 == pytest.approx(0.2)  # what the group's file says


def test_the_tasks_conform():
    proved = prove(list(agieval.CASES))
    assert {name: task["failed"] for name, task in proved.items() if task["status"] != GREEN} == {}
    assert len(proved) == 9 and proved["cascade_agieval_math"]["checks"]["real responses"][1] >= 16
