"""A step with both models sharded over two processes (FSDP2's `fully_shard`) is the step of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_step_of_sharded_models():
    script = Path(__file__).with_name("sharded_step.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29541", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert answer.stdout.count("equal") == 2
