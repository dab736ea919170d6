"""From statistics to decisions: the layers, FFN columns and directions of the stream that stay. Pure."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_cascade.prune.config import PruneConfig
from hf_cascade.prune.statistics import Statistics


@dataclass(frozen=True)
class PrunePlan:
    """
    What stays of a parent.

    Attributes:
        kept_layers (`list[int]`): parent layers, ascending.
        rotation (`Tensor`, *optional*): Q [D, k], orthonormal columns; `None` keeps the stream as it is.
        ffn_columns (`list[Tensor]`, *optional*): for each kept layer the [f] parent columns that stay, ascending;
            `None` keeps all.
        explained_variance (`list[float]`): share of the Gram matrices' trace in the first 1, 2, ... D directions.
        layer_scores (`list[float]`): one a parent layer.
        ffn_kept_score (`list[float]`): share of each kept layer's FFN score that stays.
    """

    kept_layers: list[int]
    rotation: Tensor | None
    ffn_columns: list[Tensor] | None
    explained_variance: list[float]
    layer_scores: list[float]
    ffn_kept_score: list[float]

    def rotation_or_identity(self, embedding_VD: Tensor) -> Tensor:
        """Q, or the identity of the stream's width, in float64 on the embedding's device."""
        if self.rotation is not None:
            return self.rotation
        return torch.eye(embedding_VD.shape[1], dtype=torch.float64, device=embedding_VD.device)

    def report(self) -> dict:
        """The decisions as JSON."""
        width = None if self.rotation is None else self.rotation.shape[1]
        return {
            "layer_scores": self.layer_scores,
            "kept_layers": self.kept_layers,
            "explained_variance": self.explained_variance,
            "hidden_size": width,
            "ffn_kept_score": self.ffn_kept_score,
        }


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores, ascending; of equal ones the lower index stays."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def principal_directions(gram_DD: Tensor, width: int) -> tuple[Tensor, list[float]]:
    """
    The first `width` principal directions of a Gram matrix, without centring (a norm-only stream cannot absorb a mean).

    Each column's largest entry is positive, so that the result does not depend on the solver's signs.

    Returns:
        `tuple[Tensor, list[float]]`: Q [D, width] in float64, and the cumulative share of the trace, [D].
    """
    values_D, vectors_DD = torch.linalg.eigh(gram_DD)
    values_D, vectors_DD = values_D.flip(0).clamp(min=0), vectors_DD.flip(1)
    q_Dk = vectors_DD[:, :width]
    signs_k = q_Dk.gather(0, q_Dk.abs().argmax(0, keepdim=True)).sign()
    return q_Dk * signs_k, (values_D.cumsum(0) / values_D.sum()).tolist()


def make_plan(statistics: Statistics, config: PruneConfig, shape: dict[str, int]) -> PrunePlan:
    """
    Decide what stays (Algorithm 2): top layers by score, one PCA over the kept layers' norms, top FFN columns.

    Args:
        statistics (`Statistics`): of the parent.
        config (`PruneConfig`): the scores to use.
        shape (`dict[str, int]`): the child's `num_hidden_layers`, `hidden_size`, `intermediate_size`.
    """
    layer_scores = getattr(statistics, config.layer_score)
    kept = top(torch.tensor(layer_scores, dtype=torch.float64), shape["num_hidden_layers"]).tolist()
    rotation, explained = None, []
    if statistics.gram:
        rotation, explained = principal_directions(sum(statistics.gram[i] for i in kept), shape["hidden_size"])
    ffn_scores = [getattr(statistics, f"ffn_{config.ffn_score}")[i] for i in kept]
    columns = None
    if shape["intermediate_size"] < ffn_scores[0].numel():
        columns = [top(score_F, shape["intermediate_size"]) for score_F in ffn_scores]
    kept_share = [
        1.0 if columns is None else float(score_F[columns[i]].sum() / score_F.sum())
        for i, score_F in enumerate(ffn_scores)
    ]
    return PrunePlan(kept, rotation, columns, explained, list(layer_scores), kept_share)
