"""A decoder's final norm and head on its final stream: losses, divergence and gradients, a chunk of logits at a time.

B, T batch and window, C rows of a chunk, D hidden size, V vocabulary
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_cascade.prune.ends import row_chunks
from hf_cascade.prune.layers import normalised
from hf_cascade.prune.parent import Parent

CHUNK_ENTRIES = 2**26  # logits of a chunk, 256 MB in fp32; ours
CHUNK_ROWS = 1024  # ours


@dataclass
class Exit:
    """
    Final norm and head.

    Args:
        gain_D (`Tensor`): what the norm multiplies by, in the type and where to compute.
        head_VD (`Tensor`): the head's weight, in any type.
        epsilon (`float`): of the norm.
    """

    gain_D: Tensor
    head_VD: Tensor
    epsilon: float

    @classmethod
    def of(cls, parent: Parent) -> "Exit":
        """The parent's."""
        return cls(parent.final_gain_D(), parent.head_VD().to(parent.device), parent.epsilon)

    def chunks(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """The stream normalised, as chunks of rows [C, D]."""
        rows = max(1, min(CHUNK_ROWS, CHUNK_ENTRIES // len(self.head_VD)))
        return normalised(x_BTD.to(self.gain_D.device), self.epsilon).flatten(0, 1).split(rows)

    def logits(self, y_CD: Tensor) -> Tensor:
        """[C, V] of normalised states."""
        gained_CD = y_CD * self.gain_D
        parts = [nn.functional.linear(gained_CD, self.head_VD[rows].to(y_CD)) for rows in self._rows()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _rows(self) -> list[slice]:
        """A head of another type is cast a part at a time: cast whole it is as large as a layer."""
        return [slice(None)] if self.head_VD.dtype == self.gain_D.dtype else row_chunks(self.head_VD)

    def loss(self, x_BTD: Tensor, ids_BT: Tensor) -> float:
        """Sum of the next-token loss over all but each window's last token."""
        labels = ids_BT[:, 1:].flatten().to(self.gain_D.device)
        parts, total = self.chunks(x_BTD[:, :-1]), 0.0
        for y_CD, labels_C in zip(parts, labels.split(len(parts[0])), strict=True):
            total += float(nn.functional.cross_entropy(self.logits(y_CD), labels_C, reduction="sum"))
        return total

    def divergence(self, x_BTD: Tensor, other: "Exit", s_BTk: Tensor) -> float:
        """Sum over tokens of KL(this model || the other)."""
        total = 0.0  # chunks are equal: both have one vocabulary
        for y_CD, z_Ck in zip(self.chunks(x_BTD), other.chunks(s_BTk), strict=True):
            p_CV, q_CV = self.logits(y_CD).log_softmax(-1), other.logits(z_Ck).log_softmax(-1)
            total += float((p_CV.exp() * (p_CV - q_CV)).sum(dtype=torch.float64))
        return total

    def sampled_gradient(self, y_CD: Tensor, generator: torch.Generator) -> Tensor:
        """Gradient of the loss at y, labels drawn from this model's own distribution: [C, D]."""
        p_CV = self.logits(y_CD).softmax(-1)
        # one uniform number a row, not one an entry: the draws do not depend on how rows are batched
        uniform_C1 = torch.rand(len(p_CV), 1, dtype=torch.float64, generator=generator).to(p_CV.device)
        drawn_C1 = torch.searchsorted(p_CV.double().cumsum(1), uniform_C1).clamp(max=p_CV.shape[1] - 1)
        p_CV.scatter_add_(1, drawn_C1, torch.full_like(drawn_C1, -1, dtype=p_CV.dtype))
        return sum(p_CV[:, rows] @ self.head_VD[rows].to(p_CV) for rows in self._rows()) * self.gain_D
