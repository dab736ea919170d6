"""Child shapes and exact parameter counts, read off a config.json without torch (paper Table 1, section 1)."""

import copy
from dataclasses import dataclass

from hf_cascade.anatomy import FAMILIES, WRAPPERS, Family


def text_config(config: dict) -> dict:
    """The language model's part of a config.json: `text_config` of a vision-language model, else the whole."""
    return config.get("text_config", config)


def is_tied(config: dict) -> bool:
    """Whether embedding and output head are one matrix. The top level of a vision-language config decides."""
    name = config.get("model_type")
    default = WRAPPERS.get(name, FAMILIES[name].tied if name in FAMILIES else False)
    return config.get("tie_word_embeddings", default)


def _family(config: dict) -> Family:
    """The decoder's family; `ValueError` for one that is not known."""
    name = text_config(config).get("model_type")
    if name not in FAMILIES:
        raise ValueError(f"model_type {name!r} is not one hf-cascade can count; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def attention_sizes(config: dict) -> tuple[int, int, int]:
    """(query heads, key-value heads, head dimension) of a config.json, with its family's defaults filled in."""
    text, family = text_config(config), _family(config)
    heads = text["num_attention_heads"]
    key_value_heads = text.get("num_key_value_heads", family.num_key_value_heads) or heads
    return heads, key_value_heads, text.get("head_dim", family.head_dim) or text["hidden_size"] // heads


def count_parameters(config: dict) -> int:
    """
    Exact number of parameters of the language model: embedding, layers, final norm, and a head where it is not tied.

    Args:
        config (`dict`): a config.json of a family in `hf_cascade.anatomy`, or of mistral3 around one of them.

    Raises:
        ValueError: another `model_type`.
    """
    text, family = text_config(config), _family(config)
    heads, key_value_heads, head_dim = attention_sizes(config)
    hidden, ffn = text["hidden_size"], text["intermediate_size"]
    queries, keys = heads * head_dim, key_value_heads * head_dim

    layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * ffn + 2 * hidden  # q o, k v, gate up down, norms
    if family.attention_bias == "qkv":
        layer += queries + 2 * keys
    elif family.attention_bias == "config" and text.get("attention_bias", False):
        layer += queries + 2 * keys + hidden
    if family.head_norms:
        layer += 2 * head_dim
    if family.mlp_bias and text.get("mlp_bias", False):
        layer += 2 * ffn + hidden

    embeddings = text["vocab_size"] * hidden * (1 if is_tied(config) else 2)
    return embeddings + text["num_hidden_layers"] * layer + hidden


def count_total(config: dict) -> int:
    """[`count_parameters`] plus, for mistral3, its pixtral vision tower and the projector into the language model."""
    total = count_parameters(config)
    if "vision_config" not in config:
        return total
    vision = config["vision_config"]
    if (config.get("model_type"), vision.get("model_type")) != ("mistral3", "pixtral"):
        raise ValueError(
            f"vision tower {vision.get('model_type')!r} in {config.get('model_type')!r} is not one hf-cascade can "
            "count; known: pixtral in mistral3"
        )
    width, text_width = vision["hidden_size"], text_config(config)["hidden_size"]
    vision_layer = 4 * width * width + 3 * width * vision["intermediate_size"] + 2 * width
    patches = vision.get("num_channels", 3) * vision["patch_size"] ** 2 * width
    tower = patches + width + vision["num_hidden_layers"] * vision_layer  # `width`: the norm before the layers

    layers_read = config.get("vision_feature_layer", -1)
    inputs = width * (1 if isinstance(layers_read, int) else len(layers_read))
    merger = width * config.get("spatial_merge_size", 2) ** 2 * width
    projector = width + merger + inputs * text_width + text_width * text_width
    if config.get("multimodal_projector_bias", False):
        projector += 2 * text_width
    return total + tower + projector


@dataclass(frozen=True)
class ChildShape:
    """
    Shape of a child model: what pruning may change. Attention is never pruned (paper section 1). None: as the parent.

    Args:
        num_hidden_layers (`int`, *optional*): decoder layers.
        hidden_size (`int`, *optional*): width of the residual stream.
        intermediate_size (`int`, *optional*): width of the FFN.
        tie_word_embeddings (`bool`, *optional*): whether embedding and output head become one matrix.
    """

    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    tie_word_embeddings: bool | None = None

    def check(self, parent_config: dict) -> None:
        """
        Refuse a shape that pruning cannot reach from this parent (a config.json dict).

        Raises:
            ValueError: one message with every impossible dimension and what is allowed.
        """
        text = text_config(parent_config)
        multiple = text.get("model_type") in FAMILIES and FAMILIES[text["model_type"]].hidden_multiple_of_heads
        wrong = []
        for name in ("num_hidden_layers", "hidden_size", "intermediate_size"):
            size = getattr(self, name)
            if size is None:
                continue
            if type(size) is not int or not 1 <= size <= text[name]:
                wrong.append(f"{name}={size!r}: allowed are whole numbers from 1 to {text[name]}, the parent's")
            elif name == "hidden_size" and multiple and size % text["num_attention_heads"]:
                heads = text["num_attention_heads"]
                wrong.append(
                    f"hidden_size={size}: a {text['model_type']}'s must be a multiple of its {heads} attention heads"
                )
        if wrong:
            raise ValueError("impossible child shape: " + "; ".join(wrong))

    def apply(self, parent_config: dict) -> dict:
        """
        The child's config.json dict: the parent's with these sizes, `head_dim` explicit, both levels' tie flags equal.

        Lists with one entry per layer (`layer_types`) are left as they are: which layers stay is the pruner's business.

        Raises:
            ValueError: as [`ChildShape.check`].
        """
        self.check(parent_config)
        child = copy.deepcopy(parent_config)
        text = text_config(child)
        text["head_dim"] = attention_sizes(parent_config)[2]
        for name in ("num_hidden_layers", "hidden_size", "intermediate_size"):
            if getattr(self, name) is not None:
                text[name] = getattr(self, name)
        tied = is_tied(parent_config) if self.tie_word_embeddings is None else self.tie_word_embeddings
        child["tie_word_embeddings"] = text["tie_word_embeddings"] = tied
        return child
