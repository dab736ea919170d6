"""Does Online DPO beat SFT alone and offline DPO? The tiny instruct recipe over several seeds.

    python benchmarks/odpo_seeds.py --output_dir runs/odpo_seeds --seeds 0 1 2

Each seed is a run of recipes/tiny/instruct.yaml in which fine-tuning, reward model and both kinds of DPO have that
seed; the child they start from is made once. Measured as the recipe does, on prompts no stage has seen. Minutes a seed
on two cores; a run that was stopped goes on. Writes table.md in the output folder.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

RECIPE = "recipes/tiny/instruct.yaml"
CHILD = ("14b-pruned", "14b-short")
SEEDED = ("teacher", "sft", "pwrm", "odpo", "offline-dpo")
MODELS = ("sft", "offline-dpo", "odpo")
COLUMNS = {
    "exact": lambda part: part["rewards"]["exact_match"],
    "similarity": lambda part: part["rewards"]["similarity"],
    "win by PWRM": lambda part: part["wins"].get("pwrm", {}).get("rate", 0.5),
    "win by similarity": lambda part: part["wins"].get("similarity", {}).get("rate", 0.5),
    "loops": lambda part: part["loop_rate"],
    "cut off": lambda part: part["truncated_rate"],
    "tokens": lambda part: part["tokens"],
    "KL a response": lambda part: part["kl_response"],
}


def run(folder: Path, seed: int, first: Path | None) -> None:
    """One seed's run; the child comes from the first."""
    if first is not None and not folder.exists():
        folder.mkdir(parents=True)
        shutil.copy(first / "run.json", folder)
        for name in CHILD:
            shutil.copytree(first / name, folder / name)
    flags = [part for name in SEEDED for part in ("--set", f"{name}.seed={seed}")]
    command = [sys.executable, "-m", "hf_cascade.cli", "run", RECIPE, "--output_dir", str(folder), *flags]
    subprocess.run(command, check=True)


def read(folder: Path) -> dict[str, dict[str, float]]:
    """Model to column to figure, and the reward model's accuracy."""
    models = json.loads((folder / "instruct-report" / "results.json").read_text())["models"]
    answers = {model["name"]: model["preference"] for model in models}
    return {name: {column: get(answers[name]) for column, get in COLUMNS.items()} for name in MODELS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    folders = [arguments.output_dir / f"seed-{seed}" for seed in arguments.seeds]
    for number, (folder, seed) in enumerate(zip(folders, arguments.seeds, strict=True)):
        run(folder, seed, folders[0] if number else None)
    runs = [read(folder) for folder in folders]
    judges = [
        json.loads((folder / "pwrm" / "cascade.json").read_text())["metrics"]["calibration"] for folder in folders
    ]
    lines = ["| model | " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    for name in MODELS:
        cells = []
        for column in COLUMNS:
            values = [figures[name][column] for figures in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3g} ± {spread:.2g}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Seed by seed:", "", "| seed | model | " + " | ".join(COLUMNS) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(COLUMNS))
    for seed, figures in zip(arguments.seeds, runs, strict=True):
        for name in MODELS:
            cells = " | ".join(f"{figures[name][column]:.3g}" for column in COLUMNS)
            lines.append(f"| {seed} | {name} | {cells} |")
    lines += ["", "The reward models, on held-out pairs:", "", "| seed | accuracy | T | NLL | ECE | disagreement |"]
    lines.append("| --- |" + " ---: |" * 5)
    for seed, part in zip(arguments.seeds, judges, strict=True):
        before, after = part["before"], part["after"]
        lines.append(
            f"| {seed} | {after['accuracy']:.3f} | {part['temperature']:.2f} | {before['nll']:.3f} to "
            f"{after['nll']:.3f} | {before['ece']:.3f} to {after['ece']:.3f} | {part['position_disagreement']:.2f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    (arguments.output_dir / "table.md").write_text(text)


if __name__ == "__main__":
    main()
