"""FLOPs of a training step, from config.json dicts alone.

Counted are matrix products, 2 for a multiplication with its addition, as torch's `FlopCounterMode` counts them
(`tests/test_costs.py`). Norms, activations and the softmax are left out, and a vision tower, which text never enters.
"""

from dataclasses import dataclass

from hf_cascade.shape import attention_sizes, count_parameters, is_tied, text_config


def end_parameters(config: dict) -> int:
    """Parameters of embedding and head, one matrix where they are tied."""
    text = text_config(config)
    return text["vocab_size"] * text["hidden_size"] * (1 if is_tied(config) else 2)


def head_parameters(config: dict) -> int:
    """Parameters of the head, which is a matrix product also where it is the embedding."""
    return text_config(config)["vocab_size"] * text_config(config)["hidden_size"]


def layer_parameters(config: dict) -> int:
    """Parameters of one decoder layer."""
    text = text_config(config)
    return (count_parameters(config) - end_parameters(config) - text["hidden_size"]) // text["num_hidden_layers"]


def layer_matmul_parameters(config: dict) -> int:
    """Parameters of one decoder layer that are factors of matrix products: without norms and biases."""
    text, (heads, key_value_heads, head_dim) = text_config(config), attention_sizes(config)
    return text["hidden_size"] * (2 * (heads + key_value_heads) * head_dim + 3 * text["intermediate_size"])


def attention_windows(config: dict) -> dict[int | None, int]:
    """
    Layers by their attention window in tokens; `None` is all that came before.

    A list of layer types that is longer than the model (a child's is its parent's) counts by its shares.
    """
    text, kind = text_config(config), text_config(config)["model_type"]
    layers, types = text["num_hidden_layers"], text.get("layer_types")
    window = text.get("sliding_window", 4096 if kind == "mistral" else None)  # MistralConfig's default
    if not window:
        sliding = 0
    elif types:
        sliding = round(layers * types.count("sliding_attention") / len(types))
    elif kind.startswith("qwen") and text.get("use_sliding_window", False):
        sliding = max(0, layers - text.get("max_window_layers", 28))
    else:
        sliding = layers if kind in ("mistral", "ministral3") else 0
    return {size: count for size, count in ((None, layers - sliding), (window, sliding)) if count}


def mean_keys(tokens: int, window: int | None = None) -> float:
    """Keys that a token of a causal sequence of `tokens` attends to, on average, itself included."""
    seen = min(window or tokens, tokens)
    return seen - seen * (seen - 1) / (2 * tokens)


@dataclass(frozen=True)
class StepFlops:
    """
    FLOPs of one training step, for one token.

    Attributes:
        student (`float`): forward and backward of what is trained; all there is without a teacher.
        recomputed (`float`): layers run a second time because of gradient checkpointing, and TRL's head.
        teacher (`float`): the teacher's forward; in Online DPO those of the reference and the reward model.
        generated (`float`): the policy's forward while it writes responses.
    """

    student: float
    recomputed: float
    teacher: float
    generated: float = 0.0

    @property
    def model(self) -> float:
        """What the models need: the numerator of model FLOP utilisation, without recomputation (Chowdhery et al.,
        2022, PaLM, appendix B)."""
        return self.student + self.teacher + self.generated

    @property
    def executed(self) -> float:
        """What the machine multiplies."""
        return self.model + self.recomputed


def forward_flops(config: dict, keys: dict[int | None, float]) -> tuple[float, float]:
    """
    FLOPs of a forward pass for one token: decoder layers, and head.

    Layers: 2 x matmul parameters + 4 x heads x head_dim x keys (queries by keys, weights by values).

    Args:
        config (`dict`): a config.json.
        keys (`dict`): keys a token attends to, for each window in [`attention_windows`].
    """
    heads, _, head_dim = attention_sizes(config)
    attended = sum(layers * keys[window] for window, layers in attention_windows(config).items())
    matrices = text_config(config)["num_hidden_layers"] * layer_matmul_parameters(config)
    return 2 * matrices + 4 * heads * head_dim * attended, 2 * head_parameters(config)


def step_flops(
    student: dict,
    teacher: dict | None,
    keys: dict,
    *,
    checkpointing: bool = False,
    trained: float = 1.0,
    head_again: bool = False,
) -> StepFlops:
    """
    FLOPs of a training step for one token: 3 forward passes of the student and one of the teacher.

    Args:
        student (`dict`): its config.json.
        teacher (`dict`, *optional*): the teacher's; `None` for next-token training.
        keys (`dict`): keys a token attends to, by window, for both models (see [`keys_of`]).
        checkpointing (`bool`): layers are recomputed, but for their last product (`down_proj`), which nothing needs:
            torch's non-reentrant checkpoint stops early. The head is not: the loss computes its gradient at once.
        trained (`float`): share of the matrices that get a gradient: 1, or about 0 with LoRA.
        head_again (`bool`): TRL's head, which multiplies its tiles of logits once more for the backward pass.
    """
    text = text_config(student)
    layers, head = forward_flops(student, keys)
    parameters = text["num_hidden_layers"] * layer_matmul_parameters(student) + head_parameters(student)
    backward = 2 * (layers + head) - 2 * parameters * (1 - trained)
    last = 2 * text["num_hidden_layers"] * text["hidden_size"] * text["intermediate_size"]
    return StepFlops(
        student=layers + head + backward,
        recomputed=(layers - last if checkpointing else 0.0) + (head if head_again else 0.0),
        teacher=sum(forward_flops(teacher, keys)) if teacher is not None else 0.0,
    )


def keys_of(configs: list[dict], tokens: int, whole_square: bool = False) -> dict[int | None, float]:
    """
    Keys a token attends to when one document fills the window: what shorter ones need is less.

    Args:
        configs (`list[dict]`): the models.
        tokens (`int`): the window.
        whole_square (`bool`): the kernel multiplies all tokens by all, and masks half of it.
    """
    windows = {window for config in configs for window in attention_windows(config)}
    return {window: float(tokens) if whole_square else mean_keys(tokens, window) for window in windows}
