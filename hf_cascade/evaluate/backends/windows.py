"""How many tokens a model reads at once: as its config says, or without end where there is no attention."""

from transformers import PreTrainedConfig

# max_position_embeddings first; then what MPT, and checkpoints of BLOOM, call it
NAMES = ("max_position_embeddings", "max_seq_len", "seq_length")
ENDLESS = 2**31 - 1  # to lm-eval, which needs a number
UNNAMED = 2048  # where a config has attention and names no window: lm-eval's default


def window_of(config: PreTrainedConfig) -> int | None:
    """
    Tokens of a text model's window.

    Args:
        config (`PreTrainedConfig`): the model's, or of a vision-language model, whose text is meant.

    Returns:
        `int` or `None`: `None` where there is no attention, and so no window, as in Mamba: it has no end.
    """
    text = config.get_text_config()
    named = next((value for name in NAMES if isinstance(value := getattr(text, name, None), int)), None)
    return UNNAMED if named is None and getattr(text, "num_attention_heads", None) else named
