"""MathVista: the dataset's prompt, and verdicts by type equal to the benchmark's own comparison."""

import base64
import json

import pytest
from PIL import Image

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import mathvista
from hf_cascade.evaluate.benchmarks.data import MissingData
from hf_cascade.evaluate.conformance.prove import prove
from tests.growth import check_growth, repeated


@pytest.fixture
def docs(monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(assets.find("evals/rows")))
    return mathvista.load("AI4Math/MathVista", "testmini", version=1.0)["test"]


def row(answer: str, kind: str, choices: list | None = None, precision: float | None = None, **columns) -> dict:
    asked = mathvista.CHOICE if choices else "free_form"
    doc = {"pid": "1", "question": "q", "unit": None, "answer": answer, "question_type": asked, "answer_type": kind}
    return {**doc, "choices": choices, "precision": precision, **columns}


def official(doc: dict, extraction: str) -> bool:
    """The rule of evaluation/calculate_score.py in words of our own, for what GPT-4 would have extracted."""
    try:
        if doc["answer_type"] == "integer":
            extraction = str(int(float(extraction)))
        elif doc["answer_type"] == "float":
            extraction = str(round(float(extraction), int(doc["precision"])))
    except ValueError:
        return False
    return extraction == doc["answer"]


@pytest.mark.parametrize("frame", ("{}", "The answer is {}.", "So x = {}", "**Final answer:** {}", r"\boxed{{{}}}"))
@pytest.mark.parametrize(
    "doc, given, correct",
    [
        (row("1200", "integer"), "1200", 1),
        (row("1200", "integer"), "1200.0", 1),
        (row("1200", "integer"), "120", 0),
        (row("-4", "integer"), "-4", 1),
        (row("4", "integer"), "-4", 0),
        (row("1.2", "float", precision=1.0), "1.2", 1),
        (row("1.2", "float", precision=1.0), "1.23", 1),
        (row("1.2", "float", precision=1.0), "1.17", 1),
        (row("1.2", "float", precision=1.0), "1.3", 0),
        (row("1.2", "float", precision=1.0), "1", 0),
        (row("3.65", "float", precision=2.0), "3.654", 1),
        (row("3.65", "float", precision=2.0), "3.6", 0),
        (row("[0, 2, 0]", "list"), "[0, 2, 0]", 1),
        (row("[0, 2, 0]", "list"), "[0, 0, 2]", 0),
    ],
)
def test_verdicts_equal_the_official_comparison(frame, doc, given, correct):
    assert mathvista.judge(doc, frame.format(given)).correct == correct
    assert official(doc, given) == bool(correct)


@pytest.mark.parametrize(
    "doc, response",
    [
        (row("1200", "integer"), "There are 1,200 people."),
        (row("7", "integer"), "There are seven of them in all."),
        (row("5", "integer", unit="$"), "She needs $5."),
        (row("0.5", "float", precision=1.0), r"\boxed{\frac{1}{2}}"),
        (row("[1.5, 2]", "list"), "The values are [1.50, 2.0]."),
    ],
)
def test_notations_that_the_official_comparison_does_not_take(doc, response):
    assert mathvista.judge(doc, response).correct == 1


@pytest.mark.parametrize(
    "doc, response",
    [
        (row("4", "integer"), "It is 3 or 4."),
        (row("4", "integer"), "4, 5, 6"),
        (row("4", "integer"), "14"),
        (row("4", "integer"), "4.4"),
        (row("4", "integer"), "Answer: 4\n\nNo, that was wrong. Answer: 5"),
        (row("97", "text", ["97", "102"]), "The angle is 92.5 degrees."),  # the official rule takes the nearest: 97
        (row("quarter", "text", ["quarter", "quarter past"]), "It is quarter past eight."),
        (row("Yes", "text", ["Yes", "No"]), "There are no cars."),
        (row("No", "text", ["Yes", "No"]), "There are no cars."),
        (row("red", "text", ["red", "green"]), "It is red or green."),
        (row("red", "text", ["red", "green"]), "It is not red."),
    ],
)
def test_what_is_not_the_answer(doc, response):
    assert mathvista.judge(doc, response).correct == 0


@pytest.mark.parametrize(
    "options, response",
    [
        (["15", "18"], "Since 15 is greater than 13, the answer is 17."),
        (["15", "18"], r"There are 15 red and 12 blue, so the total is \boxed{27}."),
        (["40", "50", "60"], "The bar for 2015 shows 40, so the answer is 55."),
        (["40", "50", "60"], "The bar for 2015 shows 40, so it is 55."),
        (["15", "18"], "The answer is **17**, as 15 is too small."),
        (["4", "6"], "With 4 more there are seven."),
        (["red", "blue"], "Unlike the red one, the ball is green."),
        (["red", "blue"], "The ball is green, since red balls are larger."),
        (["red", "blue"], "The red one is large, so the answer is green."),
    ],
)
def test_another_answer_is_no_option_that_the_sentence_mentions(options, response):
    for gold in options:
        assert mathvista.judge(row(gold, "text", options), response) == (0.0, None)


