"""Training on two CPU processes and on one, to be compared: steps of SGD on the same responses, and what they leave."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

SETTINGS = {
    "max_steps": 2,
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "shuffle_dataset": False,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def run_two(module, policy, tmp_path_factory) -> Path:
    """Run a module's file on two processes; a folder that has in `two` what they made."""
    path = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [Path(module.__file__), policy, path / "two"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert answer.returncode == 0, answer.stderr[-4000:]
    return path


def respond(trainer, key) -> None:
    """Responses of unequal length made from `key(prompt, number of the row, rows)`, whichever process writes them."""

    def generate(prompt_ids, images, fields, num_generations, has_tool_images=False):
        completions = []
        for number, ids in enumerate(prompt_ids):
            draw = random.Random(repr(key(ids, number, len(prompt_ids), num_generations)))
            completions.append([draw.randrange(20, 200) for _ in range(draw.randint(3, 8))])
        return completions, None

    trainer._generate_single_turn = generate


def leave(trainer, folder: Path, evaluations: tuple = ()) -> None:
    """Weights, and the log with the number of processes."""
    if trainer.accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.data for name, weight in trainer.model.named_parameters()}, folder / "weights")
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        (folder / "log.json").write_text(json.dumps([log, evaluations, trainer.accelerator.num_processes]))


def read(folder: Path):
    """Weights, log, evaluations and number of processes."""
    return load_file(folder / "weights"), *json.loads((folder / "log.json").read_text())


def compare(folder: Path, case: str, start):
    """That two processes moved the weights of `start` as one did; the logs and evaluations of two, and of one."""
    (ours, *two, processes), (theirs, *one, process) = (read(folder / count / case) for count in ("two", "one"))
    assert (processes, process) == (2, 1)
    start = dict(start.named_parameters())
    for name, weight in theirs.items():
        moved = (weight - start[name]).norm()
        assert moved > 0 and (ours[name] - weight).norm() < 1e-4 * moved, name
    return *two, *one
