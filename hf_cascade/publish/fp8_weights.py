"""A checkpoint's files written again with FP8 weights, one file in memory at a time (paper section 7).

As the released Ministral 3 instruct models: `*.weight` in float8_e4m3fn, `*.weight_scale_inv` and `*.activation_scale`
beside it, fp32 numbers without dimensions; everything else in bf16. vLLM has the same names in its source.
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

from hf_cascade.anatomy import READERS
from hf_cascade.prune.checkpoint import DTYPES, INDEX, SINGLE
from hf_cascade.publish import e4m3

WEIGHT_SCALE, ACTIVATION_SCALE = "weight_scale_inv", "activation_scale"
REST = torch.bfloat16
PART = 2**18  # numbers that are rounded at once; ours


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


def weight_scales(files: list[Path], places: dict[str, str]) -> dict[str, Tensor]:
    """
    Layer name to the scale of its weight: the largest magnitude over 448.

    Layers that read one norm share the largest of theirs. An engine joins them to one product with one scale; with
    others vLLM would round their codes a second time (benchmarks/results/fp8_twin_cpu.md has what that costs).

    Raises:
        ValueError: a weight holds NaN or infinite values.
    """
    largest: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in places.keys() & set(opened.keys()):
                low, high = opened.get_tensor(name).aminmax()  # abs() would write it all again
                found = torch.maximum(-low, high).float()
                if not found.isfinite():
                    raise ValueError(f"{name} in {file} holds NaN or infinite values: the model's weights are broken")
                joined = _joined(places[name])
                largest[joined] = torch.maximum(found, largest.get(joined, found))
    return {layer: e4m3.scale_of(largest[_joined(layer)]) for layer in places.values()}


def _joined(layer: str) -> str:
    """A name that layers which read one norm have in common."""
    for norm, readers in READERS.items():
        for reader in readers:
            if layer.endswith(f".{reader}"):
                return layer.removesuffix(reader) + norm
    return layer


def write_files(
    files: list[Path], folder: Path, places: dict[str, str], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> int:
    """
    Write each file again under its name, and the index of several.

    Args:
        files (`list[Path]`): of `weight_files`.
        folder (`Path`): where to.
        places (`dict[str, str]`): of `stored_layers`.
        weights (`dict[str, Tensor]`): of `weight_scales`.
        inputs (`dict[str, Tensor]`): layer name to the scale of its inputs.

    Returns:
        `int`: bytes of all tensors.

    Raises:
        OSError: the disk is full.
    """
    weight_map, total = {}, 0
    for file in files:
        written = _write(_converted(file, places, weights, inputs), folder / file.name)
        weight_map |= dict.fromkeys(written, file.name)
        total += sum(written.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return total


def _write(tensors: dict[str, Tensor], file: Path) -> dict[str, int]:
    """Save a file's tensors; their names and bytes."""
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from error
    return {name: value.nbytes for name, value in tensors.items()}


def _converted(file: Path, places: dict[str, str], weights: dict, inputs: dict) -> dict[str, Tensor]:
    """A file's tensors as they are written."""
    tensors: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - no mapping
            value = opened.get_tensor(name)
            if name not in places:
                tensors[name] = value.to(REST)
                continue
            layer, prefix = places[name], name.removesuffix("weight")
            tensors[name] = _codes(value, weights[layer])
            tensors[prefix + WEIGHT_SCALE] = weights[layer].clone()  # a file holds no tensor twice
            tensors[prefix + ACTIVATION_SCALE] = inputs[layer].float()
    return tensors


def _codes(weight: Tensor, scale: Tensor) -> Tensor:
    """A weight's codes, in parts that a processor's cache holds: three times as fast as at once."""
    codes = torch.empty(weight.shape, dtype=e4m3.DTYPE)
    for part, place in zip(weight.flatten().split(PART), codes.flatten().split(PART), strict=True):
        place.copy_(e4m3.encode(part, scale))
    return codes
