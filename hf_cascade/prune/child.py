"""The child's config: the parent's with other dimensions, everything else stated explicitly."""

import copy

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from hf_cascade.anatomy import check_family, family, head_dim, is_tied
from hf_cascade.prune.config import PruneConfig

DIMENSIONS = ("num_hidden_layers", "hidden_size", "intermediate_size")


def target_shape(parent: PreTrainedConfig, config: PruneConfig) -> dict[str, int]:
    """
    The three dimensions to prune to, unset ones filled in from the parent.

    Raises:
        ValueError: lists every dimension that cannot be, with what is allowed.
    """
    check_family(parent)
    decoder = parent.get_text_config()
    shape, problems = {}, []
    for name in DIMENSIONS:
        limit = getattr(decoder, name)
        shape[name] = getattr(config, name) if getattr(config, name) is not None else limit
        if not 1 <= shape[name] <= limit:
            problems.append(f"{name}={shape[name]}: allowed is 1 to {limit}, the parent's")
    if problems:
        raise ValueError("the target shape cannot be pruned from this parent: " + "; ".join(problems))
    return shape


def check_target(parent: PreTrainedConfig, config: PruneConfig) -> None:
    """
    Raise `ValueError` when the child could not be pruned, saved or opened, before any work.

    Beside [`target_shape`]: some families' configs have rules of their own (LlamaConfig wants a hidden size that is a
    multiple of the heads even where `head_dim` is explicit).
    """
    layers = list(range(target_shape(parent, config)["num_hidden_layers"]))
    decoder = child_config(parent, config, layers).get_text_config()
    try:
        decoder.validate()
    except StrictDataclassError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise ValueError(f"{type(decoder).__name__} refuses this shape: {reason}") from error


def child_config(parent: PreTrainedConfig, config: PruneConfig, kept_layers: list[int]) -> PreTrainedConfig:
    """
    The child's config.

    `head_dim` becomes explicit (attention is never pruned), lists with one entry a layer follow the kept layers, both
    tie flags are set (a wrapper's top level decides in transformers, others read the inner one), and the norms'
    epsilon grows by d_old / d_new, which keeps RMSNorm of a narrower stream exact.

    Args:
        parent (`PreTrainedConfig`): the parent's config; not changed.
        config (`PruneConfig`): the target.
        kept_layers (`list[int]`): parent layers that stay, ascending.
    """
    shape = target_shape(parent, config)
    child = copy.deepcopy(parent)
    decoder = child.get_text_config()
    for name in family(parent).per_layer:
        values = getattr(decoder, name, None)
        if values is not None:
            setattr(decoder, name, [values[layer] for layer in kept_layers])
    decoder.head_dim = head_dim(parent)
    decoder.rms_norm_eps = decoder.rms_norm_eps * (decoder.hidden_size / shape["hidden_size"])
    for name, value in shape.items():
        setattr(decoder, name, value)
    tied = is_tied(parent) if config.tie_word_embeddings is None else config.tie_word_embeddings
    child.tie_word_embeddings = decoder.tie_word_embeddings = tied
    if config.rope_theta is not None:
        decoder.rope_parameters = {**decoder.rope_parameters, "rope_theta": config.rope_theta}
    return child


def is_own_shape(parent: PreTrainedConfig, config: PruneConfig) -> bool:
    """Whether nothing about the weights changes."""
    decoder = parent.get_text_config()
    same_tie = config.tie_word_embeddings is None or config.tie_word_embeddings == is_tied(parent)
    shape = target_shape(parent, config)
    return same_tie and all(shape[name] == getattr(decoder, name) for name in DIMENSIONS)
