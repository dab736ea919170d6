"""The one file that knows weight and module names of the model families hf-cascade prunes.

All supported decoders are of one kind: pre-norm blocks, RMSNorm, a gated FFN, no multipliers on the residual stream.
A family is one entry in `DECODERS`; its exactness test is `tests/prune/test_exactness.py`.
"""

from dataclasses import dataclass

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
# what belongs to a head and does not change with the width
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
# config entries that hold one value a layer
PER_LAYER = ("layer_types",)

DECODERS = ("llama", "mistral", "ministral3", "qwen2", "qwen3")
# vision-language wrappers: the decoder is `model.language_model`, whatever its family
WRAPPERS = ("mistral3",)


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
        projector (`nn.Module`, *optional*): the vision projector of a wrapper: `linear_1`, `act`, `linear_2`.
    """

    backbone: nn.Module
    embedding: nn.Embedding
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Linear
    projector: nn.Module | None = None


def check_family(config: PreTrainedConfig) -> None:
    """
    Raise `ValueError` when a model of this config cannot be pruned, saying what can.

    Refused: families not named above (other norm placements, mixtures of experts) and quantised weights.
    """
    decoder = config.get_text_config()
    if config.model_type not in DECODERS + WRAPPERS or decoder.model_type not in DECODERS:
        inner = "" if decoder is config else f" around {decoder.model_type!r}"
        raise ValueError(
            f"models of type {config.model_type!r}{inner} cannot be pruned: supported are {', '.join(DECODERS)}, "
            f"and {', '.join(WRAPPERS)} around one of them"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("quantised weights cannot be pruned: load the model's 16-bit or 32-bit checkpoint")


def dissect(model: PreTrainedModel) -> Anatomy:
    """
    Find the parts of `model`.

    Raises:
        ValueError: the family is not supported.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{type(model).__name__} is no PreTrainedModel: merge adapters and unwrap the model before pruning it"
        )
    check_family(model.config)
    if model.config.model_type in WRAPPERS:
        backbone, projector = model.model.language_model, model.model.multi_modal_projector
    else:
        backbone, projector = getattr(model, "model", None), None
    if backbone is None or getattr(model, "lm_head", None) is None:
        raise ValueError(
            f"{type(model).__name__} has no language-model head: load the model with one, as ...ForCausalLM"
        )
    return Anatomy(backbone, backbone.embed_tokens, backbone.layers, backbone.norm, model.lm_head, projector)


def is_tied(config: PreTrainedConfig) -> bool:
    """Whether head and embedding are one matrix. A wrapper's top level decides, whatever its text_config says."""
    return bool(config.tie_word_embeddings)


def head_dim(config: PreTrainedConfig) -> int:
    """Width of one attention head, explicit or implied."""
    decoder = config.get_text_config()
    return getattr(decoder, "head_dim", None) or decoder.hidden_size // decoder.num_attention_heads
