"""What travels between a teacher's server and its clients: safetensors bytes, never pickles, checked on both sides.

B rows, T tokens of a row, N positions that count, E the teacher's hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

SERVICE, PROTOCOL = "hf-cascade teacher", 1
TOKEN_VARIABLE = "HF_CASCADE_TEACHER_TOKEN"
SHA256_HEADER = "X-Teacher-Sha256"
TEXT_INPUTS = ("input_ids", "position_ids", "attention_mask")  # [B, T] each
INPUTS = (*TEXT_INPUTS, "pixel_values", "image_sizes")
COUNTS, HIDDEN, HEAD = "counts_BT", "hidden_NE", "head_VE"
WHOLE_NUMBERS = (torch.int64, torch.int32, torch.bool)


@dataclass(frozen=True)
class TeacherInfo:
    """
    What a server says of its teacher.

    Attributes:
        service (`str`): `SERVICE`.
        protocol (`int`): `PROTOCOL`.
        model (`str`): the teacher's folder or Hub id, for people.
        sha256 (`str`): `model_sha256`; every answer carries it too.
        tokenizer_sha256 (`str`): `tokenizer_sha256`.
        vocabulary (`int`): V.
        hidden_size (`int`): E.
        dtype (`str`): type of the hidden states.
        window (`int`): tokens the teacher was made for.
        softcap (`float`, *optional*): final soft cap of its logits.
        max_request_bytes (`int`): longer requests are refused.
    """

    service: str
    protocol: int
    model: str
    sha256: str
    tokenizer_sha256: str
    vocabulary: int
    hidden_size: int
    dtype: str
    window: int
    softcap: float | None
    max_request_bytes: int


def check_token(token: str | None) -> str | None:
    """`token` without space around it, None when empty. A `ValueError` about it does not show it."""
    token = (token or "").strip()
    if not (token.isascii() and token.isprintable()):
        raise ValueError(f"the token ({TOKEN_VARIABLE}) holds characters that are not printable ASCII")
    return token or None


def pack_request(inputs: dict, counts_BT: Tensor) -> bytes:
    """
    A batch as the body of a request.

    Args:
        inputs (`dict`): tensors that the teacher reads; entries that are None are left out.
        counts_BT (`Tensor`): the positions that count, [B, T] bool.

    Raises:
        ValueError: an input that does not travel.
    """
    inputs = {name: value for name, value in inputs.items() if value is not None}
    for name, value in inputs.items():
        if name not in INPUTS or not isinstance(value, Tensor):
            raise ValueError(f"{name} ({type(value).__name__}) cannot be sent: a teacher reads {', '.join(INPUTS)}")
    tensors = {**inputs, COUNTS: counts_BT}
    # copied, because safetensors refuses tensors that share memory
    return save({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()})


def unpack_request(body: bytes, vocabulary: int) -> tuple[dict[str, Tensor], Tensor]:
    """
    The inputs and counts in a request's body, safe to run a model on: a GPU does not survive an id out of range.

    Raises:
        ValueError: they are not what a teacher reads.
    """
    tensors = _load(body)
    unknown = sorted(tensors.keys() - {*INPUTS, COUNTS})
    if unknown or not {"input_ids", COUNTS} <= tensors.keys():
        raise ValueError(
            f"{sorted(tensors)} were sent: allowed are {', '.join(INPUTS)}; input_ids and {COUNTS} must be"
        )
    counts_BT = tensors.pop(COUNTS)
    input_ids_BT = tensors["input_ids"]
    if input_ids_BT.dim() != 2 or input_ids_BT.numel() == 0 or input_ids_BT.dtype not in WHOLE_NUMBERS[:2]:
        raise ValueError(f"input_ids is {_describe(input_ids_BT)}: it must be [B, T] int64, at least one token")
    for name, tensor in {COUNTS: counts_BT, **tensors}.items():
        if name not in (COUNTS, *TEXT_INPUTS):
            continue
        if tensor.shape != input_ids_BT.shape or tensor.dtype not in WHOLE_NUMBERS:
            raise ValueError(
                f"{name} is {_describe(tensor)}: its shape must be {list(input_ids_BT.shape)}, whole numbers"
            )
        if int(tensor.min()) < 0:
            raise ValueError(f"{name} holds negative numbers")
    if counts_BT.dtype != torch.bool:
        raise ValueError(f"{COUNTS} is {_describe(counts_BT)}: it must be bool")
    if int(input_ids_BT.max()) >= vocabulary:
        raise ValueError(f"input_ids holds {int(input_ids_BT.max())}, and the teacher's vocabulary is {vocabulary}")
    return tensors, counts_BT


def pack_answer(name: str, tensor: Tensor) -> bytes:
    """One tensor as the body of an answer."""
    return save({name: tensor.detach().cpu().contiguous()})


def unpack_answer(body: bytes, name: str, shape: tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
    """
    The tensor in an answer's body.

    Args:
        body (`bytes`): the answer.
        name (`str`): the tensor's name.
        shape (`tuple[int, int]`): what its shape must be.
        dtype (`torch.dtype`, *optional*): what its type must be; unset, any floating type.

    Raises:
        ValueError: it is another, or holds NaN or infinity.
    """
    tensors = _load(body)
    if tensors.keys() != {name}:
        raise ValueError(f"{sorted(tensors)} came back instead of {name}")
    tensor = tensors[name]
    is_right_type = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
    if tuple(tensor.shape) != shape or not is_right_type:
        raise ValueError(
            f"{name} came back as {_describe(tensor)} instead of {list(shape)} {dtype or 'floating point'}"
        )
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} came back with NaN or infinity: serve the teacher in bfloat16 or float32")
    return tensor


def _load(body: bytes) -> dict[str, Tensor]:
    try:
        return load(body)
    except SafetensorError as error:
        raise ValueError(f"{len(body)} bytes are no safetensors ({error})") from error


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}"
