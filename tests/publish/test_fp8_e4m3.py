"""e4m3 against a table of all its codes in numpy, and at its limits."""

import numpy as np
import pytest
import torch

from hf_cascade.publish import e4m3


def table() -> np.ndarray:
    """The values of codes 0 to 126: exponent bias 7, subnormals below 2^-6; 127 is NaN."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


def nearest(values: np.ndarray) -> np.ndarray:
    """Round to the nearest value of the table, ties to the even code, beyond it to its end."""
    known = table()
    magnitude = np.minimum(np.abs(values.astype(np.float64)), known[-1])
    above = np.searchsorted(known, magnitude).clip(1, 126)
    below = above - 1
    up, down = known[above] - magnitude, magnitude - known[below]
    even = np.where(above % 2 == 0, above, below)
    chosen = np.where(up < down, above, np.where(down < up, below, even))
    return np.copysign(known[chosen], values)


ONE = torch.tensor(1.0)


def test_the_table_is_torchs():
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    assert table()[-1] == e4m3.LARGEST == 448
    assert (codes == table()).all()


@pytest.mark.parametrize("spread", [1e-4, 1.0, 300.0])
def test_codes_are_the_nearest(spread):
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * spread
    assert (e4m3.decode(e4m3.encode(values, ONE), ONE).numpy() == nearest(values.numpy())).all()


def test_ties_go_to_even():
    midpoints = torch.from_numpy((table()[1:] + table()[:-1]) / 2).float()
    assert (e4m3.decode(e4m3.encode(midpoints, ONE), ONE).numpy() == nearest(midpoints.numpy())).all()


def test_relative_error_is_at_most_a_seventeenth_above_the_subnormals():
    values = torch.rand(50_000, generator=torch.Generator().manual_seed(1)) * 448
    values = values[values >= 2**-6]
    error = (e4m3.decode(e4m3.encode(values, ONE), ONE) - values).abs() / values
    assert 0.058 < error.max() <= 1 / 17  # half a step at the middle between 1 and 1.125


@pytest.mark.parametrize("value", [449.0, 480.0, 1e5, 3e38, float("inf")])
def test_what_is_beyond_saturates_and_is_never_nan(value):
    codes = e4m3.encode(torch.tensor([value, -value]), ONE)
    assert e4m3.decode(codes, ONE).tolist() == [448, -448]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_and_the_smallest_and_largest_numbers(dtype):
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    for largest in (0.0, tiny, tiny / 4, huge):
        weight = torch.tensor([[largest, -largest / 2, 0.0]], dtype=dtype)
        scale = e4m3.scale_of(weight.abs().max())
        assert scale.dtype == torch.float32 and scale.shape == () and scale > 0 and scale.isfinite()
        restored = e4m3.decode(e4m3.encode(weight, scale), scale)
        assert restored.isfinite().all()
        if scale > e4m3.SMALLEST_SCALE:
            assert torch.allclose(restored, weight.float(), rtol=1 / 16, atol=0)
    assert e4m3.scale_of(torch.tensor(0.0)) == 1


def test_the_largest_number_takes_the_last_code():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)) * 0.02
    codes = e4m3.encode(weight, e4m3.scale_of(weight.abs().max()))
    assert codes.dtype == torch.float8_e4m3fn and codes.float().abs().max() == 448
