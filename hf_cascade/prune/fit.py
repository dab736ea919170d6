"""Ridge least squares from Gram matrices: float64 sums over tokens, so text length costs no memory."""

import torch
from torch import Tensor

# N tokens, I inputs, O outputs
BLOCK = 512  # columns of a product at once; a Gram matrix is symmetric, so blocks below its diagonal are not computed


def add_gram(gram_II: Tensor, x_NI: Tensor) -> None:
    """
    Add x^T x to the upper triangle of blocks of `gram_II`; [`symmetric`] fills the rest.

    Products are in the tokens' own type, only their sums need float64.
    """
    for start in range(0, len(gram_II), BLOCK):
        gram_II[start : start + BLOCK, start:] += x_NI[:, start : start + BLOCK].t() @ x_NI[:, start:]


def symmetric(gram_II: Tensor) -> Tensor:
    """`gram_II` with its lower blocks filled from the upper ones, in place."""
    for start in range(BLOCK, len(gram_II), BLOCK):
        gram_II[start : start + BLOCK, :start] = gram_II[:start, start : start + BLOCK].t()
    return gram_II


class LeastSquares:
    """
    min over W of |Y - X W^T|^2 + lambda |W - W0|^2, lambda = ridge * I / N * mean diagonal of X^T X.

    The start counts as much as `ridge` tokens an input: little against long text, much against short.

    Args:
        inputs (`int`): I, columns of X.
        outputs (`int`): O, columns of Y.
        device (`torch.device`): where the tokens are.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device):
        self.gram_II = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.cross_IO = torch.zeros(inputs, outputs, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, x_NI: Tensor, y_NO: Tensor) -> None:
        """Add a batch of tokens."""
        add_gram(self.gram_II, x_NI)
        for start in range(0, len(self.cross_IO), BLOCK):
            self.cross_IO[start : start + BLOCK] += x_NI[:, start : start + BLOCK].t() @ y_NO
        self.tokens += len(x_NI)

    def solve(self, start_OI: Tensor, ridge: float) -> Tensor:
        """
        The fitted W [O, I] in float64, pulled towards `start_OI`; inputs that never occur stay at the start.

        Works in place: the sums are used up.
        """
        share = ridge * len(self.gram_II) / self.tokens
        strength = share * self.gram_II.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        # transposed: LAPACK's order, in which nothing is copied; `cholesky_solve` would copy both
        lower_II, fitted_OI = symmetric(self.gram_II).mT, self.cross_IO.mT
        lower_II.diagonal().add_(strength)
        fitted_OI.add_(start_OI, alpha=float(strength))
        try:
            torch.linalg.cholesky(lower_II, out=lower_II)
        except torch.linalg.LinAlgError as error:
            raise ValueError(
                "a least-squares fit has no solution: the parent's activations are not finite, or calibration repeats "
                "itself; give more calibration text, or a larger ridge"
            ) from error
        torch.linalg.solve_triangular(lower_II.mT, fitted_OI, upper=True, left=False, out=fitted_OI)
        return torch.linalg.solve_triangular(lower_II, fitted_OI, upper=False, left=False, out=fitted_OI)
