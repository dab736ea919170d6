"""The one file that knows weight and module names of the model families hf-cascade prunes. Needs no torch to import.

All supported decoders are of one kind: pre-norm blocks, RMSNorm, a gated FFN, no multipliers on the residual stream.
A family is one entry in `FAMILIES` and one in `tests/prune/families.py`, which puts it through every exactness test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

ATTENTION_NORM = "input_layernorm"
FFN_NORM = "post_attention_layernorm"
# norm -> the linear layers that read its output
READERS = {
    ATTENTION_NORM: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    FFN_NORM: ("mlp.gate_proj", "mlp.up_proj"),
}
ATTENTION_OUT = "self_attn.o_proj"
FFN_OUT = "mlp.down_proj"
EMBEDDING, FINAL_NORM, HEAD = "embed_tokens.weight", "norm.weight", "lm_head.weight"
# what belongs to a head and does not change with the width
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


@dataclass(frozen=True)
class Family:
    """
    What a decoder family's config.json leaves out, and where its arithmetic is its own.

    Attributes:
        num_key_value_heads (`int`, *optional*): default; `None` is `num_attention_heads`.
        head_dim (`int`, *optional*): default; `None` is `hidden_size // num_attention_heads`.
        tied (`bool`): default of `tie_word_embeddings`.
        attention_bias (`str`): `"never"`, `"qkv"` (always, and not at o_proj) or `"config"` (all four, by its flag).
        mlp_bias (`bool`): whether the config's `mlp_bias` counts.
        head_norms (`bool`): RMSNorms of queries and keys.
        gain_offset (`float`): norms multiply by this plus their weight.
        scaled_embedding (`bool`): the embedding's output is multiplied by sqrt(hidden_size).
        per_layer (`tuple[str, ...]`): config entries that hold one value a layer.
        hidden_multiple_of_heads (`bool`): transformers refuses other hidden sizes even where `head_dim` is explicit.
    """

    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tied: bool = False
    attention_bias: str = "never"
    mlp_bias: bool = False
    head_norms: bool = False
    gain_offset: float = 0.0
    scaled_embedding: bool = False
    per_layer: tuple[str, ...] = ("layer_types",)
    hidden_multiple_of_heads: bool = False


# Defaults are those of transformers' config classes (tested against them).
FAMILIES = {
    "llama": Family(attention_bias="config", mlp_bias=True, hidden_multiple_of_heads=True),
    "mistral": Family(num_key_value_heads=8),
    "ministral3": Family(num_key_value_heads=8, head_dim=128),
    "qwen2": Family(num_key_value_heads=32, attention_bias="qkv"),
    "qwen3": Family(num_key_value_heads=32, head_dim=128, attention_bias="config", head_norms=True),
    "smollm3": Family(
        num_key_value_heads=4,
        tied=True,
        attention_bias="config",
        mlp_bias=True,
        per_layer=("layer_types", "no_rope_layers"),
    ),
    "gemma": Family(
        num_key_value_heads=16,
        head_dim=256,
        tied=True,
        attention_bias="config",
        gain_offset=1.0,
        scaled_embedding=True,
    ),
}
# vision-language wrappers: the decoder is `model.language_model`, whatever its family; default of the tie, which the
# wrapper's own config decides in transformers 5 whatever its text_config says
WRAPPERS = {"mistral3": True}
_POST_NORM = "it normalises what a block writes, in the basis of the stream, so that the stream cannot be rotated"
# families that people will try, and why they are refused
REFUSED = {
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma4", "olmo2", "olmo3", "glm4"), _POST_NORM),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3"), "it is a mixture of experts"),
    **dict.fromkeys(("granite", "cohere", "cohere2"), "it multiplies or adds its blocks in another way"),
    "phi3": "its q, k, v and gate, up are fused into one matrix each",
}


@dataclass(frozen=True)
class Anatomy:
    """
    The parts of a model that pruning touches, by role.

    Attributes:
        backbone (`nn.Module`): holds the three parts below; called with `input_ids` it runs the decoder.
        embedding (`nn.Embedding`): weight [V, D].
        layers (`nn.ModuleList`): decoder layers.
        norm (`nn.Module`): the final RMSNorm, weight [D].
        head (`nn.Linear`): weight [V, D].
        prefix (`str`): what stands before the backbone's weights in the model's state dict.
        projector (`nn.Module`, *optional*): the vision projector of a wrapper: `linear_1`, `act`, `linear_2`.
    """

    backbone: nn.Module
    embedding: nn.Embedding
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Linear
    prefix: str = field(default="model.")
    projector: nn.Module | None = None


TOWER, PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."


def check_family(config: PreTrainedConfig) -> None:
    """
    Raise `ValueError` when a model of this config cannot be pruned, saying what can.

    Refused: families not named above (other norm placements, mixtures of experts) and quantised weights.
    """
    decoder = config.get_text_config()
    known = config.model_type in FAMILIES or config.model_type in WRAPPERS
    if not known or decoder.model_type not in FAMILIES:
        inner = "" if decoder is config else f" around {decoder.model_type!r}"
        reason = REFUSED.get(decoder.model_type) or REFUSED.get(config.model_type)
        reason = f" ({reason})" if reason else ""
        raise ValueError(
            f"models of type {config.model_type!r}{inner} cannot be pruned{reason}: supported are "
            f"{', '.join(FAMILIES)}, and {', '.join(WRAPPERS)} around one of them"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("quantised weights cannot be pruned: load the model's 16-bit or 32-bit checkpoint")


def dissect(model: PreTrainedModel) -> Anatomy:
    """
    Find the parts of `model`.

    Raises:
        ValueError: the family is not supported.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{type(model).__name__} is no PreTrainedModel: merge adapters and unwrap the model before pruning it"
        )
    check_family(model.config)
    projector, prefix = None, "model."
    if model.config.model_type in WRAPPERS:
        backbone, projector = model.model.language_model, model.model.multi_modal_projector
        prefix = "model.language_model."
    else:
        backbone = getattr(model, "model", None)
    if backbone is None or getattr(model, "lm_head", None) is None:
        raise ValueError(
            f"{type(model).__name__} has no language-model head: load the model with one, as ...ForCausalLM"
        )
    return Anatomy(backbone, backbone.embed_tokens, backbone.layers, backbone.norm, model.lm_head, prefix, projector)


def family(config: PreTrainedConfig) -> Family:
    """The decoder's entry in `FAMILIES`."""
    return FAMILIES[config.get_text_config().model_type]


def is_tied(config: PreTrainedConfig) -> bool:
    """Whether head and embedding are one matrix. A wrapper's top level decides, whatever its text_config says."""
    return bool(config.tie_word_embeddings)


def head_dim(config: PreTrainedConfig) -> int:
    """Width of one attention head, explicit or implied."""
    decoder = config.get_text_config()
    return getattr(decoder, "head_dim", None) or decoder.hidden_size // decoder.num_attention_heads


def embedding_scale(config: PreTrainedConfig) -> float:
    """What the embedding's output is multiplied by before the first layer."""
    return config.get_text_config().hidden_size ** 0.5 if family(config).scaled_embedding else 1.0
