"""TriviaQA and NaturalQuestions: the scorers' official rules, formats of models, hedges, and hostile text."""

import json
import random
import re
import string

import pytest
from lm_eval import evaluate

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import closed_book
from hf_cascade.evaluate.benchmarks.closed_book import (
    CASES,
    first_line,
    nq_form,
    score_nq_open,
    score_triviaqa,
    trivia_form,
)
from hf_cascade.evaluate.conformance.knowing import Responding
from hf_cascade.evaluate.harness import open_tasks
from tests.growth import check_growth, repeated

TRIVIA = {
    "question": "Who?",
    "answer": {"value": "Tina Turner", "aliases": ["Tina Turner", "Anna Mae Bullock", "The Queen of Rock 'n' Roll"]},
}


def official(text: str, gap: str, marks: str) -> str:
    """The rule of TriviaQA's (`gap` a space) and SQuAD's (none) scorer: lower case, punctuation, articles, spaces."""
    text = "".join(gap if character in marks else character for character in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def texts() -> list[str]:
    rows = [
        json.loads(line)
        for name in ("mandarjoshi/trivia_qa/rc.nocontext", "google-research-datasets/nq_open/nq_open")
        for line in assets.find(f"evals/rows/{name}/validation.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    answers = [row["answer"] for row in rows]
    found = [text for answer in answers for text in (answer["aliases"] if isinstance(answer, dict) else answer)]
    dice = random.Random(0)
    pieces = [
        "the ",
        "The",
        "a ",
        "an-",
        "’",
        "'s",
        ".",
        "_",
        " ",
        "-",
        "(",
        "U.S.",
        "é",
        "漢字",
        "1,000",
        "\u00a0",
        "`",
        "theatre",
    ]
    return [*found, *("".join(dice.choices(pieces, k=dice.randint(1, 6))) + dice.choice(found) for _ in range(500))]


def test_forms_are_the_official_ones():
    marks = string.punctuation
    assert len(texts()) > 550
    for text in texts():
        assert trivia_form(text) == official(text, " ", marks + "‘’´`"), text
        assert nq_form(text) == official(text, "", marks), text
    assert trivia_form("U.S.") == "u s" and nq_form("U.S.") == "us"
    assert trivia_form("The_Who") == "who" and nq_form("l’été") == "l’été"


def test_prefixes_are_at_the_start_only():
    for text in ("Captain America: Civil War", "Alpha: Omega", "Q&A: x", "Bananswer: y"):
        assert first_line(text) == text
    assert score_nq_open({"answer": ["A+"]}, ["“A+”."])["acc"] == 1 and first_line("“A”") == "“A”"
    assert first_line("A+") == "A+" and score_nq_open({"answer": ["A+"]}, ["**A+**."])["acc"] == 1
    assert score_nq_open({"answer": ["A+"]}, ["AB+"])["acc"] == score_nq_open({"answer": ["A+"]}, ["A"])["acc"] == 0


@pytest.mark.parametrize("text", ["A", "the", "!!!", "The the"])
def test_what_the_official_rule_empties_is_kept(text):
    assert trivia_form(text) == nq_form(text) == text.lower()
    row = {"answer": {"value": text, "aliases": [text]}}
    assert score_triviaqa(row, [text])["acc"] == 1
    assert score_triviaqa(row, [""])["acc"] == score_triviaqa(row, ["an"])["acc"] == 0


RIGHT = [
    "Tina Turner",
    "tina turner.",
    "TINA TURNER",
    "the Tina Turner",
    " Tina  Turner\n\nQ: Next?\nA: Cher",
    "\n\nTina Turner",
]
RIGHT += [
    "**Tina Turner**",
    "Answer: Tina Turner",
    "A: Tina Turner",
    "**Answer:** Tina Turner",
    "“Tina Turner”"[1:-1],
    "Queen of Rock ’n’ Roll",
]
RIGHT += ["[THINK]Cher?[/THINK]Tina Turner", "<think>\nCher\n</think>\n\nTina Turner", "Cher</think>Tina Turner"]
WRONG = [
    "Cher",
    "Tina",
    "Turner",
    "Tina Turner or Cher",
    "Tina Turner and Ike",
    "not Tina Turner",
    "Christina Turner",
    "Tina Turners",
]
WRONG += [
    "Cher\nTina Turner",
    "It is Tina Turner",
    "",
    " ",
    ".",
    "the",
    "Q: Tina Turner",
    "Answer:",
    "Answer: Cher\nAnswer: Tina Turner",
]
WRONG += [
    "[THINK]Tina Turner",
    "<think>Tina Turner</think>",
    "[THINK]Tina Turner[/THINK]Cher",
    "Tina Turner, Cher, Madonna, Adele",
]


@pytest.mark.parametrize("response", RIGHT)
def test_right_ones(response):
    figures = score_triviaqa(TRIVIA, [[response]])
    assert figures == {"acc": 1, "contains": 1, "unparsed": 0, "unfinished": 0} == score_triviaqa(TRIVIA, [response])


@pytest.mark.parametrize("response", WRONG)
def test_wrong_ones(response):
    assert score_triviaqa(TRIVIA, [[response]])["acc"] == 0


def test_contains_is_whole_words_of_the_whole_answer():
    def contains(response: str) -> float:
        return score_triviaqa(TRIVIA, [[response]])["contains"]

    assert contains("It is Tina Turner, born\nin 1939") == contains("She was born\nAnna Mae Bullock.") == 1
    assert (
        contains("Christina Turner") == contains("Tina Turners") == contains("") == contains("[THINK]Tina Turner") == 0
    )


def test_what_could_not_be_read_is_counted():
    assert score_triviaqa(TRIVIA, [[""]]) == {"acc": 0, "contains": 0, "unparsed": 1, "unfinished": 0}
    assert score_triviaqa(TRIVIA, [["[THINK]hm"]]) == {"acc": 0, "contains": 0, "unparsed": 0, "unfinished": 1}
    assert score_nq_open({"answer": []}, [["x"]]) == {"unparsed": 0, "unfinished": 0}  # no verdict, which is not 0


def test_the_two_scorers_differ_where_their_rules_do():
    trivia = {"answer": {"value": "U.S.", "aliases": ["U.S."]}}
    assert score_triviaqa(trivia, ["U S"])["acc"] == 1 and score_triviaqa(trivia, ["US"])["acc"] == 0
    assert (
        score_nq_open({"answer": ["U.S."]}, ["US"])["acc"] == 1
        and score_nq_open({"answer": "U.S."}, ["US"])["acc"] == 1
    )


def test_normalised_aliases_count_and_accents_may_be_composed():
    row = {"answer": {"value": "Zoe", "aliases": [], "normalized_aliases": ["zoë ball"], "normalized_value": "zoe"}}
    assert score_triviaqa(row, ["Zoe\u0308 Ball"])["acc"] == score_triviaqa(row, ["zoe"])["acc"] == 1


def test_hostile_text_is_quick():
    def score(text):
        assert score_triviaqa(TRIVIA, [[text]])["acc"] == 0

    for part in ("a ", "Answer:", "*", "\n", "[THINK]", "\ud83d"):
        check_growth(score, repeated(part), 100_000)
    assert first_line("\u2028 \x0b\n A: \n Answer: x ") == "x"


@pytest.fixture(params=CASES)
def loaded(request, monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(assets.find("evals/rows")))
    return request.param, open_tasks([request.param], "evals/tasks").load([request.param])


def test_through_lm_eval(loaded):
    name, tasks = loaded

    def score(respond) -> dict:
        return evaluate(Responding(respond), tasks, bootstrap_iters=0, log_samples=False)["results"][name]

    case = CASES[name]
    right, wrong = score(lambda doc, _: f" {case.right(doc)[0]}\nQ: x"), score(lambda doc, _: case.wrong(doc)[0])
    assert (right["acc,none"], right["contains,none"]) == (1, 1) and (wrong["acc,none"], wrong["contains,none"]) == (
        0,
        0,
    )
    assert score(lambda doc, _: f"It is {case.right(doc)[0]}.")["contains,none"] == 1
    assert score(lambda doc, _: "[THINK]" + case.right(doc)[0])["unfinished,none"] == 1


def test_the_prompt_has_five_shots_and_no_answer(loaded):
    name, tasks = loaded
    for doc in tasks["tasks"][name].eval_docs:
        head, *parts = doc["context"].split("Q: ")
        assert head == "Answer these questions:\n" and len(parts) == 6
        assert all(re.fullmatch(r"[^\n]+\nA: [^\n]+\n", part) for part in parts[:5])
        assert parts[5] == f"{doc['question'].strip()}\nA:"
    assert tasks["tasks"][name].config.metadata["num_fewshot"] == 5


def test_missing_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
    for name, row, text in (
        ("t", {"question": "?"}, "no column answer"),
        ("n", {"question": "?", "answer": {"a": 1}}, "value, aliases"),
    ):
        (tmp_path / f"{name}/x").mkdir(parents=True)
        (tmp_path / f"{name}/x/validation.jsonl").write_text(json.dumps(row))
        with pytest.raises(ValueError, match=text):
            closed_book.triviaqa(f"{name}/x", "validation", "rc.nocontext")
