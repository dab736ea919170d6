"""What lm-eval's YAML tasks call by name: rows from JSON lines that ship with hf-cascade, and scorers."""

import json
import math

from hf_cascade import assets


def load(file: str, **_) -> dict:
    """
    The rows of a task, for `custom_dataset: !function hf_cascade.evaluate.rows.load`. From any directory, offline.

    Args:
        file (`str`): JSON lines; found as by [`assets.find`].
        **_: the task's `metadata`, which lm-eval passes to every loader.

    Returns:
        `dict[str, Dataset]`: one split, `test`.
    """
    from datasets import Dataset

    with assets.find(file).open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def bits_per_byte(doc: dict, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Bits per UTF-8 byte of `doc["text"]`: minus its log-likelihood in nats, over ln 2, over its bytes."""
    ((log_likelihood, _greedy),) = results
    return {"bits_per_byte": -log_likelihood / math.log(2) / len(doc["text"].encode())}
