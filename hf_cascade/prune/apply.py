"""The plan applied to weights: gains folded, stream rotated, FFN columns selected (paper section 2).

    embed <- E Q    q, k, v, gate, up, head <- W diag(g) Q    o, down <- Q^T W    norm <- sqrt(d_old / d_new)

RMSNorm divides by the width it sees, hence the norm factor: where the stream lies in the kept subspace, the child's
logits are the parent's.

D parent hidden, k child hidden, F and f parent and child FFN, V vocabulary
"""

import math

import torch
from torch import Tensor, nn

from hf_cascade.anatomy import ATTENTION_OUT, FFN_NORM, FFN_OUT, HEAD_NORMS, READERS, Anatomy
from hf_cascade.prune.plan import PrunePlan
from hf_cascade.prune.stream import working_copy


def norm_factor(rotation_Dk: Tensor) -> float:
    """sqrt(d_old / d_new): what a norm of the narrower stream must multiply by."""
    return math.sqrt(rotation_Dk.shape[0] / rotation_Dk.shape[1])


def fold(weight_OD: Tensor, gain_D: Tensor, rotation_Dk: Tensor | None) -> Tensor:
    """A reader's weight in the rotated stream, the norm's gain folded in: W diag(g) Q, [O, k]."""
    return weight_OD if rotation_Dk is None else (weight_OD * gain_D) @ rotation_Dk.to(weight_OD)


def narrow(weight_DO: Tensor, rotation_Dk: Tensor | None) -> Tensor:
    """A writer's weight (or bias) in the rotated stream: Q^T W, [k, O] (or [k])."""
    return weight_DO if rotation_Dk is None else rotation_Dk.to(weight_DO).t() @ weight_DO


def set_parameter(module: nn.Module, value: Tensor, name: str = "weight") -> None:
    """Overwrite a parameter with a value of the same shape, in the parameter's type."""
    parameter = getattr(module, name)
    if parameter.shape != value.shape:
        raise AssertionError(f"{name} is {tuple(parameter.shape)} and the value {tuple(value.shape)}")
    parameter.data.copy_(value)


def apply_layer(parent: nn.Module, child: nn.Module, rotation: Tensor | None, columns: Tensor | None) -> None:
    """
    Fill one child layer from the parent layer it descends from.

    Args:
        parent (`nn.Module`): decoder layer D wide.
        child (`nn.Module`): decoder layer k wide.
        rotation (`Tensor`, *optional*): Q [D, k].
        columns (`Tensor`, *optional*): the [f] FFN columns that stay.
    """
    for norm, readers in READERS.items():
        gain_D = parent.get_submodule(norm).weight.data
        for name in readers:
            source = parent.get_submodule(name)
            rows = columns if norm == FFN_NORM and columns is not None else slice(None)
            set_parameter(child.get_submodule(name), fold(source.weight.data[rows], gain_D, rotation))
            if source.bias is not None:
                set_parameter(child.get_submodule(name), source.bias.data[rows], "bias")
        target = child.get_submodule(norm)
        if rotation is None:
            set_parameter(target, gain_D)
        else:
            target.weight.data.fill_(norm_factor(rotation))
    for name in (ATTENTION_OUT, FFN_OUT):
        source = parent.get_submodule(name)
        inputs = columns if name == FFN_OUT and columns is not None else slice(None)
        set_parameter(child.get_submodule(name), narrow(source.weight.data[:, inputs], rotation))
        if source.bias is not None:
            set_parameter(child.get_submodule(name), narrow(source.bias.data, rotation), "bias")
    for name in HEAD_NORMS:
        if hasattr(parent.self_attn, name.split(".")[1]):
            set_parameter(child.get_submodule(name), parent.get_submodule(name).weight.data)


def apply_ends(parent: Anatomy, child: Anatomy, rotation: Tensor | None) -> None:
    """Fill an untied child's embedding, final norm and head; a tied one is `prune.tie`'s business."""
    dtype = child.head.weight.dtype
    gain_D = parent.norm.weight.data.to(dtype)
    set_parameter(child.embedding, narrow(parent.embedding.weight.data.to(dtype).t(), rotation).t())
    set_parameter(child.head, fold(parent.head.weight.data.to(dtype), gain_D, rotation))
    if parent.head.bias is not None:
        set_parameter(child.head, parent.head.bias.data, "bias")
    if rotation is None:
        set_parameter(child.norm, gain_D)
    else:
        child.norm.weight.data.fill_(norm_factor(rotation))


@torch.no_grad()
def apply_plan(parent: Anatomy, child: Anatomy, plan: PrunePlan) -> None:
    """Fill the child's decoder layers and, when it is untied, its ends."""
    for index, source in enumerate(plan.kept_layers):
        columns = None if plan.ffn_columns is None else plan.ffn_columns[index]
        layer = working_copy(parent.layers[source], child.embedding.weight.dtype)
        apply_layer(layer, child.layers[index], plan.rotation, columns)
    if child.head.weight is not child.embedding.weight:
        apply_ends(parent, child, plan.rotation)
