"""Make the chains of thought, problems, rubrics and preferences of the tiny reasoning recipe.

    python recipes/tiny/make_reasoning.py --output_dir recipes/tiny/data

Two kinds of prompt. A sum, `What is 5+3-6+2?`, has one right answer: the policy thinks, then writes it in `\\boxed{}`.
Words to use, `Use the words tree, code and list.`, have a rubric: a criterion for each, and one for the full stop. Both
can be checked exactly.

Writes `reasoning_sft.jsonl.gz` (chains of thought, long or short, a few of them spoilt, as scraped ones are),
`reasoning_problems.jsonl.gz` (sums to train on, a few with a wrong answer), `reasoning_general.jsonl.gz` (both kinds),
`reasoning_judge.jsonl.gz` (yes or no to one criterion), `reasoning_pairs.jsonl.gz` (preferences),
`reasoning_prompts.jsonl.gz` (words to use) and `reasoning_heldout.jsonl.gz` (both kinds, to measure on). The same
files every time. A prompt is of one part only, chosen by its hash. Needs Python alone.
"""

import argparse
import gzip
import hashlib
import json
import random
from itertools import accumulate, islice
from pathlib import Path

# Common in the shipped text, and one token of the tiny tokenizer.
WORDS = (
    "value list code time work name change class point line start item tree graph string test row error text matrix "
    "sum match term length"
).split()
TERMS = (2, 3, 4, 5, 6)
LARGEST = 9  # of a running total
# Hundredths of all prompts. One that is drawn for a part and hashes to another is drawn again.
PARTS = {
    "sft": range(0, 40),
    "problems": range(40, 60),
    "general": range(60, 70),
    "judge": range(70, 80),
    "pairs": range(80, 87),
    "prompts": range(87, 90),
    "heldout": range(90, 100),
}
ROWS = {"sft": 4000, "problems": 1000, "general": 800, "judge": 4000, "pairs": 3000, "prompts": 500, "heldout": 300}
SUMS = {"sft": 0.75, "problems": 1.0, "general": 0.5, "judge": 0.0, "pairs": 0.0, "prompts": 0.0, "heldout": 2 / 3}
SPOILT = {"open": 0.02, "loop": 0.02, "chinese": 0.02, "twice": 0.02}  # of the chains of thought
STOP = "It ends with a full stop."
WRONG = 0.04  # of the problems: the answer that the file gives
CHINESE = "我们先把这些数字按顺序加起来，然后再给出最后的答案。"


def add_up(rng: random.Random) -> tuple[str, list[tuple[str, int]]]:
    """
    A sum, and its steps: what is added up, and the total then.

    Args:
        rng (`random.Random`): where it is drawn from.
    """
    total = rng.randint(1, 9)
    text, steps = str(total), []
    for _ in range(rng.choice(TERMS) - 1):
        change = rng.choice([c for c in range(-9, 10) if c and 0 <= total + c <= LARGEST])
        sign, number = "+" if change > 0 else "-", abs(change)
        step, total = f"{total}{sign}{number}", total + change
        text += f"{sign}{number}"
        steps.append((step, total))
    return f"What is {text}?", steps


def think(steps: list[tuple[str, int]], chain: str) -> str:
    """The chain of thought of a sum: every step, `5+3=8-6=2`, or with `short` the totals alone, `8 2`."""
    if chain == "short":
        return " ".join(str(total) for _, total in steps)
    first = steps[0][0][0]
    return first + "".join(f"{step[1:]}={total}" for step, total in steps)  # what is added to is one digit


