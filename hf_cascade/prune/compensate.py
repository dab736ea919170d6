"""Least-squares compensation: every kept weight re-fitted so that the child's stream follows the parent's. Ours.

Layers are visited in order, parent and child side by side on the calibration text. Related: SliceGPT (PCA), FLAP
(bias), OBS (second-order updates); unlike theirs the child stays a stock checkpoint, only weights change.

Read sites (the norms): parent stream x [N, D] and child stream s [N, k], normalised to y and z. The best scale
c = <y Q, z> / <z, z> becomes the norm's weight, and the best map B, min |y - z B^T|^2 + lambda |B - c Q|^2, goes into
every reader: W diag(g) B / c.
Write sites (o_proj, down_proj): inputs a, target = the parent's stream after the sublayer times Q, minus the child's
stream. Before a gap of dropped layers the target is the parent's stream after the gap, which bridges it.

N tokens, D parent hidden, k child hidden, F and f parent and child FFN
"""

import torch
from torch import Tensor, nn

from hf_cascade.anatomy import ATTENTION_NORM, ATTENTION_OUT, FFN_NORM, FFN_OUT, READERS, Anatomy
from hf_cascade.prune.apply import set_parameter
from hf_cascade.prune.fit import LeastSquares
from hf_cascade.prune.plan import PrunePlan
from hf_cascade.prune.stream import Calibration, attention_input, ffn_input, normalised, working_copy


def read_map(
    parent_stream: list[Tensor],
    child_stream: list[Tensor],
    rotation: Tensor,
    epsilons: tuple[float, float],
    ridge: float,
) -> tuple[Tensor, float]:
    """
    What a norm's readers must be multiplied by, and the norm's weight.

    Args:
        parent_stream (`list[Tensor]`): batches of [B, T, D].
        child_stream (`list[Tensor]`): batches of [B, T, k].
        rotation (`Tensor`): Q [D, k].
        epsilons (`tuple[float, float]`): of the parent's and the child's norms.
        ridge (`float`): pull towards c Q.

    Returns:
        `tuple[Tensor, float]`: B / c [D, k] in float64, and c.
    """
    hidden, width = rotation.shape
    fit = LeastSquares(width, hidden, rotation.device)
    for x_BTD, s_BTk in zip(parent_stream, child_stream, strict=True):
        fit.add(normalised(s_BTk, epsilons[1]).flatten(0, 1), normalised(x_BTD, epsilons[0]).flatten(0, 1))
    scale = float((fit.cross_IO * rotation.t()).sum() / fit.gram_II.trace())
    return fit.solve(scale * rotation, ridge) / scale, scale


