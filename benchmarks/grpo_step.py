"""Time and memory of a GRPO step beside TRL's GRPO trainer, on the same model, prompts, rewards and lengths.

    OMP_NUM_THREADS=1 python benchmarks/grpo_step.py > benchmarks/results/grpo_step_cpu.md
    python benchmarks/grpo_step.py --device cuda > benchmarks/results/grpo_step_cuda.md

The model has the shape of the tiny family's child. All write responses of the same length, with the settings of
Magistral's recipe that both trainers have; ours is without length penalty, which TRL would need a reward function for.
Refill is measured where every group's rewards differ, so that it has nothing to do, and where half of the prompts give
all of their responses the reward 0: then it writes more, and more groups teach.

Every round builds all trainers in one process, one after the other, and begins with another one each time. On a CPU,
CPU time rather than the clock's, since other work on the machine hurts it less; on a GPU the clock's. A row's ratio is
to TRL's GRPO on the same prompts in the same round.

Memory: responses are given rather than written, every process does one step of two responses, and its peak (the
resident set's on a CPU, PyTorch's on a GPU) is compared with what it was before the step.
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

METHODS = ("trl", "ours, no refill", "ours, refill")
DEAD = ("live", "half dead")  # prompts
GROUP = 8  # responses to a prompt
REFILL = 3  # rounds at most: the default
CHILD = {"num_hidden_layers": 6, "hidden_size": 96, "intermediate_size": 320}  # between the tiny family's children


def save_policy(folder: Path) -> None:
    """A random model of the child's shape, with the tiny tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from hf_cascade import assets

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(assets.find("recipes/tiny/parent"), **CHILD)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(assets.find("recipes/tiny/tokenizer")).save_pretrained(folder)


def count_a(completions, **columns):
    """A reward that differs within a group."""
    return [float(text.count("a")) for text in completions]


