"""Dimensions of a model, of the one it was pruned from, and of the one that its line began with, for a table."""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from hf_cascade import manifest
from hf_cascade.publish.lineage import Origin, Stage, here, model_input
from hf_cascade.shape import attention_sizes, count_total, is_tied, text_config

MANIFEST = ("num_parameters", "bytes", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
MANIFEST += ("max_position_embeddings", "tie_word_embeddings")


@dataclass(frozen=True)
class Shape:
    """
    A model's dimensions.

    Attributes:
        name (`str`): of the model.
        role (`str`): `original parent`, `direct parent`, `parent` (both), or `this model`.
        values (`dict`): as in a manifest's `output`, with `num_attention_heads`, `num_key_value_heads`, `head_dim`,
            `vision_layers` and `dtype` where its config.json is here. What is not known is not in it.
    """

    name: str
    role: str
    values: dict


def shapes_of(stages: list[Stage], origin: Origin | None, config: dict, record: dict) -> list[Shape]:
    """
    The original parent's, the direct parent's if it is another model, and the model's own. The direct parent is what
    the line's last pruning took.
    """
    itself = Shape(stages[-1].name, "this model", dimensions(config, record))
    original = _original(stages, origin)
    direct = _direct(stages)
    if direct is None or not direct.values or (original and original.values == direct.values):
        return [*([original] if original and original.values else []), itself]
    if original is None or not original.values:
        return [Shape(direct.name, "parent", direct.values), itself]
    return [Shape(original.name, "original parent", original.values), direct, itself]


def dimensions(config: dict | None, record: dict | None) -> dict:
    """A model's dimensions from its config.json, or else from its manifest."""
    output = (record or {}).get("output") or {}
    found = {name: output[name] for name in MANIFEST if output.get(name) is not None}
    if config is None:
        return found
    text = text_config(config)
    found |= {name: text[name] for name in MANIFEST if text.get(name) is not None}
    try:
        found["num_attention_heads"], found["num_key_value_heads"], found["head_dim"] = attention_sizes(config)
        found["tie_word_embeddings"] = is_tied(config)
        if "num_parameters" not in found:
            found["num_parameters"] = count_total(config)
    except (KeyError, ValueError):  # a family that hf-cascade cannot count: the config's own entries have to do
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim"):
            if text.get(name) is not None:
                found[name] = text[name]
    if layers := (config.get("vision_config") or {}).get("num_hidden_layers"):
        found["vision_layers"] = layers
    if dtype := config.get("dtype") or text.get("dtype"):
        found["dtype"] = str(dtype)
    return found


def _original(stages: list[Stage], origin: Origin | None) -> Shape | None:
    """What the line began with: a folder here, or the last model before the first pruning."""
    if origin is not None:
        return Shape(origin.name, "parent", _read(origin.folder or _cached(origin), None))
    runs = [stage.run for stage in stages]
    place = runs.index("prune") - 1 if "prune" in runs else -1
    return _of_stage(stages[place], "parent") if place >= 0 else None


def _direct(stages: list[Stage]) -> Shape | None:
    """What the last pruning took."""
    places = [place for place, stage in enumerate(stages) if stage.run == "prune"]
    if not places:
        return None
    if places[-1] > 0:
        return _of_stage(stages[places[-1] - 1], "direct parent")
    source = model_input(stages[places[-1]].record) if stages[places[-1]].record else None
    place = here(source) if source else None
    return Shape(place.resolve().name, "direct parent", _read(place, None)) if place else None


def _cached(origin: Origin) -> Path | None:
    """The snapshot of a Hub model in the local cache, if its config.json is there; nothing is fetched."""
    found = try_to_load_from_cache(origin.hub_id, "config.json") if origin.hub_id else None
    return Path(found).parent if isinstance(found, str) else None


def _of_stage(stage: Stage, role: str) -> Shape:
    return Shape(stage.name, role, _read(stage.folder, stage.record))


def _read(folder: Path | None, record: dict | None) -> dict:
    path = folder / "config.json" if folder is not None else None
    config = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None
    if record is None and folder is not None and manifest.is_finished(folder):
        record = manifest.read(folder)
    return dimensions(config, record)