def listed(words: list[str]) -> str:
    """`tree, code and list`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def use_words(rng: random.Random) -> tuple[str, list[str]]:
    """A prompt that asks for words, and these."""
    words = rng.sample(WORDS, rng.randint(2, 4))
    return f"Use the words {listed(words)}.", words


def answer_words(words: list[str], rng: random.Random) -> str:
    """An answer as people write it: a word is forgotten, the order is another, the full stop missing, half the time."""
    said = list(words)
    if rng.random() < 0.5:
        said.remove(rng.choice(said))
    if rng.random() < 0.5:
        rng.shuffle(said)
    return f"The {listed(said)}" + ("." if rng.random() < 0.5 else "")


def part_of(prompt: str) -> str:
    """The part that a prompt belongs to."""
    hundredth = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 100
    return next(part for part, hundredths in PARTS.items() if hundredth in hundredths)


def tasks(part: str):
    """Distinct (prompt, steps of a sum or `None`, words or `None`) of one part, without end."""
    rng, seen = random.Random(f"tasks {part}"), set()
    while True:
        if rng.random() < SUMS[part]:
            (prompt, steps), words = add_up(rng), None
        else:
            (prompt, words), steps = use_words(rng), None
        if part_of(prompt) == part and (prompt not in seen or part in ("judge", "pairs")):
            seen.add(prompt)
            yield prompt, steps, words


def rubric(words: list[str]) -> list[str]:
    """The criteria of a prompt: one a word, and the full stop."""
    return [*(f"It has the word {word}." for word in words), STOP]


def meets(answer: str, criterion: str) -> bool:
    """Whether an answer meets a criterion, told exactly."""
    if criterion == STOP:
        return answer.rstrip().endswith(".")
    return criterion.removesuffix(".").split()[-1] in answer.replace(",", " ").replace(".", " ").split()


def rubric_met(prompts: list, completions: list, rubric: list, **columns) -> list[float | None]:
    """A TRL reward: the share of the criteria that the answer meets, told exactly; `None` for a sum."""
    from hf_cascade.completions import text_of

    pairs = zip(completions, rubric, strict=True)
    return [sum(meets(text_of(said), one) for one in given) / len(given) if given else None for said, given in pairs]


def spoil(thinking: str, answer: str, rng: random.Random) -> tuple[str, str]:
    """A chain of thought that no model should learn from, as text with its tags; most are left whole."""
    draw = rng.random()
    kind = next((kind for kind, upto in zip(SPOILT, accumulate(SPOILT.values()), strict=True) if draw < upto), "")
    whole = f"[THINK]{thinking}[/THINK]{answer}"
    spoilt = {
        "open": f"[THINK]{thinking}",
        "loop": f"[THINK]{(thinking + chr(10)) * 60}[/THINK]{answer}",
        "chinese": f"[THINK]{CHINESE}\n{thinking}[/THINK]{answer}",
        "twice": f"[THINK]{thinking}[/THINK]{whole}",
    }
    return spoilt.get(kind, whole), kind


def rows(part: str):
    """The rows of one file, in TRL's conversational format."""
    rng = random.Random(f"rows {part}")
    for prompt, steps, words in tasks(part):
        row = {"prompt": said("user", prompt)}
        if part == "sft":
            yield row | chain_of_thought(steps, words, rng)
        elif part == "judge":
            yield verdict(words, rng)
        elif part == "pairs":
            first, second = (answer_words(words, rng) for _ in range(2))
            if (better := worth(second, words) - worth(first, words)) != 0:
                yield (
                    row
                    | {"chosen": said("assistant", (first, second)[better > 0])}
                    | {"rejected": said("assistant", (first, second)[better < 0])}
                )
        else:
            answer = None if steps is None else str(steps[-1][1])
            if part == "problems":
                answer = str(int(answer) + rng.choice((-1, 1, 10))) if rng.random() < WRONG else answer
                yield row | {"answer": answer}
            else:
                yield row | {"answer": answer, "words": words, "rubric": words and rubric(words)}


def chain_of_thought(steps, words, rng: random.Random) -> dict:
    """The completion of a row to imitate, and whether its chain is long."""
    chain = rng.choice(("short", "long"))
    if words is None:
        thinking, answer = think(steps, chain), f"\\boxed{{{steps[-1][1]}}}"
    else:
        thinking, answer = " ".join(words), answer_words(words, rng)
        chain = "short"
    text, spoilt = spoil(thinking, answer, rng)
    return {"completion": said("assistant", text), "chain": chain, "spoilt": spoilt}


def verdict(words: list[str], rng: random.Random) -> dict:
    """Whether an answer meets a criterion, as the judge is asked in the recipe."""
    response = answer_words(words, rng)
    word = rng.choice(words if rng.random() < 0.5 else WORDS)
    criterion = STOP if rng.random() < 0.25 else rubric([word])[0]
    verdict = "yes" if meets(response, criterion) else "no"
    return {"prompt": said("user", f"{response} {criterion}"), "completion": said("assistant", verdict)}


def worth(answer: str, words: list[str]) -> float:
    """What people like: the full stop, and the words in their order."""
    given = [word for word in answer.replace(",", " ").replace(".", " ").split() if word in words]
    ordered = given == sorted(given, key=words.index)
    return answer.endswith(".") + 0.5 * ordered


def said(role: str, text: str) -> list[dict]:
    """One message."""
    return [{"role": role, "content": text}]


def write(folder: Path) -> None:
    """Write the files; no name or time goes into them, so that the same rows are the same bytes."""
    for part, count in ROWS.items():
        lines = "".join(json.dumps(row) + "\n" for row in islice(rows(part), count))
        (folder / f"reasoning_{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    write(parser.parse_args().output_dir)
