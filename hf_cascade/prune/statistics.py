"""One pass of the parent over calibration text: what Algorithm 2 ranks layers, directions and columns by."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_cascade.anatomy import ATTENTION_OUT, FFN_OUT, Anatomy
from hf_cascade.prune.config import PruneConfig
from hf_cascade.prune.stream import Calibration, attention_input, ffn_input, normalised, working_copy

# N tokens of calibration text, D hidden, F FFN width, L layers; B, T batch and window


@dataclass
class Statistics:
    """
    Sums over calibration tokens in float64, one entry a decoder layer.

    Attributes:
        ratio (`list[float]`): mean of |output| / |input| of the block, residual included.
        cosine (`list[float]`): mean of 1 - cos(input, output).
        gram (`list[Tensor]`): [D, D] sum of outer products at the attention norm and the FFN norm. Empty when the
            hidden size stays.
        ffn_mean_abs (`list[Tensor]`): [F] mean |silu(W1 x) * W3 x|. Empty when the FFN width stays.
        ffn_output (`list[Tensor]`): [F] root mean square of the same times the norm of the driven column.
        final_stream (`list[Tensor]`): the stream before the final norm, batches of [B, T, D].
    """

    ratio: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    gram: list[Tensor] = field(default_factory=list)
    ffn_mean_abs: list[Tensor] = field(default_factory=list)
    ffn_output: list[Tensor] = field(default_factory=list)
    final_stream: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def collect(
    parts: Anatomy,
    calibration: Calibration,
    epsilon: float,
    config: PruneConfig,
    wants_gram: bool,
    advance=lambda: None,
) -> Statistics:
    """
    Run the parent once, layer by layer.

    Args:
        parts (`Anatomy`): the parent.
        calibration (`Calibration`): the text.
        epsilon (`float`): of the parent's norms.
        config (`PruneConfig`): `hidden_basis` says what the Gram matrices are of.
        wants_gram (`bool`): whether the hidden size changes.
        advance (`Callable`): called after each layer.

    Raises:
        ValueError: a layer's output is not finite: broken weights, or an overflow of the working type.
    """
    statistics = Statistics()
    stream = calibration.embed(parts.embedding.weight)
    for index, parent_layer in enumerate(parts.layers):
        layer = working_copy(parent_layer, calibration.dtype)
        stream = _one_layer(layer, index, stream, calibration, epsilon, config, wants_gram, statistics)
        if not all(bool(part.isfinite().all()) for part in stream):
            raise ValueError(f"decoder layer {index} gives NaN or infinite values: its weights are broken or overflow")
        advance()
    statistics.final_stream = stream
    return statistics


def _one_layer(layer, index, stream, calibration, epsilon, config, wants_gram, statistics) -> list[Tensor]:
    """Add one layer's sums to `statistics`; returns the stream after it."""
    tokens = sum(part.shape[0] * part.shape[1] for part in stream)
    ratio = cosine = 0.0
    gram_DD = torch.zeros((), dtype=torch.float64)
    absolute_F = square_F = torch.zeros((), dtype=torch.float64)
    after = []
    for batch, x_BTD in enumerate(stream):
        attention = attention_input(layer, x_BTD, calibration.arguments(index, batch))
        middle_BTD = x_BTD + layer.get_submodule(ATTENTION_OUT)(attention)
        a_NF = ffn_input(layer, middle_BTD).flatten(0, 1)
        y_BTD = middle_BTD + layer.get_submodule(FFN_OUT)(a_NF).view_as(middle_BTD)
        ratio += float((y_BTD.norm(dim=-1) / x_BTD.norm(dim=-1)).sum(dtype=torch.float64))
        cosine += float((1 - torch.cosine_similarity(x_BTD, y_BTD, dim=-1)).sum(dtype=torch.float64))
        absolute_F = absolute_F + a_NF.abs().sum(0, dtype=torch.float64)
        square_F = square_F + a_NF.square().sum(0, dtype=torch.float64)
        if wants_gram:
            for site_BTD in (x_BTD, middle_BTD):
                seen = normalised(site_BTD, epsilon) if config.hidden_basis == "normed" else site_BTD
                seen_ND = seen.flatten(0, 1)
                gram_DD = gram_DD + (seen_ND.t() @ seen_ND).double()
        after.append(y_BTD)
    statistics.ratio.append(ratio / tokens)
    statistics.cosine.append(cosine / tokens)
    statistics.ffn_mean_abs.append(absolute_F / tokens)
    column_norm_F = layer.get_submodule(FFN_OUT).weight.double().norm(dim=0)
    statistics.ffn_output.append((square_F / tokens).sqrt() * column_norm_F)
    if wants_gram:
        statistics.gram.append(gram_DD)
    return after
