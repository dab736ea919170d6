"""A checkpoint's files written again with FP8 weights, one file at a time: a model larger than memory can be converted.

As the released Ministral 3 instruct models: `*.weight` in float8_e4m3fn, `*.weight_scale_inv` and `*.activation_scale`
beside it, fp32 numbers without dimensions; everything else in bf16. vLLM reads the same names.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from hf_cascade.prune.checkpoint import DTYPES, INDEX, SINGLE
from hf_cascade.publish import e4m3

WEIGHT_SCALE, ACTIVATION_SCALE = "weight_scale_inv", "activation_scale"
REST = torch.bfloat16


def weight_files(folder: Path) -> list[Path]:
    """
    The files that `from_pretrained` reads.

    Raises:
        ValueError: there are none, some are missing, one is damaged, or weights are quantised.
    """
    if (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    elif (folder / INDEX).is_file():
        try:
            files = [
                folder / name for name in sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or other JSON
            raise ValueError(f"{folder / INDEX} is no index of shards ({error!r})") from error
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(f"{folder} lacks {len(missing)} of its {len(files)} shards, {missing[0]} among them")
    else:
        raise ValueError(f"{folder} holds neither {SINGLE} nor {INDEX}: give the folder of a model")
    for file in files:
        for name, code in stored_types(file).items():
            if code not in DTYPES:
                raise ValueError(
                    f"{name} in {file} is stored as {code}: the model is quantised already; give its 16-bit or 32-bit "
                    "folder"
                )
    return files


def stored_types(file: Path) -> dict[str, str]:
    """
    Name to type code of a file's tensors.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged: {str(error).splitlines()[0]}") from error


def stored_layers(model: PreTrainedModel, files: list[Path], layers) -> dict[str, str]:
    """
    Name in a file of a layer's weight to the layer's name in memory (some wrappers' differ).

    Raises:
        ValueError: a layer's weight is in no file.
    """
    renamings = [part for part in get_model_conversion_mapping(model) if isinstance(part, WeightRenaming)]
    expected = model.state_dict()
    wanted = {f"{layer}.weight": layer for layer in layers}
    found = {}
    for file in files:
        for stored in stored_types(file):
            name = rename_source_key(stored, renamings, [], model.base_model_prefix, expected)[0]
            if name in wanted:
                found[stored] = wanted[name]
    missing = sorted(set(wanted.values()) - set(found.values()))
    if missing:
        raise ValueError(f"{len(missing)} layers have no weight of their own in the files, {missing[0]} among them")
    return found


def write_files(files: list[Path], folder: Path, places: dict[str, str], scales: dict[str, Tensor]) -> int:
    """
    Write each file again under its name, and the index of several.

    Args:
        files (`list[Path]`): of `weight_files`.
        folder (`Path`): where to.
        places (`dict[str, str]`): of `stored_layers`.
        scales (`dict[str, Tensor]`): layer name to the scale of its inputs.

    Returns:
        `int`: bytes of all tensors.

    Raises:
        ValueError: a weight holds NaN or infinite values.
        OSError: the disk is full.
    """
    weight_map, total = {}, 0
    for file in files:
        converted = _converted(file, places, scales)
        try:
            save_file(converted, folder / file.name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / file.name} cannot be written: {error}") from error
        weight_map |= dict.fromkeys(converted, file.name)
        total += sum(value.numel() * value.element_size() for value in converted.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return total


def _converted(file: Path, places: dict[str, str], scales: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors as they are written."""
    tensors: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - no mapping
            value = opened.get_tensor(name)
            if name not in places:
                tensors[name] = value.to(REST)
                continue
            prefix = name.removesuffix("weight")
            try:
                tensors[name], tensors[prefix + WEIGHT_SCALE] = e4m3.encode_weight(value)
            except ValueError as error:
                raise ValueError(f"{name} in {file} cannot be converted: {error}") from error
            tensors[prefix + ACTIVATION_SCALE] = scales[places[name]].float()
    return tensors
