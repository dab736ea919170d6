"""Ridge least squares from Gram matrices: float64 sums over tokens, so text length costs no memory."""

import torch
from torch import Tensor

# N tokens, I inputs, O outputs


class LeastSquares:
    """
    min over W of |Y - X W^T|^2 + lambda |W - W0|^2, lambda = ridge * mean diagonal of X^T X.

    Args:
        inputs (`int`): I, columns of X.
        outputs (`int`): O, columns of Y.
        device (`torch.device`): where the tokens are.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device):
        self.gram_II = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.cross_IO = torch.zeros(inputs, outputs, dtype=torch.float64, device=device)

    def add(self, x_NI: Tensor, y_NO: Tensor) -> None:
        """Add a batch of tokens; products are in the tokens' own type, only their sums need float64."""
        self.gram_II += x_NI.t() @ x_NI
        self.cross_IO += x_NI.t() @ y_NO

    def solve(self, start_OI: Tensor, ridge: float) -> Tensor:
        """The fitted W [O, I] in float64, pulled towards `start_OI`; inputs that never occur stay at the start."""
        strength = ridge * self.gram_II.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        left_II = self.gram_II + strength * torch.eye(len(self.gram_II)).to(self.gram_II)
        right_IO = self.cross_IO + strength * start_OI.double().t()
        return torch.linalg.solve(left_II, right_IO).t()
