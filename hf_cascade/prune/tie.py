"""One matrix for embedding and head: the merge that an untied parent, or a rotated tied one, needs for a tied child.

The paper ties its 3B child and does not say how. Row by row, the shared matrix e must serve as embedding (near E Q)
and, through the final norm's weight w, as head (near the rotated head H on the final stream z):

    min over e_v of (w e_v - h_v)^T C (w e_v - h_v) + mu |e_v - (E Q)_v|^2,    C = mean of z z^T

A token's frequency weighs both terms alike and drops out; mu measures the embedding's error against its own size.

V vocabulary, D parent hidden, k child hidden, N tokens
"""

import torch
from torch import Tensor

from hf_cascade.prune.ends import row_chunks
from hf_cascade.prune.fit import LeastSquares, symmetric
from hf_cascade.prune.layers import normalised
from hf_cascade.prune.parent import Parent

# mu: the embedding's error, relative to its mean square, against the head's squared error in logits. Ours: on the tiny
# parent cut to its 3B shape, KL after pruning was 1.53, 1.51, 1.42, 1.72, 2.86, 3.15 at 0.003, 0.01, 0.03, 0.1, 1, 10
# (3.12 for the average): the layers are fitted afterwards and make up for the embedding; nothing does for the head.
EMBEDDING_WEIGHT = 0.03


@torch.no_grad()
def merge_ends(
    parent: Parent, embedding_Vk: Tensor, rotation_Dk: Tensor, x: list[Tensor], how: str
) -> tuple[Tensor, float]:
    """
    A tied child's shared matrix, and the weight of its final norm, before its layers are fitted.

    Args:
        parent (`Parent`): the model to prune.
        embedding_Vk (`Tensor`): the embedding an untied child would have, in its own type.
        rotation_Dk (`Tensor`): Q, or the identity.
        x (`list[Tensor]`): the parent's final stream, batches of [B, T, D].
        how (`str`): `average`, `embedding`, `head` or `least_squares`, see [`PruneConfig`].

    Returns:
        `tuple[Tensor, float]`: [V, k] in the embedding's type, and the final norm's gain.
    """
    hidden, width = rotation_Dk.shape
    device = parent.device
    fit = LeastSquares(width, hidden, device)
    for stored in x:
        x_BTD = stored.to(device)
        seen_BTk = normalised(x_BTD @ rotation_Dk.to(x_BTD), parent.epsilon)
        fit.add(seen_BTk.flatten(0, 1), normalised(x_BTD, parent.epsilon).flatten(0, 1))
    tokens = sum(part.shape[0] * part.shape[1] for part in x)
    covariance_kk = symmetric(fit.gram_II).clone() / tokens
    read_Dk = parent.final_gain_D().double().unsqueeze(1) * fit.solve((hidden / width) ** 0.5 * rotation_Dk, 1e-6)
    head_VD = parent.head_VD()
    # One matrix cannot have two sizes: the final norm carries the ratio.
    squares = torch.zeros(3, dtype=torch.float64, device=device)
    for rows in row_chunks(head_VD):
        e, h = embedding_Vk[rows].to(device, torch.float64), head_VD[rows].to(device, torch.float64) @ read_Dk
        squares += torch.stack([((e @ covariance_kk) * e).sum(), ((h @ covariance_kk) * h).sum(), e.square().sum()])
    scale = float((squares[1] / squares[0]).sqrt())
    merge = Merge(covariance_kk * scale**2, squares[2] / embedding_Vk.numel(), how)
    shared_Vk = torch.empty_like(embedding_Vk)
    for rows in row_chunks(head_VD):
        h = head_VD[rows].to(device, torch.float64) @ read_Dk / scale
        shared_Vk[rows] = merge(embedding_Vk[rows].to(device, torch.float64), h).to(shared_Vk)
    return shared_Vk, scale


class Merge:
    """
    Rows of two matrices to rows of one.

    Args:
        covariance_kk (`Tensor`): C, in units of the shared matrix.
        mean_square (`Tensor`): of the embedding's entries.
        how (`str`): as for [`merge_ends`].
    """

    def __init__(self, covariance_kk: Tensor, mean_square: Tensor, how: str):
        self.covariance_kk, self.how = covariance_kk, how
        self.weight = EMBEDDING_WEIGHT / mean_square
        identity_kk = torch.eye(len(covariance_kk)).to(covariance_kk)
        self.factor_kk = torch.linalg.cholesky(covariance_kk + self.weight * identity_kk)

    def __call__(self, embedding_Ck: Tensor, head_Ck: Tensor) -> Tensor:
        """[C, k] rows of the shared matrix."""
        if self.how == "embedding":
            return embedding_Ck
        if self.how == "head":
            return head_Ck
        if self.how == "average":
            return (embedding_Ck + head_Ck) / 2
        right_kC = self.covariance_kk @ head_Ck.t() + self.weight * embedding_Ck.t()
        return torch.cholesky_solve(right_kC, self.factor_kk).t()


@torch.no_grad()
def fit_final_norm(
    parent: Parent,
    shared_Vk: Tensor,
    scale: float,
    x: list[Tensor],
    s: list[Tensor],
    epsilon: float,
    frequency_V: Tensor,
) -> Tensor:
    """
    The final norm's gain that brings the tied head's logits nearest to the parent's, tokens weighted by frequency.

    Args:
        parent (`Parent`): the model to prune.
        shared_Vk (`Tensor`): the child's embedding.
        scale (`float`): the gain to pull towards.
        x (`list[Tensor]`), s (`list[Tensor]`): final streams, batches of [B, T, D] and [B, T, k].
        epsilon (`float`): of the child's norms.
        frequency_V (`Tensor`): how often each token occurs, [V].

    Returns:
        `Tensor`: [k], float64.
    """
    device, width, hidden = parent.device, shared_Vk.shape[1], parent.config.get_text_config().hidden_size
    fit = LeastSquares(width, hidden, device)
    for x_BTD, s_BTk in zip(x, s, strict=True):
        seen_BTk = normalised(s_BTk.to(device), epsilon)
        fit.add(seen_BTk.flatten(0, 1), normalised(x_BTD.to(device), parent.epsilon).flatten(0, 1))
    head_VD, gain_D = parent.head_VD(), parent.final_gain_D().double()
    inner_kk = torch.zeros(width, width, dtype=torch.float64, device=device)
    outer_kD = torch.zeros(width, hidden, dtype=torch.float64, device=device)
    for rows in row_chunks(head_VD):
        e, h = shared_Vk[rows].to(device, torch.float64), head_VD[rows].to(device, torch.float64) * gain_D
        weighted = e * (frequency_V[rows] / frequency_V.sum()).to(e).unsqueeze(1)
        inner_kk += e.t() @ weighted
        outer_kD += weighted.t() @ h
    left_kk = inner_kk * symmetric(fit.gram_II)
    right_k = (outer_kD * fit.cross_IO).sum(1)
    strength = 1e-2 * left_kk.diagonal().mean()
    left_kk += strength * torch.eye(width).to(left_kk)
    return torch.linalg.solve(left_kk, right_k + strength * scale)
