"""A decoder run layer by layer on calibration text: one layer and the residual stream are all that is needed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_cascade.anatomy import ATTENTION_NORM, ATTENTION_OUT, FFN_NORM, FFN_OUT

# B windows of a batch, T tokens of a window, D width of the stream


def layer_arguments(backbone: nn.Module, input_ids_BT: Tensor) -> list[dict]:
    """
    What the decoder passes to each of its layers besides the stream: masks, rotary embeddings, positions.

    The family's own forward runs once with layers that do nothing, so sliding windows, per-layer types and position
    temperature are whatever transformers says they are.
    """
    recorded: list[dict] = []

    def record(hidden_states, *args, **kwargs):
        recorded.append(kwargs)
        return hidden_states

    for layer in backbone.layers:
        layer.forward = record
    try:
        backbone(input_ids=input_ids_BT, use_cache=False)
    finally:
        for layer in backbone.layers:
            del layer.forward
    return recorded


@contextmanager
def caught_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what `module` is called with."""
    caught: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        yield caught
    finally:
        handle.remove()


def working_copy(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A layer to compute with, in at least fp32."""
    return copy.deepcopy(layer).to(dtype)


def attention_input(layer: nn.Module, stream_BTD: Tensor, arguments: dict) -> Tensor:
    """What the layer's o_proj reads when the layer reads `stream_BTD`: [B, T, heads * head_dim]."""
    with caught_input(layer.get_submodule(ATTENTION_OUT)) as caught:
        layer.self_attn(hidden_states=layer.get_submodule(ATTENTION_NORM)(stream_BTD), **arguments)
    return caught[0]


def ffn_input(layer: nn.Module, stream_BTD: Tensor) -> Tensor:
    """What the layer's down_proj reads, silu(W1 x) * W3 x, when the FFN norm reads `stream_BTD`: [B, T, F]."""
    with caught_input(layer.get_submodule(FFN_OUT)) as caught:
        layer.mlp(layer.get_submodule(FFN_NORM)(stream_BTD))
    return caught[0]


def normalised(stream_BTD: Tensor, epsilon: float) -> Tensor:
    """RMSNorm without its gain."""
    return stream_BTD * torch.rsqrt(stream_BTD.square().mean(-1, keepdim=True) + epsilon)


class Calibration:
    """
    Calibration windows, and a decoder's residual stream at one depth of it, batch by batch.

    Args:
        backbone (`nn.Module`): the decoder that reads the windows.
        input_ids_NT (`Tensor`): [N, T] token ids, no padding.
        batch_size (`int`): windows at once.
        dtype (`torch.dtype`): type of the stream.
    """

    def __init__(self, backbone: nn.Module, input_ids_NT: Tensor, batch_size: int, dtype: torch.dtype):
        self.ids = [part.to(backbone.embed_tokens.weight.device) for part in input_ids_NT.split(batch_size)]
        self.dtype = dtype
        by_size = {part.shape[0]: part for part in self.ids}
        self._arguments = {size: layer_arguments(backbone, part) for size, part in by_size.items()}

    def arguments(self, layer: int, batch: int) -> dict:
        """Keyword arguments of decoder layer `layer` for batch number `batch`, floats in the working type."""
        arguments = self._arguments[self.ids[batch].shape[0]][layer]
        return {name: self._cast(value) for name, value in arguments.items()}

    def _cast(self, value):
        if isinstance(value, tuple):
            return tuple(self._cast(part) for part in value)
        return value.to(self.dtype) if torch.is_tensor(value) and value.is_floating_point() else value

    def embed(self, weight_VD: Tensor) -> list[Tensor]:
        """The stream at the decoder's entry."""
        return [nn.functional.embedding(ids, weight_VD).to(self.dtype) for ids in self.ids]
