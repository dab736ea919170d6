"""The parent run over calibration text to see what it is made of: what Algorithm 2 ranks layers and directions by.

Forward, one layer at a time, for the scores and PCA; for `fisher` then backward through the same layers, on as much
text as keeps the layers' inputs within the size of two streams (on the disk, for a model that is on one).

D hidden, F FFN width, L layers, V vocabulary; N tokens, B, T batch and window, C rows of a chunk
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_cascade.anatomy import ATTENTION_NORM, FFN_NORM
from hf_cascade.prune.basis import fisher_directions, principal_directions, selected_channels
from hf_cascade.prune.calibration import Calibration, every
from hf_cascade.prune.config import PruneConfig
from hf_cascade.prune.exit import Exit
from hf_cascade.prune.fit import add_gram, symmetric
from hf_cascade.prune.layers import after_attention, after_ffn, normalised
from hf_cascade.prune.parent import Parent
from hf_cascade.prune.plan import top
from hf_cascade.prune.scores import FFN_SCORES, LAYER_SCORES, Activations
from hf_cascade.prune.scratch import LayerInputs

ENOUGH = 4  # tokens a direction that `fisher` looks at, at least; ours


@dataclass
class Statistics:
    """
    What one look at the parent found.

    Attributes:
        layer_scores (`list[float]`): one a layer, high stays.
        ffn_scores (`list[Tensor]`): [F] a layer, high stays; empty where they are taken when the layer is rebuilt.
        gram (`list[Tensor]`): [D, D] a layer, sum of outer products at its two norms; for `stream` and `normed`.
        channels (`list[Tensor]`): [D] a layer, score of the stream's channels; for `channels`.
        kept (`list[int]`): layers that stay, ascending; set where `fisher` needed to know them.
        gram_kept (`Tensor`, *optional*), fisher_kept (`Tensor`, *optional*): [D, D] sums over the norms of the layers
            that stay, and the final one's; for `fisher`.
        final_stream (`list[Tensor]`): the stream before the final norm, batches of [B, T, D].
    """

    layer_scores: list[float] = field(default_factory=list)
    ffn_scores: list[Tensor] = field(default_factory=list)
    gram: list[Tensor] = field(default_factory=list)
    channels: list[Tensor] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    gram_kept: Tensor | None = None
    fisher_kept: Tensor | None = None
    final_stream: list[Tensor] = field(default_factory=list)

    def directions(self, basis: str, kept: list[int], width: int) -> tuple[Tensor, list[float]]:
        """Q [D, width] and the cumulative share of what it is chosen by, for these layers; see `prune.basis`."""
        if basis == "fisher":
            return fisher_directions(self.gram_kept, self.fisher_kept, width)
        if basis in ("channels", "magnitude"):
            return selected_channels(sum(self.channels[layer] for layer in kept), width)
        return principal_directions(sum(self.gram[layer] for layer in kept), width)


def scoring_text(text: Calibration, config: PruneConfig, narrows: bool) -> Calibration:
    """
    The windows that decide: all of them, or as many as `fisher` can keep L layers' inputs of in two streams' memory.

    At least as many as make `ENOUGH` tokens a direction, as far as there are.
    """
    if config.hidden_basis != "fisher" or not narrows:
        return text.spread(text.tokens)
    return text.spread(scoring_tokens(text.tokens, text.parent.config.get_text_config()))


def scoring_tokens(tokens: int, decoder) -> float:
    """Of so many fitted tokens those that `fisher` wants, of a parent with this decoder config; there may be fewer."""
    return max(2 * tokens / decoder.num_hidden_layers, ENOUGH * decoder.hidden_size)


@torch.no_grad()
def collect(
    text: Calibration, config: PruneConfig, shape: dict[str, int], score_ffn: bool, advance=lambda: None
) -> Statistics:
    """
    Look at the parent.

    Args:
        text (`Calibration`): all of it is used; see [`scoring_text`].
        config (`PruneConfig`): the scores to use.
        shape (`dict[str, int]`): the child's dimensions.
        score_ffn (`bool`): whether to score FFN columns here.
        advance (`Callable`): called after each layer, twice a layer for `fisher`.

    Raises:
        ValueError: weights or activations are not finite.
    """
    parent, found = text.parent, Statistics()
    narrows = shape["hidden_size"] < parent.config.get_text_config().hidden_size
    fisher = narrows and config.hidden_basis == "fisher"
    skipped = SkippedLayers(text) if config.layer_score == "loss_drop" else None
    stream, inputs = text.parent_entry(), LayerInputs(parent.scratch)
    for number in range(len(parent.parts.layers)):
        layer = parent.layer(number)
        if fisher:
            inputs.push(stream)
        if skipped is not None:
            skipped.through(number, layer, stream)
        observe = Observer(parent, layer, config.hidden_basis if narrows and not fisher else None)
        score = torch.zeros((), dtype=torch.float64, device=parent.device)
        middle = []
        for batch, stored in enumerate(stream):
            x_BTD = stored.to(parent.device)
            middle_BTD = after_attention(layer, x_BTD, text.arguments(number, batch))
            y_BTD = after_ffn(layer, middle_BTD)
            observe(x_BTD)
            observe(middle_BTD)
            if skipped is None:
                score += LAYER_SCORES[config.layer_score](x_BTD, y_BTD).sum(dtype=torch.float64)
            if score_ffn:
                middle.append(middle_BTD.to(parent.storage))
            stream[batch] = y_BTD.to(parent.storage)
            check_finite(stream[batch], number)
        if score_ffn:
            score_of = FFN_SCORES[config.ffn_score]
            found.ffn_scores.append(
                score_of(layer, Activations(layer, middle, parent.device), shape["intermediate_size"])
            )
        found.layer_scores.append(float(score) / text.tokens)
        observe.finish(found)
        del layer, observe  # before the next one is read
        advance()
    found.final_stream = stream
    if skipped is not None:
        found.layer_scores = skipped.scores(stream)
        del skipped
    if fisher:
        found.kept = top(torch.tensor(found.layer_scores, dtype=torch.float64), shape["num_hidden_layers"]).tolist()
        _sensitivity(text, inputs, found, config.seed, advance)
    return found


def check_finite(x_BTD: Tensor, number: int) -> None:
    """Raise `ValueError` when layer `number` made NaN or infinite values of finite weights."""
    if not x_BTD.isfinite().all():
        raise ValueError(f"decoder layer {number} gives NaN or infinite values: its weights are broken or overflow")


class Observer:
    """Sums at one layer's norms for a hidden basis; with none it does nothing."""

    def __init__(self, parent: Parent, layer: nn.Module, basis: str | None):
        self.parent, self.layer, self.basis = parent, layer, basis
        hidden = parent.config.get_text_config().hidden_size
        shape = (hidden, hidden) if basis in ("stream", "normed") else (hidden,)
        self.total = torch.zeros(shape, dtype=torch.float64, device=parent.device)
        self.site = 0

    def __call__(self, x_BTD: Tensor) -> None:
        """Add a batch before the attention norm, then the same batch before the FFN norm, and so on."""
        norm = (ATTENTION_NORM, FFN_NORM)[self.site]
        self.site = 1 - self.site
        if self.basis == "stream":
            add_gram(self.total, x_BTD.flatten(0, 1))
        elif self.basis == "normed":
            add_gram(self.total, normalised(x_BTD, self.parent.epsilon).flatten(0, 1))
        elif self.basis == "channels":
            # Minitron (arXiv 2407.14679): mean over a window's tokens, L2 over windows, of the norm's output
            seen = (normalised(x_BTD, self.parent.epsilon) * self.parent.gain_D(self.layer, norm)).abs().mean(1)
            self.total += seen.double().square().sum(0)

    def finish(self, found: Statistics) -> None:
        """Hand the sums over."""
        if self.basis in ("stream", "normed"):
            found.gram.append(symmetric(self.total))
        elif self.basis == "channels":
            found.channels.append(self.total.sqrt())
        elif self.basis == "magnitude":
            readers = (self.layer.self_attn.q_proj, self.layer.self_attn.v_proj, self.layer.mlp.gate_proj)
            found.channels.append(
                sum(reader.weight.double().norm(dim=0) for reader in (*readers, self.layer.mlp.up_proj))
            )


