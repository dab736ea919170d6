"""Temperature and calibration of win probabilities (paper section 4: the reward model is calibrated)."""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

BOUNDS = (1e-2, 1e2)  # of the temperature; ours: paper silent
BINS = 10  # between confidence 0.5 and 1; ours: paper silent
STEPS = 100  # far more than Newton's method or bisection to 1e-12 needs

# N pairs


def fit_temperature(logits_N: Tensor, targets_N: Tensor) -> float:
    """
    The temperature T at which sigmoid(logit / T) has the least negative log-likelihood.

    The NLL is convex in s = 1 / T, with the derivative mean(z (sigmoid(s z) - p)): Newton's method, and bisection where
    a step would leave the interval that holds the minimum.

    Args:
        logits_N (`Tensor`): log-odds of the first response at temperature 1.
        targets_N (`Tensor`): P(first preferred), 0 to 1.

    Returns:
        `float`: within `BOUNDS`; a warning on stderr where it is one of them: at the upper the model ranks no better
        than chance, at the lower it hardly ever errs.

    Raises:
        ValueError: no pairs, or a logit that is no number.
    """
    z, p = logits_N.double(), targets_N.double()
    if len(z) == 0 or not bool(torch.isfinite(z).all()):
        raise ValueError(f"a temperature needs at least one pair, and finite logits: {len(z)} pairs, {z.tolist()[:5]}")

    def slope(s: float) -> float:
        """Of the mean NLL by s = 1 / T: rising, since the NLL is convex in s."""
        return float((z * (torch.sigmoid(s * z) - p)).mean())

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    if slope(low) >= 0 or slope(high) <= 0:
        bound = BOUNDS[1] if slope(low) >= 0 else BOUNDS[0]
        print(
            f"hf-cascade: warning: temperature at its bound of {bound:g}: on these pairs still "
            f"{'softer' if bound == BOUNDS[1] else 'sharper'} probabilities would fit better",
            file=sys.stderr,
        )
        return bound
    s = 1.0
    for _ in range(STEPS):
        gradient = slope(s)
        low, high = (s, high) if gradient < 0 else (low, s)
        q = torch.sigmoid(s * z)
        curvature = float((z**2 * q * (1 - q)).mean())
        step = gradient / curvature if curvature > 0 else math.inf
        new = s - step if low < s - step < high else math.sqrt(low * high)
        if abs(new - s) <= 1e-12 * s:
            break
        s = new
    return 1 / s


def reliability(probabilities_N: Tensor, targets_N: Tensor, bins: int = BINS) -> list[dict]:
    """
    How often the response that a model prefers is preferred, by the model's confidence.

    Seen from the preferred response, so that the order of a pair does not count: confidence max(p, 1 - p), from 0.5 to
    1 in `bins` equal bins.

    Returns:
        `list[dict]`: `pairs`, mean `confidence` and `frequency` of each bin that has pairs.
    """
    p, t = probabilities_N.double(), targets_N.double()
    prefers_first = p >= 0.5
    confidence, right = torch.where(prefers_first, p, 1 - p), torch.where(prefers_first, t, 1 - t)
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    rows = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            rows.append(
                {
                    "pairs": int(inside.sum()),
                    "confidence": float(confidence[inside].mean()),
                    "frequency": float(right[inside].mean()),
                }
            )
    return rows


def measure(logits_N: Tensor, targets_N: Tensor, temperature: float = 1.0) -> dict[str, float]:
    """
    Quality of sigmoid(logit / temperature) as P(first preferred).

    Returns:
        `dict`: `nll` in nats (its least value is the targets' own entropy), `brier` mean((q - p)^2), `ece` as
        [`reliability`]'s mean |confidence - frequency| over pairs, `accuracy` over pairs whose target is not 0.5, where
        an even logit counts half; `nan` where there is none.

    Raises:
        ValueError: no pairs.
    """
    if len(logits_N) == 0:
        raise ValueError("no pairs to measure")
    z, p = logits_N.double() / temperature, targets_N.double()
    q = torch.sigmoid(z)
    decided = p != 0.5
    right = ((z > 0) == (p > 0.5)).double().where(z != 0, 0.5)
    bins = reliability(q, p)
    return {
        "nll": float((torch.nn.functional.softplus(z) - p * z).mean()),
        "brier": float(((q - p) ** 2).mean()),
        "ece": sum(row["pairs"] * abs(row["confidence"] - row["frequency"]) for row in bins) / len(z),
        "accuracy": float(right[decided].mean()),
    }


def calibrate(model, fit: list, report: list, folder: Path) -> dict:
    """
    Set the temperature of a reward model on some pairs, measure it on others, and keep both in its folder.

    Args:
        model (`PairwiseRewardModel`): its temperature is set.
        fit (`list[Pair]`): sets the temperature.
        report (`list[Pair]`): measures it; none of `fit`.
        folder (`Path`): decision.json, and the picture `reliability.png`, are written there.

    Returns:
        `dict`: `temperature`, `fit_pairs` and `report_pairs`, [`measure`] `before` and `after`, and the reward model's
        `last_metrics` on `report`.
    """

    def score(pairs: list) -> tuple[Tensor, Tensor]:
        """Log-odds [P] of the first response, and the labels [P]."""
        targets = torch.tensor([pair.probability for pair in pairs], dtype=torch.float64)
        return model.log_odds([pair[:3] for pair in pairs]), targets

    temperature = model.comparison.temperature = fit_temperature(*score(fit))
    logits_N, targets_N = score(report)  # after it, `last_metrics` are of the temperature in use
    model.comparison.save_pretrained(folder)
    draw(logits_N, targets_N, temperature, Path(folder) / "reliability.png")
    return {
        "temperature": temperature,
        "fit_pairs": len(fit),
        "report_pairs": len(report),
        "before": measure(logits_N, targets_N),
        "after": measure(logits_N, targets_N, temperature),
        **model.last_metrics,
    }


def draw(logits_N: Tensor, targets_N: Tensor, temperature: float, path: Path) -> None:
    """Reliability at temperature 1 and at `temperature`, as a picture."""
    from matplotlib import pyplot as plt

    from hf_cascade import plots

    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 4.4))
        axes.plot([0.5, 1], [0.5, 1], color=plots.GREY, linewidth=1, linestyle=(0, (4, 3)))
        handles = []
        for number, (label, value) in enumerate((("before", 1.0), (f"T = {temperature:.3g}", temperature))):
            bins = reliability(torch.sigmoid(logits_N.double() / value), targets_N)
            x, y = [row["confidence"] for row in bins], [row["frequency"] for row in bins]
            colour, marker = plots.COLOURS[number], plots.MARKERS[number]
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.5)
            largest = max(row["pairs"] for row in bins)
            axes.scatter(x, y, [20 + 100 * row["pairs"] / largest for row in bins], colour, marker=marker, zorder=3)
            handles.append(plots.key(f"{label}, ECE {measure(logits_N, targets_N, value)['ece']:.3f}", colour, marker))
        axes.set(xlabel="confidence in the preferred response", ylabel="how often it is preferred")
        axes.set_title("Reliability of the win probability", pad=26)
        axes.legend(handles=handles, **plots.UNDER_TITLE, ncols=2)
        plots.save(figure, path)
