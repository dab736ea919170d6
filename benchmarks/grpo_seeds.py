"""What does Magistral's GRPO add to TRL's, and each of its changes alone? The tiny reasoning recipe over several seeds.

    hf-cascade run recipes/tiny/reasoning.yaml
    python benchmarks/grpo_seeds.py --run runs/reasoning --output_dir runs/grpo_seeds --seeds 0 1 2

Each seed fine-tunes the recipe's child anew, then trains it with every variant on the prompts that its difficulty
filter kept, until the policy has written `--samples` responses: dynamic refill pays for what it writes. Rewards,
learning rate, batch and updates a batch are the same for all, and the rate is constant, so that a run may end anywhere.
Measured on held-out sums, four responses each at T 0.7. Minutes a seed and variant on a core; what is done is not done
again.
Writes table.md in the output folder.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

RECIPE = Path("recipes/tiny")
# settings of CascadeGRPOConfig that take one change back; "TRL" is GRPOTrainer with its own defaults
VARIANTS = {
    "Magistral": {},
    "no refill": {"max_refill_rounds": 0},
    "no clip-higher": {"epsilon_high": 0.2},
    "advantages not normalised": {},
    "divided by the batch's length": {"length_scope": "batch"},
    "no length penalty": {"length_penalty": 0.0},
    "TRL": {},
}
COLUMNS = {
    "accuracy": lambda part: part["rewards"]["maths_reward"],
    "tokens": lambda part: part["tokens"],
    "cut off": lambda part: part["truncated_rate"] + part["loop_rate"],
}


def train(variant: str, policy: Path, prompts: Path, output: Path, seed: int, samples: int) -> None:
    """One variant, until the policy has written so many responses."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from hf_cascade import CascadeGRPOConfig, CascadeGRPOTrainer
    from hf_cascade.data.chat import prepare_chat
    from hf_cascade.grpo import trainer as grpo
    from hf_cascade.rewards.form import format_reward
    from hf_cascade.rewards.stem import stem_reward

    written = 0

    def stem(prompts, completions, **columns):
        nonlocal written
        written += len(completions)
        return stem_reward(prompts=prompts, completions=completions, **columns)

    class Budget(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = written >= samples and state.global_step % args.num_iterations == 0

    settings = yaml.safe_load((RECIPE / "stem.yaml").read_text())
    ours = ("reward_funcs", "loop_min_tokens", "lr_scheduler_type", "max_steps", "seed", "save_steps", "report_to")
    shared = {key: value for key, value in settings.items() if key not in ours}
    shared |= {"output_dir": str(output), "lr_scheduler_type": "constant_with_warmup", "max_steps": 1000, "seed": seed}
    shared |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    tokenizer = AutoTokenizer.from_pretrained(policy)
    prepare_chat(tokenizer, None)
    format_reward.tokenizer = tokenizer
    rows = load_dataset("json", data_files=str(prompts), split="train").select_columns(["prompt", "answer"])
    options = {"model": AutoModelForCausalLM.from_pretrained(policy), "reward_funcs": stem, "train_dataset": rows}
    if variant == "TRL":
        trainer = GRPOTrainer(args=GRPOConfig(**shared), processing_class=tokenizer, **options)
    else:
        if variant == "advantages not normalised":
            grpo.learn = centred(grpo.learn)
        args = CascadeGRPOConfig(**shared, **VARIANTS[variant], loop_min_tokens=settings["loop_min_tokens"])
        trainer = CascadeGRPOTrainer(args=args, processing_class=tokenizer, **options)
    trainer.add_callback(Budget())
    trainer.train()
    trainer.save_model()
    record = {"written": written, "updates": trainer.state.global_step, "log": trainer.state.log_history}
    (output / "samples.json").write_text(json.dumps(record))


def centred(learn):
    """Rewards less their group's mean, and no more: the difference to it is the standard deviation."""
    import dataclasses

    def unscaled(*given):
        lesson = learn(*given)
        return dataclasses.replace(lesson, advantages_PG=lesson.advantages_PG * lesson.std)

    return unscaled


def name_of(variant: str) -> str:
    """Its folder."""
    return variant.lower().replace(" ", "-").replace("'", "")


def run(folder: Path, source: Path, seed: int, samples: int, variants: list[str]) -> None:
    """One seed: fine-tuning, every variant, and the report on all."""
    settings = RECIPE / "reasoning_sft.yaml"
    call(
        folder / "sft",
        [sys.executable, "-m", "hf_cascade.cli", "sft", "--config", settings, "--seed", seed]
        + ["--model_name_or_path", source / "14b", "--teacher_model_name_or_path", source / "reasoning-teacher"],
    )
    for variant in variants:
        again = [sys.executable, __file__, "--variant", variant, "--run", source, "--samples", samples]
        call(folder / name_of(variant), [*again, "--policy", folder / "sft", "--seeds", seed], "samples.json")
    models = [folder / "sft", *(folder / name_of(variant) for variant in variants)]
    evaluate = [sys.executable, "-m", "hf_cascade.cli", "evaluate", "--config", RECIPE / "reasoning_evaluate.yaml"]
    call(folder / "report", [*evaluate, "--samples_per_prompt", 4, "--model", *models])


def call(output: Path, command: list, done: str = "cascade.json") -> None:
    """A command with its `--output_dir`, unless it is done."""
    if not (output / done).is_file():
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{output}.log", "w") as log:
            command = [*map(str, command), "--output_dir", str(output)]
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def read(folder: Path, variants: list[str]) -> dict[str, dict[str, float]]:
    """Variant to column to figure."""
    models = json.loads((folder / "report" / "results.json").read_text())["models"]
    answers = {Path(model["source"]).name: model["preference"] for model in models}
    found = {}
    for variant in ("sft", *variants):
        found[variant] = {column: get(answers[name_of(variant)]) for column, get in COLUMNS.items()}
        if variant != "sft":
            record = json.loads((folder / name_of(variant) / "samples.json").read_text())
            found[variant] |= {"responses": record["written"], "updates": record["updates"]}
    return found


def tables(runs: list[dict], seeds: list[int], variants: list[str]) -> str:
    """Means with their spread, then every seed's accuracy."""
    columns = [*COLUMNS, "responses", "updates"]
    lines = ["| model | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for variant in ("sft", *variants):
        cells = []
        for column in columns:
            values = [figures[variant].get(column) for figures in runs]
            if None in values:
                cells.append("–")
                continue
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(
                f"{statistics.mean(values):.3g} ± {spread:.2g}"
                if column in COLUMNS
                else f"{statistics.mean(values):,.0f}"
            )
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    lines += ["", "Accuracy, seed by seed:", "", "| model | " + " | ".join(map(str, seeds)) + " |"]
    lines.append("| --- |" + " ---: |" * len(seeds))
    for variant in ("sft", *variants):
        lines.append(f"| {variant} | " + " | ".join(f"{figures[variant]['accuracy']:.3f}" for figures in runs) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished run of recipes/tiny/reasoning.yaml")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=6000, help="responses that a policy writes in training")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--variant", choices=list(VARIANTS), help="train this one alone, from --policy")
    parser.add_argument("--policy", type=Path)
    flags = parser.parse_args()
    if flags.variant:
        prompts = flags.run / "difficulty" / "prompts.jsonl"
        train(flags.variant, flags.policy, prompts, flags.output_dir, flags.seeds[0], flags.samples)
        return
    folders = [flags.output_dir / f"seed-{seed}" for seed in flags.seeds]
    for folder, seed in zip(folders, flags.seeds, strict=True):
        run(folder, flags.run, seed, flags.samples, flags.variants)
    runs = [read(folder, flags.variants) for folder in folders]
    text = tables(runs, flags.seeds, flags.variants)
    (flags.output_dir / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
