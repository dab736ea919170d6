"""`Overlap`: which rows of benchmarks stand in training text, and where."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from hf_cascade.evaluate.contamination.grams import LONGEST, SHORTEST, GramIndex, numbers_of, roll, words_of

BOILERPLATE_ROWS = 10  # a gram that more rows of a split share is the benchmark's own wording; GPT-3 drops those too
CHUNK_WORDS = 1_000_000  # of training text at once; ours


@dataclass
class Row:
    """One benchmark row: its grams, and those that were found."""

    name: str
    grams: dict[tuple[int, int], int]  # (length, hash) -> how many
    found: set[tuple[int, int]] = field(default_factory=set)
    where: str = ""  # first training document that has some of it
    text: str = ""  # the words in question

    def share(self) -> float:
        """Of the row's grams, those that training text has."""
        return len(self.found) / len(self.grams)


class Overlap:
    """
    Collects benchmark rows, then reads training text.

    ```python
    >>> overlap = Overlap({"cais/mmlu/test": rows})
    >>> overlap.read(["text of a document"], "corpus.jsonl")
    >>> overlap.report()
    ```

    Args:
        splits (`dict[str, Iterable[dict]]`): name of a split to its rows; every text in a row counts.
    """

    def __init__(self, splits: dict[str, Iterable[dict]]):
        self.rows: dict[str, list[Row]] = {}
        self.too_short: dict[str, int] = {}
        self.words = self.documents = 0
        for split, rows in splits.items():
            self._add(split, rows)
        self._index = self._indices()

    def read(self, texts: Iterable[str], source: str) -> None:
        """
        Look through training text.

        Args:
            texts (`Iterable[str]`): documents, in the order that numbers them.
            source (`str`): what the report calls their file or dataset.
        """
        for number, text in enumerate(texts):
            self.documents += 1
            words = words_of(text)
            self.words += len(words)
            for start in range(0, max(1, len(words)), CHUNK_WORDS):
                self._look(words[start : start + CHUNK_WORDS + LONGEST - 1], f"{source}, document {number}")

    def report(self) -> dict:
        """
        What was found.

        Returns:
            `dict`: `words` and `documents` read, and `splits`: name to `rows`, `too_short` (no 8 words in a row: not
            checked), `overlapping` (rows of which training text has a gram), `mostly` (half of their grams and more),
            and `examples`: `{"row", "share", "where", "text"}` of every overlapping row, most first.
        """
        splits = {}
        for split, rows in self.rows.items():
            hit = sorted((row for row in rows if row.found), key=lambda row: -row.share())
            splits[split] = {
                "rows": len(rows) + self.too_short[split],
                "too_short": self.too_short[split],
                "overlapping": len(hit),
                "mostly": sum(row.share() >= 0.5 for row in hit),
                "examples": [
                    {"row": row.name, "share": row.share(), "where": row.where, "text": row.text} for row in hit
                ],
            }
        return {"words": self.words, "documents": self.documents, "splits": splits}

    def _add(self, split: str, rows: Iterable[dict]) -> None:
        """Grams of a split's rows, but for those that many of them share."""
        grams = [_grams(row) for row in rows]
        in_rows = Counter(gram for row in grams for gram in row)
        self.rows[split], self.too_short[split] = [], 0
        for number, row in enumerate(grams):
            own = {gram: count for gram, count in row.items() if in_rows[gram] <= BOILERPLATE_ROWS}
            if own:
                self.rows[split].append(Row(f"row {number}", own))
            else:
                self.too_short[split] += 1

    def _indices(self) -> dict[int, tuple[GramIndex, list[list[Row]]]]:
        """For each length: its index, and the rows that have each gram."""
        owners: dict[int, dict[int, list[Row]]] = {}
        for rows in self.rows.values():
            for row in rows:
                for length, number in row.grams:
                    owners.setdefault(length, {}).setdefault(number, []).append(row)
        indices = {}
        for length, of_gram in owners.items():
            index = GramIndex(np.fromiter(of_gram, np.uint64, len(of_gram)))
            indices[length] = (index, [of_gram[int(number)] for number in index.hashes_N])
        return indices

    def _look(self, words: list[str], where: str) -> None:
        numbers_T = numbers_of(words)
        for length, (index, owners) in self._index.items():
            for place, which in zip(*index.find(roll(numbers_T, length)), strict=True):
                for row in owners[which]:
                    row.found.add((length, int(index.hashes_N[which])))
                    if not row.where:
                        row.where, row.text = where, " ".join(words[place : place + length])


def _grams(row: dict) -> Counter:
    """Grams of every text of a row, none across two texts."""
    grams: Counter = Counter()
    for text in texts_of(row):
        words = words_of(text)
        length = min(LONGEST, len(words))
        if length >= SHORTEST:
            grams.update((length, int(number)) for number in roll(numbers_of(words), length))
    return grams


def texts_of(value) -> list[str]:
    """All texts in a row, inside lists and dictionaries too; not bytes, images and numbers."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts_of(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_of(item)]
    return []
