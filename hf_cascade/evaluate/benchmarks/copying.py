"""In-context copying: text that can only be continued by looking it up above. Distillation is known to hurt it.

Distilled models copy worse than models trained on next tokens at the same loss (arXiv 2509.01649); the paper does not
measure it. Two forms: the second pass through a random sequence, and a phone book (arXiv 2402.01032).
"""

import random

from hf_cascade.evaluate.conformance.case import Case

ROWS = 200  # ours: a standard error of 3.5 points at a half
SEQUENCE, ENTRIES = 48, 20  # words of a sequence, names of a phone book; ours
SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu", "wa", "je", "xi")


def load(form: str, **metadata) -> dict:
    """
    The rows of one form, the same in every run.

    Args:
        form (`str`): `"sequence"` or `"phone_book"`.
        **metadata: the task's `metadata`.

    Returns:
        `dict[str, Dataset]`: one split, `test`: `context` and `target`, which starts with a space.
    """
    from datasets import Dataset

    make = {"sequence": _sequence, "phone_book": _phone_book}[form]
    return {"test": Dataset.from_list([make(random.Random(f"{form}/{row}")) for row in range(ROWS)])}


def gold(doc: dict) -> str:
    """What stands above."""
    return doc["target"]


def _sequence(source: random.Random) -> dict:
    words = [_word(source) for _ in range(SEQUENCE)]
    place = source.randrange(4, SEQUENCE)  # a few words of the second pass say where it is
    return {"context": f"{' '.join(words)}\n{' '.join(words[:place])}", "target": f" {words[place]}"}


def _phone_book(source: random.Random) -> dict:
    names = source.sample(sorted({_word(source).capitalize() for _ in range(4 * ENTRIES)}), ENTRIES)
    numbers = source.sample(range(10_000, 100_000), ENTRIES)
    book = "\n".join(f"{name}: {number}" for name, number in zip(names, numbers, strict=True))
    asked = source.randrange(ENTRIES)
    return {"context": f"{book}\n\n{names[asked]}:", "target": f" {numbers[asked]}"}


def _word(source: random.Random) -> str:
    return "".join(source.choice(SYLLABLES) for _ in range(source.randint(2, 3)))


CASES = {f"cascade_copying_{form}": Case(gold=gold, chance=0.0) for form in ("sequence", "phone_book")}
