"""Long context as a config transform: YaRN and position temperature (paper section 3, released configs)."""

from dataclasses import dataclass, field

from transformers import AutoConfig, PreTrainedConfig

# YaRN's own constants, as released (paper section 3: mscale = mscale_all_dim keeps the attention factor at exactly 1).
YARN = {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
# Families whose attention scales queries by 1 + beta ln(1 + floor(position / original window)).
WITH_TEMPERATURE = ("ministral3",)
SUPPORTED = ("llama", "mistral", "ministral3", "qwen2", "qwen3")


@dataclass
class ContextArguments:
    """
    Parameters that control the window of the model a stage makes.

    Args:
        context_length (`int`, *optional*):
            New window in tokens, `max_position_embeddings`; 262,144 as released. Unset, positions stay as they are.
        original_context_length (`int`, *optional*):
            The window the model was trained on before, YaRN's `original_max_position_embeddings`; 16,384 as released.
            Needed with `context_length`; their quotient is YaRN's factor.
        llama_4_scaling_beta (`float`, *optional*):
            Strength of the position temperature; 0.1 as released. Unset, 0.1 for families that have it in transformers
            and none for the others.
    """

    context_length: int | None = field(default=None, metadata={"help": "New window in tokens."})
    original_context_length: int | None = field(
        default=None, metadata={"help": "Window the model was trained on before; their quotient is YaRN's factor."}
    )
    llama_4_scaling_beta: float | None = field(
        default=None, metadata={"help": "Strength of the position temperature; 0.1 as released."}
    )


def extend_context(
    config: PreTrainedConfig,
    context_length: int,
    original_context_length: int,
    llama_4_scaling_beta: float | None = None,
) -> PreTrainedConfig:
    """
    A copy of `config` for a longer window; weights need no change.

    A `mistral` decoder becomes `ministral3`, its stock class with position temperature and the same weight names.

    Args:
        config (`PreTrainedConfig`): of the model, or of a Mistral3 wrapper around it.
        context_length (`int`): new window in tokens.
        original_context_length (`int`): window before.
        llama_4_scaling_beta (`float`, *optional*): see [`ContextArguments`].

    Raises:
        ValueError: the family has no YaRN or no position temperature in transformers, or the lengths make no sense.
    """
    decoder = config.get_text_config()
    if decoder.model_type not in SUPPORTED:
        raise ValueError(f"context of {decoder.model_type!r} cannot be extended: supported are {', '.join(SUPPORTED)}")
    if not original_context_length or not 0 < original_context_length <= (context_length or 0):
        raise ValueError(
            f"context_length={context_length} and original_context_length={original_context_length}: give both, the "
            "first at least as large as the second, which is above 0"
        )
    converted = decoder.model_type == "mistral"
    has_temperature = converted or decoder.model_type in WITH_TEMPERATURE
    if llama_4_scaling_beta and not has_temperature:
        raise ValueError(
            f"llama_4_scaling_beta={llama_4_scaling_beta}: {decoder.model_type} has no position temperature in "
            f"transformers; leave it unset (it works for mistral and {', '.join(WITH_TEMPERATURE)})"
        )
    rope = {
        **YARN,
        "rope_theta": decoder.rope_parameters["rope_theta"],
        "factor": context_length / original_context_length,
        "original_max_position_embeddings": original_context_length,
    }
    if has_temperature:
        rope["llama_4_scaling_beta"] = 0.1 if llama_4_scaling_beta is None else llama_4_scaling_beta
    values = {**decoder.to_dict(), "rope_parameters": rope, "max_position_embeddings": context_length}
    if converted:
        values.pop("model_type")
        new_decoder = AutoConfig.for_model("ministral3", **values)
        new_decoder.architectures = ["Ministral3ForCausalLM"]
    else:
        new_decoder = type(decoder).from_dict(values)
    if decoder is config:
        return new_decoder
    wrapper = type(config).from_dict(config.to_dict())
    wrapper.text_config = new_decoder
    wrapper.tie_word_embeddings = config.tie_word_embeddings
    return wrapper
