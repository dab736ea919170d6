"""One matrix for embedding and head: the merge that an untied parent, or a rotated tied one, needs for a tied child.

The paper ties its 3B child and does not say how. Row by row, the shared matrix e must serve as embedding (near E Q)
and, through the final norm's weight w, as head (near the rotated head H on the final stream z):

    min over e_v of (w e_v - h_v)^T C (w e_v - h_v) + mu |e_v - (E Q)_v|^2,    C = mean of z z^T

A token's frequency weighs both terms alike and drops out; mu measures the embedding's error against its own size.

V vocabulary, D parent hidden, k child hidden, N tokens
"""

import torch
from torch import Tensor

from hf_cascade.anatomy import Anatomy
from hf_cascade.prune.apply import set_parameter
from hf_cascade.prune.fit import LeastSquares
from hf_cascade.prune.plan import PrunePlan
from hf_cascade.prune.stream import normalised

# mu: the embedding's error, relative to its mean square, against the head's squared error in logits. Ours: on the tiny
# parent cut to its 3B shape, KL after pruning was 1.53, 1.51, 1.42, 1.72, 2.86, 3.15 at 0.003, 0.01, 0.03, 0.1, 1, 10
# (3.12 for the average): the layers are fitted afterwards and make up for the embedding; nothing does for the head.
EMBEDDING_WEIGHT = 0.03


@torch.no_grad()
def merge_ends(parent: Anatomy, child: Anatomy, plan: PrunePlan, x: list[Tensor], epsilon: float, how: str) -> None:
    """
    Fill a tied child's shared matrix and final norm before its layers are fitted.

    Args:
        parent (`Anatomy`), child (`Anatomy`): the two models.
        plan (`PrunePlan`): its rotation is used.
        x (`list[Tensor]`): the parent's final stream, batches of [B, T, D].
        epsilon (`float`): of the parent's norms.
        how (`str`): `average`, `embedding`, `head` or `least_squares`, see [`PruneConfig`].
    """
    hidden = parent.embedding.weight.shape[1]
    q_Dk = plan.rotation_or_identity(parent.embedding.weight)
    embedding_Vk = parent.embedding.weight.double() @ q_Dk
    if parent.head.weight is parent.embedding.weight and plan.rotation is None:
        set_parameter(child.embedding, parent.embedding.weight.data)
        set_parameter(child.norm, parent.norm.weight.data)
        return
    fit = LeastSquares(q_Dk.shape[1], hidden, q_Dk.device)
    for x_BTD in x:
        fit.add(normalised(x_BTD @ q_Dk.to(x_BTD), epsilon).flatten(0, 1), normalised(x_BTD, epsilon).flatten(0, 1))
    tokens = sum(part.shape[0] * part.shape[1] for part in x)
    gained_VD = parent.head.weight.double() * parent.norm.weight.double()
    head_Vk = gained_VD @ fit.solve((hidden / q_Dk.shape[1]) ** 0.5 * q_Dk, 1e-6)
    covariance_kk = fit.gram_II / tokens
    # One matrix cannot have two sizes: the final norm carries the ratio.
    size = ((embedding_Vk @ covariance_kk) * embedding_Vk).sum().sqrt()
    scale = float(((head_Vk @ covariance_kk) * head_Vk).sum().sqrt() / size)
    shared_Vk = _merge(embedding_Vk, head_Vk / scale, covariance_kk * scale**2, how)
    set_parameter(child.embedding, shared_Vk)
    child.norm.weight.fill_(scale)


def _merge(embedding_Vk: Tensor, head_Vk: Tensor, covariance_kk: Tensor, how: str) -> Tensor:
    if how == "embedding":
        return embedding_Vk
    if how == "head":
        return head_Vk
    if how == "average":
        return (embedding_Vk + head_Vk) / 2
    weight = EMBEDDING_WEIGHT / embedding_Vk.square().mean()
    left_kk = covariance_kk + weight * torch.eye(len(covariance_kk)).to(covariance_kk)
    return torch.linalg.solve(left_kk, covariance_kk @ head_Vk.t() + weight * embedding_Vk.t()).t()


@torch.no_grad()
def fit_final_norm(parent: Anatomy, child: Anatomy, x, s, epsilons: tuple[float, float], frequency_V: Tensor) -> None:
    """
    The final norm's weight that brings the tied head's logits nearest to the parent's, tokens weighted by frequency.

    Args:
        parent (`Anatomy`), child (`Anatomy`): the two models.
        x (`list[Tensor]`), s (`list[Tensor]`): final streams, batches of [B, T, D] and [B, T, k].
        epsilons (`tuple[float, float]`): of the parent's and the child's norms.
        frequency_V (`Tensor`): how often each token occurs, [V].
    """
    shared_Vk, width = child.embedding.weight.double(), child.embedding.weight.shape[1]
    fit = LeastSquares(width, parent.norm.weight.shape[0], shared_Vk.device)
    for x_BTD, s_BTk in zip(x, s, strict=True):
        fit.add(normalised(s_BTk, epsilons[1]).flatten(0, 1), normalised(x_BTD, epsilons[0]).flatten(0, 1))
    weighted_Vk = shared_Vk * (frequency_V / frequency_V.sum()).to(shared_Vk).unsqueeze(1)
    gained_VD = parent.head.weight.double() * parent.norm.weight.double()
    left_kk = (shared_Vk.t() @ weighted_Vk) * fit.gram_II
    right_k = ((weighted_Vk.t() @ gained_VD) * fit.cross_IO).sum(1)
    strength = 1e-2 * left_kk.diagonal().mean()
    start_k = child.norm.weight.double()
    left_kk += strength * torch.eye(width).to(left_kk)
    set_parameter(child.norm, torch.linalg.solve(left_kk, right_k + strength * start_k))
