"""The data of the tiny instruct recipe: right answers, held-out prompts, pairs in order, and the same files again."""

import gzip
import json
import re
import runpy
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from transformers import AutoTokenizer

TINY = Path(__file__).parents[1] / "recipes" / "tiny"
PARTS = ("sft", "pairs", "prompts", "heldout")
make = runpy.run_path(str(TINY / "make_instructions.py"))


def shipped(part: str) -> list[dict]:
    with gzip.open(TINY / "data" / f"instruct_{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def said(messages: list[dict], role: str) -> str:
    (message,) = messages
    assert message["role"] == role
    return message["content"]


def solve(prompt: str) -> str:
    """The answer, worked out from the instruction's text alone."""
    verb, rest = re.fullmatch(r"(Say|Copy|Reverse) (.*)\.", prompt).groups()
    if verb == "Say":
        words, times = re.fullmatch(r"([a-z ]+) (\d+) times", rest).groups()
        return ((words + " ") * int(times)).strip()
    return rest if verb == "Copy" else " ".join(reversed(rest.split(" ")))


@pytest.mark.parametrize("part", ["sft", "prompts", "heldout"])
def test_answers_are_right(part):
    rows = shipped(part)
    assert len(rows) == make["ROWS"][part]
    assert {row["kind"] for row in rows} == set(make["KINDS"])
    for row in rows:
        right = solve(said(row["prompt"], "user"))
        assert row["answer"] == right + "."
        if part == "sft":
            assert said(row["completion"], "assistant") in (right, right + ".")
    if part == "sft":
        stops = sum(said(row["completion"], "assistant").endswith(".") for row in rows)
        assert 0.45 < stops / len(rows) < 0.55


def test_no_prompt_is_in_two_parts_or_twice():
    prompts = [said(row["prompt"], "user") for part in PARTS for row in shipped(part)]
    twice = {part: [said(row["prompt"], "user") for row in shipped(part)] for part in PARTS}
    for part, texts in twice.items():
        assert len(set(texts)) == len(texts), part
    assert len(set(prompts)) == len(prompts)


def quality(prompt: str, response: str) -> float:
    """The rule written again, with difflib's measure of closeness, which is another one and agrees mostly."""
    words = response.removesuffix(".").split()
    if len(words) == make["LIMIT_WORDS"]:
        return -1.0
    return SequenceMatcher(None, solve(prompt).split(), words, autojunk=False).ratio() + 0.5 * response.endswith(".")


def test_the_chosen_response_is_the_better_one():
    rows = shipped("pairs")
    agree, endless, by_form = 0, 0, 0
    for row in rows:
        prompt = said(row["prompt"], "user")
        chosen, rejected = (said(row[side], "assistant") for side in ("chosen", "rejected"))
        assert chosen != rejected
        assert len(chosen.split()) < make["LIMIT_WORDS"]
        endless += len(rejected.split()) == make["LIMIT_WORDS"]
        by_form += chosen.endswith(".") and not rejected.endswith(".")
        agree += quality(prompt, chosen) > quality(prompt, rejected)
    assert 0 < endless < 0.15 * len(rows)
    assert 0.3 * len(rows) < by_form < 0.8 * len(rows)
    assert agree > 0.93 * len(rows)


def test_closeness():
    closeness = make["closeness"]
    assert closeness("a b c.", "a b c.") == 1.5
    assert closeness("a b c.", "a b c") == 1
    assert closeness("a b c.", "a c") == pytest.approx(2 / 3)
    assert closeness("a b.", "a b a b.") == pytest.approx(1)
    assert closeness("a b.", "") == 0
    assert closeness("a.", "a " * 48, ended=False) < closeness("a.", "b c d")


@pytest.mark.parametrize("part", PARTS)
def test_the_files_are_what_the_script_makes(part):
    rows = make["rows"](part)
    for number, row in enumerate(shipped(part)):
        assert row == next(rows), number


def test_files_are_small():
    for part in PARTS:
        assert (TINY / "data" / f"instruct_{part}.jsonl.gz").stat().st_size < 200_000


def test_words_are_one_token_in_every_place():
    tokenizer = AutoTokenizer.from_pretrained(TINY / "tokenizer")
    for word in make["WORDS"]:
        for text in (word, " " + word):
            assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1, text
    assert len(set(make["WORDS"])) == len(make["WORDS"])
