"""Two processes train, judge and evaluate as one does, however unevenly dropped pairs are spread."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.odpo import processes

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
    log, evaluations, count = json.loads((folder / "log.json").read_text())
    return load_file(folder / "weights"), log, evaluations, count


@pytest.mark.parametrize(("form", "dropped"), processes.CASES)
def test_two_processes_are_one(folder, policy, form, dropped):
    processes.run(policy, folder / "one" / f"{form} {dropped}", form, dropped, 1)
    ours, log, evaluations, count = read(folder / "two" / f"{form} {dropped}")
    theirs, expected, alone, one = read(folder / "one" / f"{form} {dropped}")
    assert (count, one) == (2, 1)
    start = dict(processes.drifted(policy).named_parameters())
    for name, weight in theirs.items():
        moved = (weight - start[name]).norm()
        assert moved > 0 and (ours[name] - weight).norm() < 1e-4 * moved, name
    assert log[0]["odpo/dropped_rate"] == len(processes.DROPPED[dropped]) / 4
    same = [key for key in expected[0] if key == "loss" or key.startswith(("odpo/", "rewards/"))]
    same.remove("odpo/kl_per_token")  # a mean over micro-batches
    for entry, other in zip(log, expected, strict=True):
        assert {key: entry[key] for key in same} == pytest.approx({key: other[key] for key in same}, rel=1e-3)
    same = ["eval_loss", *(key for key in alone[0] if key.startswith("eval_odpo/"))]
    found = {key: evaluations[0][key] for key in same}
    assert found == pytest.approx({key: alone[0][key] for key in same}, rel=1e-3)
    assert found["eval_odpo/win_rate"] != 0.5 and found["eval_odpo/length_drift_tokens"] != 0
    assert 0 < evaluations[1]["eval_odpo/win_rate"] < 1  # three prompts on two processes


def test_the_comparison_can_fail(folder):
    """Weights of another choice of pairs differ by far more than rounding."""
    some, all_pairs = (read(folder / "two" / f"pair {dropped}")[0] for dropped in ("one", "none"))
    assert max((some[name] - all_pairs[name]).abs().max() for name in some) > 1e-2
