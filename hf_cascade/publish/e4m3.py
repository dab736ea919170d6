"""Numbers of eight bits, e4m3: sign, four bits of exponent, three of mantissa; up to 448 (paper section 7).

Per tensor and static: one fp32 scale for a whole tensor, known before it is used. A value is `code * scale`.
"""

import torch
from torch import Tensor

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max  # 448
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a scale below it would be rounded away, and values divided by zero


def scale_of(largest: Tensor) -> Tensor:
    """The scale at which `largest`, the largest magnitude of a tensor, becomes 448; 1 for a tensor of zeros."""
    largest = largest.float()
    return torch.where(largest > 0, (largest / LARGEST).clamp(min=SMALLEST_SCALE), torch.ones_like(largest))


def encode(values: Tensor, scale: Tensor) -> Tensor:
    """
    The nearest codes of `values`, ties to even; what is beyond the range, infinity too, becomes its end.

    Args:
        values (`Tensor`): of any shape and float type.
        scale (`Tensor`): one fp32 number.
    """
    return (values.float() / scale).clamp_(-LARGEST, LARGEST).to(DTYPE)


def decode(codes: Tensor, scale: Tensor) -> Tensor:
    """The fp32 values of codes."""
    return codes.float() * scale
