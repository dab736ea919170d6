"""Safetensors files read as bytes: whether a checkpoint is whole, and whether every number in it is finite."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit
CHUNK_BYTES = 64 * 2**20  # of a tensor at once; ours
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
BYTES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}
# Of a format: integers to read it as, and the bits that are all set in an infinity or NaN.
_NOT_FINITE = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
    "C64": (np.uint32, 0x7F800000),
    "F8_E4M3": (np.uint8, 0x7F),  # no infinity; all set is NaN
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E8M0": (np.uint8, 0xFF),
}


class Torn(ValueError):
    """A file that is no whole safetensors file; the message says why, without the file's name."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its format, its shape, and the bytes of the file that hold it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> tuple[list[Tensor], dict[str, str]]:
    """
    Tensors in the order of their bytes, and the file's own metadata.

    Raises:
        Torn: a header that cannot be read, a tensor outside of the file, or bytes that belong to none.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LONGEST_HEADER_BYTES, size - 8):
            raise Torn(f"its header would end at byte {8 + length:,} of {size:,}: torn, or no safetensors file")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise Torn("its header is not JSON: torn, or no safetensors file") from error
    if not isinstance(header, dict):
        raise Torn("its header is no JSON object")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise Torn("its __metadata__ is no mapping of texts")
    tensors = sorted((_tensor(name, entry, 8 + length) for name, entry in header.items()), key=lambda one: one.start)
    place = 8 + length
    for tensor in tensors:
        if tensor.start != place:
            raise Torn(f"{tensor.name} starts at byte {tensor.start:,}, not {place:,}: tensors overlap or leave a gap")
        place = tensor.end
    if place != size:
        what = (
            f"it ends after {size:,} of {place:,} bytes" if place > size else f"{size - place:,} bytes follow the last"
        )
        raise Torn(f"{what}: torn, or not written by safetensors")
    return tensors, about


def faults(folder: Path) -> list[str]:
    """
    What is wrong with a folder's weights, a line each, which names the file; nothing for a whole checkpoint: either
    `model.safetensors` alone, or an index and exactly the shards and tensors that it lists.
    """
    files = sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors")
    index = (folder / INDEX).is_file()
    if not files:
        return ["no *.safetensors: only weights in this format are published"]
    if SINGLE in files and (index or len(files) > 1):
        others = [*(name for name in files if name != SINGLE), *[INDEX] * index]
        return [f"{SINGLE} beside {', '.join(others[:3])}: which are the weights? delete the others"]
    if files == [SINGLE]:
        return [f"{SINGLE}: {line}" for line in _torn(folder / SINGLE)]
    if odd := [name for name in files if not SHARD.fullmatch(name)]:
        return [f"{', '.join(odd[:3])}: weights are {SINGLE}, or model-00001-of-0000N.safetensors with {INDEX}"]
    if not index:
        return [f"{INDEX} is missing beside {len(files)} shards: save the model again"]
    return _index_faults(folder, files)


def not_finite(path: Path) -> tuple[int, list[str]]:
    """Numbers in a whole file, and the tensors that hold an infinity or NaN."""
    count, found = 0, []
    for tensor in read_header(path)[0]:
        count += math.prod(tensor.shape)
        if tensor.dtype in _NOT_FINITE and _has_any(path, tensor):
            found.append(tensor.name)
    return count, found


def _has_any(path: Path, tensor: Tensor) -> bool:
    kind, bits = _NOT_FINITE[tensor.dtype]
    with open(path, "rb") as file:
        file.seek(tensor.start)
        for start in range(tensor.start, tensor.end, CHUNK_BYTES):
            read = np.frombuffer(file.read(min(CHUNK_BYTES, tensor.end - start)), kind)
            if ((read & kind(bits)) == kind(bits)).any():
                return True
    return False


def _tensor(name: str, entry, offset: int) -> Tensor:
    """A header's entry, checked."""
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
        known = BYTES[dtype]
    except (TypeError, KeyError, ValueError) as error:
        raise Torn(f"{name}: {str(entry)[:80]} is no known tensor") from error
    if not whole or end - start != math.prod(shape) * known:
        raise Torn(f"{name}: {dtype} {list(shape)} does not fill bytes {start} to {end}")
    return Tensor(name, dtype, shape, offset + start, offset + end)


def _torn(path: Path) -> list[str]:
    try:
        return [] if read_header(path)[0] else ["it holds no tensors"]
    except Torn as error:
        return [str(error)]


def _index_faults(folder: Path, files: list[str]) -> list[str]:
    """Of shards and their index."""
    try:
        told = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        listed = {name: str(file) for name, file in told.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{INDEX}: no JSON object with a `weight_map` of tensors to files"]
    if missing := sorted(set(listed.values()) - set(files)):
        return [f"{INDEX} lists {', '.join(missing[:3])}, which is not there: the checkpoint is not whole"]
    if extra := sorted(set(files) - set(listed.values())):
        return [f"{', '.join(extra[:3])} is not in {INDEX}: delete it, or save the model again"]
    lines = [f"{name}: {line}" for name in files for line in _torn(folder / name)]
    if lines:
        return lines
    held: dict[str, str] = {}
    for file in files:
        for tensor in read_header(folder / file)[0]:
            if held.setdefault(tensor.name, file) != file:
                lines.append(f"{tensor.name} is in {held[tensor.name]} and in {file}")
    wrong = sorted(name for name in held.keys() | listed.keys() if held.get(name) != listed.get(name))
    if wrong:
        name = wrong[0]
        there, said = held.get(name, "no shard"), listed.get(name, "none")
        lines.append(f"{INDEX}: {len(wrong)} tensors are not where it says, {name} is in {there} and not in {said}")
    return lines