def test_options_by_letter_and_by_text():
    doc = row("green", "text", ["red", "green", "dark green"])
    for text in (
        "B",
        "(B)",
        "(B) green",
        "The answer is B.",
        "green",
        "Based on the chart, it would be the green one.",
    ):
        assert mathvista.judge(doc, text) == (1.0, "B"), text
    assert mathvista.judge(doc, "dark green") == (0.0, "C")
    sure = row("Yes", "text", ["Yes", "No"])
    for text, letter in (("Since 5 > 3, yes.", "A"), ("Red: 2. So, no.", "B"), ("There are no more than yes.", None)):
        assert mathvista.judge(sure, text).parsed == letter, text
    letters = row("E", "text", list("ABCDE"))
    assert mathvista.judge(letters, "(E)").correct == 1 and mathvista.judge(letters, "A").correct == 0


def test_a_row_that_cannot_be_judged_has_no_verdict():
    assert mathvista.judge(row("", "integer"), "3").correct is None
    assert mathvista.judge(row("blue", "text", ["red", "green"]), "A").correct is None
    assert "acc" not in mathvista.process_results(row("", "text", ["red"]), ["A"])
    with pytest.raises(ValueError, match="answer_type is 'picture'; known: integer, float, list, text"):
        mathvista.judge(row("x", "picture"), "x")


def test_prompt_is_the_datasets_query(docs):
    """The query of row 5 in the benchmark's README, made from the row's other columns."""
    query = "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
    query += "Question: Find $m\\angle H$\nChoices:\n(A) 97\n(B) 102\n(C) 107\n(D) 122"
    doc = row("97", "text", ["97", "102", "107", "122"], question="Find $m\\angle H$")
    assert mathvista.query_of(doc) == mathvista.query_of({**doc, "query": query}) == query
    assert mathvista.doc_to_text({**doc, "query": "<image> q"}) == "<image>\nimage q\nSolution:"
    unit = row("1000", "integer", question="what is the total volume?", unit="g")
    assert mathvista.query_of(unit).endswith("at the end.\nQuestion: what is the total volume? (Unit: g)")
    for doc in docs:
        assert mathvista.doc_to_text(doc).count("<image>") == len(mathvista.doc_to_image(doc)) == 1
        assert mathvista.query_of({**doc, "query": None}) == doc["query"]


def test_images_by_path_or_base64(tmp_path, monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
    folder = tmp_path / "AI4Math/MathVista"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (5, 4), "red").save(folder / "images/1.png")
    text = base64.b64encode((folder / "images/1.png").read_bytes()).decode()
    for columns in ({"image": "images/1.png"}, {"image": "images/1.jpg", "decoded_image": text}):
        (folder / "testmini.jsonl").write_text(json.dumps(row("3", "integer", **columns)) + "\n")
        (doc,) = mathvista.load("AI4Math/MathVista", "testmini")["test"]
        assert mathvista.doc_to_image(doc)[0].size == (5, 4)
    (folder / "testmini.jsonl").write_text(json.dumps(row("3", "integer", image="images/2.png")) + "\n")
    with pytest.raises(MissingData, match="no image .*images/2.png"):
        mathvista.load("AI4Math/MathVista", "testmini")
    (folder / "testmini.jsonl").write_text(json.dumps(row("3", "integer", image=None)) + "\n")
    with pytest.raises(ValueError, match="no image in the rows 1"):
        mathvista.load("AI4Math/MathVista", "testmini")
    (folder / "testmini.jsonl").write_text('{"pid": "1", "question": "q"}\n')
    with pytest.raises(ValueError, match="no column answer, question_type, answer_type, choices, precision"):
        mathvista.load("AI4Math/MathVista", "testmini")


@pytest.mark.parametrize("part", ("[", "[1, ", "1 or ", "\\boxed{", "\\frac"))
def test_no_response_takes_long(part):
    def judge(text):
        for doc in (row("3", "integer"), row("[3]", "list"), row("red", "text", ["red", "green"])):
            assert mathvista.judge(doc, text).correct == 0

    check_growth(judge, repeated(part), 12_000)


def test_conformance():
    (proved,) = prove(["cascade_mathvista"]).values()
    assert proved["status"] == "green", proved["failed"]
