"""One decoder layer in steps, on a residual stream: all that pruning runs of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_cascade.anatomy import ATTENTION_NORM, ATTENTION_OUT, FFN_NORM, FFN_OUT

# B windows of a batch, T tokens of a window, D width of the stream, F width of the FFN

# Intermediate results up to this size are kept until they are needed again, larger ones are computed twice. Ours.
KEEP_BYTES = 2**28


@contextmanager
def bypassed(layer: nn.Module, name: str) -> Iterator[nn.Module]:
    """Within, `layer`'s part `name` hands on what it is given; yields the part itself."""
    path, _, last = name.rpartition(".")
    owner = layer.get_submodule(path)
    part = getattr(owner, last)
    setattr(owner, last, nn.Identity())
    try:
        yield part
    finally:
        setattr(owner, last, part)


def attention_input(layer: nn.Module, x_BTD: Tensor, arguments: dict) -> Tensor:
    """What the layer's o_proj reads when the layer reads `x_BTD`: [B, T, heads * head_dim]."""
    with bypassed(layer, ATTENTION_OUT):
        return layer.self_attn(hidden_states=layer.get_submodule(ATTENTION_NORM)(x_BTD), **arguments)[0]


def ffn_input(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    """What the layer's down_proj reads, act(W1 x) * W3 x, when the FFN norm reads `x_BTD`: [B, T, F]."""
    with bypassed(layer, FFN_OUT):
        return layer.mlp(layer.get_submodule(FFN_NORM)(x_BTD))


def after_attention(layer: nn.Module, x_BTD: Tensor, arguments: dict) -> Tensor:
    """The stream after the layer's attention."""
    return x_BTD + layer.self_attn(hidden_states=layer.get_submodule(ATTENTION_NORM)(x_BTD), **arguments)[0]


def after_ffn(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    """The stream after the layer's FFN."""
    return x_BTD + layer.mlp(layer.get_submodule(FFN_NORM)(x_BTD))


def normalised(x_BTD: Tensor, epsilon: float) -> Tensor:
    """RMSNorm without its gain."""
    return x_BTD * torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + epsilon)


def layer_arguments(backbone: nn.Module, windows: int, tokens: int) -> list[dict]:
    """
    What the decoder passes to each of its layers besides the stream: masks, rotary embeddings, positions.

    The family's own forward runs once on a stream one value wide with layers that do nothing, so sliding windows,
    per-layer types and position temperature are whatever transformers says they are.
    """
    recorded: list[dict] = []

    def record(hidden_states, *args, **kwargs):
        recorded.append(kwargs)
        return hidden_states

    idle = [*backbone.layers, backbone.norm]
    for layer in backbone.layers:
        layer.forward = record
    backbone.norm.forward = lambda hidden_states: hidden_states
    try:
        backbone(inputs_embeds=torch.zeros(windows, tokens, 1), use_cache=False)
    finally:
        for module in idle:
            del module.forward
    return recorded
