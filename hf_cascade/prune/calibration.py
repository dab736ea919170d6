"""The text pruning looks at: windows to fit on, and held-out ones that only measure."""

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_cascade.anatomy import embedding_scale
from hf_cascade.prune.layers import layer_arguments
from hf_cascade.prune.parent import Parent

# B windows of a batch, T tokens of a window, I image tokens of a batch, D, k width of the parent's and child's stream


@dataclass
class Calibration:
    """
    Windows in batches, and what the parent's decoder passes to its layers for each. The same holds for a child.

    Args:
        parent (`Parent`): whose decoder reads the windows.
        batches (`list[Tensor]`): [B, T] token ids, no padding; batches may differ in both.
        held_out (`int`): how many of the batches, the last ones, only measure.
        images (`dict[int, Tensor]`, *optional*): batch number to its projected image features [I, D], in the order of
            the image tokens.
    """

    parent: Parent
    batches: list[Tensor]
    held_out: int = 0
    images: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self._arguments: dict[tuple[int, int], list[dict]] = {}

    @property
    def fitted(self) -> int:
        """How many batches are fitted on; they come first."""
        return len(self.batches) - self.held_out

    @property
    def tokens(self) -> int:
        """Tokens that are fitted on."""
        return sum(part.numel() for part in self.batches[: self.fitted])

    def spread(self, tokens: float) -> "Calibration":
        """
        Windows of at least `tokens` tokens from all over the fitted text, all of it if there are fewer; none held out.

        Text comes in the order of its sources: the first windows would be one source's.
        """
        stride = max(1, int(self.tokens / max(tokens, 1)))
        batches, images = [], {}
        for number, ids_BT in enumerate(every(stride, self.batches[: self.fitted], whole=self.images)):
            if ids_BT is not None:
                if number in self.images:
                    images[len(batches)] = self.images[number]
                batches.append(ids_BT)
        return Calibration(self.parent, batches, images=images)

    def arguments(self, layer: int, batch: int) -> dict:
        """Keyword arguments of decoder layer `layer` for batch number `batch`, floats in the working type."""
        shape = tuple(self.batches[batch].shape)
        if shape not in self._arguments:
            recorded = layer_arguments(self.parent.parts.backbone, *shape)
            # layers share most of what they are passed: cast and move each object once
            self._seen: dict[int, object] = {}
            self._arguments[shape] = [{name: self._cast(value) for name, value in part.items()} for part in recorded]
        return self._arguments[shape][layer]

    def _cast(self, value):
        if isinstance(value, tuple):
            return tuple(self._cast(part) for part in value)
        if not torch.is_tensor(value):
            return value
        if id(value) not in self._seen:
            dtype = self.parent.dtype if value.is_floating_point() else value.dtype
            self._seen[id(value)] = value.to(self.parent.device, dtype)
        return self._seen[id(value)]

    def embed(self, embedding_Vk: Tensor, scale: float, rotation_Dk: Tensor | None = None) -> list[Tensor]:
        """
        The stream at a decoder's entry.

        Args:
            embedding_Vk (`Tensor`): the decoder's embedding.
            scale (`float`): what its output is multiplied by.
            rotation_Dk (`Tensor`, *optional*): turns the parent's image features into the decoder's.
        """
        stream = []
        for number, ids_BT in enumerate(self.batches):
            rows_BTk = nn.functional.embedding(ids_BT.to(embedding_Vk.device), embedding_Vk)
            x_BTk = rows_BTk.to(self.parent.storage, self.parent.dtype) * scale
            if number in self.images:
                features = self.images[number].to(x_BTk)
                features = features if rotation_Dk is None else features @ rotation_Dk.to(features)
                x_BTk[ids_BT.to(x_BTk.device) == self.parent.config.image_token_index] = features
            stream.append(x_BTk)
        return stream

    def parent_entry(self) -> list[Tensor]:
        """The parent's stream at its entry."""
        return self.embed(self.parent.embedding_VD(), embedding_scale(self.parent.config))


def every(stride: int, parts: list[Tensor], whole: Container[int] = ()) -> Iterator[Tensor | None]:
    """
    Of each batch of windows those whose place in the whole text is a multiple of `stride`; `None` where there is none.

    Args:
        stride (`int`): 1 is all.
        parts (`list[Tensor]`): batches, windows first.
        whole (`Container[int]`, *optional*): numbers of batches that are not cut: all or none of them comes.
    """
    place = 0
    for number, part in enumerate(parts):
        first = -place % stride
        place += len(part)
        if first >= len(part):
            yield None
        else:
            yield part if number in whole else part[first::stride]
