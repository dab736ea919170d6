"""CPU time and memory of an Online DPO step beside TRL's own trainers, on the same model, prompts and batch.

    OMP_NUM_THREADS=1 python benchmarks/odpo_step.py > benchmarks/results/odpo_step_cpu.md

Beside ours, in pair and in weight form: TRL's GRPO trainer with two responses to a prompt and a reference, and TRL's
experimental Online DPO trainer. All write responses of the same length. CPU time rather than the clock's, since other
work on the machine hurts it less; a row's ratio is to GRPO in the same round, and the median of the rounds is given.

Memory: responses are given rather than written, every process does one step of two responses, and its resident set's
peak is compared with what it was before the step.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METHODS = ("trl grpo", "trl online dpo", "ours, pair", "ours, weight")
ROWS = 8  # responses in a step
SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2}


def save_policy(folder: Path, layers: int) -> None:
    """A random model with the tiny parent's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Ministral3Config, Ministral3ForCausalLM

    from hf_cascade import assets

    torch.manual_seed(0)
    kit = AutoTokenizer.from_pretrained(assets.find("recipes/tiny/tokenizer"))
    more = {"vocab_size": len(kit), "head_dim": 64, "num_hidden_layers": layers, "pad_token_id": kit.pad_token_id}
    config = Ministral3Config(**SHAPE, **more)
    Ministral3ForCausalLM(config).save_pretrained(folder)
    kit.save_pretrained(folder)


def count_a(completions, **columns):
    """A reward."""
    return [float(text.count("a")) for text in completions]


def make(method: str, policy: str, tokens: int, rows: int):
    """A trainer whose step is `rows` responses of `tokens` tokens."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    from hf_cascade.odpo.config import CascadeODPOConfig
    from hf_cascade.odpo.trainer import CascadeODPOTrainer

    kit = AutoTokenizer.from_pretrained(policy, padding_side="left")
    common = {"output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1000}
    common |= {"gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True, "beta": 0.1}
    length = {"generation_kwargs": {"min_new_tokens": tokens}}
    grpo = {"max_completion_length": tokens, "per_device_train_batch_size": rows, **length}
    trainer, config = {
        "trl grpo": (GRPOTrainer, lambda: GRPOConfig(num_generations=2, **grpo, **common)),
        "trl online dpo": (
            OnlineDPOTrainer,
            lambda: OnlineDPOConfig(max_new_tokens=tokens, per_device_train_batch_size=rows // 2, **length, **common),
        ),
        "ours, pair": (CascadeODPOTrainer, lambda: CascadeODPOConfig(**grpo, **common)),
        "ours, weight": (
            CascadeODPOTrainer,
            lambda: CascadeODPOConfig(
                **{**grpo, "per_device_train_batch_size": 1},
                gradient_accumulation_steps=rows,
                loss_form="weight",
                **common,
            ),
        ),
    }[method]
    data = Dataset.from_dict({"prompt": ["The cell is", "Rust has", "def add(", "A force of"] * 500})
    return trainer(policy, reward_funcs=count_a, args=config(), train_dataset=data, processing_class=kit)


def step_seconds(trainer, steps: int) -> list[float]:
    """CPU seconds of every optimizer step but the first."""
    from transformers import TrainerCallback

    ends = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(time.process_time())
            control.should_training_stop = len(ends) > steps

    trainer.add_callback(Watch())
    trainer.train()
    return [end - start for start, end in zip(ends, ends[1:], strict=False)]


def peak_megabytes(method: str, policy: str, tokens: int) -> float:
    """Growth of this process's resident set over a step of two responses that are given."""
    import torch

    trainer = make(method, policy, tokens, 2)
    given = torch.randint(20, 2000, (2, tokens), generator=torch.Generator().manual_seed(0))
    if method == "trl online dpo":

        def generate(model, prompts, images=None):
            ids = trainer.processing_class(prompts, return_tensors="pt")
            prompt = [ids[part].repeat(2, 1) for part in ("input_ids", "attention_mask")]
            return *prompt, given, torch.ones_like(given), None

        trainer._generate = generate
    else:
        trainer._generate_single_turn = lambda *args, **kwargs: (given.tolist(), None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer.args.max_steps = 1
    trainer.train()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure(job: dict):
    """One method, in this process."""
    sys.stdout = sys.stderr
    if job["what"] == "memory":
        return peak_megabytes(job["method"], job["policy"], job["tokens"])
    return step_seconds(make(job["method"], job["policy"], job["tokens"], ROWS), job["steps"])


def apart(**job):
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    answer = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1"}
    )
    if answer.returncode:
        raise RuntimeError(answer.stderr[-3000:])
    return json.loads(answer.stdout.splitlines()[-1])


def main(args) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_policy(Path(folder), args.layers)
        rounds = [
            {
                method: statistics.median(
                    apart(what="time", method=method, policy=folder, tokens=args.tokens, steps=args.steps)
                )
                for method in METHODS
            }
            for _ in range(args.rounds)
        ]
        memory = {method: apart(what="memory", method=method, policy=folder, tokens=args.long) for method in METHODS}
    import torch
    import transformers
    import trl

    print("# An Online DPO step beside TRL's trainers\n")
    print(f"`OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python {' '.join(sys.argv)}`;")
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, transformers, trl))
    print(f"{platform.machine()}, {versions};")
    print(
        f"load of the machine at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs: other work was running.\n"
    )
    print(f"{args.layers} layers of {SHAPE['hidden_size']}, fp32. CPU time: {ROWS} responses of {args.tokens} tokens,")
    print(f"written by transformers; median of {args.steps} steps, median (range) of {args.rounds} rounds. Memory: two")
    print(f"responses of {args.long:,} tokens, growth of the peak resident set over the first step.\n")
    print("| trainer | CPU time, TRL's GRPO = 1 | CPU seconds a step | memory, MB |\n|---|---|---|---|")
    for method in METHODS:
        ratios = sorted(one[method] / one["trl grpo"] for one in rounds)
        seconds = statistics.median(one[method] for one in rounds)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {method} | {spread} | {seconds:.2f} | {memory[method]:,.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--long", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", type=json.loads)
    options = parser.parse_args()
    if options.job:
        found = measure(options.job)
        sys.__stdout__.write(json.dumps(found) + "\n")
    else:
        main(options)
