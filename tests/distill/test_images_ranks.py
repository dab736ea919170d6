"""Images on two processes, of which one may have none: sharded models, and DDP through the real script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_cascade import assets, manifest
from tests.data import tiny
from tests.prune import families

RUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]
SETTINGS = {
    "datasets": [{"path": "json", "data_files": "rows.jsonl"}],
    "max_length": 24,
    "max_steps": 8,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 3,
    "adam_epsilon": 1e-3,  # a gradient of nearly 0 is not blown up
    "report_to": "none",
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
}


def launch(processes: int, port: int, *words: str, cwd: Path | None = None) -> str:
    """Run a script on `processes` processes; what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(assets.root())}
    command = [*RUN, str(processes), "--master_port", str(port), *words]
    answer = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    error = answer.stderr.partition("error:")[2] or answer.stderr[-3000:]
    assert answer.returncode == 0, error[:3000]
    return answer.stdout


@pytest.mark.slow
def test_step_of_sharded_models_with_an_image_on_one_rank():
    assert launch(2, 29551, str(Path(__file__).with_name("sharded_images.py"))).count("equal") == 2


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    """DDP, with gradient checkpointing as TRL sets it; every third document has an image."""
    for name, changes in (("student", {}), ("teacher", {"hidden_size": 60})):
        model = families.build("mistral3", len(name), torch.float32, num_hidden_layers=2, **changes)
        model.save_pretrained(tmp_path / name)
        tiny.processor().save_pretrained(tmp_path / name)
    rows = []
    for number, text in enumerate(tiny.texts(60, longest=50)):
        tiny.image(8, 16, number).save(tmp_path / f"{number}.png")
        has = number % 3 == 0
        rows.append({"text": text + "[IMG]" * has, "images": [str(tmp_path / f"{number}.png")] * has})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "short.yaml").write_text(json.dumps(SETTINGS))
    words = [
        str(assets.root() / "trainers" / "distill.py"),
        "--config",
        "short.yaml",
        "--model_name_or_path",
        "student",
    ]
    words += ["--teacher_model_name_or_path", "teacher", "--output_dir"]
    launch(1, 29552, *words, "one", "--per_device_train_batch_size", "2", cwd=tmp_path)
    launch(2, 29553, *words, "two", "--per_device_train_batch_size", "1", cwd=tmp_path)
    one, two, before = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "student"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
    still = {name.split(".")[0] for name in one if torch.equal(one[name], before[name])}
    assert still == {"vision_tower"}
    records = [manifest.read(tmp_path / name)["data"] for name in ("one", "two")]
    assert {**records[0], "ledger": None} == {**records[1], "ledger": None} and records[0]["tokens"] == 8 * 2 * 24