def count_a_of_half(prompts, completions, **columns):
    """The same, and 0 for prompts that begin with The or Rust."""
    return [
        0.0 if prompt.startswith(("The", "Rust")) else float(text.count("a"))
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def make(method: str, prompts: str, policy: str, job: dict):
    """A trainer whose step is `rows` responses of `tokens` tokens."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from hf_cascade.grpo.config import CascadeGRPOConfig
    from hf_cascade.grpo.trainer import CascadeGRPOTrainer

    settings = {"output_dir": tempfile.mkdtemp(), "use_cpu": job["device"] == "cpu", "report_to": "none", "bf16": False}
    settings |= {"gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True, "max_steps": 1000}
    settings |= {"per_device_train_batch_size": job["rows"], "num_generations": min(GROUP, job["rows"])}
    settings |= {"max_completion_length": job["tokens"], "generation_kwargs": {"min_new_tokens": job["tokens"]}}
    settings |= {"beta": 0.0, "epsilon_high": 0.28, "loss_type": "dapo", "temperature": 1.0}
    if method == "trl":
        trainer, config = GRPOTrainer, GRPOConfig(scale_rewards="batch", **settings)
    else:
        rounds = REFILL if method == "ours, refill" else 0
        trainer, config = (
            CascadeGRPOTrainer,
            CascadeGRPOConfig(length_penalty=0, max_refill_rounds=rounds, max_barren_batches=1000, **settings),
        )
    data = Dataset.from_dict({"prompt": ["The cell is", "Rust has", "def add(", "A force of"] * 500})
    kit = AutoTokenizer.from_pretrained(policy, padding_side="left")
    reward = count_a if prompts == "live" else count_a_of_half
    return trainer(policy, reward_funcs=reward, args=config, train_dataset=data, processing_class=kit)


def now(device: str) -> float:
    """Seconds of CPU time; of the clock on a GPU, behind all that was asked of it."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def step_seconds(trainer, steps: int, device: str) -> dict:
    """Mean seconds of the optimizer steps but the first, and groups that had an advantage in them."""
    from transformers import TrainerCallback

    ends, live = [], []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(now(device))
            kept = trainer._metrics["train"].get("grpo/kept_groups")
            live.append(kept[-1] if kept else count_live(trainer))
            control.should_training_stop = len(ends) > steps

    trainer.add_callback(Watch())
    trainer.train()
    return {"seconds": (ends[-1] - ends[0]) / steps, "groups": statistics.fmean(live[1:])}


def count_live(trainer) -> int:
    """Groups of TRL's last generation batch whose rewards differ."""
    (rewards,) = trainer._logs["rewards"].values()
    rewards = [*rewards][-trainer.args.generation_batch_size :]
    return sum(len({*rewards[start : start + GROUP]}) > 1 for start in range(0, len(rewards), GROUP))


def one_round(job: dict) -> dict:
    """Every trainer in turn, from a place in their order on."""
    cases = [(method, prompts) for prompts in DEAD for method in METHODS]
    first = job["round"] % len(cases)
    found = {}
    for method, prompts in cases[first:] + cases[:first]:
        trainer = make(method, prompts, job["policy"], job)
        found[f"{method}|{prompts}"] = step_seconds(trainer, job["steps"], job["device"])
    return found


def peak_megabytes(job: dict) -> float:
    """Growth of the peak over a step of two responses that are given."""
    import torch

    trainer = make(job["method"], "live", job["policy"], job)
    given = torch.randint(20, 2000, (2, job["tokens"]), generator=torch.Generator().manual_seed(0)).tolist()
    trainer._generate_single_turn = lambda *args, **kwargs: (given, None)
    trainer.args.max_steps = 1
    if job["device"] != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainer.train()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer.train()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def apart(**job) -> dict | float:
    """One round, or one trainer's memory, in a process of its own."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(answer.stderr[-3000:])
    return json.loads(answer.stdout.splitlines()[-1])


def describe(args) -> None:
    """What ran where."""
    import torch
    import transformers
    import trl

    print("# A GRPO step beside TRL's GRPO trainer\n")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    print(f"`OMP_NUM_THREADS={threads} python {' '.join(sys.argv)}`;")
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, transformers, trl))
    where = platform.machine() if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"{where}, {versions};")
    print(f"load of the machine at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs.\n")
    shape = f"{CHILD['num_hidden_layers']} layers of {CHILD['hidden_size']}, fp32"
    time_ = "CPU time" if args.device == "cpu" else "Time"
    print(f"{shape}. {time_}: {args.rows} responses of {args.tokens} tokens, {GROUP} to a prompt, written by")
    print(f"transformers; mean of {args.steps} steps, median (range) of {args.rounds} rounds, all trainers in each.")
    print(f"Memory: two responses of {args.long:,} tokens, growth of the peak over the first step, median of three.\n")


def main(args) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_policy(Path(folder))
        common = {"policy": folder, "device": args.device, "steps": args.steps}
        rounds = [
            apart(what="time", round=number, rows=args.rows, tokens=args.tokens, **common)
            for number in range(args.rounds)
        ]
        peaks = [
            {method: apart(what="memory", method=method, rows=2, tokens=args.long, **common) for method in METHODS}
            for _ in range(3)
        ]
    describe(args)
    print("| prompts | trainer | time, TRL = 1 | seconds a step | groups that teach | memory, TRL = 1 | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for prompts in DEAD:
        for method in METHODS:
            own, base = ([one[f"{name}|{prompts}"] for one in rounds] for name in (method, "trl"))
            ratios = sorted(a["seconds"] / b["seconds"] for a, b in zip(own, base, strict=True))
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            seconds = statistics.median(one["seconds"] for one in own)
            groups = f"{statistics.fmean(one['groups'] for one in own):.1f} of {args.rows // GROUP}"
            memory = ("", "")
            if prompts == "live":
                ratio = statistics.median(one[method] / one["trl"] for one in peaks)
                memory = (f"{ratio:.2f}", f"{statistics.median(one[method] for one in peaks):,.0f}")
            print(f"| {prompts} | {method} | {spread} | {seconds:.2f} | {groups} | {' | '.join(memory)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--long", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--job", type=json.loads)
    options = parser.parse_args()
    if options.job:
        sys.stdout = sys.stderr
        found = peak_megabytes(options.job) if options.job["what"] == "memory" else one_round(options.job)
        sys.__stdout__.write(json.dumps(found) + "\n")
    else:
        main(options)
