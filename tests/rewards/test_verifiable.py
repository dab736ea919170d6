"""Rewards that compare with an answer, and rewards by name."""

import pytest

from hf_cascade.rewards.verifiable import exact_match, load_reward, similarity


def message(text):
    return [{"role": "assistant", "content": text}]


def test_exact_match():
    completions = [
        "Paris",
        " Paris\n",
        "New  York",
        "paris",
        "<think>Rome</think>Paris",
        message("[THINK]x[/THINK] Paris"),
    ]
    answers = ["Paris", "Paris", "New York", "Paris", "Paris", "Paris"]
    assert exact_match([""] * 6, completions, answers) == [1, 1, 1, 0, 1, 1]
    assert exact_match(prompts=[""], completions=["x"], answer=[None], trainer_state=None) == [None]
    assert exact_match([""], ["<think>Paris"], ["Paris"]) == [0]  # never came to an answer
    assert exact_match([""] * 3, ["5", "5.0", "2.5"], [5, 5, 2.5]) == [1, 0, 1]  # JSON has numbers
    assert similarity([""], ["12"], [12]) == [1]


def test_similarity():
    """difflib's ratio by hand: 2 * 3 equal characters of 4 + 4."""
    assert similarity([""] * 4, ["abcd", " abcd ", "", message("xyz")], ["abce", "abcd", "abcd", None]) == [
        pytest.approx(0.75), 1, 0, None,
    ]  # fmt: skip
    long = "e" * 150 + "b" + "e" * 150  # difflib would take the frequent letter for junk from 200 characters on
    assert similarity([""], [long], [long + "e"]) == [pytest.approx(602 / 603)]


def test_by_name(tmp_path):
    assert load_reward("exact_match") is exact_match
    assert load_reward("hf_cascade.rewards.verifiable.similarity") is similarity
    file = tmp_path / "mine.py"
    file.write_text("def shout(completions, **_):\n    return [float(c.isupper()) for c in completions]\n")
    assert load_reward(f"{file}:shout")(completions=["A", "a"]) == [1, 0]
    for name, message in {
        "exact": "allowed are exact_match",
        "no.such.module": "No module named 'no'",
        "hf_cascade.rewards.verifiable.none": "has no function 'none'",
        f"{file}:whisper": "has no function 'whisper'",
        "nowhere.py:f": "no file nowhere.py",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_reward(name)
