"""Asking a teacher once and for all: top-K logits of every sequence that comes by, into the folder `cache.py` reads.

Shards appear whole. What a killed run leaves is taken up again: sequences that are in a shard are not computed a second
time. A finished cache can be added to in the same way.

B rows, T tokens of a row, N positions that count, V vocabulary, K tokens kept.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from hf_cascade.distill.cache import VALUES, check_shards, empty_values, read_index
from hf_cascade.distill.cache_format import (
    INDEX,
    KEY_BYTES,
    CacheIdentity,
    Sequence,
    encode,
    file_sha256,
    sequences,
    write_json,
    write_whole,
)
from hf_cascade.distill.loss import chunk_tokens, head_logits
from hf_cascade.distill.teacher import HiddenTargets, Teacher

SHARD_BYTES = 128 * 2**20  # ours: what a kill can cost; minutes of a large teacher's work
SPARE_BYTES = 64 * 2**20  # for everything that is no shard; ours


class CacheWriter:
    """
    Adds sequences to a cache.

    ```python
    >>> with CacheWriter("cache", LocalTeacher(model), CacheIdentity.of(model, "parent", tokenizer, k=50)) as writer:
    ...     for inputs, counts_BT in batches:
    ...         writer.add(inputs, counts_BT)
    ...     writer.finish()
    ```

    Positions that count are stored, and which they are: prompts, which nobody learns from, would double the size of
    many data sets. A sequence that comes with another loss mask is stored once more, with that one.

    Args:
        folder (`str` or `Path`): the cache, new or begun.
        teacher (`Teacher`): gives hidden states; a local or a remote one.
        identity (`CacheIdentity`): of the cache; one that is there must be the same.
        shard_bytes (`int`, *optional*): size at which a shard is written.
        process (`int`, *optional*, defaults to `0`): several may write to one folder, each under its own number.

    Raises:
        ValueError: the folder holds something else, or a cache of something else, or a damaged one.

    Attributes:
        shards (`list[dict]`): what was there already.
    """

    def __init__(
        self,
        folder: str | Path,
        teacher: Teacher,
        identity: CacheIdentity,
        shard_bytes: int = SHARD_BYTES,
        process: int = 0,
    ):
        self.folder, self.teacher, self.identity = Path(folder), teacher, identity
        self.shard_bytes, self.process = shard_bytes, process
        if teacher.vocabulary != identity.vocabulary:
            raise ValueError(
                f"the teacher has a vocabulary of {teacher.vocabulary} and the cache's identity says "
                f"{identity.vocabulary}: make the identity of this teacher"
            )
        self.shards = begun_shards(self.folder, identity)
        self._own = [shard for shard in self.shards if shard["file"].startswith(f"shard-{process}-")]
        self._known: set[bytes] = set()
        for shard in self.shards:
            self._known |= _entries(self.folder / shard["file"])
        self._waiting: list[dict[str, numpy.ndarray]] = []
        self._waiting_bytes = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_state()

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_) -> None:
        """Keep what is whole, whatever went wrong."""
        self.save()

    @property
    def _state(self) -> Path:
        return self.folder / f"writing-{self.process}.json"

    def _write_state(self) -> None:
        write_json(self._state, {**asdict(self.identity), "shards": self._own})

    def missing(self, inputs: dict, counts_BT: Tensor) -> list[Sequence]:
        """The sequences of a batch that are not in the cache yet."""
        found, counts_BT = sequences(inputs, counts_BT, self.identity), counts_BT.cpu()
        return [sequence for sequence in found if _entry(sequence, counts_BT) not in self._known]

    @torch.no_grad()
    def add(self, inputs: dict, counts_BT: Tensor) -> int:
        """
        Store what the teacher says of a batch, where the cache does not have it yet.

        Args:
            inputs (`dict`): what the teacher reads.
            counts_BT (`Tensor`): the positions that count, [B, T] bool.

        Returns:
            `int`: positions added.

        Raises:
            ValueError: a batch that cannot be cached, see [`~hf_cascade.distill.cache_format.sequences`].
            FloatingPointError: the teacher's logits are not finite.
            OSError: the disk is full.
        """
        device, counts_BT = counts_BT.device, counts_BT.cpu()
        missing = self.missing(inputs, counts_BT)
        if not missing:
            return 0
        wanted_BT = torch.zeros_like(counts_BT)
        for part in missing:
            wanted_BT[part.row, part.start : part.stop] = counts_BT[part.row, part.start : part.stop]
        values = self._ask(inputs, wanted_BT.to(device))
        first = added = 0
        for part in missing:
            counts_T = counts_BT[part.row, part.start : part.stop].numpy()
            last = first + int(counts_T.sum())
            entry = _entry(part, counts_BT)
            if entry not in self._known:  # else it stands twice in this batch
                self._keep(part.key, counts_T, {name: values[name][first:last] for name in VALUES})
                self._known.add(entry)
                added += last - first
            first = last
        if self._waiting_bytes >= self.shard_bytes:
            self.save()
        return added

    def _keep(self, key: bytes, counts_T: numpy.ndarray, values: dict[str, numpy.ndarray]) -> None:
        """Put one sequence among what waits for the next shard."""
        record = {
            "keys": numpy.frombuffer(key, numpy.uint8)[None],
            "tokens": numpy.array([len(counts_T)], numpy.int32),
            "positions": numpy.array([counts_T.sum()], numpy.int32),
            "counts": numpy.packbits(counts_T),
            **values,
        }
        self._waiting.append(record)
        self._waiting_bytes += sum(value.nbytes for value in record.values())

    def _ask(self, inputs: dict, wanted_BT: Tensor) -> dict[str, numpy.ndarray]:
        """Encoded values of all wanted positions; logits exist for a chunk at a time."""
        targets = self.teacher.targets(inputs, wanted_BT)
        if not isinstance(targets, HiddenTargets):
            raise ValueError(
                f"{type(self.teacher).__name__} gives no hidden states: a cache is made of a whole teacher"
            )
        size = chunk_tokens(self.identity.vocabulary, targets.hidden_NE.device.type)
        chunks = [empty_values(self.identity)]
        for hidden_CE in targets.hidden_NE.split(size):
            logits_CV = head_logits(hidden_CE.to(targets.head_VE.dtype), targets.head_VE, targets.softcap)
            chunks.append(encode(logits_CV, self.identity))
        return {name: numpy.concatenate([chunk[name] for chunk in chunks]) for name in VALUES}

    def save(self) -> None:
        """Write what waits as a shard, whole or not at all; nothing happens when nothing waits."""
        if not self._waiting:
            return
        self.check_room(self._waiting_bytes)
        names = self._waiting[0]
        tensors = {name: numpy.concatenate([record[name] for record in self._waiting]) for name in names}
        path = self.folder / f"shard-{self.process}-{len(self._own):05d}.safetensors"
        # `save_file` would make a file that only its owner may read
        write_whole(path, lambda draft: draft.write_bytes(save(tensors)))
        self._own.append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
                "sequences": len(tensors["keys"]),
                "tokens": int(tensors["positions"].sum()),
            }
        )
        self._write_state()
        self._waiting, self._waiting_bytes = [], 0

    def check_room(self, needed_bytes: int) -> None:
        """
        Raises:
            OSError: the disk has less room than `needed_bytes` and a little more.
        """
        free, needed = shutil.disk_usage(self.folder).free, needed_bytes + SPARE_BYTES
        if free < needed:
            raise OSError(
                f"the cache {self.folder} needs {needed / 1e9:,.2f} GB and its disk has {free / 1e9:,.2f} GB free: "
                "make room, name a folder elsewhere, or lower top_k; the same command goes on"
            )

    def finish(self) -> dict:
        """
        Write the last shard and, of all processes' shards, the index: its presence means finished.

        With several processes, each calls `save`, and when all have, one calls this.

        Returns:
            `dict`: the index.
        """
        self.save()
        return write_index(self.folder, self.identity)


def write_index(folder: Path, identity: CacheIdentity) -> dict:
    """Join what the processes wrote to one index, and forget that they were writing."""
    shards = begun_shards(folder, identity)
    tokens = sum(shard["tokens"] for shard in shards)
    size = sum(shard["bytes"] for shard in shards)
    index = {
        **asdict(identity),
        "sequences": sum(shard["sequences"] for shard in shards),
        "tokens": tokens,
        "bytes": size,
        "bytes_per_token": round(size / tokens, 2) if tokens else None,
        "shards": shards,
    }
    write_json(folder / INDEX, index)
    for state in folder.glob("writing-*.json"):
        state.unlink()
    return index


def check_folder(folder: Path) -> None:
    """Raise `ValueError` where something else than a cache is."""
    if folder.is_dir() and ((folder / INDEX).is_file() or any(folder.glob("writing-*.json"))):
        return
    if folder.is_file() or (folder.is_dir() and any(file.suffix != ".tmp" for file in folder.iterdir())):
        raise ValueError(f"{folder} exists and is no cache of a teacher: name a folder that is new or empty")


def begun_shards(folder: Path, identity: CacheIdentity) -> list[dict]:
    """
    The whole shards of a cache, finished or not; none where there is no folder.

    Raises:
        ValueError: the folder is something else, or a cache of something else.
    """
    states = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("writing-*.json"))]
    if (folder / INDEX).is_file():
        index = read_index(folder)
        states.insert(0, {**asdict(index["identity"]), "shards": index["shards"]})
    if not states:
        check_folder(folder)
    shards: dict[str, dict] = {}
    for state in states:
        listed = state.pop("shards")
        found = CacheIdentity(**state)
        if differing := identity.differences(found):
            name = differing[0]
            raise ValueError(
                f"the cache {folder} has another {', '.join(differing)} ({name}: {getattr(found, name)} there, "
                f"{getattr(identity, name)} here): name another folder, or delete it"
            )
        shards |= {shard["file"]: shard for shard in listed}
    check_shards(folder, list(shards.values()))
    return [shards[name] for name in sorted(shards)]


def _entry(sequence: Sequence, counts_BT: Tensor) -> bytes:
    """What makes a stored sequence the same as another: its content and which of its positions count."""
    counts_T = counts_BT[sequence.row, sequence.start : sequence.stop].numpy()
    return sequence.key + numpy.packbits(counts_T).tobytes()


def _entries(path: Path) -> set[bytes]:
    """`_entry` of every sequence in a shard."""
    try:
        with safe_open(path, framework="numpy") as file:
            keys, tokens, counts = (file.get_tensor(name) for name in ("keys", "tokens", "counts"))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): delete the cache's folder and make it again") from error
    assert keys.shape[1] == KEY_BYTES
    ends = numpy.cumsum((tokens + 7) // 8)
    return {key.tobytes() + packed.tobytes() for key, packed in zip(keys, numpy.split(counts, ends[:-1]), strict=True)}
