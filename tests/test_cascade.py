"""A cascade end to end in a minute: prune, distil short and long, prune again, measure; killed once on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_cascade import manifest
from tests.data.tiny import texts, tokenizer
from tests.prune.families import build

WINDOW, LONG_WINDOW = 32, 64
STAGES = ("big-pruned", "big-short", "big", "small-pruned", "small-short", "report")
CASCADE = """
big-pruned:
  run: prune
  config: prune.yaml
  inputs: {model: PARENT}
  set: {intermediate_size: 56}
big-short:
  run: distill
  config: distill.yaml
  inputs: {model_name_or_path: big-pruned, teacher_model_name_or_path: PARENT}
big:
  run: distill
  config: distill.yaml
  inputs: {model_name_or_path: big-short, teacher_model_name_or_path: PARENT, data_after: big-short}
  set: {max_length: 64, context_length: 64, original_context_length: 32, train_tokens: 1024}
small-pruned:
  run: prune
  config: prune.yaml
  inputs: {model: big-short}
  set: {num_hidden_layers: 3, hidden_size: 36, intermediate_size: 48, tie_word_embeddings: true}
small-short:
  run: distill
  config: distill.yaml
  inputs: {model_name_or_path: small-pruned, teacher_model_name_or_path: PARENT, data_after: big}
report:
  run: evaluate
  inputs: {model: [PARENT, big-pruned, big-short, big, small-pruned, small-short], teacher: PARENT}
  set: {dataset: HELDOUT, max_length: 32, long_max_length: 64, tasks: [cascade_tiny_copy], limit: 4, final_only: true}
"""
DISTILL = """
datasets: [{path: json, data_files: TEXT, split: train, columns: [text]}]
max_length: 32
train_tokens: 4096
per_device_train_batch_size: 4
learning_rate: 5.0e-4
warmup_steps: 2
logging_steps: 2
save_steps: 4
bf16: false
gradient_checkpointing: false
report_to: none
"""


def write_project(folder):
    """A parent that knows its alphabet a little, text, and a recipe."""
    parent = build("ministral3", dtype=torch.float32, vocab_size=len(tokenizer()), max_position_embeddings=1024)
    parent.save_pretrained(folder / "parent")
    tokenizer().save_pretrained(folder / "parent")
    for name, seed in (("text", 0), ("heldout", 1)):
        rows = texts(count=400 if name == "text" else 20, seed=seed, longest=120)
        Dataset.from_dict({"text": [row for row in rows if len(row) > 3]}).to_json(folder / f"{name}.jsonl")
    places = {"PARENT": folder / "parent", "TEXT": folder / "text.jsonl", "HELDOUT": folder / "heldout.jsonl"}

    def fill(content):
        for name, place in places.items():
            content = content.replace(name, str(place))
        return content

    (folder / "cascade.yaml").write_text(fill(CASCADE))
    (folder / "distill.yaml").write_text(fill(DISTILL))
    (folder / "prune.yaml").write_text(
        f"calibration: {places['TEXT']}\ncalibration_length: 32\ncalibration_samples: 64\n"
    )


def start(folder):
    command = [sys.executable, "-m", "hf_cascade.cli", "run", str(folder / "cascade.yaml")]
    command += ["--output_dir", str(folder / "out")]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, **output, start_new_session=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder whose run was killed in its first distillation and started again, and what the second start said."""
    folder = tmp_path_factory.mktemp("cascade")
    write_project(folder)
    first = start(folder)
    deadline = time.monotonic() + 200
    while not list((folder / "out" / "big-short").glob("checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline and first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    made = (folder / "out" / "big-pruned" / "cascade.json").read_bytes()
    second = start(folder)
    said, _ = second.communicate(timeout=280)
    assert second.returncode == 0, said
    assert (folder / "out" / "big-pruned" / "cascade.json").read_bytes() == made, "a finished stage ran again"
    return folder, said


@pytest.mark.timeout(600)
def test_every_stage_leaves_a_model_that_opens(run):
    folder, _ = run
    shapes = {"big": (4, 48, 56, False), "small-short": (3, 36, 48, True)}
    for stage in STAGES[:-1]:
        model = AutoModelForCausalLM.from_pretrained(folder / "out" / stage)
        assert type(model).__name__ == "Ministral3ForCausalLM"
        c = model.config
        expected = shapes["small-short" if stage.startswith("small") else "big"]
        assert (c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.tie_word_embeddings) == expected
        record = manifest.read(folder / "out" / stage)
        assert record["stage"] == stage and record["output"]["num_parameters"] == model.num_parameters()
        assert not list((folder / "out" / stage).glob("checkpoint-*"))


def test_the_long_stage_has_its_window_and_its_temperature(run):
    rope = AutoModelForCausalLM.from_pretrained(run[0] / "out" / "big").config
    assert rope.max_position_embeddings == LONG_WINDOW
    assert rope.rope_parameters["rope_type"] == "yarn" and rope.rope_parameters["factor"] == LONG_WINDOW / WINDOW
    assert rope.rope_parameters["llama_4_scaling_beta"] == 0.1


def test_the_text_is_read_once_across_stages_and_the_kill(run):
    ledger = manifest.read(run[0] / "out" / "small-short")["data"]["ledger"]
    assert [entry["stage"] for entry in ledger] == ["big-short", "big", "small-short"]
    assert [entry["tokens"] for entry in ledger] == [4096, 1024, 4096]
    assert ledger[0]["start"] == [0, 0]
    assert all(entry["start"] == before["end"] for before, entry in zip(ledger, ledger[1:], strict=False))


def test_a_killed_stage_ends_with_the_weights_of_one_that_was_not(run, tmp_path):
    folder, _ = run
    settings = folder / "out" / "settings" / "big-short.yaml"
    script = [sys.executable, "-m", "hf_cascade.cli", "distill", "--config", str(settings)]
    subprocess.run([*script, "--output_dir", str(tmp_path / "straight")], check=True, capture_output=True)
    ours = load_file(folder / "out" / "big-short" / "model.safetensors")
    straight = load_file(tmp_path / "straight" / "model.safetensors")
    assert all(torch.equal(ours[name], straight[name]) for name in straight)


def test_distillation_brings_each_child_nearer_and_the_report_says_so(run):
    folder, said = run
    results = json.loads((folder / "out" / "report" / "results.json").read_text())
    kl = {model["name"]: model["heldout"]["kl"] for model in results["models"]}
    assert kl["big-short"] < kl["big-pruned"] and kl["small-short"] < kl["small-pruned"], kl
    assert results["models"][0]["heldout"]["kl"] == 0 and list((folder / "out" / "report").glob("*.png"))
    assert (folder / "out" / "big" / "evals.json").is_file()
    assert "small-short" in said and "perplexity" in said


def test_the_same_command_again_runs_nothing(run):
    again = start(run[0])
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and "started" not in said
