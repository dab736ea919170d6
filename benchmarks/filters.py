"""Rows a second of `filter_reasoning`, filter by filter, beside tokenizing the same texts and nothing else.

    OMP_NUM_THREADS=1 python benchmarks/filters.py > benchmarks/results/filters_cpu.md

Rows: a textbook's sections as thinking, cut at about 2,000 and 8,000 tokens of the tokenizer that the tiny recipes
ship, with a short question and answer. CPU time of one process; rounds measure everything in turn, and a ratio is to
tokenizing in the same round. `repetition` is what every choice of filters pays: rows are always counted in tokens and
looked through for repetition, which the report of any filter says.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import sys
import time

PARTS = ("tokenizing", "repetition", "language", "all, in a Dataset")


def make_rows(tokenizer, tokens: int, count: int) -> list[dict]:
    """Rows of one message each, whose thinking is text of about so many tokens; no text is in two rows."""
    from hf_cascade import assets

    with gzip.open(assets.find("recipes/tiny/data/openstax.jsonl.gz"), "rt", encoding="utf-8") as lines:
        text = "\n\n".join(json.loads(line)["text"] for line in lines)
    share = len(text) // 100  # characters of a token, measured on a piece
    width = tokens * share // len(tokenizer(text[:share])["input_ids"])
    pieces = [text[start : start + width] for start in range(0, len(text) - width, width)][:count]
    return [
        {
            "messages": [
                {"role": "user", "content": "What does the section say about how people live and work together?"},
                {"role": "assistant", "content": f"<think>{piece}</think>They depend on each other."},
            ]
        }
        for piece in pieces
    ]


def seconds_of(part: str, rows: list[dict], tokenizer) -> float:
    """CPU seconds of one part of the work on all rows."""
    from datasets import Dataset

    from hf_cascade.data.repetition import find_repetition
    from hf_cascade.distill.chains import read_turns
    from hf_cascade.distill.reasoning import filter_reasoning
    from hf_cascade.rewards.language import language_reward

    turns = [turn for row in rows for turn in read_turns(row)]
    texts = [text for turn in turns for text in (turn.thinking, turn.answer)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    data = Dataset.from_list(rows)
    work = {
        "tokenizing": lambda: [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
        "repetition": lambda: [find_repetition(text, tokenizer, ids=of) for text, of in zip(texts, ids, strict=True)],
        "language": lambda: [language_reward([turn.prompt], [turn.completion]) for turn in turns],
        "all, in a Dataset": lambda: filter_reasoning(data, tokenizer),
    }[part]
    start = time.process_time()
    work()
    return time.process_time() - start


def main(args) -> None:
    import datasets
    import numpy
    import transformers

    from hf_cascade import assets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()  # texts are longer than the tiny model's window
    tokenizer = transformers.AutoTokenizer.from_pretrained(assets.find("recipes/tiny/tokenizer"))
    print("# Filters of reasoning data\n")
    print(f"`OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python {' '.join(sys.argv)}`;")
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (datasets, transformers, numpy))
    print(f"{platform.machine()}, {versions};")
    lines = []
    for tokens, count in ((2000, args.rows), (8000, args.rows // 4)):
        rows = make_rows(tokenizer, tokens, count)
        mean = statistics.fmean(len(tokenizer(row["messages"][1]["content"])["input_ids"]) for row in rows)
        rounds = [{part: seconds_of(part, rows, tokenizer) for part in PARTS} for _ in range(args.rounds)]
        for part in PARTS:
            ratios = sorted(one[part] / one["tokenizing"] for one in rounds)
            rate = len(rows) / statistics.median(one[part] for one in rounds)
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            lines.append(f"| {len(rows)} of {mean:,.0f} tokens | {part} | {rate:,.0f} | {spread} |")
    print(f"load of the machine at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs.\n")
    print(f"CPU time, one process; rows a second by the median of {args.rounds} rounds, the ratio's median (range).\n")
    print("| rows | part | rows a second | time, tokenizing = 1 |\n|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args())
