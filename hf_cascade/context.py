"""Long context as a config transform: YaRN and position temperature (paper section 3, released configs)."""

from dataclasses import dataclass, field

from transformers import AutoConfig, PreTrainedConfig

from hf_cascade.anatomy import FAMILIES

# YaRN's own constants, as released (paper section 3: mscale = mscale_all_dim keeps the attention factor at exactly 1).
YARN = {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
# Families whose attention scales queries by 1 + beta ln(1 + floor(position / original window)).
WITH_TEMPERATURE = ("ministral3",)
BETA = 0.1  # released configs
SUPPORTED = tuple(FAMILIES)  # all of them take YaRN in transformers (tested for each)
EXTENDABLE = ("default", "yarn")  # types of rotary positions that YaRN can start from


@dataclass
class ContextArguments:
    """
    Parameters that control the window of the model a stage makes.

    Args:
        context_length (`int`, *optional*):
            New window in tokens, `max_position_embeddings`; 262,144 as released. Unset, positions stay as they are.
        original_context_length (`int`, *optional*):
            The window the model was trained on before, YaRN's `original_max_position_embeddings`; 16,384 as released.
            Needed with `context_length`; their quotient is YaRN's factor. Of a model that has YaRN already it is the
            window before that, so that extending again replaces the factor and does not multiply it.
        llama_4_scaling_beta (`float`, *optional*):
            Strength of the position temperature; 0.1 as released. Unset, the model's own, else 0.1 for families that
            have it in transformers and none for the others.
    """

    context_length: int | None = field(
        default=None, metadata={"help": "New window in tokens. Unset: positions stay as they are."}
    )
    original_context_length: int | None = field(
        default=None, metadata={"help": "Window in tokens before; the quotient of both is YaRN's factor."}
    )
    llama_4_scaling_beta: float | None = field(
        default=None,
        metadata={"help": "Position temperature. Unset: the model's, else 0.1 for Mistral and Ministral3."},
    )


def extend_context(
    config: PreTrainedConfig,
    context_length: int,
    original_context_length: int,
    llama_4_scaling_beta: float | None = None,
) -> PreTrainedConfig:
    """
    A copy of `config` for a longer window; weights need no change.

    YaRN slows the frequencies that turn less than 32 times within the original window, so logits change at short
    positions too, until the model is trained on. With `context_length` equal to `original_context_length` nothing
    does: only `max_position_embeddings` is set. A model that has YaRN already keeps its constants and gets the new
    factor. Otherwise a `mistral` decoder becomes `ministral3`, its stock class with position temperature and the same
    weight names.

    Args:
        config (`PreTrainedConfig`): of the model, or of a Mistral3 wrapper around it.
        context_length (`int`): new window in tokens.
        original_context_length (`int`): window before.
        llama_4_scaling_beta (`float`, *optional*): see [`ContextArguments`].

    Raises:
        ValueError: the family has no YaRN or no position temperature in transformers, the model's positions are scaled
            in another way already, or the lengths make no sense.
    """
    decoder = config.get_text_config()
    if decoder.model_type not in SUPPORTED:
        raise ValueError(f"context of {decoder.model_type!r} cannot be extended: supported are {', '.join(SUPPORTED)}")
    if not original_context_length or not 0 < original_context_length <= (context_length or 0):
        raise ValueError(
            f"context_length={context_length} and original_context_length={original_context_length}: give both, the "
            "first at least as large as the second, which is above 0"
        )
    has_temperature = decoder.model_type in ("mistral", *WITH_TEMPERATURE)
    if llama_4_scaling_beta and not has_temperature:
        raise ValueError(
            f"llama_4_scaling_beta={llama_4_scaling_beta}: {decoder.model_type} has no position temperature in "
            f"transformers; leave it unset (it works for mistral and {', '.join(WITH_TEMPERATURE)})"
        )
    old = decoder.rope_parameters
    _check_positions(old, original_context_length)
    values = {**decoder.to_dict(), "max_position_embeddings": context_length}
    if old["rope_type"] == "yarn" or context_length > original_context_length:
        values["rope_parameters"] = rope = _yarn(old, context_length, original_context_length)
        if has_temperature:
            own = old.get("llama_4_scaling_beta")
            default = BETA if own is None else own
            rope["llama_4_scaling_beta"] = default if llama_4_scaling_beta is None else llama_4_scaling_beta
            values["model_type"] = WITH_TEMPERATURE[0]
    new_decoder = _rebuilt(decoder, values)
    if decoder is config:
        return new_decoder
    wrapper = type(config).from_dict(config.to_dict())
    wrapper.text_config = new_decoder
    wrapper.tie_word_embeddings = config.tie_word_embeddings
    return wrapper


def _check_positions(rope: dict, original_context_length: int) -> None:
    """Raise `ValueError` where YaRN from `original_context_length` would not be what the weights were trained with."""
    kind = rope["rope_type"]
    if kind not in EXTENDABLE:
        raise ValueError(
            f"the model's positions are scaled already (rope_type {kind!r}), and YaRN would replace that by other "
            "frequencies than the weights were trained with: leave context_length unset and train within the model's "
            f"own window (YaRN starts from rope_type {' or '.join(EXTENDABLE)})"
        )
    before = rope.get("original_max_position_embeddings")
    if kind == "yarn" and before != original_context_length:
        raise ValueError(
            f"original_context_length={original_context_length}, and the model has YaRN already, from a window of "
            f"{before} tokens: give original_context_length={before}; the new factor replaces the old one"
        )


def _yarn(old: dict, context_length: int, original_context_length: int) -> dict:
    """YaRN's parameters; a model that has some keeps its constants, which its weights were trained with."""
    kept = old if old["rope_type"] == "yarn" else {**YARN, "rope_theta": old["rope_theta"]}
    window = {"max_position_embeddings": context_length} if "max_position_embeddings" in kept else {}
    return {
        **kept,
        **window,
        "factor": context_length / original_context_length,
        "original_max_position_embeddings": original_context_length,
    }


def _rebuilt(decoder: PreTrainedConfig, values: dict) -> PreTrainedConfig:
    """A config of `values`, of the class that their `model_type` names."""
    if values["model_type"] == decoder.model_type:
        return type(decoder).from_dict(values)
    kind = values.pop("model_type")
    new_decoder = AutoConfig.for_model(kind, **values)
    new_decoder.architectures = ["Ministral3ForCausalLM"]
    return new_decoder
