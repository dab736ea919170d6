"""What a pruning found, for `prune_report.json`: how sharp FFN scores are, and what held-out text says of the child."""

import torch
from torch import Tensor

from hf_cascade.prune.exit import Exit

SPECTRUM_POINTS = 101  # of a layer's curve


def score_spectrum(scores_F: Tensor) -> list[float]:
    """Cumulative share of a layer's FFN scores, highest first, at 0, 1, ... 100 percent of the columns."""
    ordered = scores_F.double().clamp(min=0).sort(descending=True).values.cpu()
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    places = torch.linspace(0, len(ordered), SPECTRUM_POINTS).round().long()
    return (cumulative[places] / cumulative[-1].clamp(min=torch.finfo(torch.float64).tiny)).tolist()


def divergences(text, x: list[Tensor], builder, exits: tuple[Exit, Exit]) -> dict:
    """
    Parent and child on the held-out batches, in nats a token.

    Args:
        text (`Calibration`): its last batches are held out.
        x (`list[Tensor]`): the parent's final stream.
        builder (`ChildBuilder`): holds the child's.
        exits (`tuple[Exit, Exit]`): the child's, with and without compensation.

    Returns:
        `dict`: `tokens`, `loss_parent`, `loss`, `kl` of the child, and `kl_uncompensated` of the same cut with nothing
        re-fitted (the same number where the method fits nothing).
    """
    parent, batches = Exit.of(text.parent), text.batches[text.fitted :]
    theirs = x[text.fitted :]
    ours = builder.stream[len(builder.stream) - text.held_out :]
    tokens = sum(ids.numel() for ids in batches)
    labels = sum(ids[:, 1:].numel() for ids in batches)

    def kl(end: Exit, stream: list[Tensor]) -> float:
        return sum(parent.divergence(a, end, b) for a, b in zip(theirs, stream, strict=True)) / tokens

    def loss(end: Exit, stream: list[Tensor]) -> float:
        return sum(end.loss(part, ids) for part, ids in zip(stream, batches, strict=True)) / max(labels, 1)

    found = {"tokens": tokens, "loss_parent": loss(parent, theirs), "loss": loss(exits[0], ours)}
    found["kl"] = kl(exits[0], ours)
    found["kl_uncompensated"] = kl(exits[1], builder.plain) if builder.plain else found["kl"]
    return found
