"""Pass rate, majority and outcome against hand-computed cases; prompts that are left out before sampling."""

import pytest

from hf_cascade.grpo.difficulty import (
    KEPT,
    Majority,
    Window,
    difficulty,
    final_answer,
    majority,
    pass_rate,
    same_boxed,
    same_text,
)
from hf_cascade.grpo.difficulty_rows import check_no_images, gold_of, same_of, screen
from hf_cascade.rewards.maths import maths_reward
from hf_cascade.rewards.programs import program_reward
from hf_cascade.rewards.stem import stem_reward
from hf_cascade.rewards.verifiable import exact_match
from hf_cascade.rewards.visual import visual_reward

same_maths = same_boxed(maths_reward, {})


@pytest.mark.parametrize(
    ("rewards", "above", "expected"),
    [
        ([1, 0, 0, 1], 0.5, (0.5, 4)),
        ([1, None, 0, None], 0.5, (0.5, 2)),  # missing is not wrong
        ([None, None], 0.5, (None, 0)),
        ([], 0.5, (None, 0)),
        ([1.0], 0.5, (1.0, 1)),
        ([0.5], 0.5, (0.0, 1)),  # above, not at
        ([1.1, 1.0, 0.2, 0.1, 0.0], 0.5, (0.4, 5)),  # stem_reward: right with and without language, wrong, formless
        ([-1.0, -3.0], -2.0, (0.5, 2)),
    ],
)
def test_pass_rate(rewards, above, expected):
    assert pass_rate(rewards, above) == expected


@pytest.mark.parametrize(
    ("answers", "passed", "gold", "expected"),
    [
        (["a", "b", "a"], [0, 0, 0], "c", Majority("a", 2, False)),
        (["a", "b", "a"], [1, 0, 1], "a", Majority("a", 2, True)),
        (["a", "b", "a"], [0, 0, 0], "A.", Majority("a", 2, True)),  # right, and failed for its form
        (["a", "b"], [0, 0], "c", Majority(None, 1)),  # a tie
        (["a", "a", "b", "b"], [1, 1, 0, 0], "a", Majority(None, 2)),
        (["b", "A", "a ", "b", "a"], [0] * 5, "c", Majority("A", 3, False)),  # not a tie: a is written in three ways
        ([None, None, "a"], [0, 0, 0], "c", Majority("a", 1, False)),
        ([None, None], [0, 0], "c", Majority(None, 0)),
        ([], [], "c", Majority(None, 0)),
        (["a"], [0], "c", Majority("a", 1, False)),
        (["x", "y", "b"], [1, 1, 0], None, Majority("x", 2, True)),  # a reward that takes both for right
    ],
)
def test_majority_by_hand(answers, passed, gold, expected):
    found = majority(answers, [bool(did) for did in passed], gold, same_text)
    assert found == expected


def test_notations_of_one_value_count_together():
    answers = ["1/2", "0.5", r"\frac{1}{2}", "0.25", "0.25", "0.25", r"\frac14"]
    assert majority(answers, [False] * 7, "3", same_maths) == Majority("0.25", 4, False)
    assert majority(answers[:5], [False] * 5, "3", same_maths) == Majority("1/2", 3, False)
    assert majority(answers[:5], [False] * 5, "50\\%", same_maths) == Majority("1/2", 3, True)
    assert same_maths("1/2", "0.5") and not same_maths("1/2", "0.51") and not same_maths("1/2", "one")


def outcome(rewards, answers=None, gold="right", **window):
    return difficulty(rewards, answers or [None] * len(rewards), gold, same_text, Window(**window)).outcome


def test_the_edges_of_the_window_are_in():
    five = {"min_pass_rate": 0.2, "max_pass_rate": 0.8}
    found = [outcome([1] * passes + [0] * (5 - passes), **five) for passes in range(6)]
    assert found == ["too_hard", KEPT, KEPT, KEPT, KEPT, "too_easy"]
    found = [outcome([1] * passes + [0] * (16 - passes)) for passes in range(17)]  # the defaults
    assert found == ["too_hard"] + [KEPT] * 12 + ["too_easy"] * 4
    assert outcome([1], max_pass_rate=1.0) == KEPT and outcome([0], min_pass_rate=0.0) == KEPT


def test_missing_judgements():
    assert outcome([None] * 4) == "unjudged"
    assert outcome([1, 0, None, None]) == KEPT
    assert outcome([1, None, None, None]) == "unjudged"
    found = difficulty([1, None, 0, None], ["a", "b", "c", "b"], "a", same_text)
    assert (found.pass_rate, found.samples, found.majority) == (0.5, 2, Majority(None, 1))  # b was not judged


@pytest.mark.parametrize(
    ("rewards", "answers", "share", "expected"),
    [
        ([0, 0, 0, 0], ["w", "w", "x", "y"], 0.5, "contradicted"),
        ([0, 0, 0, 0], ["w", "w", "x", "y"], 0.6, "too_hard"),
        ([0, 0, 0, 0], ["w", "w", "x", "x"], 0.5, "too_hard"),  # two as frequent: no majority
        ([1, 0, 0, 0], ["right", "w", "w", "x"], 0.5, "contradicted"),  # before the window
        ([1, 1, 0, 0], ["right", "right", "w", "w"], 0.5, KEPT),
        ([1, 1, 1, 0], ["right", "right", "right", "w"], 0.5, KEPT),
        ([0, 0, 0, 0], ["right", "Right.", "right", "w"], 0.5, "too_hard"),  # right without the form
        ([0, 0, 0, 0], ["w", None, None, None], 0.25, "too_hard"),  # one is no majority
        ([0], ["w"], 0.5, "too_hard"),
        ([0, 0, None, None], ["w", "w", "x", "x"], 0.5, "contradicted"),
    ],
)
def test_a_majority_contradicts(rewards, answers, share, expected):
    assert outcome(rewards, answers, majority_share=share) == expected


