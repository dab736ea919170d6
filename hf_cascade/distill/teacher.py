"""What a student learns from: a frozen teacher here, or whatever else gives the same targets (paper section 2).

B rows, T tokens of a row, N positions that count, E the teacher's hidden size, V vocabulary, K tokens kept.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hf_cascade.distill.placement import head_rows, in_forward

# Config entries of families whose logits are more than hidden states times head.
SCALED_LOGITS = ("logits_scaling", "logit_scale")


@dataclass
class HiddenTargets:
    """
    A teacher's logits before they are made: hidden states and head.

    Attributes:
        hidden_NE (`Tensor`): final hidden states of the positions that count, [N, E].
        head_VE (`Tensor`): the head, [V, E].
        softcap (`float`, *optional*): the final soft cap, where the family has one.
        layers_NE (`list[Tensor]`): hidden states after the layers that were asked for, [N, E] each.
    """

    hidden_NE: Tensor
    head_VE: Tensor
    softcap: float | None = None
    layers_NE: list[Tensor] = ()


@dataclass
class TopKTargets:
    """
    A teacher's most likely tokens; all others share one tail bucket.

    Attributes:
        ids_NK (`Tensor`): the K most likely tokens of each position, [N, K] int64, no token twice.
        log_probs_NK (`Tensor`): their log probabilities among all tokens, [N, K] fp32. What they lack of 1 is the tail.
    """

    ids_NK: Tensor
    log_probs_NK: Tensor


Targets = HiddenTargets | TopKTargets


class Teacher:
    """
    Gives targets for the positions of a batch that count. Subclasses say where they come from.

    Attributes:
        window (`int`): tokens the teacher was made for (`max_position_embeddings`).
        vocabulary (`int`): V.
        model (`nn.Module`, *optional*): the teacher, where this process holds it.
    """

    window: int
    vocabulary: int
    model: nn.Module | None = None

    def prefetch(self, inputs: dict, counts_BT: Tensor) -> None:
        """Begin to work on a batch whose targets will be asked for; a local teacher has nothing to begin."""

    def targets(self, inputs: dict, counts_BT: Tensor) -> Targets:
        """
        Targets of a batch.

        Args:
            inputs (`dict`): what the models read: `input_ids` [B, T], and what else the batch holds.
            counts_BT (`Tensor`): the positions that count, [B, T] bool.
        """
        raise NotImplementedError


def check_head(model: PreTrainedModel, role: str) -> None:
    """Raise `ValueError` unless `model`'s logits are its final hidden states times a matrix (soft cap allowed)."""
    head, decoder = model.get_output_embeddings(), model.config.get_text_config()
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"the {role} ({type(model).__name__}) needs a linear language-model head without bias")
    for name in SCALED_LOGITS:
        if getattr(decoder, name, None) not in (None, 1, 1.0):
            raise ValueError(f"the {role}'s family scales its logits ({name}), which is not supported")


def final_softcap(model: PreTrainedModel) -> float | None:
    """`final_logit_softcapping` of the families that have it."""
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def hidden_states(model: PreTrainedModel, inputs: dict, layers: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
    """
    What the head reads, [B, T, D], and the stream after each of `layers` (1 is the first), [B, T, D] each.

    `use_cache=False` is what keeps packed documents apart: with a cache transformers builds no block-diagonal mask.
    """
    output = model.base_model(**inputs, use_cache=False, output_hidden_states=bool(layers) or None)
    return output.last_hidden_state, [output.hidden_states[layer] for layer in layers]


class LocalTeacher(Teacher):
    """
    A frozen model in this process.

    Args:
        model (`PreTrainedModel`): the teacher.
        place (`Callable`): puts it on the student's devices, sharded when the student is.
        unwrap (`Callable`): the model itself, out of what `place` wrapped it in.
        layers (`tuple[int, ...]`, *optional*): layers whose output is given too.
    """

    def __init__(self, model: PreTrainedModel, place=lambda model: model, unwrap=lambda model: model, layers=()):
        check_head(model, "teacher")
        self.window = model.config.get_text_config().max_position_embeddings
        self.vocabulary = head_rows(model)
        self.softcap, self.layers = final_softcap(model), layers
        self.unwrap = unwrap
        self._ready: tuple[Tensor, HiddenTargets] | None = None
        self.model = place(model.eval().requires_grad_(False))

    @torch.no_grad()
    def prefetch(self, inputs: dict, counts_BT: Tensor) -> None:
        """Run the teacher now: before the student's forward fewer activations are alive than after it."""
        read = partial(self._read, inputs, counts_BT)
        self._ready = counts_BT, in_forward(self.model, self.unwrap(self.model), read)

    def targets(self, inputs: dict, counts_BT: Tensor) -> HiddenTargets:
        """As the base: what `prefetch` computed for this batch, or computed now."""
        if self._ready is None or self._ready[0] is not counts_BT:
            self.prefetch(inputs, counts_BT)
        (_, targets), self._ready = self._ready, None
        return targets

    def _read(self, inputs: dict, counts_BT: Tensor) -> HiddenTargets:
        model = self.unwrap(self.model)
        hidden_BTE, layers_BTE = hidden_states(model, inputs, self.layers)
        head = model.get_output_embeddings()
        head_VE = in_forward(head, head, lambda: head.weight.detach())
        return HiddenTargets(
            hidden_BTE[counts_BT],
            head_VE.full_tensor() if isinstance(head_VE, DTensor) else head_VE,
            self.softcap,
            [layer_BTE[counts_BT] for layer_BTE in layers_BTE],
        )
