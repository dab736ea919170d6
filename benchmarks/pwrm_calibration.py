"""Pairwise reward models of the tiny parent: accuracy, position bias and calibration, before and after the temperature.

    OMP_NUM_THREADS=1 python benchmarks/pwrm_calibration.py --task shorter --count 2000 \
        --plot benchmarks/results/pwrm_calibration.png
    OMP_NUM_THREADS=1 python benchmarks/pwrm_calibration.py --task shorter_soft --count 2000
    OMP_NUM_THREADS=1 python benchmarks/pwrm_calibration.py --task file --pairs PAIRS.jsonl

`shorter`: of two lists of words the shorter is preferred. `shorter_soft`: with probability sigmoid(difference in words
/ 4), the soft label. `file`: rows of `instruction`, `output_1`, `output_2` and `preference`, from 1 (the first) to 2
(the second), as AlpacaEval publishes its annotations; the data is not ours to ship. Rows are divided by prompt: 60%
train, 20% set the temperature, 20% measure it. The length baseline is the same temperature on the log of the lengths'
ratio, in characters, with the sign that fits.
"""

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed
from trl import SFTConfig

from hf_cascade.loading import load_model, load_tokenizer
from hf_cascade.rewards import calibration
from hf_cascade.rewards.pairs import Pair, read_pair
from hf_cascade.rewards.pairwise import PairwiseRewardModel
from hf_cascade.rewards.trainer import CascadePairwiseTrainer

WORDS = "river stone green quick paper light house bread cloud north".split()
PARENT = "recipes/tiny/parent"


def shorter(count: int, soft: bool) -> list[dict]:
    """Lists of 1 to 24 words, of different lengths."""
    draw, rows = random.Random(0), []
    for number in range(count):
        one, other = draw.sample(range(1, 25), 2)
        probability = 1 / (1 + math.exp((one - other) / 4)) if soft else float(one < other)
        first, second = (" ".join(draw.choices(WORDS, k=words)) for words in (one, other))
        rows.append({"prompt": f"List {number}", "first": first, "second": second, "probability": probability})
    return rows


def annotated(path: str, characters: int) -> list[dict]:
    """A file's pairs of at most so many characters, with 2 - preference as P(first preferred)."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    texts = ("instruction", "output_1", "output_2")
    rows = [row for row in rows if sum(len(row[name]) for name in texts) <= characters]
    return [
        {
            "prompt": [{"role": "user", "content": row["instruction"]}],
            "first": row["output_1"],
            "second": row["output_2"],
            "probability": 2 - row["preference"],
        }
        for row in rows
    ]


def divide(rows: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """60%, 20% and 20% of the prompts."""
    prompts = sorted({json.dumps(row["prompt"]) for row in rows})
    random.Random(0).shuffle(prompts)
    part = {prompt: min(number * 5 // len(prompts), 4) for number, prompt in enumerate(prompts)}
    place = [max(part[json.dumps(row["prompt"])] - 2, 0) for row in rows]
    return tuple([row for row, at in zip(rows, place, strict=True) if at == wanted] for wanted in range(3))


def by_length(fit: list[Pair], report: list[Pair]) -> dict[str, float]:
    """The length baseline's figures."""
    logits = [
        torch.tensor([math.log((len(pair.first) + 1) / (len(pair.second) + 1)) for pair in pairs])
        for pairs in (fit, report)
    ]
    targets = [torch.tensor([pair.probability for pair in pairs]) for pairs in (fit, report)]
    sign = 1.0 if calibration.measure(logits[0], targets[0])["accuracy"] >= 0.5 else -1.0
    temperature = calibration.fit_temperature(sign * logits[0], targets[0])
    return calibration.measure(sign * logits[1], targets[1], temperature)


def floor(report: list[Pair]) -> float:
    """NLL of whoever knows the labels: their own entropy."""
    p = torch.tensor([pair.probability for pair in report], dtype=torch.float64)
    return float((torch.special.entr(p) + torch.special.entr(1 - p)).mean())


def train(rows: list[dict], folder: str, options) -> CascadePairwiseTrainer:
    """A reward model in `folder`."""
    set_seed(options.seed)
    args = SFTConfig(
        folder,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=16,
        learning_rate=options.rate,
        warmup_steps=10,
        lr_scheduler_type="cosine",
        max_length=options.max_length,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=options.seed,
        train_sampling_strategy="group_by_length",
    )
    trainer = CascadePairwiseTrainer(
        load_model(PARENT, "float32"), args, Dataset.from_list(rows), processing_class=load_tokenizer(PARENT)
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    return trainer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("shorter", "shorter_soft", "file"), required=True)
    parser.add_argument("--pairs", help="the file of --task file")
    parser.add_argument("--characters", type=int, default=2000, help="longer pairs of the file are left out")
    parser.add_argument("--count", type=int, default=3000, help="pairs of the other tasks")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot")
    options = parser.parse_args()
    rows = (
        annotated(options.pairs, options.characters)
        if options.task == "file"
        else shorter(options.count, "soft" in options.task)
    )
    train_rows, *held_out = divide(rows)
    fit, report = ([pair for pair in map(read_pair, part) if pair.first != pair.second] for part in held_out)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        trainer = train(train_rows, folder, options)
        trained = time.monotonic() - started
        model = PairwiseRewardModel.from_pretrained(folder, batch_size=16)
        figures = calibration.calibrate(model, fit, report, Path(folder))
        if options.plot:
            (Path(folder) / "reliability.png").replace(options.plot)
    last = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
    print(f"\n### {options.task}, seed {options.seed}\n")
    print(f"{trainer.counts} pairs, {trainer.state.global_step} steps, {trained:.0f} s, last loss {last:.3f}. ", end="")
    print(f"T = {figures['temperature']:.2f} on {len(fit)} pairs; measured on {len(report)} others, ", end="")
    print(f"entropy of their labels {floor(report):.3f}. Disagreement {figures['position_disagreement']:.3f}, ", end="")
    print(f"bias {figures['position_bias']:+.3f}, truncated {figures['truncated_rate']:.2f}.\n")
    print("| | accuracy | NLL | Brier | ECE |\n|---|---|---|---|---|")
    half = calibration.measure(torch.zeros(len(report)), torch.tensor([pair.probability for pair in report]))
    lines = {"before": figures["before"], "after": figures["after"], "length": by_length(fit, report), "p = 0.5": half}
    for name, line in lines.items():
        print(f"| {name} | " + " | ".join(f"{line[key]:.3f}" for key in ("accuracy", "nll", "brier", "ece")) + " |")


if __name__ == "__main__":
    main()
