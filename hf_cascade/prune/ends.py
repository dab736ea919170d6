"""The two ends of a child: its embedding, and its final norm and head (paper section 2).

    embed <- E Q    head <- W diag(g) Q    norm <- sqrt(d_old / d_new)

A tied child has one matrix for both, see `prune.tie`. Rows are worked on in chunks: a vocabulary of 131,072 makes these
matrices as large as a decoder layer.

D parent hidden, k child hidden, V vocabulary, C rows of a chunk
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

CHUNK_ENTRIES = 2**22  # of a float64 chunk, 32 MB; ours


def norm_factor(rotation_Dk: Tensor) -> float:
    """sqrt(d_old / d_new): what a norm of the narrower stream must multiply by, since RMSNorm divides by its width."""
    return math.sqrt(rotation_Dk.shape[0] / rotation_Dk.shape[1])


def fold(weight_OD: Tensor, gain_D: Tensor, rotation_Dk: Tensor | None) -> Tensor:
    """A reader's weight in the rotated stream, the norm's gain folded in: W diag(g) Q, [O, k]."""
    return weight_OD if rotation_Dk is None else (weight_OD * gain_D) @ rotation_Dk.to(weight_OD)


def narrow(weight_DO: Tensor, rotation_Dk: Tensor | None) -> Tensor:
    """A writer's weight (or bias) in the rotated stream: Q^T W, [k, O] (or [k])."""
    return weight_DO if rotation_Dk is None else rotation_Dk.to(weight_DO).t() @ weight_DO


def set_parameter(module: nn.Module, value: Tensor, name: str = "weight") -> None:
    """Overwrite a parameter with a value of the same shape, in the parameter's type."""
    parameter = getattr(module, name)
    if parameter.shape != value.shape:
        raise AssertionError(f"{name} is {tuple(parameter.shape)} and the value {tuple(value.shape)}")
    parameter.data.copy_(value)


def row_chunks(weight_VD: Tensor) -> list[slice]:
    """The rows of a large matrix, a chunk at a time."""
    step = max(1, CHUNK_ENTRIES // weight_VD.shape[1])
    return [slice(start, start + step) for start in range(0, len(weight_VD), step)]


def map_rows(
    weight_VD: Tensor, change: Callable[[Tensor], Tensor], width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """
    `change` applied to chunks of rows in float64 on `device`.

    Returns:
        `Tensor`: [V, width] in `dtype`, where the weight is.
    """
    result_Vk = torch.empty(len(weight_VD), width, dtype=dtype, device=weight_VD.device)
    for rows in row_chunks(weight_VD):
        result_Vk[rows] = change(weight_VD[rows].to(device, torch.float64))
    return result_Vk


def rotated_embedding(
    embedding_VD: Tensor, rotation_Dk: Tensor | None, scale: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """E Q, times `scale` where both models multiply their embedding's output by numbers of their own: [V, k]."""
    if rotation_Dk is None:
        return embedding_VD.to(dtype)
    return map_rows(embedding_VD, lambda rows: rows @ rotation_Dk * scale, rotation_Dk.shape[1], dtype, device)


def read_head(head_VD: Tensor, gain_D: Tensor, read_Dk: Tensor, dtype: torch.dtype) -> Tensor:
    """A head's weight for another stream, the final norm's gain folded in: W diag(g) B, [V, k]."""
    gained_Dk = gain_D.double().unsqueeze(1) * read_Dk
    return map_rows(head_VD, lambda rows: rows @ gained_Dk, read_Dk.shape[1], dtype, gained_Dk.device)
