"""Seconds to look through 100 MB of text for benchmark rows, beside splitting the same text into words and no more.

    OMP_NUM_THREADS=1 python benchmarks/contamination.py [ROWS.jsonl ...] > benchmarks/results/contamination_cpu.md

Text: a textbook and Python files of the tiny recipes, repeated with other words every time. Rows: the shipped ones, and
those of the files named, each line a row. CPU time of one process; rounds measure both in turn.
"""

import gzip
import json
import platform
import statistics
import sys
import time

MEGABYTES, ROUNDS = 100, 3


def documents() -> list[str]:
    """About 100 MB; one copy of the text differs from another in every ninth word."""
    from hf_cascade import assets

    texts = []
    for name in ("openstax", "the_algorithms"):
        with gzip.open(assets.find(f"recipes/tiny/data/{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    found, size, copy = [], 0, 0
    while size < MEGABYTES * 1e6:
        for text in texts:
            words = text.split(" ")
            words[::9] = [f"{word}{copy}" for word in words[::9]]
            found.append(" ".join(words))
            size += len(found[-1].encode())
        copy += 1
    return found


def main() -> int:
    from hf_cascade import assets
    from hf_cascade.evaluate.contamination.grams import words_of
    from hf_cascade.evaluate.contamination.overlap import Overlap

    texts = documents()
    splits = {}
    for path in [*sorted(assets.find("evals/rows").rglob("*.jsonl")), *map(assets.find, sys.argv[1:])]:
        with path.open(encoding="utf-8") as lines:
            splits[str(path)] = [json.loads(line) for line in lines]
    floor, ours, index = [], [], []
    for _ in range(ROUNDS):
        start = time.process_time()
        words = sum(len(words_of(text)) for text in texts)
        floor.append(time.process_time() - start)
        start = time.process_time()
        overlap = Overlap(splits)
        index.append(time.process_time() - start)
        start = time.process_time()
        overlap.read(texts, "text")
        ours.append(time.process_time() - start)
    rows = sum(map(len, splits.values()))
    ratio = statistics.median(mine / least for mine, least in zip(ours, floor, strict=True))
    print("# Contamination: 13-grams of benchmark rows in training text\n")
    print(f"`python benchmarks/contamination.py`, {platform.processor() or platform.machine()}, one core.\n")
    print("| text | words | rows | index | words alone | all | ratio |\n|---:|---:|---:|---:|---:|---:|---:|")
    size = sum(len(text.encode()) for text in texts) / 1e6
    seconds = [f"{statistics.median(times):.1f} s" for times in (index, floor, ours)]
    print(f"| {size:.0f} MB | {words:,} | {rows:,} | {' | '.join(seconds)} | {ratio:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