def test_nothing_to_contradict():
    assert outcome([0, 0], ["w", "w"], gold=None) == "too_hard"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_pass_rate": 0.9}, "the first not above the second"),
        ({"min_pass_rate": -0.1}, "min_pass_rate=-0.1"),
        ({"max_pass_rate": 1.1}, "max_pass_rate=1.1"),
        ({"max_pass_rate": float("nan")}, "max_pass_rate=nan"),
        ({"majority_share": 0}, "majority_share=0"),
        ({"above": float("nan")}, "pass_above=nan"),
    ],
)
def test_windows_that_hold_nothing(settings, words):
    with pytest.raises(ValueError, match=words):
        Window(**settings)


def test_final_answers():
    thought = "[THINK]\\boxed{1}[/THINK]so \\boxed{ 2 }"
    assert final_answer("", thought, in_box=True) == "2"
    assert final_answer("", [{"role": "assistant", "content": thought}], in_box=True) == "2"
    assert final_answer("", thought, in_box=False) == "so \\boxed{ 2 }"
    assert final_answer("Go [THINK]", "\\boxed{1}[/THINK]\\boxed{2}", in_box=True) == "2"
    assert final_answer("", "no box", in_box=True) is None and final_answer("", "  ", in_box=False) is None
    long = "ab" * 2000
    assert final_answer("", f"\\boxed{{{long}}}", in_box=True) is None
    first, second = (final_answer("", long + end, in_box=False) for end in "cd")
    assert first[:2000] == second[:2000] == long[:2000] and first != second and len(first) < 2100


def test_screening():
    ask = [{"role": "user", "content": "2 + 2?"}]
    rows = [
        {"prompt": ask, "answer": "4"},
        {"prompt": [], "answer": "4"},
        {"prompt": [*ask, {"role": "assistant", "content": "4"}], "answer": "4"},
        {"prompt": "2 + 2?", "answer": "4"},  # text among messages
        {"prompt": [{"role": "user", "content": ""}], "answer": "4"},
        {"prompt": [{"role": "user", "content": "2  +  2?"}], "answer": None},
        {"prompt": [{"role": "user", "content": "2  +\n2?"}], "answer": ""},
        {"prompt": [{"content": "2 + 2?", "role": "user"}], "answer": "5"},
        {"prompt": [{"role": "user", "content": "Who?"}], "answer": "\\text{Evelyn}"},
    ]
    bad = ["bad_prompt"] * 4 + ["no_answer"] * 2
    expected = [None, *bad, "duplicate", None]
    assert screen(rows, maths_reward, ["answer"]) == expected
    assert screen(rows, exact_match, ["answer"]) == expected
    assert screen(rows, stem_reward, []) == expected
    assert screen([{"prompt": "a"}, {"prompt": "b"}], lambda **_: [], []) == [None, None]


def test_answers_that_cannot_be_read():
    rows = [{"prompt": name, "answer": name} for name in ("7", "?!", "#### 7")]
    assert screen(rows, maths_reward, ["answer"]) == [None, "bad_answer", None]
    assert screen(rows, exact_match, ["answer"]) == [None, None, None]
    same = same_of(rows[2], maths_reward)
    assert same(gold_of(rows[2]), "7.0") and not same(gold_of(rows[2]), "8") and same("1/2", "0.5")


def test_answers_of_a_type():
    """As visual_reward compares them, alone and within stem_reward."""
    rows = [
        {"prompt": "a", "answer": "C", "answer_type": "choice", "choices": ["x", "y", "z"], "tolerance": None},
        {"prompt": "b", "answer": "100", "answer_type": "number", "choices": None, "tolerance": 0.05},
        {"prompt": "c", "answer": "100", "answer_type": "numeral", "choices": None, "tolerance": None},
        {"prompt": "d", "answer": "q", "answer_type": "choice", "choices": ["x", "y"], "tolerance": None},
    ]
    for reward in (visual_reward, stem_reward):
        assert screen(rows, reward, []) == [None, None, "bad_answer", "bad_answer"]
        assert same_of(rows[1], reward)("100", "104") and not same_of(rows[1], reward)("100", "106")
        assert same_of(rows[0], reward)("B", "y") and not same_of(rows[0], reward)("B", "z")


def test_programs():
    tests = [["assert add(1, 2) == 3"], [{"input": "1", "output": "2"}], [], ["assert ("], ["assert 1 == 1"]]
    rows = [{"prompt": str(number), "tests": row, "answer": None} for number, row in enumerate(tests)]
    expected = [None, None, "no_answer", "bad_answer", "bad_answer"]
    assert screen(rows, program_reward, ["tests"]) == expected
    assert screen(rows, stem_reward, []) == expected
    assert gold_of({"tests": ["x"], "answer": "5"}) is None


def test_images_are_refused():
    check_no_images([{"prompt": "a", "image": None, "images": []}])
    with pytest.raises(ValueError, match="column 'images'"):
        check_no_images([{"prompt": "a", "images": []}, {"prompt": "a", "images": ["cat.png"]}])
