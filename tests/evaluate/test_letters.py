r"""Which option an answer names: the rule of simple-evals first, then the forms of real answers, then limits."""

import re
from pathlib import Path

import pytest

from hf_cascade.evaluate.benchmarks.letters import letter_of
from tests.growth import check_growth, repeated

OPTIONS = ["Paris", "London", "Rome", "Berlin"]
# Files with one answer a line, \n for a new line: all name C, in the forms that models write; or none names one option.
NAMES_C, NAMES_NONE = (Path(__file__).parent / name for name in ("names_c.txt", "names_none.txt"))


def lines(path: Path) -> list[str]:
    found = [line.replace("\\n", "\n") for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(found) > 150
    return found


def test_the_asked_for_form_is_read_as_simple_evals_reads_it():
    """Its rule (common.py): the first `Answer: X`, X one of A to D, dollar signs around it or not."""
    rule = re.compile(r"answer[ \t]*:[ \t]*\$?([ABCD])\$?", re.IGNORECASE)
    for letter in "ABCD":
        for form in (
            "Answer: {}",
            "answer:{}",
            "ANSWER : {}",
            "Answer: ${}$",
            "So it is.\n\nAnswer:\t{}",
            "Answer: {}.",
        ):
            answer = form.format(letter)
            assert letter_of(answer, OPTIONS) == rule.search(answer)[1] == letter, answer


def test_all_forms_of_real_answers_are_understood():
    assert [answer for answer in lines(NAMES_C) if letter_of(answer, OPTIONS) != "C"] == []


def test_nothing_is_guessed():
    assert [answer for answer in lines(NAMES_NONE) if letter_of(answer, OPTIONS) is not None] == []


def test_every_letter_is_as_good_as_c():
    """The options turned by one place turn the answers; forms with other letters or texts in them are left out."""
    checked = 0
    for answer in lines(NAMES_C):
        if re.search(r"[ABD](?![a-z])|Paris|London|Rome|Berlin", answer):
            continue
        for letter in "ABD":
            turned = re.sub(r"(?<![A-Za-z\\])C(?![A-Za-z])|(?<=boxed )C", letter, answer)
            if "C" in answer and turned != answer:
                assert letter_of(turned, OPTIONS) == letter, turned
                checked += 1
    assert checked > 300


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        (
            ["1", "10", "100", "5 m/s"],
            {"The answer is 10.": "B", "10": "B", "\\boxed{100}": "C", "Answer: 5 m/s": "D", "Answer: 1.5": None}
            | {"Answer: -1": None, "10,000": None, "The answer is 1/10": None, "Answer: 5 m": None, "10%": None},
        ),
        (
            ["Yes", "No"],
            {"Yes": "A", "**No**": "B", "Yes, because it is.": "A", "Answer: No": "B", "C": None, "Not sure": None}
            | {"Yes and no": None, "Answer: None": None, "Nobody": None, "Answer: not A": None},
        ),
        (
            [f"text {place}" for place in range(10)],
            {"Answer: I": "I", "(I)": "I", "I don't know.": None, "I think the answer is J.": "J", "Answer: K": None},
        ),
        (["B", "A", "D", "C"], {"Answer: B": "B", "B": "B", "C) D": "C", "C) C": None}),
        (["same", "same", "other"], {"same": None, "other": "C", "Answer: A": "A", "A) same": "A"}),
        (
            ["A only", "B only", "Both A and B", "Neither"],
            {
                "Answer: Both A and B": "C",
                "Answer: B only.": "B",
                "Neither": "D",
                "The answer is (C) Both A and B.": "C",
            },
        ),
        (["all of the above", "None of the above"], {"Answer: none of the above": "B"}),
        (["$\\frac{1}{2}$", "(0,1)", "[0,1]"], {"\\boxed{\\frac{1}{2}}": "A", "(0,1)": "B", "\\boxed{[0,1]}": "C"}),
        (["北京", "上海", "东京"], {"答案是东京": "C", "答案：东京。": "C", "北京和上海": None}),
        (["(A)5(√3 + 1)", "(B)6", "(C)7"], {"5(√3 + 1)": "A", "Answer: 6": "B", "(C)7": "C"}),
        (["", "x", ""], {"": None, "A": "A", "x": "B"}),
    ],
)
def test_options_of_any_kind(options, answers):
    assert {answer: letter_of(answer, options) for answer in answers} == answers


@pytest.mark.parametrize("options", [[], ["x"] * 27])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=f"{len(options)} options: give 1 to 26"):
        letter_of("A", options)


UNITS = [
    "Answer:",
    "answer is ",
    "Answer: C\n",
    "Answer: A or B\n",
    "\\boxed{",
    "\\boxed{C}",
    "(",
    "{",
    " ",
    "\n",
    "C ",
]
UNITS += ["which is option B, ", "this matches option B ", "only B works ", ", however, "]
UNITS += ["A) ", "not ", "选", "答案", "*", "\\text{", "\\text", "if the answer is ", "is C is correct. ", "therefore "]


@pytest.mark.parametrize("end", ("", "\nAnswer: C"))
@pytest.mark.parametrize("unit", UNITS)
def test_no_response_takes_long(unit, end):
    check_growth(lambda text: letter_of(text + end, OPTIONS), repeated(unit))
