"""Where a child's weights go: into a model in memory, or nowhere, when only its divergence is wanted.

`prune.shards.ShardWriter` is the third: into files.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_cascade.anatomy import HEAD


class MemoryWriter:
    """
    Weights of a child in memory.

    Args:
        dtype_of (`Callable[[str], torch.dtype]`): type of each weight.
        device (`torch.device`): where they are.
    """

    def __init__(self, dtype_of, device: torch.device):
        self.dtype_of, self.device = dtype_of, device
        self.weights: dict[str, Tensor] = {}

    def write(self, name: str, value: Tensor) -> None:
        """Keep a weight of its own: later changes of `value` do not reach it."""
        self.weights[name] = value.detach().to(self.device, self.dtype_of(name), copy=True)

    def read(self, name: str) -> Tensor:
        """A weight that was written."""
        return self.weights[name]

    def fill(self, model: PreTrainedModel) -> PreTrainedModel:
        """Copy them into a model of their own; returns it, in evaluation mode."""
        problems = model.load_state_dict(self.weights, strict=False)
        lost = [name for name in problems.missing_keys if name != HEAD] + problems.unexpected_keys
        assert not lost, lost
        model.tie_weights()
        return model.eval()


class EndsWriter(MemoryWriter):
    """Keeps what is outside the decoder layers, which a stream at its entry and exit needs; forgets the layers."""

    def write(self, name: str, value: Tensor) -> None:
        """Keep a weight unless it is a layer's."""
        if ".layers." not in name:
            super().write(name, value)
