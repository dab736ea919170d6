"""Tiny random models of every family that can be pruned, and text for them."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large enough that every part matters to the logits
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.1}
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


def _vision_language(text, **kwargs):
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=4
    )
    config = Mistral3Config(
        vision_config=vision, text_config=text, image_token_index=3, tie_word_embeddings=kwargs["tie_word_embeddings"]
    )
    return Mistral3ForConditionalGeneration(config)


def _build(name: str, **changes):
    shape = {**SHAPE, **changes}
    match name:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**shape))
        case "llama_bias":
            return LlamaForCausalLM(LlamaConfig(**shape, attention_bias=True, mlp_bias=True))
        case "mistral":
            return MistralForCausalLM(MistralConfig(**shape, sliding_window=None))
        case "mistral_sliding":
            return MistralForCausalLM(MistralConfig(**shape, sliding_window=8))
        case "ministral3":
            return Ministral3ForCausalLM(Ministral3Config(**shape, rope_parameters=ROPE))
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**shape))
        case "qwen2_sliding":
            return Qwen2ForCausalLM(Qwen2Config(**shape, **SLIDING))
        case "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**shape))
        case "qwen3_sliding":
            return Qwen3ForCausalLM(Qwen3Config(**shape, **SLIDING))
        case "smollm3":
            return SmolLM3ForCausalLM(SmolLM3Config(**shape, no_rope_layer_interval=2))
        case "smollm3_sliding":
            sliding = {"use_sliding_window": True, "sliding_window": 8}
            return SmolLM3ForCausalLM(SmolLM3Config(**shape, **sliding, no_rope_layers=[1, 0, 1, 0]))
        case "gemma":
            return GemmaForCausalLM(GemmaConfig(**shape))
        case "mistral3":
            return _vision_language(MistralConfig(**shape, sliding_window=None), **shape)
        case "mistral3_ministral3":
            return _vision_language(Ministral3Config(**shape, rope_parameters=ROPE), **shape)
    raise KeyError(name)


FAMILIES = (
    "llama",
    "llama_bias",
    "mistral",
    "mistral_sliding",
    "ministral3",
    "qwen2",
    "qwen2_sliding",
    "qwen3",
    "qwen3_sliding",
    "smollm3",
    "smollm3_sliding",
    "gemma",
    "mistral3",
    "mistral3_ministral3",
)


def build(name: str, seed: int = 0, dtype=torch.float64, **changes):
    """A random model in float64, norm gains and biases away from their trivial starts."""
    torch.manual_seed(seed)
    model = _build(name, **changes).to(dtype).eval()
    if name == "gemma":  # a buffer that was rounded to fp32 before the model became float64
        model.model.embed_tokens.embed_scale = torch.tensor(model.config.hidden_size**0.5, dtype=dtype)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def ids(windows: int = 12, tokens: int = 24, seed: int = 1) -> torch.Tensor:
    """Token ids [windows, tokens] without special tokens."""
    return torch.randint(4, VOCABULARY, (windows, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, input_ids) -> torch.Tensor:
    """Logits [windows, tokens, V]."""
    return model(input_ids=input_ids, use_cache=False).logits


def divergence(parent, child, input_ids) -> float:
    """Mean KL(parent || child) a token, in nats."""
    p, q = logits(parent, input_ids).log_softmax(-1), logits(child, input_ids).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def save_tokenizer(folder, vocabulary: int = VOCABULARY, **kwargs) -> None:
    """A tokenizer of one word a token, `w3`, `w4`, ..., beside a model; `kwargs` set attributes."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", pad_token="<pad>")
    for name, value in kwargs.items():
        setattr(fast, name, value)
    fast.save_pretrained(folder)
