"""Writing a checkpoint tensor by tensor, in any order: files are laid out first and filled as weights come.

Names, index and layout are `save_pretrained`'s, so the result opens like any other; disk space is taken at once, so a
full disk is found before the work, not at its end. What is written can be read back, so a killed pruning can go on.
"""

import json
import os
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedModel

from hf_cascade.prune.checkpoint import CODES, INDEX, Checkpoint, expected_weights, names_on_disk

SHARD_SIZE = "5GB"  # huggingface_hub's default


def check_shard_size(size: str) -> None:
    """Raise `ValueError` unless it is a size such as 5GB."""
    try:
        split_torch_state_dict_into_shards({}, max_shard_size=size)
    except ValueError as error:
        raise ValueError(f"max_shard_size={size}: give a number and a unit, as 5GB or 500MB") from error


class ShardWriter:
    """
    The weights of a child, in a folder.

    Args:
        folder (`Path`): where the files are, or will be; files of the right size are filled further.
        model (`PreTrainedModel`): the child's skeleton.
        dtype_of (`Callable[[str], torch.dtype]`): stored type of each weight.
        max_shard_size (`str`, *optional*, defaults to `"5GB"`): of one file.
    """

    def __init__(self, folder: Path, model: PreTrainedModel, dtype_of, max_shard_size: str = SHARD_SIZE):
        self.folder, self.model, self.dtype_of = folder, model, dtype_of
        names = names_on_disk(model)
        weights = expected_weights(model)
        stored = {disk: torch.empty(weights[name].shape, dtype=dtype_of(name), device="meta")
                  for name, disk in names.items()}  # fmt: skip
        split = split_torch_state_dict_into_shards(stored, max_shard_size=max_shard_size)
        self._places: dict[str, tuple[Path, int, torch.dtype, torch.Size]] = {}
        memory_names = {disk: name for name, disk in names.items()}
        self.bytes = 0
        self._layouts: list[tuple[Path, bytes, int]] = []
        for file, contained in split.filename_to_tensors.items():
            header, start, end = _layout({name: stored[name] for name in contained})
            for name in contained:
                place = (folder / file, start[name], stored[name].dtype, stored[name].shape)
                self._places[memory_names[name]] = place
            self._layouts.append((folder / file, header, end))
            self.bytes += end
        metadata = {"total_parameters": model.num_parameters(), **split.metadata}
        self._index = {"metadata": metadata, "weight_map": split.tensor_to_filename} if split.is_sharded else None

    def create(self) -> None:
        """
        Lay out the files.

        Raises:
            OSError: the disk has no room for them.
        """
        for file, header, size in self._layouts:
            with open(file, "wb") as opened:
                opened.write(header)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(opened.fileno(), 0, size)
                else:  # macOS
                    opened.truncate(size)
        if self._index is not None:
            (self.folder / INDEX).write_text(json.dumps(self._index, indent=2, sort_keys=True) + "\n")

    def is_created(self) -> bool:
        """Whether all files are there, of the right size, with this layout."""
        return all(
            file.is_file() and file.stat().st_size == size and file.open("rb").read(len(header)) == header
            for file, header, size in self._layouts
        )

    def write(self, name: str, value: Tensor) -> None:
        """Write a weight, by its name in memory, in its stored type."""
        file, offset, dtype, shape = self._places[name]
        if value.shape != shape:
            raise AssertionError(f"{name} is {tuple(value.shape)} and its place {tuple(shape)}")
        flat = value.to("cpu", dtype).contiguous().flatten()
        with open(file, "r+b") as opened:
            opened.seek(offset)
            opened.write(flat.view(torch.uint8).numpy())

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        for file, _, _ in self._layouts:
            with open(file, "r+b") as opened:
                os.fsync(opened.fileno())

    def read(self, name: str) -> Tensor:
        """A weight that was written."""
        return Checkpoint(self.folder, self.model).read(name)


def _layout(tensors: dict[str, Tensor]) -> tuple[bytes, dict[str, int], int]:
    """
    A safetensors file's header, each tensor's place in it, and its size.

    The format: the header's length in eight bytes, the header as JSON padded to eight bytes, the tensors end to end.
    Wide types come first, which keeps all of them aligned.
    """
    offset, entries = 0, {}
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        size = value.numel() * value.element_size()
        entries[name] = {
            "dtype": CODES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    starts = {name: len(header) + entry["data_offsets"][0] for name, entry in entries.items()}
    return header, starts, len(header) + offset
