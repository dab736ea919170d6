"""Two processes train as one does, however unevenly dead groups are spread, and refill the same prompts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.grpo import processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory) -> Path:
    """What two processes made."""
    path = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = Path(processes.__file__)
    answer = subprocess.run(
        [*command, script, policy, path / "two"], env=environment, capture_output=True, text=True, timeout=280
    )
    assert answer.returncode == 0, answer.stderr[-4000:]
    return path


def read(folder: Path):
    log, count = json.loads((folder / "log.json").read_text())
    return load_file(folder / "weights"), log, count


@pytest.mark.parametrize("case", processes.CASES)
def test_two_processes_are_one(folder, policy, case):
    processes.run(policy, folder / "one" / case, case, 1)
    ours, log, count = read(folder / "two" / case)
    theirs, expected, one = read(folder / "one" / case)
    assert (count, one) == (2, 1)
    start = dict(processes.drifted(policy).named_parameters())
    for name, weight in theirs.items():
        moved = (weight - start[name]).norm()
        assert moved > 0 and (ours[name] - weight).norm() < 1e-4 * moved, name
    _, rounds, dead = processes.CASES[case]
    groups = 1 if case == "one group on both" else 4
    assert log[0]["grpo/kept_groups"] == (groups if rounds else groups - len(processes.DEAD[dead]))
    assert (log[0]["grpo/refill_rounds"] > 0) == bool(rounds)
    same = ["loss", "grpo/kept_groups", "grpo/advantage_std"]  # a refill may draw more on two processes
    same += [] if rounds else [key for key in expected[0] if key.startswith(("grpo/", "rewards/"))]
    for entry, other in zip(log, expected, strict=True):
        assert {key: entry[key] for key in same} == pytest.approx({key: other[key] for key in same}, rel=1e-3, abs=1e-6)


def test_the_comparison_can_fail(folder):
    """Weights of another choice of groups differ by far more than rounding."""
    some, every = (read(folder / "two" / case)[0] for case in ("dead", "plain"))
    assert max((some[name] - every[name]).abs().max() for name in some) > 1e-2
