"""Two processes under DDP, FSDP2, DeepSpeed ZeRO-3, context and sequence parallelism train what one process trains."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_cascade.distill.placement import in_forward
from tests.distill import engines, setting

SCRIPT = Path(__file__).with_name("engines.py")
MESSAGE = "DeepSpeed is not installed: pip install 'hf-cascade[deepspeed]'"
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason=MESSAGE)


def launch(folder: Path, *names: str) -> None:
    """Run engines.py on two processes."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    # The launcher's own variables would reach a second launcher in the same environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    answer = subprocess.run(
        [*command, SCRIPT, str(folder), *names], env=environment, capture_output=True, text=True, timeout=280
    )
    assert answer.returncode == 0, answer.stderr[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What all engines made of the same models."""
    path = tmp_path_factory.mktemp("engines")
    engines.save_models(path)
    (path / "deepspeed.json").write_text(json.dumps(engines.DEEPSPEED))
    launch(path, "ddp", "fsdp2", "fsdp2-families", "context")
    return path


def in_one_process(folder: Path, engine: str):
    """The same training in this process: weights, gradients of the first step, and what the log says."""
    gradients = engines.Gradients()
    trainer = engines.make(folder / f"{engine}-one", engine, folder, 1)
    trainer.add_callback(gradients)
    trainer.train()
    trainer.save_model()
    return trained(folder, f"{engine}-one"), gradients.kept, engines.facts(trainer)


def seen(folder: Path, name: str) -> list[dict]:
    """What each process of an engine saw."""
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


def trained(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights a user would open. Under FSDP2 transformers writes a tied head a second time."""
    found = load_file(folder / name / "model.safetensors")
    if json.loads((folder / name / "config.json").read_text())["tie_word_embeddings"]:
        found.pop("lm_head.weight", None)
    return found


KINDS = {
    "ddp": ("MULTI_CPU", "DistributedDataParallel"),
    "fsdp2": ("FSDP", "FSDPLlamaForCausalLM"),
    "fsdp2-families": ("FSDP", "FSDPMistral3ForConditionalGeneration"),
    "context": ("FSDP", "FSDPLlamaForCausalLM"),
}


@pytest.mark.parametrize("engine", KINDS)
def test_two_processes_are_one(folder, engine):
    """Under `context` both processes hold half of every row; the halves have different numbers of labels."""
    weights, gradients, facts = in_one_process(folder, engine)
    first, second = seen(folder, engine)
    assert first == second, "losses, ledger and cursor"
    assert (first["type"], first["student"], first["processes"]) == (*KINDS[engine], 2)
    assert first["data_state"] == facts["data_state"]
    assert engine == "context" or first["data_state"]["tokens"] == engines.STEPS * 2 * 16
    assert first["kls"] == pytest.approx(facts["kls"], rel=1e-12)
    found = torch.load(folder / f"{engine}-gradients.pt")
    assert found and setting.differ(gradients, found) < 1e-12
    assert setting.differ(weights, trained(folder, f"{engine}-straight")) < 1e-9


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "fsdp2-families"])
def test_stopped_and_resumed_is_bitwise_equal(folder, engine):
    straight, resumed = (trained(folder, f"{engine}-{name}") for name in ("straight", "resumed"))
    assert setting.differ(straight, resumed) == 0
    first, second = seen(folder, f"{engine}-resumed")
    assert first == second == seen(folder, engine)[0]


def test_teacher_is_sharded_layer_by_layer(folder):
    """Embedding, two layers, norm and head together, and the rest: of all weights only norm and head stay whole."""
    facts = seen(folder, "fsdp2")[0]
    assert facts["units"] == 1 + 2 + 2 + 1
    assert facts["whole"] == 97 * 60 + 60


class Casting(nn.Module):
    """What FSDP2 does to a module's inputs and outputs in mixed precision."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        output = self.module(*(part.bfloat16() for part in inputs))
        return tuple(part.bfloat16() for part in output) if isinstance(output, tuple) else output.bfloat16()


@pytest.mark.parametrize("inside_a_tuple", [False, True])
def test_values_keep_their_precision(inside_a_tuple):
    linear, count = nn.Linear(4, 1), torch.tensor(257.0)  # in bf16 it is 256

    def loss():
        value = (linear.weight.double() / count).sum()
        return (value, {"count": count}) if inside_a_tuple else value

    found = in_forward(Casting(linear), linear, loss)
    value = found[0] if inside_a_tuple else found
    assert not inside_a_tuple or found[1]["count"] is count
    expected = linear.weight.double().sum() / 257
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    value.backward()
    assert linear.weight.grad == pytest.approx(torch.full((1, 4), 1 / 257), rel=1e-6)
    assert type(linear).forward is nn.Linear.forward and linear(torch.ones(4)).shape == (1,)


# --- DeepSpeed


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("engine", ["zero3", "sequence", "sequence-packed"])
def test_deepspeed_is_one_process(folder, engine):
    """Under `sequence` both processes hold half of every row, and read two where one is trained on."""
    launch(folder, engine)
    start = load_file(folder / f"{engine}-student" / "model.safetensors")
    weights, _, facts = in_one_process(folder, engine)
    first, second = seen(folder, engine)
    assert first == second and (first["type"], first["processes"]) == ("DEEPSPEED", 2)
    assert first["kls"] == pytest.approx(facts["kls"], rel=1e-5)
    assert setting.differ(weights, trained(folder, f"{engine}-straight")) < 1e-6 < setting.differ(start, weights)
    assert first["whole"] == 0, "the teacher's weights are shared out"
    assert first["data_state"] == facts["data_state"]
    if engine == "zero3":
        straight, resumed = (trained(folder, f"{engine}-{name}") for name in ("straight", "resumed"))
        assert setting.differ(straight, resumed) == 0
