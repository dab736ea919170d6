"""Trainers on tiny models and texts, for the tests of this folder."""

import copy

import torch

from hf_cascade.data.packing import PackedCollator
from hf_cascade.distill.config import CascadeDistillationConfig, CascadeSFTConfig
from hf_cascade.distill.packed import CascadeSFTTrainer
from hf_cascade.distill.trainer import CascadeDistillationTrainer
from tests.data import tiny
from tests.prune import families

COMMON = {
    "max_length": 16,
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def student(family: str = "llama", dtype=torch.float64, **changes):
    """A small model with two layers."""
    return families.build(family, seed=1, dtype=dtype, **{"num_hidden_layers": 2, **changes})


def teacher(family: str = "llama", dtype=torch.float64, **changes):
    """Another model, wider than the student."""
    return families.build(family, seed=2, dtype=dtype, **{"num_hidden_layers": 2, "hidden_size": 60, **changes})


def sft(folder, model=None, dataset=None, **settings) -> CascadeSFTTrainer:
    """A trainer with the next-token loss."""
    return CascadeSFTTrainer(
        model or student(),
        args=CascadeSFTConfig(output_dir=str(folder), **{**COMMON, **settings}),
        train_dataset=dataset if dataset is not None else tiny.packed(settings.get("max_length", 16)),
        processing_class=tiny.tokenizer(),
    )


def distiller(folder, model=None, parent=None, dataset=None, trainer=None, **settings) -> CascadeDistillationTrainer:
    """A trainer with the KL to `parent`; `trainer` holds its other arguments."""
    return CascadeDistillationTrainer(
        model or student(),
        parent or teacher(),
        args=CascadeDistillationConfig(output_dir=str(folder), **{**COMMON, **settings}),
        train_dataset=dataset if dataset is not None else tiny.packed(settings.get("max_length", 16)),
        **{"processing_class": tiny.tokenizer(), **(trainer or {})},
    )


def first_batch(count: int = 2, **kwargs) -> dict:
    """The first batch the trainers read."""
    return PackedCollator()(list(tiny.packed(**kwargs).rows(count)))


def weights(model) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differ(one: dict, other: dict) -> float:
    """Largest difference of two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@torch.no_grad()
def plain_kl(model, parent, batch: dict, counts=None) -> float:
    """Mean KL(parent || model) over the labels of a batch, from all logits, in float64."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
    log_q, log_p = (
        copy.deepcopy(part).double().eval()(**inputs, use_cache=False).logits.log_softmax(-1)
        for part in (model, parent)
    )
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)[:, :-1]
    counts = batch["labels"][:, 1:] != -100 if counts is None else counts[:, 1:]
    return float(kl[counts].sum() / counts.sum())


def losses(trainer) -> list[float]:
    """Logged loss of every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
