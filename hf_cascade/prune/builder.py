"""A child built while its parent's layers go by, each weight re-fitted so that the child's stream follows the parent's.

Parent and child run side by side on the calibration text, layer by layer; nothing but one layer of each and their two
streams is in memory. Without compensation only the held-out text runs. Related: SliceGPT (PCA), FLAP (bias), OBS
(second-order updates); unlike theirs the child stays a stock checkpoint, only weights change.

Read sites (the norms): parent stream x [N, D] and child stream s [N, k], normalised to y and z. The best scale
c = <y Q, z> / <z, z> becomes the norm's gain, and the best map B, min |y - z B^T|^2 + lambda |B - c Q|^2, goes into
every reader: W diag(g) B / c.
Write sites (o_proj, down_proj): inputs a, target = the parent's stream after the sublayer times Q, minus the child's
stream. Before a gap of dropped layers the target is the parent's stream after the gap, which bridges it.

N tokens, B, T batch and window, D parent hidden, k child hidden, F and f parent and child FFN
"""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_cascade.anatomy import (
    ATTENTION_NORM,
    ATTENTION_OUT,
    FFN_NORM,
    FFN_OUT,
    HEAD_NORMS,
    READERS,
    dissect,
    embedding_scale,
    family,
    head_dim,
)
from hf_cascade.prune.balance import balance_layer
from hf_cascade.prune.calibration import Calibration
from hf_cascade.prune.config import PruneConfig
from hf_cascade.prune.ends import fold, narrow, norm_factor, set_parameter
from hf_cascade.prune.fit import LeastSquares
from hf_cascade.prune.layers import KEEP_BYTES, after_attention, after_ffn, attention_input, ffn_input, normalised
from hf_cascade.prune.plan import PrunePlan, top


def read_map(
    x: list[Tensor], s: list[Tensor], rotation_Dk: Tensor, epsilons: tuple[float, float], ridge: float
) -> tuple[Tensor, float]:
    """
    What a norm's readers must be multiplied by, and the norm's gain.

    Args:
        x (`list[Tensor]`): the parent's stream, batches of [B, T, D].
        s (`list[Tensor]`): the child's, batches of [B, T, k].
        rotation_Dk (`Tensor`): Q, where to compute.
        epsilons (`tuple[float, float]`): of the parent's and the child's norms.
        ridge (`float`): pull towards c Q.

    Returns:
        `tuple[Tensor, float]`: B / c [D, k] in float64, and c.
    """
    hidden, width = rotation_Dk.shape
    device = rotation_Dk.device
    fit = LeastSquares(width, hidden, device)
    for x_BTD, s_BTk in zip(x, s, strict=True):
        z_BTk, y_BTD = normalised(s_BTk.to(device), epsilons[1]), normalised(x_BTD.to(device), epsilons[0])
        fit.add(z_BTk.flatten(0, 1), y_BTD.flatten(0, 1))
    scale = float((fit.cross_IO * rotation_Dk.t()).sum() / fit.gram_II.trace())
    return fit.solve(scale * rotation_Dk, ridge) / scale, scale


