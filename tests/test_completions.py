"""completions.py: periods equal to brute force, loops at the edges of the rule, text that is no loop, thinking."""

import base64
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_cascade import assets
from hf_cascade.completions import (
    LoopRule,
    find_loop,
    is_looping,
    last_turn,
    periodic_suffixes,
    text_of,
    without_thinking,
)

EOS = 2


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(assets.find("recipes/tiny/tokenizer"))


def words(count: int, seed: int = 0) -> list[int]:
    """Tokens without structure, above any that the tests put in by hand."""
    drawn = random.Random(seed)
    return [drawn.randrange(1000, 100_000) for _ in range(count)]


def counters(body: list[int], times: int, start: int = 0) -> list[int]:
    """ "1. x 2. x": a body behind a number that no other repeat has."""
    return [token for number in range(start, start + times) for token in (500_000 + number, *body)]


@pytest.mark.parametrize("letters", [1, 2, 3, 50])
def test_periodic_suffixes_equal_brute_force(letters):
    drawn = random.Random(letters)
    for _ in range(100):
        text = [drawn.randrange(letters) for _ in range(drawn.randrange(1, 40))] * drawn.choice((1, 1, 2, 3))
        max_period = drawn.randrange(1, 60)
        expected = [len(text)]
        for period in range(1, min(max_period, len(text) - 1) + 1):
            covered = period
            while covered < len(text) and text[-covered - 1] == text[-covered - 1 + period]:
                covered += 1
            expected.append(covered)
        assert periodic_suffixes(text, max_period) == expected


class Counted(int):
    """A token that counts its comparisons."""

    comparisons = 0

    def __eq__(self, other):
        Counted.comparisons += 1
        return int(self) == int(other)

    __hash__ = int.__hash__


