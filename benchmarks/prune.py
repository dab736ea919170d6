"""Pruning side by side: divergence and time of each method at equal shapes, in one run.

    python benchmarks/prune.py                                             # the shipped parent
    python benchmarks/prune.py --model DIR --calibration FILE --heldout FILE --num_hidden_layers 20 --hidden_size 768

Columns: KL(parent || child) and next-token loss on held-out text, without training; seconds, and their ratio to
one forward pass of the parent over the calibration text in the same run.
"""

import argparse
import platform
import time

import torch

from hf_cascade import PruneConfig, prune_model
from hf_cascade.data.packing import blocks
from hf_cascade.data.text_files import load_texts
from hf_cascade.loading import load_model, load_tokenizer

METHODS = {
    "paper's listing": {"method": "paper"},
    "paper's scores, PCA of normed inputs": {"method": "paper", "hidden_basis": "normed"},
    "compensated, write only": {"compensation": "write"},
    "compensated": {},
    "compensated, paper's FFN score": {"ffn_score": "mean_abs"},
    "compensated, PCA of raw inputs": {"hidden_basis": "stream"},
    "compensated, average tie": {"tie_merge": "average"},
}
SHAPES = {  # the tiny cascade's, all straight from its parent
    "14b": {"intermediate_size": 256},
    "8b": {"num_hidden_layers": 7, "hidden_size": 80, "intermediate_size": 224},
    "3b": {"num_hidden_layers": 5, "hidden_size": 64, "intermediate_size": 144, "tie_word_embeddings": True},
}


@torch.no_grad()
def log_probabilities(model, windows):
    """[windows, tokens, V], one batch after another."""
    return [model(input_ids=part).logits.float().log_softmax(-1) for part in windows.split(8)]


def compare(parent, shape, calibration, heldout) -> None:
    """Print one row a method."""
    started = time.perf_counter()
    with torch.no_grad():
        for part in calibration.split(16):
            parent.base_model(input_ids=part, use_cache=False)
    forward = time.perf_counter() - started
    reference = log_probabilities(parent, heldout)
    for name, changes in METHODS.items():
        if "tie_merge" in changes and not shape.get("tie_word_embeddings"):
            continue
        started = time.perf_counter()
        child = prune_model(parent, PruneConfig(**shape, **changes), calibration, batch_size=16)
        seconds = time.perf_counter() - started
        kl = nll = tokens = 0.0
        for p, q, ids in zip(reference, log_probabilities(child, heldout), heldout.split(8), strict=True):
            kl += float((p.exp() * (p - q)).sum())
            nll -= float(q[:, :-1].gather(2, ids[:, 1:, None]).sum())
            tokens += ids.numel()
        nll /= tokens * (1 - 1 / heldout.shape[1])
        print(f"| {name} | {kl / tokens:.3f} | {nll:.3f} | {seconds:.1f} | {seconds / forward:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="recipes/tiny/parent")
    parser.add_argument("--calibration", default="recipes/tiny/data/calibration.jsonl.gz")
    parser.add_argument("--heldout", default="recipes/tiny/data/heldout.jsonl.gz")
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    for flag in ("num_hidden_layers", "hidden_size", "intermediate_size"):
        parser.add_argument(f"--{flag}", type=int)
    arguments = parser.parse_args()
    given = {flag: getattr(arguments, flag) for flag in ("num_hidden_layers", "hidden_size", "intermediate_size")}
    shapes = {"given": given} if any(given.values()) else SHAPES
    parent, tokenizer = load_model(arguments.model, dtype="float32").eval(), load_tokenizer(arguments.model)
    calibration = blocks(tokenizer, load_texts(arguments.calibration), arguments.length, arguments.windows)
    heldout = blocks(tokenizer, load_texts(arguments.heldout), arguments.length, 64)
    print(f"{arguments.model} on {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__};")
    print(f"{calibration.numel():,} calibration tokens, {heldout.numel():,} held-out tokens")
    for name, shape in shapes.items():
        print(f"\n**{name}**: {', '.join(f'{flag} {size}' for flag, size in shape.items() if size)}\n")
        print("| method | KL | loss | seconds | x forward |\n|---|---:|---:|---:|---:|")
        compare(parent, shape, calibration, heldout)


if __name__ == "__main__":
    main()
