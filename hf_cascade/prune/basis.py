"""Which k directions of the residual stream stay: one matrix Q for the whole network, registered by name.

`stream`, `normed` and `fisher` rotate: their columns are orthonormal directions. `channels` and `magnitude` select.

D parent hidden, k child hidden, N tokens
"""

import torch
from torch import Tensor

# L-BFGS steps of `fisher`. Ours: on the tiny parent 20 reached what 300 did (KL at width 80: .094 and .091).
FISHER_STEPS = 30


def principal_directions(gram_DD: Tensor, width: int) -> tuple[Tensor, list[float]]:
    """
    The first `width` principal directions of a Gram matrix, without centring (a norm-only stream cannot absorb a mean).

    Each column's largest entry is positive, so that the result does not depend on the solver's signs.

    Returns:
        `tuple[Tensor, list[float]]`: Q [D, width] in float64, and the cumulative share of the trace, [D].
    """
    values_D, vectors_DD = torch.linalg.eigh(gram_DD)
    values_D, vectors_DD = values_D.flip(0).clamp(min=0), vectors_DD.flip(1)
    return _signed(vectors_DD[:, :width]), (values_D.cumsum(0) / values_D.sum()).tolist()


def _signed(q_Dk: Tensor) -> Tensor:
    return q_Dk * q_Dk.gather(0, q_Dk.abs().argmax(0, keepdim=True)).sign()


def selected_channels(score_D: Tensor, width: int) -> tuple[Tensor, list[float]]:
    """
    The `width` channels of the highest score as a Q of zeros and ones.

    Returns:
        `tuple[Tensor, list[float]]`: Q [D, width] in float64, and the cumulative share of the score, [D].
    """
    kept = score_D.sort(descending=True, stable=True).indices[:width].sort().values
    q_Dk = torch.zeros(len(score_D), width, dtype=torch.float64, device=score_D.device)
    q_Dk[kept, torch.arange(width, device=score_D.device)] = 1.0
    ordered = score_D.double().sort(descending=True).values
    return q_Dk, (ordered.cumsum(0) / ordered.sum()).tolist()


@torch.no_grad()
def fisher_directions(gram_DD: Tensor, fisher_DD: Tensor, width: int) -> tuple[Tensor, list[float]]:
    """
    The subspace whose complement costs the parent's predictions least, to second order. Ours.

    Dropping R = I - Q Q^T of a norm's output y changes the divergence by about tr(F R C R) / 2, with C the second
    moment of y and F that of the loss's gradient at y, labels drawn from the parent itself. Both are summed over the
    norms that stay, C weighted by the size of its norm's F, which measured as well as a sum over norms of the product.
    PCA is where it starts, and the answer where F is the identity.

    Args:
        gram_DD (`Tensor`): C.
        fisher_DD (`Tensor`): F.
        width (`int`): k.

    Returns:
        `tuple[Tensor, list[float]]`: as [`principal_directions`]; the share is of C's trace, in the order of PCA.
    """
    start_Dk, share = principal_directions(gram_DD, width)
    traces = gram_DD.trace() * fisher_DD.trace()
    scale = len(gram_DD) / traces.clamp(min=torch.finfo(torch.float64).tiny)
    whole = (fisher_DD * gram_DD).sum()
    raw_Dk = start_Dk.clone(memory_format=torch.contiguous_format)
    del start_Dk
    optimizer = torch.optim.LBFGS([raw_Dk], max_iter=FISHER_STEPS, line_search_fn="strong_wolfe", history_size=5)

    def loss() -> Tensor:
        # tr(F R C R) multiplied out, and its gradient by hand: autograd would keep twice as many matrices
        q_Dk, r_kk = torch.linalg.qr(raw_Dk)
        f_Dk, c_Dk = fisher_DD @ q_Dk, gram_DD @ q_Dk
        f_kk, c_kk = q_Dk.t() @ f_Dk, q_Dk.t() @ c_Dk
        value = scale * (whole - 2 * (f_Dk * c_Dk).sum() + (f_kk * c_kk).sum())
        gradient_Dk = (f_Dk @ c_kk).addmm_(c_Dk, f_kk)
        gradient_Dk.addmm_(fisher_DD, c_Dk, alpha=-1).addmm_(gram_DD, f_Dk, alpha=-1)
        del f_Dk, c_Dk
        gradient_Dk.addmm_(q_Dk, q_Dk.t() @ gradient_Dk, alpha=-1)  # along Q the value does not change
        gradient_Dk = torch.linalg.solve_triangular(r_kk.t(), gradient_Dk, upper=False, left=False)
        raw_Dk.grad = gradient_Dk.mul_(2 * scale).contiguous().contiguous()
        return value

    optimizer.step(loss)
    return torch.linalg.qr(raw_Dk).Q, share


BASES = ("stream", "normed", "fisher", "channels", "magnitude")
