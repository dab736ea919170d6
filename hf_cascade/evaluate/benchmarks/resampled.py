"""Confidence of a figure that is no plain mean: the bootstrap over a benchmark's rows (ours)."""

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000  # ours; Arena Hard's own script takes 100
SEED = 1234  # lm-eval's
LOW, HIGH = 0.05, 0.95  # quantiles, as Arena Hard's own script


def draw(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """
    The statistic of resamples of rows.

    Args:
        sums (`np.ndarray`): a line a row, (rows, columns); the statistic is made of the columns' sums over rows.
        statistic (`Callable`): from sums, (resamples, columns), to values, (resamples,).

    Returns:
        `np.ndarray`: RESAMPLES values, the same for the same rows; those that are not defined are left out.
    """
    rows = len(sums)
    times = np.random.default_rng(SEED).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = statistic(times @ sums)
    return values[np.isfinite(values)]


def quantile(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], share: float) -> float:
    """A quantile of [`draw`]."""
    return float(np.quantile(draw(sums, statistic), share))


def standard_error(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> float:
    """The standard deviation of [`draw`]."""
    return float(np.std(draw(sums, statistic), ddof=1))
