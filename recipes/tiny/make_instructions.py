"""Make the conversations, preference pairs and prompts of the tiny instruct recipe: small tasks with one right answer.

    python recipes/tiny/make_instructions.py --output_dir recipes/tiny/data

The form that counts: an answer is words, and ends with a full stop. Half of the conversations to imitate leave it out,
as people do; the pairs prefer it. So what is preferred is more than what is imitated, and both can be checked exactly.

Writes `instruct_sft.jsonl.gz` (prompt, completion, answer, kind), `instruct_pairs.jsonl.gz` (prompt, chosen, rejected),
`instruct_prompts.jsonl.gz` (prompt, answer, kind: to train on) and `instruct_heldout.jsonl.gz` (alike, to measure on).
The same files every time. A prompt is of one part only, chosen by its hash. Needs Python alone.
"""

import argparse
import gzip
import hashlib
import json
import random
from itertools import islice
from pathlib import Path

# Common in the shipped text; one token of the tiny tokenizer with a space before it and without.
WORDS = (
    "value list code time work name change class point line start item tree graph string test "
    "row error text matrix sum match term length word vector form search path head count function"
).split()
KINDS = {"repeat": 0.5, "copy": 0.3, "reverse": 0.2}
LIMIT_WORDS = 48  # a response that never ends is cut here: the recipe's max_completion_length, a word being a token
# Hundredths of all prompts. One that is drawn for a part and hashes to another is drawn again.
PARTS = {"sft": range(0, 60), "pairs": range(60, 80), "prompts": range(80, 90), "heldout": range(90, 100)}
STOP_SHARE = 0.5  # of the conversations and of the responses in pairs: those with the full stop
FORM = 0.5  # what the full stop is worth beside the words, of which all are worth 1
ROWS = {"sft": 4000, "pairs": 5000, "prompts": 1000, "heldout": 200}


def task(kind: str, rng: random.Random) -> tuple[str, list[str]]:
    """
    A random instruction and the words of its answer.

    Args:
        kind (`str`): of `KINDS`.
        rng (`random.Random`): where it is drawn from.
    """
    if kind == "repeat":
        words, times = rng.sample(WORDS, rng.choice((1, 1, 2, 3))), rng.randint(2, 9)
        return f"Say {' '.join(words)} {times} times.", words * times
    words = rng.sample(WORDS, rng.randint(2, 5 if kind == "copy" else 3))
    return f"{kind.capitalize()} {' '.join(words)}.", words if kind == "copy" else words[::-1]


def part_of(prompt: str) -> str:
    """The part that a prompt belongs to."""
    hundredth = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 100
    return next(part for part, hundredths in PARTS.items() if hundredth in hundredths)


def tasks(part: str):
    """Distinct (prompt, answer words, kind) of one part, without end."""
    rng, seen = random.Random(f"tasks {part}"), set()
    while True:
        kind = rng.choices(list(KINDS), KINDS.values())[0]
        prompt, words = task(kind, rng)
        if prompt not in seen and part_of(prompt) == part:
            seen.add(prompt)
            yield prompt, words, kind


def closeness(answer: str, response: str, ended: bool = True) -> float:
    """
    How good a response is: one minus the share of wrong words, and `FORM` for the full stop; -1 when it never ends.

    Args:
        answer (`str`): the right one.
        response (`str`): the model's.
        ended (`bool`, *optional*, defaults to `True`): whether it came to an end by itself.
    """
    if not ended:
        return -1.0
    right, given = (text.removesuffix(".").split() for text in (answer, response))
    words = 1.0 - distance(right, given) / max(len(right), len(given), 1)
    return words + FORM * response.endswith(".")


def distance(a: list[str], b: list[str]) -> int:
    """Words to insert, delete or replace to make `b` of `a` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        above, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j - 1] + (word != other), above[j] + 1, row[-1] + 1))
    return row[-1]


def mistaken(words: list[str], kind: str, rng: random.Random) -> list[str]:
    """
    What a model that has half learnt the task says: a wrong word, from which it may drift; too few or too many; a loop.

    Args:
        words (`list[str]`): the answer.
        kind (`str`): its task.
        rng (`random.Random`): where mistakes are drawn from.
    """
    period = next(p for p in range(1, len(words) + 1) if words == (words[:p] * len(words))[: len(words)])
    many = words[:period] * LIMIT_WORDS
    mistake = rng.random()
    if kind == "repeat" and mistake < 0.1:
        return many[:LIMIT_WORDS]
    if kind == "repeat" and mistake < 0.6:  # a wrong count, mostly by whole repeats
        step = period if rng.random() < 0.8 else 1
        length = len(words) + step * rng.choice((-3, -2, -1, -1, 1, 1, 2, 3, 4))
        return many[: max(1, length)]
    said = list(words)
    place = rng.randrange(len(said))
    if kind != "repeat" and mistake < 0.3:  # ends early, or goes on
        return said[: max(1, place)] if rng.random() < 0.6 else said + rng.choices(WORDS, k=rng.randint(1, 2))
    if kind == "reverse" and mistake < 0.5:
        return said[::-1]
    said[place] = rng.choice(WORDS)
    for later in range(place + 1, len(said)):
        if rng.random() < 0.4:
            said[later] = said[later - period] if kind == "repeat" and later >= period else rng.choice(WORDS)
    return said


def pairs():
    """(prompt, chosen, rejected), the first of which is the closer to the answer."""
    rng = random.Random("mistakes")
    for prompt, words, kind in tasks("pairs"):
        first, second = (words if rng.random() < 0.5 else mistaken(words, kind, rng) for _ in range(2))
        both = [written(first, rng), written(second, rng)]
        scores = [closeness(" ".join(words), text, len(text.split()) < LIMIT_WORDS) for text in both]
        if scores[0] != scores[1]:
            better = scores[1] > scores[0]
            yield prompt, both[better], both[not better]


def written(words: list[str], rng: random.Random) -> str:
    """Words as a response, with or without a full stop; one that never ends has none."""
    ends = len(words) < LIMIT_WORDS and rng.random() < STOP_SHARE
    return " ".join(words) + ("." if ends else "")


def rows(part: str):
    """The rows of one file, in TRL's conversational format."""

    def user(text):
        return [{"role": "user", "content": text}]

    def assistant(text):
        return [{"role": "assistant", "content": text}]

    if part == "pairs":
        for prompt, chosen, rejected in pairs():
            yield {"prompt": user(prompt), "chosen": assistant(chosen), "rejected": assistant(rejected)}
        return
    rng = random.Random(f"stops {part}")
    for prompt, words, kind in tasks(part):
        completion = {"completion": assistant(written(words, rng))} if part == "sft" else {}
        yield {"prompt": user(prompt), **completion, "answer": " ".join(words) + ".", "kind": kind}


def write(folder: Path) -> None:
    """Write the four files; no name or time goes into them, so that the same rows are the same bytes."""
    for part, count in ROWS.items():
        lines = "".join(json.dumps(row) + "\n" for row in islice(rows(part), count))
        (folder / f"instruct_{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    write(parser.parse_args().output_dir)