class SkippedLayers:
    """
    The loss without each layer: as many streams as layers skip one layer each, on an L-th of the text.

    Args:
        text (`Calibration`): the text.
    """

    def __init__(self, text: Calibration):
        self.stride = len(text.parent.parts.layers)
        self.text = text.spread(text.tokens / self.stride)
        self.whole = text.images
        self.streams: list[list[Tensor]] = []

    def _part(self, x: list[Tensor]) -> list[Tensor]:
        return [part for part in every(self.stride, x, self.whole) if part is not None]

    def through(self, number: int, layer: nn.Module, x: list[Tensor]) -> None:
        """Take the streams that skipped an earlier layer through this one, and begin the one that skips it."""
        device, storage = self.text.parent.device, self.text.parent.storage
        for stream in self.streams:
            for batch, part in enumerate(stream):
                middle = after_attention(layer, part.to(device), self.text.arguments(number, batch))
                stream[batch] = after_ffn(layer, middle).to(storage)
        self.streams.append(self._part(x))

    def scores(self, x: list[Tensor]) -> list[float]:
        """Rise of the next-token loss without each layer; `x` is the final stream with all of them."""
        end = Exit.of(self.text.parent)

        def loss(stream: list[Tensor]) -> float:
            return sum(end.loss(part, ids) for part, ids in zip(stream, self.text.batches, strict=True))

        full = loss(self._part(x))
        return [(loss(stream) - full) / self.text.tokens for stream in self.streams]


