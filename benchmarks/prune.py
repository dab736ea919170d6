"""Pruning methods side by side at equal shapes: what each leaves of the parent, before and after equal distillation.

    OMP_NUM_THREADS=1 python benchmarks/prune.py --plot prune.png > prune.md   # all parents, shapes and methods
    python benchmarks/prune.py --parents ministral3 --shapes 8b --methods paper ours --steps 0
    python benchmarks/prune.py --model DIR --calibration FILE --heldout FILE --num_hidden_layers 20 --hidden_size 768
    python benchmarks/prune.py --ablation     # the recommended option, each of its pieces switched
    python benchmarks/prune.py --domains      # calibrated on one kind of text, measured on another

The second parent is not shipped; without it the command goes on with the first:
    python trainers/pretrain.py --config benchmarks/qwen3_parent/train.yaml --output_dir runs/qwen3_parent
Peers that are not installed are named: pip install optipfair torch-pruning. SliceGPT is not on PyPI.
Every row is pruned in a process of its own.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from distill_loss import processor
from prune_measure import HeldOut, Memory, Subject, forward_seconds, timed
from prune_methods import DIMENSIONS, METHODS, cuts
from prune_plot import draw
from prune_recovery import recover, spread
from prune_studies import ablation, domains

from hf_cascade.loading import load_config

TEXT = "recipes/tiny/data"
PARENTS = {  # name -> folder and shapes, each straight from the parent
    "ministral3": (
        "recipes/tiny/parent",
        {
            "14b": {"intermediate_size": 256},
            "8b": {"num_hidden_layers": 7, "hidden_size": 80, "intermediate_size": 224},
            "3b": {"num_hidden_layers": 5, "hidden_size": 64, "intermediate_size": 144, "tie_word_embeddings": True},
            "depth": {"num_hidden_layers": 6},
        },
    ),
    "qwen3": (
        "runs/qwen3_parent",
        {
            "half-ffn": {"intermediate_size": 160},
            "mid": {"num_hidden_layers": 10, "hidden_size": 80, "intermediate_size": 192},
            "small": {"num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 128},
        },
    ),
}
QWEN3 = "python trainers/pretrain.py --config benchmarks/qwen3_parent/train.yaml --output_dir runs/qwen3_parent"
FORWARD = "forward"  # the row that prunes nothing


def read_arguments() -> argparse.Namespace:
    """The command line; `parents` becomes name -> (folder, shapes)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parents", nargs="+", choices=PARENTS, default=list(PARENTS))
    parser.add_argument("--shapes", nargs="+", help="names of shapes; all without")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--model", help="another parent, with the shape that follows")
    for flag in DIMENSIONS:
        parser.add_argument(f"--{flag}", type=int)
    parser.add_argument("--tie_word_embeddings", action="store_true", default=None)
    parser.add_argument("--calibration", default=f"{TEXT}/calibration.jsonl.gz")
    parser.add_argument("--heldout", default=f"{TEXT}/heldout.jsonl.gz")
    parser.add_argument("--windows", type=int, default=256, help="of calibration text")
    parser.add_argument("--heldout_windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    texts = [f"{TEXT}/{name}.jsonl.gz" for name in ("openstax", "rust_book", "the_algorithms")]
    parser.add_argument("--train", nargs="+", default=texts, help="text of the distillation steps")
    parser.add_argument("--steps", type=int, help="distillation steps; 100 without, and none in --ablation")
    parser.add_argument("--step_tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the steps; a cosine brings it to a tenth")
    parser.add_argument("--seeds", type=int, default=3, help="orders of the steps' windows")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--domains", action="store_true")
    parser.add_argument("--plot", help="PNG of the divergences before and after the steps")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps is None:
        arguments.steps = 0 if arguments.ablation or arguments.domains else 100
    if arguments.plot and (arguments.ablation or arguments.domains):
        parser.error("--plot draws the comparison, not --ablation or --domains")
    chosen = {name: PARENTS[name] for name in arguments.parents}
    if arguments.model:
        shape = {flag: getattr(arguments, flag) for flag in (*DIMENSIONS, "tie_word_embeddings")}
        shape = {flag: size for flag, size in shape.items() if size}
        if not set(shape) & set(DIMENSIONS):
            parser.error(f"--model needs a smaller shape: give one of {', '.join('--' + flag for flag in DIMENSIONS)}")
        chosen, arguments.shapes = {"given": (arguments.model, {"given": shape})}, None
    arguments.parents = {
        name: (folder, {key: shape for key, shape in shapes.items() if key in (arguments.shapes or shapes)})
        for name, (folder, shapes) in chosen.items()
    }
    if not any(shapes for _, shapes in arguments.parents.values()):
        parser.error(f"--shapes: allowed are {', '.join(key for _, shapes in chosen.values() for key in shapes)}")
    return arguments


def one(arguments) -> dict:
    """The row of one parent, shape and method, in this process."""
    name, key, method = arguments.one
    folder, shapes = arguments.parents[name]
    if method != FORWARD and METHODS[method].missing():
        return {"missing": METHODS[method].package}
    subject = Subject.load(folder, arguments)
    parent, calibration_NT = subject.parent, subject.calibration_NT
    forward_seconds(parent, calibration_NT[:1])  # what a first pass sets up is no method's time or memory
    memory = Memory()
    if method == FORWARD:
        seconds = forward_seconds(parent, calibration_NT)
        child, row = parent, {"seconds": seconds, "forward": seconds}
    else:
        child, row = timed(METHODS[method], parent, shapes[key], calibration_NT)
    row["megabytes"] = memory.peak()
    held_out = HeldOut(parent, subject.heldout_NT)
    row["before"] = held_out(child)
    recovers = arguments.steps and child is not parent
    row["after"] = recover(child, held_out, subject.tokenizer, arguments) if recovers else []
    return row


def row_text(label: str, row: dict) -> str:
    """A markdown row."""
    if "missing" in row:
        return f"| {label} | not installed: pip install {row['missing']} | | | | | | |"
    if "failed" in row:
        return f"| {label} | failed: {row['failed']} | | | | | | |"
    before, after = row["before"], row["after"]
    cells = [f"{before['kl']:.3f}", spread(after, "kl")]
    cells += [f"{before['nll']:.3f}", spread(after, "nll")]
    cells += [f"{row['seconds']:.1f}", f"{row['seconds'] / row['forward']:.2f}", f"{row['megabytes']:,.0f}"]
    return f"| {label} | {' | '.join(cells)} |"


def compare(arguments, name: str, key: str, methods: list[str]) -> dict[str, dict]:
    """Print the table of one parent and shape; the rows that were measured, by label."""
    steps = f"after {arguments.steps}"
    print(f"| method | KL | KL {steps} | loss | loss {steps} | seconds | x forward | peak MB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    rows = {}
    for method in (FORWARD, *methods):
        label = "the parent, one forward pass" if method == FORWARD else METHODS[method].label
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name, key, method]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            row = {"failed": (answer.stderr.strip().splitlines() or ["killed"])[-1]}
        else:
            row = json.loads(answer.stdout.splitlines()[-1])
        print(row_text(label, row), flush=True)
        if method != FORWARD and "before" in row:
            rows[label] = row
    return rows


def header(arguments) -> None:
    """What was run, on what, and what the columns say."""
    calibration, held_out = (
        f"{count * arguments.length:,}" for count in (arguments.windows, arguments.heldout_windows)
    )
    lines = [
        "# Pruning methods side by side\n",
        f"`{shlex.join(['python', 'benchmarks/prune.py', *sys.argv[1:]])}`\n",
        f"{processor()}; {torch.get_num_threads()} thread(s); torch {torch.__version__}, fp32;",
        f"up to {calibration} calibration tokens and {held_out} held-out tokens.",
        "KL(parent || child) and next-token loss in nats a token, on held-out text.",
    ]
    if arguments.steps and not arguments.domains:
        lines += [
            f"After: {arguments.steps} distillation steps of {arguments.step_tokens:,} tokens (forward KL, AdamW, rate",
            f"{arguments.lr:g}, cosine to a tenth); mean ± half the range of {arguments.seeds} order(s) of windows.",
        ]
    if not arguments.domains:
        lines.append(
            "x forward: over one pass of the parent's decoder on the calibration text, just before in this run."
        )
    if not arguments.domains and not arguments.ablation:
        lines += [
            "Peak MB: the most the process held above what it held with the parent loaded, in 10^6 bytes; the forward",
            "pass is part of it. Where the width stays, the paper's options with and without norm factor are one.",
        ]
    print("\n".join(lines), flush=True)


def main() -> None:
    """Go through parents and shapes."""
    arguments = read_arguments()
    if arguments.one:
        print(json.dumps(one(arguments)))
        return
    header(arguments)
    panels = {}
    for name, (folder, shapes) in arguments.parents.items():
        if not Path(folder).exists() and name in PARENTS:
            print(f"\n**{name}**: {folder} is absent. It is made by `{QWEN3}`.", flush=True)
            continue
        if arguments.domains:
            domains(folder, shapes, arguments)
            continue
        config = load_config(folder)
        for key, shape in shapes.items():
            sizes = ", ".join(f"{flag} {size}" for flag, size in shape.items())
            print(f"\n**{f'{name}, {key}' if name in PARENTS else name}** ({folder}): {sizes}\n")
            if arguments.ablation:
                ablation(folder, shape, arguments)
            else:
                methods = [method for method in arguments.methods if METHODS[method].on(cuts(config, shape))]
                panels[name, key] = compare(arguments, name, key, methods)
    if arguments.plot:
        draw(panels, arguments.steps, arguments.plot)


if __name__ == "__main__":
    main()
