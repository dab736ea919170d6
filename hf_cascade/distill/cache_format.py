"""What a cache of a teacher's logits looks like on disk: its index, its values, and the sequences they belong to.

A folder of `index.json` and safetensors shards. A position has its K most likely tokens and one number for all others:
17 bits an id at a vocabulary of 131,072, fp16 log probabilities, and the fp16 log probability of the tail, which could
not be had from the others (1 minus their rounded sum). A sequence is found by its content: the hash of its token ids
and images. So shuffling, batches, padding, packing and epochs do not matter, and other data is not found.

B rows, T tokens of a row, N positions, C positions of a chunk, V vocabulary, K tokens kept, H bytes of ids' high bits.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from hf_cascade.distill.identity import model_sha256, tokenizer_sha256
from hf_cascade.distill.teacher import TopKTargets

SCHEMA = 1
INDEX = "index.json"
DTYPE = "float16"
KEY_BYTES = 32
LEAST_TAIL = 1e-6  # ours: a tail reads back as at least this, far above what fp32 loses in summing K probabilities
# What a batch may hold: the first decide what the teacher says, the rest says the same again, for attention kernels.
READ = ("input_ids", "attention_mask", "position_ids", "pixel_values", "image_sizes")
IGNORED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


@dataclass(frozen=True)
class CacheIdentity:
    """
    Whose logits a cache holds, and how.

    Args:
        teacher (`str`): its name; only for people.
        teacher_sha256 (`str`): see [`~hf_cascade.distill.identity.model_sha256`].
        tokenizer_sha256 (`str`): see [`~hf_cascade.distill.identity.tokenizer_sha256`].
        k (`int`): tokens kept of each position.
        vocabulary (`int`): V, rows of the teacher's head.
        window (`int`): tokens the teacher was made for.
        image_token_id (`int`, *optional*): what stands for a piece of an image, of a teacher that reads them.
        image_token_pixels (`int`, *optional*): side of the square of pixels one such token stands for.
        dtype (`str`, *optional*): of the values.
        schema (`int`, *optional*): version of this format.
    """

    teacher: str
    teacher_sha256: str
    tokenizer_sha256: str
    k: int
    vocabulary: int
    window: int
    image_token_id: int | None = None
    image_token_pixels: int | None = None
    dtype: str = DTYPE
    schema: int = SCHEMA

    def __post_init__(self):
        if not 1 <= self.k <= self.vocabulary:
            raise ValueError(f"k={self.k}: allowed is 1 to {self.vocabulary}, the teacher's vocabulary")

    @classmethod
    def of(
        cls, model: PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, k: int
    ) -> "CacheIdentity":
        """The identity of a cache of `model`'s `k` most likely tokens; `model` is whole, not sharded."""
        patch = getattr(getattr(model.config, "vision_config", None), "patch_size", None)
        merge = getattr(model.config, "spatial_merge_size", 1)
        return cls(
            teacher=name,
            teacher_sha256=model_sha256(model),
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            k=k,
            vocabulary=model.get_output_embeddings().weight.shape[0],
            window=model.config.get_text_config().max_position_embeddings,
            image_token_id=getattr(model.config, "image_token_id", None) if patch else None,
            image_token_pixels=patch * merge if patch else None,
        )

    @property
    def high_bits(self) -> int:
        """Bits of an id above the lower 16."""
        return max(0, (self.vocabulary - 1).bit_length() - 16)

    @property
    def bytes_per_token(self) -> int:
        """Disk of one position: ids, log probabilities, tail. A sequence has 40 bytes and one bit a token beside it."""
        return 2 * self.k + -(-self.k * self.high_bits // 8) + 2 * self.k + 2

    def differences(self, other: "CacheIdentity") -> list[str]:
        """What is not the same in two identities; the name does not count."""
        ours, theirs = asdict(self), asdict(other)
        return [name for name in ours if name != "teacher" and ours[name] != theirs[name]]


@dataclass(frozen=True)
class Sequence:
    """Tokens `start` to `stop` of a batch's `row` that see nothing outside, and the hash of what they are."""

    key: bytes
    row: int
    start: int
    stop: int


def sequences(inputs: dict, counts_BT: Tensor, identity: CacheIdentity) -> list[Sequence]:
    """
    The sequences of a batch that have positions that count, row by row.

    A row is one sequence without its padding; where `position_ids` start again at 0, another one begins.

    Args:
        inputs (`dict`): what the teacher reads.
        counts_BT (`Tensor`): the positions that count, [B, T] bool.
        identity (`CacheIdentity`): of the cache.

    Raises:
        ValueError: the batch holds something that cannot be told from another (padding on the left, parts of
            sequences, images without sizes, inputs nobody knows).
    """
    unknown = sorted(set(inputs) - {*READ, *IGNORED})
    if unknown:
        raise ValueError(f"a cached teacher knows no input {', '.join(unknown)}: allowed are {', '.join(READ)}")
    ids_BT, counts_BT = inputs["input_ids"].cpu(), counts_BT.cpu()
    lengths_B = _lengths(inputs, ids_BT)
    starts_BT = _starts(inputs, ids_BT, lengths_B)
    images, found, counted = _Images(inputs, identity), [], 0
    tokens_BT = ids_BT.to(torch.int32).numpy()
    for row, length in enumerate(lengths_B.tolist()):
        starts = starts_BT[row].nonzero().flatten().tolist()
        for start, stop in zip(starts, [*starts[1:], length], strict=True):
            tokens_T, here = tokens_BT[row, start:stop], int(counts_BT[row, start:stop].sum())
            own = images.take(tokens_T)
            if here > 0:
                found.append(Sequence(_key(tokens_T, own), row, start, stop))
                counted += here
    if counted != int(counts_BT.sum()):
        raise ValueError("positions in the padding count: labels there must be -100")
    return found


def _lengths(inputs: dict, ids_BT: Tensor) -> Tensor:
    """Tokens of each row without its padding, [B]."""
    mask_BT = inputs.get("attention_mask")
    if mask_BT is None:
        return torch.full(ids_BT.shape[:1], ids_BT.shape[1])
    mask_BT = mask_BT.cpu()
    if mask_BT.shape != ids_BT.shape or (mask_BT[:, 1:] > mask_BT[:, :-1]).any():
        raise ValueError(
            f"attention_mask {list(mask_BT.shape)} of input_ids {list(ids_BT.shape)}: a cached teacher needs a mask of "
            "the same shape with the padding on the right"
        )
    return (mask_BT != 0).sum(1)


def _starts(inputs: dict, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Where a sequence begins, [B, T] bool; never in the padding."""
    places_T = torch.arange(ids_BT.shape[1])
    inside_BT = places_T < lengths_B[:, None]
    position_BT = inputs.get("position_ids")
    if position_BT is None:
        return (places_T == 0) & inside_BT
    position_BT = position_BT.cpu()
    whole = position_BT.shape == ids_BT.shape and bool(((position_BT[:, 0] == 0) | (lengths_B == 0)).all())
    if whole:
        goes_on_BT = (position_BT.diff(dim=1) == 1) | (position_BT[:, 1:] == 0) | ~inside_BT[:, 1:]
        whole = bool(goes_on_BT.all())
    if not whole:
        raise ValueError(
            f"position_ids {list(position_BT.shape)} of input_ids {list(ids_BT.shape)} do not count up from 0 in each "
            "sequence: a cached teacher knows whole sequences, not their parts (no context or sequence parallelism)"
        )
    return (position_BT == 0) & inside_BT


class _Images:
    """The batch's images without their padding: a sequence takes as many as its image tokens stand for."""

    def __init__(self, inputs: dict, identity: CacheIdentity):
        self.pixels, self.sizes = inputs.get("pixel_values"), []
        self.identity, self.next = identity, 0
        if self.pixels is None:
            return
        if identity.image_token_id is None or "image_sizes" not in inputs or self.pixels.dim() != 4:
            raise ValueError(
                "a cached teacher knows images as pixel_values [images, channels, height, width] with image_sizes, of "
                "a teacher that reads them; this batch or this cache is another"
            )
        self.sizes = inputs["image_sizes"].tolist()

    def take(self, tokens_T: numpy.ndarray) -> list[Tensor]:
        """The next sequence's images, [channels, height, width] each."""
        if self.pixels is None:
            return []
        left, own = int((tokens_T == self.identity.image_token_id).sum()), []
        while left > 0 and self.next < len(self.sizes):
            height, width = self.sizes[self.next]
            own.append(self.pixels[self.next, :, :height, :width])
            left -= (height // self.identity.image_token_pixels) * (width // self.identity.image_token_pixels)
            self.next += 1
        if left != 0:
            raise ValueError("a sequence's image tokens do not fit its images: was one with images truncated?")
        return own


def _key(tokens_T: numpy.ndarray, images: list[Tensor]) -> bytes:
    digest = hashlib.sha256(len(tokens_T).to_bytes(8, "little") + tokens_T.astype("<i4").tobytes())
    for image in images:
        digest.update(str(list(image.shape)).encode() + image.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def encode(logits_CV: Tensor, identity: CacheIdentity) -> dict[str, numpy.ndarray]:
    """
    Logits as they are stored; the logits are destroyed.

    Args:
        logits_CV (`Tensor`): the teacher's, fp32, at temperature 1.
        identity (`CacheIdentity`): of the cache.

    Returns:
        `dict[str, numpy.ndarray]`: `ids_low` [C, K] uint16, `ids_high` [C, H] uint8, `log_probs` [C, K] and `tail` [C],
        both fp16.

    Raises:
        FloatingPointError: the logits hold NaN or infinity.
    """
    norm_C1 = logits_CV.logsumexp(-1, keepdim=True)
    if not norm_C1.isfinite().all():
        raise FloatingPointError("the teacher's logits are not finite: try teacher_dtype=float32 (or bfloat16)")
    top_CK, ids_CK = logits_CV.topk(identity.k)
    tail_C = logits_CV.scatter_(1, ids_CK, -torch.inf).logsumexp(-1) - norm_C1.squeeze(1)
    ids = ids_CK.cpu().numpy()
    planes_CK = [(ids >> bit) & 1 for bit in range(16, 16 + identity.high_bits)]
    high = numpy.concatenate(planes_CK, axis=1) if planes_CK else numpy.zeros((len(ids), 0))
    return {
        "ids_low": (ids & 0xFFFF).astype(numpy.uint16),
        "ids_high": numpy.packbits(high.astype(numpy.uint8), axis=1),
        "log_probs": (top_CK - norm_C1).to(torch.float16).cpu().numpy(),
        "tail": tail_C.to(torch.float16).cpu().numpy(),
    }


def decode(values: dict[str, numpy.ndarray], identity: CacheIdentity) -> TopKTargets:
    """
    What `encode` made, as targets; fp16's rounding is made good so that tokens and tail together have probability 1.

    A tail reads back as at least `LEAST_TAIL`; with K = V there is none.
    """
    ids_NK = values["ids_low"].astype(numpy.int64)
    bits = numpy.unpackbits(values["ids_high"], axis=1, count=identity.high_bits * identity.k)
    for plane in range(identity.high_bits):
        ids_NK |= bits[:, plane * identity.k : (plane + 1) * identity.k].astype(numpy.int64) << (16 + plane)
    log_probs_NK = torch.from_numpy(values["log_probs"]).double()
    norm_N1 = log_probs_NK.logsumexp(-1, keepdim=True)
    if identity.k < identity.vocabulary:
        tail_N1 = torch.from_numpy(values["tail"]).double().clamp(min=numpy.log(LEAST_TAIL)).unsqueeze(1)
        norm_N1 = torch.logaddexp(norm_N1, tail_N1)
    return TopKTargets(torch.from_numpy(ids_NK), (log_probs_NK - norm_N1).float())


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary name and move the file to `path`: after a crash it is whole or not there."""
    draft = path.with_name(f".{path.name}.tmp")
    write(draft)
    with open(draft, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)


def write_json(path: Path, content: dict) -> None:
    """`content` as a JSON file, whole or not at all."""
    write_whole(path, lambda draft: draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
