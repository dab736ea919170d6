"""data/repetition.py: loops wherever they stand against `find_loop` and brute force; what is none; linear time."""

import random
import string

import numpy as np
import pytest

from hf_cascade.completions import LoopRule, find_loop
from hf_cascade.data.repetition import NGRAM, find_repetition, runs, window_shares
from tests.data import tiny
from tests.growth import check_growth

RULE = LoopRule()
DRAWN = random.Random(0)
LETTERS = string.ascii_lowercase + " "


@pytest.fixture(scope="module")
def tokenizer():
    """A token is a character, so that every length below is exact."""
    return tiny.tokenizer(string.printable)


def noise(tokens: int, vocabulary: int = 10_000) -> list[int]:
    return [DRAWN.randrange(vocabulary) for _ in range(tokens)]


def text(tokens: int) -> str:
    return "".join(DRAWN.choices(LETTERS, k=tokens))


@pytest.mark.parametrize(("period", "repeats"), [(1, 64), (2, 32), (7, 10), (16, 4), (50, 4), (300, 4), (1024, 5)])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 90), (90, 0), (333, 90)])
def test_runs_are_the_loops_of_find_loop_wherever_they_stand(period, repeats, before, after):
    head, unit, tail = noise(before), list(range(20_000, 20_000 + period)), noise(after)
    loop = unit * repeats
    assert runs(np.array(head + loop + tail), RULE) == [(before, before + len(loop))]
    found = find_loop(head + loop)  # the reference knows the end of a text alone
    assert (found.kind, found.period, found.start) == ("period", period, before)
    short = loop[:-1] if len(loop) == max(RULE.min_tokens, RULE.min_repeats * period) else (unit * 4)[:63]
    assert runs(np.array(head + short + tail), RULE) == [] and find_loop(head + short) is None


def test_a_period_with_an_ngram_that_stands_in_it_twice():
    twice = noise(NGRAM + 4)
    unit = [*twice, *noise(11), *twice, *noise(40)]
    assert runs(np.array(noise(30) + unit * 5 + noise(30)), RULE) == [(30, 30 + 5 * len(unit))]


@pytest.mark.parametrize("tokens", [0, 1, NGRAM - 1, NGRAM, 63])
def test_too_short_for_a_loop(tokens):
    assert runs(np.array([5] * tokens, dtype=np.int64), RULE) == []


@pytest.mark.parametrize(("tokens", "vocabulary"), [(3, 2), (50, 3), (200, 2), (200, 40), (64, 10_000)])
def test_window_shares_are_counted_right(tokens, vocabulary):
    rule = LoopRule(window_tokens=64)
    ids = noise(tokens, vocabulary)
    by_hand = []
    for start in range(max(1, tokens - 64 + 1)):
        window = ids[start : start + 64]
        ngrams = [tuple(window[place : place + 4]) for place in range(len(window) - 3)]
        by_hand.append(1 - len(set(ngrams)) / len(ngrams) if ngrams else 0)
    np.testing.assert_allclose(window_shares(np.array(ids), rule), by_hand, rtol=1e-12)


LINE = "Hmm, this is not right, let me try that again.\n"


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (lambda: text(500) + "so it is, " * 40, "loop"),  # at the end
        (lambda: text(500) + "so it is, " * 6 + "so", None),  # 62 tokens: too short
        (lambda: text(500) + "so it is, " * 26 + text(500), "loop"),  # 260 tokens, then it went on
        (lambda: text(500) + "so it is, " * 20 + text(500), None),
        (lambda: text(50) + "so it is, " * 10 + text(40), "loop"),  # more than half of a short text
        (lambda: text(80) + "so it is, " * 8 + text(80), None),
        (lambda: "-" * 200 + text(500), None),  # a rule
        (lambda: text(200) + "0" * 500 + "." + text(200), None),  # a large number
        (lambda: text(200) + "0" * 1100 + "." + text(200), "loop"),
        (lambda: text(200) + "".join(f"{n}. I check the sum again. " for n in range(40)) + text(900), "counter"),
        (lambda: text(700) + "".join(f"{n}. I check the sum again. " for n in range(25)) + text(700), "counter"),
        (lambda: text(700) + "".join(f"{n}. I check the sum again. " for n in range(9)) + text(700), None),
        (lambda: "".join(f"{n}. {text(22)} " for n in range(60)), None),  # a list
        (lambda: "".join(" ".join(str(DRAWN.randrange(2)) for _ in range(20)) + "\n" for _ in range(30)), None),
        (lambda: TRUTH, None),
        (lambda: text(90) + TRUTH + text(90), None),
        (lambda: text(90) + "| T | F | F |\n" * 80 + text(90), "loop"),
        (lambda: text(90) + "| T | F | F |\n" * 20, "loop"),
        (lambda: "Code:\n```python\n" + "".join(f"    add(row, {n})\n" for n in range(60)) + "```\nSo.", None),
        (lambda: "Code:\n```python\n" + "".join(f"    add(row, {n})\n" for n in range(60)), "counter"),  # not closed
        (lambda: "Code:\n```python\n" + "    add(row, 1)\n" * 60 + "```\nSo.", "loop"),
        (lambda: "".join(LINE + text(30) + "\n" for _ in range(20)), "again"),  # not next to each other
        (lambda: "".join(LINE + text(80) + "\n" for _ in range(20)), None),
        (lambda: "".join(DRAWN.sample(PARAGRAPHS, 3)) + "".join(DRAWN.sample(PARAGRAPHS * 3, 6)), "again"),
        (lambda: "".join(PARAGRAPHS) + PARAGRAPHS[0], None),
        (lambda: text(4000), None),
        (lambda: "", None),
    ],
)
def test_what_counts(tokenizer, made, kind):
    DRAWN.seed(0)
    given = made()
    found = find_repetition(given, tokenizer)
    assert (found and found.kind) == kind
    if found is not None:
        assert found.excerpt and "".join(found.excerpt.split()) in "".join(given.split())


TRUTH = "".join(
    "| " + " | ".join("FT"[number >> bit & 1] for bit in (4, 3, 2, 1, 0)) + f" | {'FT'[number % 3 == 0]} |\n"
    for number in range(32)
)
PARAGRAPHS = [text(150) for _ in range(4)]


def test_a_rule_can_be_given(tokenizer):
    given = text(300) + "so it is, " * 5
    assert find_repetition(given, tokenizer) is None
    assert find_repetition(given, tokenizer, LoopRule(min_tokens=40)).kind == "loop"


@pytest.mark.parametrize("unit", ["a", "ab cd ", "\n", "0", "| - "])
def test_no_text_takes_long(tokenizer, unit):
    check_growth(
        lambda ids: (runs(ids, RULE), window_shares(ids, RULE)),
        lambda tokens: np.array([ord(letter) for letter in (unit * tokens)[:tokens]]),
        50_000,
    )
