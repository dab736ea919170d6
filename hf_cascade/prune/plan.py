"""From statistics to decisions: the layers and directions of the stream that stay. Pure."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_cascade.prune.config import PruneConfig

if TYPE_CHECKING:
    from hf_cascade.prune.statistics import Statistics


@dataclass(frozen=True)
class PrunePlan:
    """
    What stays of a parent. Which FFN columns stay is decided at each layer.

    Attributes:
        kept_layers (`list[int]`): parent layers, ascending.
        intermediate_size (`int`): FFN columns of each.
        rotation (`Tensor`, *optional*): Q [D, k], orthonormal columns, float64; `None` keeps the stream as it is.
        explained_variance (`list[float]`): share of what the directions are chosen by in the first 1, 2, ... D.
        layer_scores (`list[float]`): one a parent layer; empty where all stay.
    """

    kept_layers: list[int]
    intermediate_size: int
    rotation: Tensor | None = None
    explained_variance: list[float] | tuple = ()
    layer_scores: list[float] | tuple = ()

    def rotation_or_identity(self, hidden: int, device: torch.device) -> Tensor:
        """Q, or the identity of the stream's width, in float64."""
        if self.rotation is not None:
            return self.rotation
        return torch.eye(hidden, dtype=torch.float64, device=device)

    def report(self) -> dict:
        """The decisions as JSON."""
        return {
            "layer_scores": list(self.layer_scores),
            "kept_layers": self.kept_layers,
            "explained_variance": list(self.explained_variance),
            "hidden_size": None if self.rotation is None else self.rotation.shape[1],
        }


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores, ascending; of equal ones the lower index stays."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def make_plan(statistics: "Statistics | None", config: PruneConfig, shape: dict[str, int], hidden: int, layers: int):
    """
    Decide what stays (Algorithm 2): the top layers by score, one set of directions for the norms of these layers.

    Args:
        statistics (`Statistics`, *optional*): of the parent; needed where layers or directions go.
        config (`PruneConfig`): the scores to use.
        shape (`dict[str, int]`): the child's `num_hidden_layers`, `hidden_size`, `intermediate_size`.
        hidden (`int`): D.
        layers (`int`): of the parent.

    Returns:
        `PrunePlan`
    """
    if statistics is None:
        return PrunePlan(list(range(layers)), shape["intermediate_size"])
    kept = statistics.kept
    if not kept:
        kept = top(torch.tensor(statistics.layer_scores, dtype=torch.float64), shape["num_hidden_layers"]).tolist()
    rotation, share = None, []
    if shape["hidden_size"] < hidden:
        rotation, share = statistics.directions(config.hidden_basis, kept, shape["hidden_size"])
    return PrunePlan(kept, shape["intermediate_size"], rotation, share, statistics.layer_scores)
