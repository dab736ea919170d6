"""A vision tower that stays as it is, bit for bit, while projector and decoder learn (paper sections 2 and 4)."""

from types import MethodType

import torch
from torch import nn
from transformers import PreTrainedConfig

from hf_cascade.anatomy import PROJECTOR, TOWER, WRAPPERS
from hf_cascade.data.image_documents import check_reads_images

# what both must agree on, since student and teacher read the same pixels and image tokens
SAME_IMAGES = ("image_token_id", "spatial_merge_size", "vision_config.patch_size", "vision_config.num_channels")


def _stay_in_eval(self: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(self, False)


def _forward_without_grad(self: nn.Module, *args, **kwargs):
    with torch.no_grad():
        return type(self).forward(self, *args, **kwargs)


def freeze_vision_tower(model: nn.Module) -> None:
    """
    Keep the vision tower of `model` as it is: no gradient, so neither an update nor weight decay; no dropout; and no
    activations kept for a backward pass. Adapters inside it are frozen too. A text model has none: nothing happens.

    Args:
        model (`PreTrainedModel` or `PeftModel`): before it is wrapped by DDP, FSDP or DeepSpeed.

    Raises:
        ValueError: the model reads images, and its tower is not known.
    """
    tower = _part(model, TOWER)
    if tower is None:
        base = _base(model)
        if "image" in (getattr(base, "input_modalities", None) or ()):
            raise ValueError(
                f"{type(base).__name__} reads images, and which of its parts is the vision tower is known for "
                f"{', '.join(WRAPPERS)} only: set freeze_vision_tower: false and freeze what is to stay yourself"
            )
        return
    tower.requires_grad_(False)
    # methods, not hooks: `model.train()` calls the first, and both survive a copy of the model and FSDP's new classes
    tower.train = MethodType(_stay_in_eval, tower)
    tower.forward = MethodType(_forward_without_grad, tower)
    tower.eval()


def freeze_projector(model: nn.Module) -> None:
    """
    Freeze the projector of `model`, for data without images: it would get no gradient, for which DDP waits.

    Args:
        model (`PreTrainedModel` or `PeftModel`): a text model has none: nothing happens.
    """
    projector = _part(model, PROJECTOR)
    if projector is not None:
        projector.requires_grad_(False)


def _part(model: nn.Module, place: str) -> nn.Module | None:
    """The tower or projector of a model of a known kind, else None."""
    model = _base(model)
    return model.get_submodule(place.rstrip(".")) if model.config.model_type in WRAPPERS else None


def _base(model: nn.Module) -> nn.Module:
    """`model` without PEFT around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_same_images(student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """
    Raise `ValueError` unless both models read images as the same tokens: their logits are compared place by place.

    Args:
        student, teacher (`PreTrainedConfig`): of the models; the towers behind the tokens may differ.
    """
    check_reads_images(student, "student")
    check_reads_images(teacher, "teacher")
    for name in SAME_IMAGES:
        ours, theirs = (_entry(config, name) for config in (student, teacher))
        if ours != theirs:
            raise ValueError(
                f"student and teacher read images differently: {name} is {ours} and {theirs}. Distil on images from a "
                "teacher with the student's image tokens"
            )


def _entry(config: PreTrainedConfig, name: str):
    for part in name.split("."):
        config = getattr(config, part)
    return config
