"""A checkpoint larger than memory is pruned within an enforced limit: layers and streams take memory, not the model."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config

from hf_cascade.prune.parent import skeleton
from tests.prune.families import save_tokenizer
from tests.prune.test_streaming import random_words

LAYERS, HIDDEN, FFN, HEADS, VOCABULARY, TOKENS = 24, 1024, 3584, 1024, 2048, 2048
CHILD = {"num_hidden_layers": 18, "hidden_size": 768, "intermediate_size": 1792}
# the allocator's own and what Python reads; measured with all sizes a quarter of these
SLACK_BYTES = 64 * 2**20

UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
import torch, hf_cascade.prune.command as command
from hf_cascade.cli import main
torch.set_num_threads(1)
torch.linalg.cholesky(torch.eye(8, dtype=torch.float64) @ torch.eye(8, dtype=torch.float64))  # libraries are loaded
facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(facts["VmData"].split()[0]) * 1024 + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


def write_checkpoint(folder) -> int:
    """A random bf16 Qwen3, a shard a layer, never whole in memory; returns its bytes."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS // 64,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.architectures = ["Qwen3ForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    shapes = {name: value.shape for name, value in skeleton(config).state_dict().items()}
    files = {name: ".".join(name.split(".")[:3]) if ".layers." in name else "ends" for name in shapes}
    torch.manual_seed(0)
    total = 0
    for file in dict.fromkeys(files.values()):
        tensors = {}
        for name in (name for name in shapes if files[name] == file):
            norm = name.endswith("norm.weight")
            value = torch.ones(shapes[name]) if norm else 0.02 * torch.randn(shapes[name])
            tensors[name] = value.to(torch.bfloat16)
        save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})
        total += sum(value.numel() * 2 for value in tensors.values())
    weight_map = {name: f"{file}.safetensors" for name, file in files.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts anonymous memory on Linux only")
def test_a_checkpoint_several_times_larger_than_the_limit(tmp_path):
    """The limit: 2.5 layers in fp32, the streams by the documented formula, and a little slack."""
    parent = tmp_path / "parent"
    parent.mkdir()
    size = write_checkpoint(parent)
    save_tokenizer(parent, VOCABULARY)
    (tmp_path / "text.txt").write_text(random_words(TOKENS + 2000, VOCABULARY))
    layer = 4 * (2 * HIDDEN * HEADS + 2 * HIDDEN * 256 + 3 * HIDDEN * FFN)
    streams = 4 * (TOKENS + 16 * 128) * (HIDDEN + CHILD["hidden_size"] + HEADS)
    limit = int(2.5 * layer) + streams + SLACK_BYTES
    assert size > 2.5 * limit, f"{size / 1e6:.0f} MB, limit {limit / 1e6:.0f} MB"

    shape = [part for name, value in CHILD.items() for part in (f"--{name}", str(value))]
    command = ["prune", "--model", parent, "--output_dir", tmp_path / "child", "--calibration", tmp_path / "text.txt"]
    command += [
        "--calibration_length",
        128,
        "--calibration_samples",
        TOKENS // 128,
        "--batch_size",
        1,
        "--max_shard_size",
        "40MB",
        *shape,
    ]
    # Tensors of a real model are above the 32 MB from which the allocator always gives memory back; these are below.
    environment = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(limit), *map(str, command)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    child = AutoModelForCausalLM.from_pretrained(tmp_path / "child")
    assert {name: getattr(child.config, name) for name in CHILD} == CHILD and child.dtype == torch.bfloat16
    report = json.loads((tmp_path / "child/prune_report.json").read_text())
    assert report["held_out"]["kl"] < report["held_out"]["kl_uncompensated"]
