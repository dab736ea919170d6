"""The temperature against a brute-force grid, and the figures against hand-written ones."""

import math

import numpy as np
import pytest
import torch

from hf_cascade.rewards import calibration
from hf_cascade.rewards.calibration import fit_temperature, measure, reliability


def sample(count: int, seed: int, soft: bool, sharpness: float):
    """Logits `sharpness` times as large as those the targets come from."""
    draw = np.random.default_rng(seed)
    z = draw.normal(0, 1.5, count)
    p = 1 / (1 + np.exp(-z))
    targets = p if soft else (draw.random(count) < p).astype(float)
    return torch.tensor(sharpness * z), torch.tensor(targets)


def nll(logits, targets, temperature) -> float:
    """-p log q - (1 - p) log(1 - q), pair by pair."""
    z, p = logits.numpy() / temperature, targets.numpy()
    return float(np.mean(p * np.logaddexp(0, -z) + (1 - p) * np.logaddexp(0, z)))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0])
def test_the_temperature_is_the_grids(soft, sharpness):
    logits, targets = sample(200, 3, soft, sharpness)
    grid = np.geomspace(0.05, 20, 1500)
    best = grid[int(np.argmin([nll(logits, targets, temperature) for temperature in grid]))]
    fitted = fit_temperature(logits, targets)
    assert fitted == pytest.approx(best, rel=0.005)
    assert nll(logits, targets, fitted) <= nll(logits, targets, best) + 1e-12
    assert fitted == pytest.approx(sharpness, rel=1e-9 if soft else 0.35)


def test_three_times_too_sure_is_found_and_mended():
    fit, report = sample(4000, 0, False, 3.0), sample(4000, 1, False, 3.0)
    temperature = fit_temperature(*fit)
    before, after = measure(*report), measure(*report, temperature)
    assert temperature == pytest.approx(3, abs=0.25)
    assert before["ece"] > 0.1 and after["ece"] < 0.03
    assert after["nll"] < before["nll"] and after["brier"] < before["brier"]
    assert after["accuracy"] == before["accuracy"]


def test_the_order_of_a_pair_does_not_count():
    logits, targets = sample(300, 5, False, 2.0)
    swap = torch.arange(300) % 3 == 0
    swapped = torch.where(swap, -logits, logits), torch.where(swap, 1 - targets, targets)
    assert fit_temperature(*swapped) == pytest.approx(fit_temperature(logits, targets))
    assert measure(*swapped) == pytest.approx(measure(logits, targets))


@pytest.mark.parametrize(
    ("logits", "targets", "bound"),
    [([1.0, -2.0], [0.0, 1.0], 1e2), ([1.0, -2.0], [1.0, 0.0], 1e-2), ([0.0, 0.0], [1.0, 0.0], 1e2)],
)
def test_bounds_are_told(logits, targets, bound, capsys):
    assert fit_temperature(torch.tensor(logits), torch.tensor(targets)) == bound
    assert f"bound of {bound:g}" in capsys.readouterr().err


def test_extreme_logits_end_too(capsys):
    logits = torch.tensor([1e4, -1e4, 2.0, -2.0, 2.0, 1.0])
    fitted = fit_temperature(logits, torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]))
    assert 1e-2 < fitted < 1e2 and capsys.readouterr().err == ""


def test_what_cannot_be_fitted_is_refused():
    for logits in ([], [math.nan], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="finite logits"):
            fit_temperature(torch.tensor(logits), torch.ones(len(logits)))
    with pytest.raises(ValueError, match="no pairs"):
        measure(torch.zeros(0), torch.zeros(0))


def test_figures_by_hand():
    q = torch.tensor([0.9, 0.2, 0.62, 0.5, 1.0])
    p = torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0])
    # confidences .9, .8, .62, .5, 1 and how often the preferred is preferred 1, .5, 0, 1, 1
    rows = reliability(q, p, bins=2)
    assert [row["pairs"] for row in rows] == [2, 3]
    assert [row["confidence"] for row in rows] == pytest.approx([0.56, 0.9])
    assert [row["frequency"] for row in rows] == pytest.approx([0.5, 2.5 / 3])
    figures = measure(torch.logit(q[:4]), p[:4])
    assert figures["brier"] == pytest.approx((0.01 + 0.09 + 0.62**2 + 0.25) / 4)
    assert figures["nll"] == pytest.approx(nll(torch.logit(q[:4]), p[:4], 1.0))
    assert figures["ece"] == pytest.approx((0.1 + 0.3 + 0.62 + 0.5) / 4)
    assert figures["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)  # the even one counts half, the tie not at all


def test_a_picture_is_drawn(tmp_path):
    calibration.draw(*sample(50, 0, True, 3.0), 3.0, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5000