def almost_looping(tokens: int) -> list[int]:
    """One token long runs with a break in each: every shift matches far."""
    return ([0] * 40 + [1]) * (tokens // 41)


@pytest.mark.parametrize("make", [words, almost_looping, lambda tokens: [0] * tokens, lambda tokens: [1, 2] * tokens])
@pytest.mark.parametrize("tokens", [10_000, 20_000])
def test_comparisons_grow_as_the_tokens_do(make, tokens):
    """Quadratic work would be 100 comparisons and more for a token."""
    text = [Counted(token) for token in make(tokens)]
    Counted.comparisons = 0
    periodic_suffixes(text, max_period=len(text))
    assert len(text) - 1 <= Counted.comparisons <= 2 * len(text)
    Counted.comparisons = 0
    periodic_suffixes(text, max_period=1024)
    assert 1024 <= Counted.comparisons <= len(text) + 1024


@pytest.mark.parametrize("period", [1, 2, 7, 16, 64, 1024])
@pytest.mark.parametrize("prefix", [0, 1, 500])
def test_a_loop_is_found_from_the_tokens_on_that_the_rule_asks_for(period, prefix):
    body, before = words(period, seed=1), words(prefix, seed=2)
    needed = max(64, 4 * period)
    looping = before + (body * (needed // period + 1))[:needed]
    loop = find_loop(looping)
    assert (loop.kind, loop.period, loop.repeats, loop.start) == ("period", period, needed // period, prefix)
    rule = LoopRule(ngram_fraction=1.0)  # the period alone
    assert find_loop(looping[:-1], rule) is None
    assert find_loop(before + looping[prefix:][-needed:][1:], rule) is None
    assert find_loop([*looping, 7], rule) is None  # something new was said


def test_periods_above_the_longest_are_not_found():
    body = words(1025, seed=3)
    assert find_loop(body * 20) is None
    assert find_loop(body * 20, LoopRule(max_period=1025)).period == 1025


def test_the_shortest_period_counts_and_a_cut_repeat_belongs_to_the_loop():
    body = words(8, seed=4)
    loop = find_loop([1, 2, 3, *body * 20, *body[:5]])
    assert (loop.period, loop.repeats, loop.start) == (8, 20, 3)


def test_each_number_of_the_rule_decides():
    looping = words(100) + words(20, seed=5) * 3
    assert find_loop(looping) is None
    assert find_loop(looping, LoopRule(min_repeats=3, min_tokens=60)).repeats == 3
    assert find_loop(looping, LoopRule(min_repeats=3, min_tokens=61)) is None
    assert find_loop(looping, LoopRule(min_repeats=3, min_tokens=60, max_period=19)) is None


def test_counter_loops():
    body = words(30, seed=6)
    looping = words(200) + counters(body, 40)
    loop = find_loop(looping)
    assert (loop.kind, loop.period, loop.start, loop.repeats) == ("counter", 31, len(looping) - 1024, 1024 // 31)
    assert find_loop(looping, LoopRule(ngram_fraction=0.95)) is None
    assert find_loop(looping, LoopRule(ngram=12)) is None  # more of the n-grams hold a number


def test_the_fraction_of_repeated_ngrams_by_hand():
    """P tokens a repeat, K repeats: (P - 4) of each but the first came before."""
    period, times = 30, 34
    looping = counters(words(period - 1, seed=6), times)[-1024:]
    seen, repeated = set(), 0
    for place in range(len(looping) - 3):
        repeated += tuple(looping[place : place + 4]) in seen
        seen.add(tuple(looping[place : place + 4]))
    fraction = repeated / (len(looping) - 3)
    assert fraction == pytest.approx((period - 4) / period * (times - 1) / times, abs=0.01)
    assert find_loop(looping, LoopRule(ngram_fraction=fraction)) is not None
    assert find_loop(looping, LoopRule(ngram_fraction=fraction + 1e-9)) is None


def test_a_response_below_a_quarter_of_the_window_is_no_counter_loop():
    looping = counters(words(24, seed=6), 40)
    assert find_loop(looping[:256]).kind == "counter"
    assert find_loop(looping[:255]) is None


def test_what_ended_with_eos_is_no_loop():
    looping = words(8, seed=4) * 20
    assert is_looping(looping, None, {EOS})
    assert not is_looping([*looping, EOS], None, {EOS})
    assert not is_looping([*looping, 11], None, [EOS, 11])
    assert not is_looping([11] * 100, None, [EOS, 11])
    counting = counters(words(30), 40)
    assert is_looping(counting, None, {EOS}) and not is_looping([*counting, EOS], None, {EOS})
    assert is_looping([*looping[:80], EOS, *looping], None, {EOS})  # an EOS inside ends nothing
    assert is_looping([EOS] * 10 + looping, None, {EOS})


def test_only_the_last_turn_counts():
    looping, fresh = words(8, seed=4) * 20, words(90)
    turns = [*looping, *fresh, *looping]
    assert last_turn(turns, [1] * 160 + [0] * 90 + [1] * 160) == looping
    assert last_turn(turns, None) == turns and last_turn(turns, [1] * 410) == turns
    assert last_turn(turns, [1] * 320 + [0] * 90) == []
    assert is_looping(turns, [1] * 160 + [0] * 90 + [1] * 160, {EOS})
    assert not is_looping([*looping, *fresh], [1] * 80 + [0] * 80 + [1] * 90, {EOS})
    assert not is_looping(turns, [1] * 250 + [0] * 160, {EOS})  # the loop is the tool's; it was cut off there
    assert not is_looping(turns, [1] * 250 + [0] * 100 + [1] * 60, {EOS})  # too few tokens are the model's
    assert not is_looping([], None, {EOS}) and not is_looping([5], [0], {EOS}) and find_loop([]) is None
    with pytest.raises(ValueError, match="tool_mask has 3 entries for 2 tokens"):
        last_turn([1, 2], [1, 1, 1])


PROSE = Path(assets.find("recipes/tiny/data/README.md")).read_text()
TABLE = "| name | count | share |\n|---|---|---|\n" + "".join(
    f"| row {number} | {number * number % 97} | {number * 31 % 100 / 100} |\n" for number in range(60)
)
CODE = "".join(
    f"        if value == {number * 7 % 41}:\n            return {word!r}\n        total += value * {number}\n"
    for number, word in enumerate("one tree lamp river stone cloud paper glass violin harbour copper meadow".split())
)
LISTED = "".join(
    f"{number}. {word.capitalize()} is a fruit that grows on trees and is eaten raw or cooked.\n"
    for number, word in enumerate("apple pear plum cherry peach quince apricot lemon orange lime fig date".split(), 1)
)
NUMBER = str(random.Random(0).randrange(10**1200))
TEXTS = {
    "prose": PROSE,
    "code": CODE,
    "source": Path(random.__file__).read_text()[:12_000],
    "table": TABLE,
    "list": LISTED,
    "base64": base64.b64encode(random.Random(0).randbytes(1500)).decode(),
    "number": NUMBER,
    "JSON": "[" + ", ".join(f'{{"id": {number}, "score": {number * 37 % 101}}}' for number in range(40)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_is_no_loop_wherever_it_is_cut_off(name, tokenizer):
    tokens = tokenizer(TEXTS[name], add_special_tokens=False).input_ids
    assert len(tokens) > 200
    found = {end: loop for end in range(1, len(tokens) + 1, 17) if (loop := find_loop(tokens[:end]))}
    assert not found


@pytest.mark.parametrize(
    "sentence", ["I am sorry, I cannot. ", "\n", "haha", "| a | b |\n", "The answer is 42. So, wait. "]
)
def test_text_that_is_a_loop(sentence, tokenizer):
    before, repeat = tokenizer([PROSE, sentence], add_special_tokens=False).input_ids
    assert find_loop(before + repeat * 100).kind == "period"


def test_a_counter_loop_of_text(tokenizer):
    sentence = (
        "Let me check this again, since the sum of the two numbers must be the same as the one that was given before."
    )
    text = "".join(f"{number}. {sentence}\n" for number in range(1, 80))
    assert find_loop(tokenizer(text, add_special_tokens=False).input_ids).kind == "counter"


@pytest.mark.parametrize(
    "numbers", [{"min_repeats": 1}, {"min_tokens": 0}, {"max_period": 0}, {"ngram": 0}, {"window_tokens": -1}]
)
def test_a_rule_that_finds_everything_or_nothing_is_refused(numbers):
    ((name, number),) = numbers.items()
    with pytest.raises(ValueError, match=f"{name} is {number}: give [12] or more"):
        LoopRule(**numbers)


@pytest.mark.parametrize("fraction", [0, 1.01, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="ngram_fraction is .*: give a share above 0 and up to 1"):
        LoopRule(ngram_fraction=fraction)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("  no thinking \n", "  no thinking \n"),
        ("[THINK]a\nb[/THINK]\n\nYes.", "Yes."),
        ("<think>a</think>Yes.", "Yes."),
        ("[THINK]never closed", ""),
        ("<think>\nnever closed", ""),
        ("Well. [THINK]never closed", "Well."),
        ("Well. [THINK]a[/THINK]Yes.", "Well. Yes."),
        ("opened in the prompt</think>\nYes.", "Yes."),
        ("opened in the prompt[/THINK]Yes.[THINK]again[/THINK]", "Yes."),
        ("[THINK]a[/THINK]One.[THINK]b[/THINK] Two.", "One. Two."),
        ("<think>a [THINK] b</think>Yes.", "Yes."),
        ("[THINK]a[/THINK]The tag [/THINK] ends it.", "The tag [/THINK] ends it."),
        ("", ""),
    ],
)
def test_thinking_in_text(text, answer):
    assert without_thinking(text) == answer
    assert text_of(text) == answer
    assert without_thinking([{"role": "assistant", "content": text}]) == [{"role": "assistant", "content": answer}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
    assert text_of(parts) == answer


def test_thinking_in_messages():
    call = {"type": "function", "function": {"name": "add", "arguments": {"first": 1}}}
    tool = {"role": "tool", "name": "add", "content": "<think>a tool's own text</think>", "thinking": "kept"}
    image = {"type": "image", "image": object()}
    completion = [
        {"role": "assistant", "content": "", "reasoning_content": "I add.", "tool_calls": [call]},
        tool,
        {"role": "assistant", "content": None, "thinking": "hm", "reasoning": "hm"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "so"}]},
                {"type": "text", "text": "It is "},
                image,
                {"type": "text", "text": "two."},
            ],
        },
    ]
    before = repr(completion)
    assert without_thinking(completion) == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        tool,
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": [{"type": "text", "text": "It is "}, image, {"type": "text", "text": "two."}]},
    ]
    assert repr(completion) == before
    assert text_of(completion) == "It is two."
    assert text_of(completion[:3]) == "" and text_of([tool]) == "" and text_of([]) == ""
    assert text_of([{"role": "assistant", "content": "last"}, tool]) == "last"
    only = [{"role": "assistant", "content": [{"type": "thinking", "thinking": "so"}]}]
    assert without_thinking(only) == [{"role": "assistant", "content": ""}] and text_of(only) == ""


@pytest.mark.parametrize("completion", [None, 3, ["text"], {"role": "assistant"}, [[{"role": "assistant"}]]])
def test_other_completions_are_refused(completion):
    for function in (without_thinking, text_of):
        with pytest.raises(ValueError, match="a completion is a string or a list of messages, not"):
            function(completion)
