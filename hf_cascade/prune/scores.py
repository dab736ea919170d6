"""What decides which layers and FFN columns stay: small functions, registered by the name a config gives them.

N tokens, B windows of a batch, T tokens of a window, D hidden size, F FFN width
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from hf_cascade.anatomy import FFN_OUT
from hf_cascade.prune.calibration import every
from hf_cascade.prune.fit import add_gram, symmetric
from hf_cascade.prune.layers import KEEP_BYTES, ffn_input

NORMS_AT_ONCE = 512  # rows or columns of a weight; ours


class Activations:
    """
    A layer's FFN activations act(W1 x) * W3 x; where they are large, computed anew each time they are gone through.

    Args:
        layer (`nn.Module`): the parent's layer.
        middle (`list[Tensor]`): the stream before its FFN, batches of [B, T, D].
        device (`torch.device`): where to compute.
    """

    def __init__(self, layer: nn.Module, middle: list[Tensor], device: torch.device):
        self.layer, self.middle, self.device = layer, middle, device
        weight_DF = layer.get_submodule(FFN_OUT).weight
        self.bytes_per_token = weight_DF.shape[1] * weight_DF.element_size()
        self._kept: dict[int, list[Tensor]] = {}

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(part.shape[0] * part.shape[1] for part in self.middle)

    def __call__(self, stride: int = 1) -> Iterator[Tensor]:
        """Batches of [B, T, F], of every `stride`-th window."""
        if stride in self._kept:
            yield from self._kept[stride]
            return
        parts = [part for part in every(stride, self.middle) if part is not None]
        small = sum(len(part) * part.shape[1] for part in parts) * self.bytes_per_token <= KEEP_BYTES
        for part in parts:
            a_BTF = ffn_input(self.layer, part.to(self.device))
            if small:
                self._kept.setdefault(stride, []).append(a_BTF)
            yield a_BTF


def ratio(x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
    """|output| / |input| of a block, residual included (the paper's listing; high stays): [B, T]."""
    return y_BTD.norm(dim=-1) / x_BTD.norm(dim=-1)


def cosine(x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
    """1 - cos(input, output) (ShortGPT, arXiv 2403.03853; Minitron): [B, T]."""
    return 1 - torch.cosine_similarity(x_BTD, y_BTD, dim=-1)


# "loss_drop", the rise of the loss without the layer, needs more than its input and output: `statistics.SkippedLayers`.
LAYER_SCORES = {"ratio": ratio, "cosine": cosine}


def _per_column(activations: Iterator[Tensor], measure: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """Sum of `measure` over tokens, [F], and the number of tokens."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for a_BTF in activations:
        a_NF = a_BTF.flatten(0, 1)
        total = total.to(a_NF.device) + measure(a_NF).sum(0, dtype=torch.float64)
        tokens += len(a_NF)
    return total, tokens


def _norms(weight: Tensor, dim: int, order: int = 2) -> Tensor:
    """Norms along a dimension in float64; a float64 copy is made of a few of them at a time."""
    parts = weight.split(NORMS_AT_ONCE, dim=1 - dim)
    return torch.cat([torch.linalg.vector_norm(part.double(), ord=order, dim=dim) for part in parts])


def mean_abs(layer: nn.Module, activations: Activations, keep: int) -> Tensor:
    """Mean of |act(W1 x) * W3 x| (the paper): [F]."""
    total_F, tokens = _per_column(activations(), torch.abs)
    return total_F / tokens


def minitron(layer: nn.Module, activations: Activations, keep: int) -> Tensor:
    """Mean over a window's tokens of the absolute activation, then the L2 norm over windows (arXiv 2407.14679): [F]."""
    return sum(a_BTF.abs().mean(1).double().square().sum(0) for a_BTF in activations()).sqrt()


def output(layer: nn.Module, activations: Activations, keep: int, stride: int = 1) -> Tensor:
    """Root mean square of the activation times the norm of the column of W2 it drives: [F]."""
    total_F, tokens = _per_column(activations(stride), torch.square)
    return (total_F / tokens).sqrt() * _norms(layer.get_submodule(FFN_OUT).weight, 0)


def wanda(layer: nn.Module, activations: Activations, keep: int) -> Tensor:
    """Sum over a column of W2 of |weight| times the activation's norm (Wanda, arXiv 2306.11695, by column): [F]."""
    total_F, _ = _per_column(activations(), torch.square)
    return total_F.sqrt() * _norms(layer.get_submodule(FFN_OUT).weight, 0, order=1)


def magnitude(layer: nn.Module, activations: Activations, keep: int) -> Tensor:
    """Product of the norms of a column's three weights; looks at no text: [F]."""
    made_F = _norms(layer.mlp.gate_proj.weight, 1) * _norms(layer.mlp.up_proj.weight, 1)
    return made_F * _norms(layer.get_submodule(FFN_OUT).weight, 0)


# Ours, measured on the tiny parent at half and a quarter of its width, KL after compensation: `output` .077 and .330;
# columns removed one by one .065, .296; in 16 rounds .066, .297; in 4 rounds .068, .326; all at once .094, .382.
OBS_ROUNDS = 16
OBS_CANDIDATES = 1.5  # times the columns to keep; the others leave by `output`
OBS_SMALL = 1024  # columns of a Gram matrix that is never too large; a larger one has at most
OBS_MEMORY = 0.6  # times the entries that the layer's weights have
OBS_LEAST_TOKENS = 4  # a candidate column: with less text there are fewer candidates, with too little `output` decides
OBS_TOKENS = 64  # tokens a candidate column, from all over the text; more is not looked at
OBS_RIDGE = 3e-3  # of the Gram matrix's mean diagonal; allows float32 where the matrix is large


def obs(layer: nn.Module, activations: Activations, keep: int) -> Tensor:
    """
    What the layer's output loses with a column after the others have made up for it, |w_j|^2 / (G^-1)_jj (OBS).

    Columns leave in rounds; in each the cheapest go, and weights and inverse are taken anew from those that are left.
    Returns [F], high stays: 0 for what left by `output` at first, then each column's loss when it left, or in the last
    round; never below that of a column that left before it.
    """
    writer = layer.get_submodule(FFN_OUT).weight
    stride = max(1, activations.tokens // (OBS_TOKENS * math.ceil(OBS_CANDIDATES * keep)))
    score_F = output(layer, activations, keep, stride)
    entries = sum(value.numel() for value in layer.parameters())
    most = max(OBS_SMALL, int((OBS_MEMORY * entries) ** 0.5))
    size = min(len(score_F), math.ceil(OBS_CANDIDATES * keep), most, activations.tokens // OBS_LEAST_TOKENS)
    if size <= keep:
        return score_F
    alive = score_F.topk(size).indices.sort().values
    score_F.zero_()
    gram = torch.zeros(size, size, dtype=torch.float64 if size <= 4096 else torch.float32, device=writer.device)
    for a_BTF in activations(stride):
        add_gram(gram, a_BTF.flatten(0, 1)[:, alive])
    tiny = torch.finfo(gram.dtype).tiny
    symmetric(gram).diagonal().add_(OBS_RIDGE * gram.diagonal().mean().clamp(min=tiny))
    driven = writer[:, alive].to(gram) @ gram  # W2 G: the fit of the columns that are left is this times G^-1
    floor = 0.0
    for number in range(OBS_ROUNDS):
        factor = gram.clone().mT  # LAPACK's order: fewer copies
        torch.linalg.cholesky(factor, out=factor)
        torch.cholesky_inverse(factor, out=factor)
        loss = (driven @ factor).square_().sum(0) / factor.diagonal()
        del factor
        score_F[alive] = loss.clamp(min=floor).to(score_F)
        remaining = keep + (size - keep) * (OBS_ROUNDS - 1 - number) // OBS_ROUNDS
        ordered = loss.sort(descending=True).indices
        kept = ordered[:remaining].sort().values
        if remaining < len(alive):
            floor = max(floor, float(loss[ordered[remaining]]))
            alive, driven, gram = alive[kept], driven[:, kept], gram[kept[:, None], kept]
    score_F[alive] = score_F[alive].clamp(min=floor) * (1 + 1e-9) + tiny  # of equals, those that never left
    return score_F


SIZE_MATTERS = ("obs",)  # scores that depend on how many columns stay
FFN_SCORES = {
    "mean_abs": mean_abs,
    "minitron": minitron,
    "output": output,
    "obs": obs,
    "wanda": wanda,
    "magnitude": magnitude,
}
