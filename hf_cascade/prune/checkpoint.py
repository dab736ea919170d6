"""Reading a safetensors checkpoint tensor by tensor, by the names its model has in memory.

Each reading opens and closes its file: a memory map that stays open keeps the pages it has touched.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key, revert_weight_conversion

from hf_cascade.anatomy import HEAD, is_tied

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def expected_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Names and shapes of everything a checkpoint of `model` must hold; a tied head is not stored."""
    weights = model.state_dict()
    if is_tied(model.config):
        weights.pop(HEAD, None)
    return weights


def names_on_disk(model: PreTrainedModel) -> dict[str, str]:
    """Name in memory to name in a file, as `save_pretrained` writes it (some wrappers' differ)."""
    weights = expected_weights(model)
    by_identity = {id(value): name for name, value in weights.items()}
    return {by_identity[id(value)]: name for name, value in revert_weight_conversion(model, weights).items()}


class Checkpoint:
    """
    Weights of a folder.

    Args:
        folder (`str` or `Path`): holds `model.safetensors`, or shards and their index.
        model (`PreTrainedModel`): its skeleton.

    Raises:
        ValueError: files or weights are missing, damaged, quantised, of another shape, or have no place in the model.
    """

    def __init__(self, folder: str | Path, model: PreTrainedModel):
        self.folder = Path(folder)
        renamings = [part for part in get_model_conversion_mapping(model) if isinstance(part, WeightRenaming)]
        expected = expected_weights(model)
        self._places: dict[str, tuple[Path, str]] = {}  # name in memory -> file, name in it
        self._headers: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        left_over = []
        for file in self._files():
            for stored, code, shape in _headers(file):
                name = rename_source_key(stored, renamings, [], model.base_model_prefix, expected)[0]
                if name in expected:
                    self._places[name] = (file, stored)
                    self._headers[name] = (_dtype(file, stored, code), shape)
                elif not stored.endswith("rotary_emb.inv_freq") and not (name == HEAD and is_tied(model.config)):
                    left_over.append(stored)
        self._check(expected, left_over)

    def _files(self) -> list[Path]:
        single, index = self.folder / SINGLE, self.folder / INDEX
        if single.is_file():
            return [single]
        if not index.is_file():
            others = sorted(file.name for pattern in ("*.bin", "*.gguf") for file in self.folder.glob(pattern))
            hint = f"; {others[0]} is of another format: save it again with save_pretrained" if others else ""
            raise ValueError(f"{self.folder} holds neither {SINGLE} nor {INDEX}{hint}")
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [name for name in names if not (self.folder / name).is_file()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or other JSON
            raise ValueError(f"{index} is no index of shards ({error!r})") from error
        if missing:
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of its {len(names)} shards, {missing[0]} among them: "
                "download the checkpoint again"
            )
        return [self.folder / name for name in names]

    def _check(self, expected: dict[str, Tensor], left_over: list[str]) -> None:
        missing = sorted(expected.keys() - self._places.keys())
        if missing:
            raise ValueError(
                f"{self.folder} lacks {len(missing)} weights, {missing[0]} among them: the checkpoint is not whole"
            )
        for name, value in expected.items():
            found = self._headers[name][1]
            if found != tuple(value.shape):
                raise ValueError(
                    f"{self.folder} does not fit its config: {name} is {list(found)} in the checkpoint and "
                    f"{list(value.shape)} by the config"
                )
        if left_over:
            raise ValueError(
                f"{self.folder} holds {len(left_over)} weights that its config has no place for, "
                f"{sorted(left_over)[0]} among them: config.json and the weights are not of one model"
            )

    def dtype(self, name: str, default: torch.dtype | None = None) -> torch.dtype:
        """Stored type of a weight; `default` for one that is not stored (a tied head, a layer of a larger model)."""
        return self._headers[name][0] if name in self._headers else default

    def read(self, name: str) -> Tensor:
        """A weight as it is stored."""
        file, stored = self._places[name]
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(stored)


def _headers(file: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, type code, shape) of every tensor of a file."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            return [(name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged: {str(error).splitlines()[0]}") from error


def _dtype(file: Path, name: str, code: str) -> torch.dtype:
    if code not in DTYPES:
        raise ValueError(
            f"{name} in {file} is stored as {code}: quantised weights cannot be pruned; use the model's 16-bit or "
            "32-bit checkpoint"
        )
    return DTYPES[code]