class Compensation:
    """
    Fits a child that [`apply_plan`] has filled.

    Args:
        parent (`Anatomy`), child (`Anatomy`): the two models.
        plan (`PrunePlan`): what was kept.
        calibration (`Calibration`): text; masks and rotary embeddings are the parent's and hold for both.
        epsilons (`tuple[float, float]`): of the parent's and the child's norms.
        reads (`bool`): fit the read sites too.
        ridge (`float`): see [`LeastSquares`].
    """

    def __init__(
        self, parent: Anatomy, child: Anatomy, plan: PrunePlan, calibration: Calibration, epsilons, reads, ridge
    ):
        self.parent, self.child, self.plan = parent, child, plan
        self.calibration, self.epsilons, self.reads, self.ridge = calibration, epsilons, reads, ridge
        self.rotation = plan.rotation_or_identity(parent.embedding.weight)

    @torch.no_grad()
    def run(self, advance=lambda: None) -> tuple[list[Tensor], list[Tensor]]:
        """Fit all kept layers in order; returns both final streams, [B, T, D] and [B, T, k] batches."""
        x = self.calibration.embed(self.parent.embedding.weight)
        s = self.calibration.embed(self.child.embedding.weight)
        kept = self.plan.kept_layers
        if kept:
            x = self._parent_through(x, 0, kept[0], advance)
        for index, source in enumerate(kept):
            following = kept[index + 1] if index + 1 < len(kept) else len(self.parent.layers)
            x, s = self._layer(index, source, following, x, s, advance)
        return x, s

    def _parent_through(self, x: list[Tensor], start: int, stop: int, advance) -> list[Tensor]:
        """The parent's stream before layer `stop`, given that before layer `start`."""
        for number in range(start, stop):
            layer = working_copy(self.parent.layers[number], self.calibration.dtype)
            x = [self._after_ffn(layer, self._after_attention(layer, number, b, part)) for b, part in enumerate(x)]
            advance()
        return x

    def _after_attention(self, layer: nn.Module, number: int, batch: int, x_BTD: Tensor) -> Tensor:
        inputs = attention_input(layer, x_BTD, self.calibration.arguments(number, batch))
        return x_BTD + layer.get_submodule(ATTENTION_OUT)(inputs)

    def _after_ffn(self, layer: nn.Module, x_BTD: Tensor) -> Tensor:
        return x_BTD + layer.get_submodule(FFN_OUT)(ffn_input(layer, x_BTD))

    def _layer(self, index: int, source: int, following: int, x, s, advance):
        """Fit child layer `index`, which descends from parent layer `source`; `following` is the next kept one."""
        parent = working_copy(self.parent.layers[source], self.calibration.dtype)
        child = working_copy(self.child.layers[index], self.calibration.dtype)
        columns = None if self.plan.ffn_columns is None else self.plan.ffn_columns[index]

        self._read(parent, child, ATTENTION_NORM, x, s, None)
        x = [self._after_attention(parent, source, batch, part) for batch, part in enumerate(x)]
        inputs = [attention_input(child, part, self.calibration.arguments(source, b)) for b, part in enumerate(s)]
        s = self._write(child.get_submodule(ATTENTION_OUT), inputs, x, s)

        self._read(parent, child, FFN_NORM, x, s, columns)
        x = [self._after_ffn(parent, part) for part in x]
        advance()
        x = self._parent_through(x, source + 1, following, advance)
        s = self._write(child.get_submodule(FFN_OUT), [ffn_input(child, part) for part in s], x, s)

        self.child.layers[index].load_state_dict(child.state_dict())
        return x, s

    def _read(self, parent: nn.Module, child: nn.Module, norm: str, x, s, columns: Tensor | None) -> None:
        """Fit a norm and its readers."""
        if not self.reads:
            return
        read_Dk, scale = read_map(x, s, self.rotation, self.epsilons, self.ridge)
        gain_D = parent.get_submodule(norm).weight.double()
        for name in READERS[norm]:
            weight_OD = parent.get_submodule(name).weight.double()
            if norm == FFN_NORM and columns is not None:
                weight_OD = weight_OD[columns]
            set_parameter(child.get_submodule(name), (weight_OD * gain_D) @ read_Dk)
        child.get_submodule(norm).weight.fill_(scale)

    def _write(self, writer: nn.Linear, inputs: list[Tensor], x: list[Tensor], s: list[Tensor]) -> list[Tensor]:
        """Fit a writer to the parent's stream `x`; returns the child's stream after it."""
        rotation = self.rotation.to(self.calibration.dtype)
        bias = 0.0 if writer.bias is None else writer.bias
        fit = LeastSquares(writer.in_features, writer.out_features, writer.weight.device)
        for a, x_BTD, s_BTk in zip(inputs, x, s, strict=True):
            fit.add(a.flatten(0, 1), (x_BTD @ rotation - s_BTk - bias).flatten(0, 1))
        set_parameter(writer, fit.solve(writer.weight, self.ridge))
        return [s_BTk + writer(a) for a, s_BTk in zip(inputs, s, strict=True)]


@torch.no_grad()
def fit_head(parent: Anatomy, child: Anatomy, x, s, rotation: Tensor, epsilons, ridge: float) -> None:
    """Read map of an untied child's final norm and head; `x` and `s` are the final streams."""
    read_Dk, scale = read_map(x, s, rotation, epsilons, ridge)
    gained_VD = parent.head.weight.double() * parent.norm.weight.double()
    set_parameter(child.head, gained_VD @ read_Dk)
    child.norm.weight.fill_(scale)