def _sensitivity(text: Calibration, inputs: LayerInputs, found: Statistics, seed: int, advance) -> None:
    """Backward through the layers from the final stream: sums of y y^T and g g^T at the norms that stay."""
    parent = text.parent
    hidden = parent.config.get_text_config().hidden_size
    zeros = [torch.zeros(hidden, hidden, dtype=torch.float64, device=parent.device) for _ in range(2)]
    found.gram_kept, found.fisher_kept = zeros
    generator = torch.Generator().manual_seed(seed)
    end, site, gradients = Exit.of(parent), NormSite(parent), []
    for stored in found.final_stream:
        x_BTD = stored.to(parent.device).requires_grad_()
        with torch.enable_grad():
            y_BTD = normalised(x_BTD, parent.epsilon)
        parts = end.chunks(stored)
        g_BTD = torch.cat([end.sampled_gradient(part, generator) for part in parts]).view_as(y_BTD)
        site.add(y_BTD, g_BTD)
        y_BTD.backward(g_BTD)
        gradients.append(x_BTD.grad.to(parent.storage))
    site.finish(found)
    del end, site
    kept = set(found.kept)
    for number in reversed(range(len(inputs))):
        layer = parent.layer(number)
        sites = NormSite(parent), NormSite(parent)
        for batch, stored in enumerate(inputs.pop()):
            x_BTD = stored.to(parent.device).requires_grad_()
            arguments = text.arguments(number, batch)
            normed, gradient = _backward(parent, layer, x_BTD, arguments, gradients[batch].to(parent.device))
            gradients[batch] = gradient.to(parent.storage)
            if number in kept:
                for site, y_BTD in zip(sites, normed, strict=True):
                    site.add(y_BTD, y_BTD.grad)
        if number in kept:
            for site in sites:
                site.finish(found)
        del layer, sites, normed  # before the next one is read
        advance()


@torch.enable_grad()
def _backward(parent: Parent, layer: nn.Module, x_BTD: Tensor, arguments: dict, g_BTD: Tensor):
    """The two norms' outputs without gain, with their gradients, and the gradient at the layer's input."""
    first = normalised(x_BTD, parent.epsilon)
    hidden_states = first * parent.gain_D(layer, ATTENTION_NORM)
    middle_BTD = x_BTD + layer.self_attn(hidden_states=hidden_states, **arguments)[0]
    second = normalised(middle_BTD, parent.epsilon)
    y_BTD = middle_BTD + layer.mlp(second * parent.gain_D(layer, FFN_NORM))
    first.retain_grad()
    second.retain_grad()
    y_BTD.backward(g_BTD)
    return (first, second), x_BTD.grad


class NormSite:
    """Sums at one norm: y y^T and g g^T."""

    def __init__(self, parent: Parent):
        hidden = parent.config.get_text_config().hidden_size
        self.gram_DD = torch.zeros(hidden, hidden, dtype=torch.float64, device=parent.device)
        self.fisher_DD = torch.zeros_like(self.gram_DD)

    def add(self, y_BTD: Tensor, g_BTD: Tensor) -> None:
        """Add a batch."""
        add_gram(self.gram_DD, y_BTD.detach().flatten(0, 1))
        add_gram(self.fisher_DD, g_BTD.flatten(0, 1))

    def finish(self, found: Statistics) -> None:
        """Add the sums to the whole; y's weighted by the size of the gradient."""
        found.gram_kept += symmetric(self.gram_DD) * self.fisher_DD.trace()
        found.fisher_kept += symmetric(self.fisher_DD)
