"""A teacher that was asked before training: its most likely tokens, read from a folder that `cache_writer.py` made.

For SFT-scale data, which is read several times: the teacher's forward is paid once. Shards are mapped, not loaded, so
the cache may be larger than memory.

B rows, T tokens of a row, N positions that count, K tokens kept, S sequences of the cache.
"""

import json
from dataclasses import fields
from pathlib import Path

import numpy
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hf_cascade.distill.cache_format import (
    INDEX,
    KEY_BYTES,
    SCHEMA,
    CacheIdentity,
    Sequence,
    decode,
    file_sha256,
    sequences,
)
from hf_cascade.distill.identity import tokenizer_sha256
from hf_cascade.distill.teacher import Teacher, TopKTargets

VALUES = ("ids_low", "ids_high", "log_probs", "tail")


def read_index(folder: str | Path) -> dict:
    """
    The index of a cache, `identity` as a [`CacheIdentity`].

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not finished, or of another version.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        if any(Path(folder).glob("writing-*.json")):
            raise ValueError(f"the cache {folder} is not finished: run the command that makes it once more")
        raise FileNotFoundError(f"{folder} holds no cache of a teacher ({INDEX}): trainers/cache_teacher.py makes one")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): make the cache again") from error
    schema = index.get("schema") if isinstance(index, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}; this hf-cascade reads {SCHEMA}: make the cache again")
    index["identity"] = CacheIdentity(**{field.name: index[field.name] for field in fields(CacheIdentity)})
    return index


def check_shards(folder: str | Path, shards: list[dict], hashes: bool = False) -> None:
    """
    See to it that the shards of an index are there and as long as they were; with `hashes`, the same to the last bit.

    Raises:
        ValueError: names the first that is not.
    """
    for shard in shards:
        path = Path(folder) / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            found = "is missing" if size is None else f"has {size:,} bytes and had {shard['bytes']:,}"
            raise ValueError(f"{path} {found}: copy the cache again, or delete its folder and make it again")
        if hashes and file_sha256(path) != shard["sha256"]:
            raise ValueError(f"{path} is damaged (its sha256 is another): copy the cache again, or make it again")


class CachedTeacher(Teacher):
    """
    Top-K targets from a folder.

    Args:
        folder (`str` or `Path`): the cache.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`, *optional*): the student's; must be the cache's.
        teacher_sha256 (`str`, *optional*): the fingerprint of the teacher that is meant; must be the cache's.
        verify (`bool`, *optional*, defaults to `False`): read every shard and compare its hash.

    Raises:
        FileNotFoundError: no cache there.
        ValueError: not finished, damaged, or of another tokenizer or teacher.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        teacher_sha256: str | None = None,
        verify: bool = False,
    ):
        self.folder = Path(folder)
        index = read_index(folder)
        self.identity: CacheIdentity = index["identity"]
        self.window, self.vocabulary = self.identity.window, self.identity.vocabulary
        if tokenizer is not None and tokenizer_sha256(tokenizer) != self.identity.tokenizer_sha256:
            raise ValueError(
                f"the cache {folder} was made with another tokenizer than the student's: its token ids mean other "
                "text. Make the cache with the student's tokenizer"
            )
        if teacher_sha256 not in (None, self.identity.teacher_sha256):
            raise ValueError(
                f"the cache {folder} is of {self.identity.teacher} ({self.identity.teacher_sha256[:12]}), and the "
                f"teacher named is another ({teacher_sha256[:12]}): make a cache of this one"
            )
        self.shards = index["shards"]
        check_shards(folder, self.shards, hashes=verify)
        self._files = [self._open(self.folder / shard["file"]) for shard in self.shards]  # mapped, not loaded
        self._places = Places(self._files)

    def __len__(self) -> int:
        """Sequences in the cache."""
        return len(self._places.keys)

    @staticmethod
    def _open(path: Path):
        try:
            return safe_open(path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({error}): copy the cache again, or make it again") from error

    def targets(self, inputs: dict, counts_BT: Tensor) -> TopKTargets:
        """
        As the base.

        Raises:
            ValueError: a sequence is not in the cache, or was stored without a position that counts here.
        """
        counts_BT = counts_BT.cpu()
        parts = [empty_values(self.identity)]  # alone, where nothing counts
        parts += [self._read(part, inputs, counts_BT) for part in sequences(inputs, counts_BT, self.identity)]
        targets = decode({name: numpy.concatenate([part[name] for part in parts]) for name in VALUES}, self.identity)
        device = inputs["input_ids"].device
        return TopKTargets(targets.ids_NK.to(device), targets.log_probs_NK.to(device))

    def check_holds(self, sequence: Sequence, inputs: dict, counts_BT: Tensor) -> None:
        """Raise `ValueError` unless all positions of a sequence that count are stored."""
        self._entry(sequence, inputs, counts_BT.cpu())

    def _entry(self, sequence: Sequence, inputs: dict, counts_BT: Tensor) -> tuple[int, numpy.ndarray, numpy.ndarray]:
        """The entry that has a sequence, which of its positions are stored, and which count here."""
        counts_T = counts_BT[sequence.row, sequence.start : sequence.stop].numpy()
        entries = self._places.of(sequence.key)
        for entry in entries:
            stored_T = self._places.stored(entry, self._files[self._places.shards[entry]])
            if not (counts_T & ~stored_T).any():
                return entry, stored_T, counts_T
        ids = inputs["input_ids"][sequence.row, sequence.start : sequence.stop].tolist()
        raise ValueError(self._complaint(ids, bool(entries)))

    def _read(self, sequence: Sequence, inputs: dict, counts_BT: Tensor) -> dict[str, numpy.ndarray]:
        entry, stored_T, counts_T = self._entry(sequence, inputs, counts_BT)
        first = self._places.first[entry]
        file = self._files[self._places.shards[entry]]
        values = {name: file.get_slice(name)[first : first + int(stored_T.sum())] for name in VALUES}
        asked_N = counts_T[stored_T]
        return values if asked_N.all() else {name: value[asked_N] for name, value in values.items()}

    def _complaint(self, ids: list[int], is_known: bool) -> str:
        what = f"a sequence of {len(ids):,} tokens ({', '.join(map(str, ids[:8]))}, ...)"
        if is_known:
            return (
                f"{what} is in the cache {self.folder}, but not all positions that count here: the cache was made with "
                "another loss mask (assistant_only_loss, completion_only_loss, teacher_window). Run "
                "trainers/cache_teacher.py on it once more with this stage's settings: it adds what is missing"
            )
        return (
            f"{what} is not in the cache {self.folder} of {len(self):,} sequences: other data, or made to other tokens "
            "(chat template, max_length, truncation, packing_strategy 'wrapped'). Run trainers/cache_teacher.py on it "
            "once more with this stage's settings: it adds what is missing"
        )


def empty_values(identity: CacheIdentity) -> dict[str, numpy.ndarray]:
    """No positions at all, in the shapes and types of `encode`."""
    high_bytes = -(-identity.k * identity.high_bits // 8)
    return {
        "ids_low": numpy.zeros((0, identity.k), numpy.uint16),
        "ids_high": numpy.zeros((0, high_bytes), numpy.uint8),
        "log_probs": numpy.zeros((0, identity.k), numpy.float16),
        "tail": numpy.zeros(0, numpy.float16),
    }


class Places:
    """
    Where the sequences are: about 80 bytes of memory each.

    Args:
        files (`list`): the open shards.
    """

    def __init__(self, files: list):
        per_shard = [{name: file.get_tensor(name) for name in ("keys", "tokens", "positions")} for file in files]
        self.keys = _join([part["keys"] for part in per_shard], (0, KEY_BYTES), numpy.uint8)  # [S, KEY_BYTES]
        self.tokens = _join([part["tokens"] for part in per_shard])
        self.shards = numpy.repeat(numpy.arange(len(files)), [len(part["keys"]) for part in per_shard])
        self.first = _join([_before(part["positions"]) for part in per_shard])
        self._first_byte = _join([_before((part["tokens"] + 7) // 8) for part in per_shard])
        prefixes = numpy.ascontiguousarray(self.keys[:, :8]).view("<u8").reshape(-1)
        self._order = numpy.argsort(prefixes, kind="stable")
        self._sorted = prefixes[self._order]

    def of(self, key: bytes) -> list[int]:
        """Entries of a key: more than one when a sequence was stored with several loss masks."""
        prefix = numpy.frombuffer(key[:8], "<u8")[0]
        low, high = numpy.searchsorted(self._sorted, prefix, "left"), numpy.searchsorted(self._sorted, prefix, "right")
        return [int(entry) for entry in self._order[low:high] if self.keys[entry].tobytes() == key]

    def stored(self, entry: int, file) -> numpy.ndarray:
        """Which positions of a sequence are stored, [T] bool."""
        tokens, first = int(self.tokens[entry]), int(self._first_byte[entry])
        packed = file.get_slice("counts")[first : first + (tokens + 7) // 8]
        return numpy.unpackbits(packed, count=tokens).astype(bool)


def _before(sizes: numpy.ndarray) -> numpy.ndarray:
    """Sum of all sizes before each."""
    return numpy.cumsum(sizes, dtype=numpy.int64) - sizes


def _join(parts: list, shape: tuple = (0,), dtype=numpy.int64) -> numpy.ndarray:
    return numpy.concatenate([numpy.zeros(shape, dtype), *parts])