class ChildBuilder:
    """
    Builds one child. For each parent layer in order call [`enter`], [`attend`], [`feed`], [`settle`].

    Args:
        text (`Calibration`): with the parent it belongs to.
        plan (`PrunePlan`): what stays.
        config (`PruneConfig`): what is re-fitted.
        child (`PreTrainedModel`): the child's skeleton.
        writer: has `write(name, value)`; see `prune.weights` and `prune.shards`.
        embedding_Vk (`Tensor`): the child's embedding.
        measures (`bool`, *optional*, defaults to `True`): follow the held-out text without compensation too.
    """

    def __init__(
        self,
        text: Calibration,
        plan: PrunePlan,
        config: PruneConfig,
        child: PreTrainedModel,
        writer,
        embedding_Vk: Tensor,
        measures: bool = True,
    ):
        self.text, self.plan, self.config, self.child, self.writer = text, plan, config, child, writer
        self.parent = text.parent
        hidden = self.parent.config.get_text_config().hidden_size
        self.rotation = plan.rotation_or_identity(hidden, self.parent.device)
        self.epsilons = (self.parent.epsilon, child.config.get_text_config().rms_norm_eps)
        self.fits = config.compensation != "none"
        # where all layers stay and the stream keeps its width, what norms see has hardly changed: fitting their readers
        # cost a quarter of a forward pass and gained 1% on the tiny parent
        changed = plan.rotation is not None or len(plan.kept_layers) < len(self.parent.parts.layers)
        self.reads = config.compensation == "read_write" and changed
        stream = text.embed(embedding_Vk, embedding_scale(child.config), plan.rotation)
        held_out = stream[text.fitted :]
        # the compensated child's stream: held-out text alone where nothing is fitted
        self.stream: list[Tensor] = stream if self.fits else held_out
        # copies: the state of a run that stops before the first kept layer is saved without shared tensors
        self.plain: list[Tensor] = [part.clone() for part in held_out] if self.fits and measures else []
        self.layer: nn.Module | None = None  # begun and not settled
        self.ffn_read: tuple[Tensor, float] | None = None
        self.ffn_kept_score: list[float] = []

    @property
    def offset(self) -> int:
        """Number of the batch that `stream` begins with."""
        return 0 if self.fits else self.text.fitted

    def keeps(self, number: int) -> bool:
        """Whether parent layer `number` has a child."""
        return number in self.plan.kept_layers

    def enter(self, number: int, layer: nn.Module, x: list[Tensor]) -> None:
        """Begin a layer: attention's readers, from the parent's stream `x` before it."""
        if not self.keeps(number):
            return
        self.layer = copy.deepcopy(dissect(self.child).layers[self.plan.kept_layers.index(number)])
        self.layer.requires_grad_(False).to_empty(device=self.parent.device).to(self.parent.dtype)
        self._fill(layer, ATTENTION_NORM, None)
        self._fill_writer(layer, ATTENTION_OUT, None)
        for name in HEAD_NORMS:
            if hasattr(layer.self_attn, name.rpartition(".")[2]):
                set_parameter(self.layer.get_submodule(name), layer.get_submodule(name).weight.data)
        for batch, part in enumerate(self.plain):
            arguments = self.text.arguments(number, self.text.fitted + batch)
            self.plain[batch] = self._on_device(part, lambda s, a=arguments: after_attention(self.layer, s, a))
        if self.reads:
            self._set_readers(layer, ATTENTION_NORM, self._read_map(x), None)

    def attend(self, number: int, x: list[Tensor]) -> None:
        """Fit and run attention; `x` is the parent's stream after its own."""
        if not self.keeps(number):
            return
        inputs = []
        for batch, part in enumerate(self.stream):
            arguments = self.text.arguments(number, self.offset + batch)
            inputs.append(self._on_device(part, lambda s, a=arguments: attention_input(self.layer, s, a)))
        self._write(ATTENTION_OUT, lambda batch: inputs[batch].to(self.parent.device), x)
        if self.reads:
            self.ffn_read = self._read_map(x)

    def feed(self, number: int, layer: nn.Module, scores_F: Tensor | None) -> None:
        """Choose FFN columns by their scores and take the FFN over; afterwards the parent's layer may go."""
        if not self.keeps(number):
            return
        columns = None
        if scores_F is not None:
            columns = top(scores_F, self.plan.intermediate_size)
            self.ffn_kept_score.append(float(scores_F[columns].sum() / scores_F.sum()))
        self._fill(layer, FFN_NORM, columns)
        self._fill_writer(layer, FFN_OUT, columns)
        for batch, part in enumerate(self.plain):
            self.plain[batch] = self._on_device(part, lambda s: after_ffn(self.layer, s))
        if self.ffn_read is not None:
            self._set_readers(layer, FFN_NORM, self.ffn_read, columns)
            self.ffn_read = None

    def settle(self, number: int, x: list[Tensor]) -> None:
        """Fit and run the FFN and write the layer, once the parent's stream `x` is that before the next kept layer."""
        layers = len(self.parent.parts.layers)
        if self.layer is None or not (number + 1 == layers or self.keeps(number + 1)):
            return
        entries = sum(part.shape[0] * part.shape[1] for part in self.stream) * self.plan.intermediate_size
        kept: dict[int, Tensor] = {}

        def inputs(batch: int) -> Tensor:
            if batch in kept:
                return kept.pop(batch).to(self.parent.device)
            a_BTf = ffn_input(self.layer, self.stream[batch].to(self.parent.device))
            if entries * a_BTf.element_size() <= KEEP_BYTES:  # read once for the fit and once for the stream
                kept[batch] = a_BTf.to(self.parent.storage)
            return a_BTf

        self._write(FFN_OUT, inputs, x)
        if self.config.balance:
            balance_layer(self.layer, head_dim(self.child.config))
        index = sum(kept <= number for kept in self.plan.kept_layers) - 1
        prefix = f"{dissect(self.child).prefix}layers.{index}."
        for name, value in self.layer.state_dict().items():
            if not value.isfinite().all():
                raise ValueError(
                    f"the child's {prefix}{name} is not finite: give more calibration text or a larger ridge"
                )
            self.writer.write(prefix + name, value)
        self.layer = None

    def _on_device(self, part: Tensor, step) -> Tensor:
        return step(part.to(self.parent.device)).to(self.parent.storage)

    def _read_map(self, x: list[Tensor]) -> tuple[Tensor, float]:
        fitted = self.text.fitted
        return read_map(x[:fitted], self.stream[:fitted], self.rotation, self.epsilons, self.config.ridge)

    def _fill(self, layer: nn.Module, norm: str, columns: Tensor | None) -> None:
        """A norm and its readers without compensation."""
        gain_D = self.parent.gain_D(layer, norm)
        for name in READERS[norm]:
            source, target = layer.get_submodule(name), self.layer.get_submodule(name)
            rows = columns if columns is not None else slice(None)
            set_parameter(target, fold(source.weight.data[rows], gain_D, self.plan.rotation))
            if source.bias is not None:
                set_parameter(target, source.bias.data[rows], "bias")
        if self.plan.rotation is None:
            self._set_gain(norm, gain_D)
        else:
            self._set_gain(norm, norm_factor(self.rotation) if self.config.norm_factor else 1.0)

    def _fill_writer(self, layer: nn.Module, name: str, columns: Tensor | None) -> None:
        """A writer without compensation."""
        source, target = layer.get_submodule(name), self.layer.get_submodule(name)
        inputs = columns if columns is not None else slice(None)
        set_parameter(target, narrow(source.weight.data[:, inputs], self.plan.rotation))
        if source.bias is not None:
            set_parameter(target, narrow(source.bias.data, self.plan.rotation), "bias")

    def _set_gain(self, norm: str, gain) -> None:
        weight = self.layer.get_submodule(norm).weight
        weight.data.copy_(torch.as_tensor(gain - family(self.child.config).gain_offset, dtype=weight.dtype))

    def _set_readers(self, layer: nn.Module, norm: str, fitted: tuple[Tensor, float], columns: Tensor | None) -> None:
        """A norm and its readers, compensated."""
        read_Dk, scale = fitted
        gained_Dk = self.parent.gain_D(layer, norm).double().unsqueeze(1) * read_Dk
        for name in READERS[norm]:
            weight_OD = layer.get_submodule(name).weight.data
            weight_OD = weight_OD if columns is None else weight_OD[columns]
            set_parameter(self.layer.get_submodule(name), weight_OD @ gained_Dk.to(weight_OD))
        self._set_gain(norm, scale)

    def _write(self, name: str, inputs, x: list[Tensor]) -> None:
        """
        Fit a writer to the parent's stream and take the child's stream over it.

        Args:
            name (`str`): the writer.
            inputs (`Callable[[int], Tensor]`): what it reads of batch n of the child's stream.
            x (`list[Tensor]`): the parent's stream.
        """
        writer, device = self.layer.get_submodule(name), self.parent.device
        if self.fits:
            rotation = self.rotation.to(self.parent.dtype)
            bias = 0.0 if writer.bias is None else writer.bias
            fit = LeastSquares(writer.in_features, writer.out_features, device)
            for batch in range(self.text.fitted):
                x_BTD, s_BTk = x[batch].to(device), self.stream[batch].to(device)
                target_BTk = (x_BTD if self.plan.rotation is None else x_BTD @ rotation) - s_BTk - bias
                fit.add(inputs(batch).flatten(0, 1), target_BTk.flatten(0, 1))
            set_parameter(writer, fit.solve(writer.weight, self.config.ridge))
            del fit
        for batch, part in enumerate(self.stream):
            self.stream[batch] = (part.to(device) + writer(inputs(batch))).to(self.parent.storage)
