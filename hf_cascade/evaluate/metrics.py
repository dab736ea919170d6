"""Figures of sampled benchmarks: avg@k, pass@k, maj@k, the error within problems, confidence intervals (paper
section 6). Pure functions.

A problem's verdicts are those about its n responses: 1 right, 0 wrong, or a part of 1.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

RIGHT = 0.5  # a verdict above it counts as right where only right and wrong are told apart; ours


def avg_at_k(verdicts: Sequence[float]) -> float:
    """The mean of a problem's verdicts: the figure of the paper's Table 5, mean pass@1 over k samples."""
    return fmean(verdicts)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """
    Chance that at least one of k responses is right, unbiased: 1 - C(n - c, k) / C(n, k) (Chen et al., 2021,
    "Evaluating large language models trained on code"). A sum of logarithms: no number overflows, none is lost near 0.

    Args:
        samples (`int`): n, responses to the problem.
        correct (`int`): c, those that are right.
        k (`int`): drawn of them without putting back, 1 to n.

    Raises:
        ValueError: numbers that do not go together.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"k is {k}, samples {samples}, correct {correct}: give 1 <= k <= samples, correct <= samples")
    if samples - correct < k:
        return 1.0
    few, many = sorted((k, correct))
    return -math.expm1(math.fsum(math.log1p(-many / (samples - drawn)) for drawn in range(few)))


def maj_at_k(answers: Sequence[str | None], verdicts: Sequence[float], k: int | None = None) -> float:
    """
    How often the answer given most often among k responses is right; answers that are tied count by equal parts.

    For k below n it is the exact mean over all C(n, k) choices of k responses: choices in which the right answer comes
    m times, no other answer more often and t others as often, are counted as coefficients of a product of polynomials.

    Args:
        answers (`Sequence[str | None]`): n answers in one notation; `None`: no vote. All `None`: 0.
        verdicts (`Sequence[float]`): on each; answers that are equal share the mean of their verdicts.
        k (`int`, *optional*): all n by default.

    Raises:
        ValueError: not as many verdicts as answers, or k is not from 1 to n.
    """
    k = len(answers) if k is None else k
    if len(answers) != len(verdicts) or not 1 <= k <= len(answers):
        raise ValueError(
            f"k is {k} for {len(answers)} answers and {len(verdicts)} verdicts: give k from 1 to their number"
        )
    votes: dict[str, list[float]] = {}
    for answer, verdict in zip(answers, verdicts, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(verdict)
    counts = {answer: len(given) for answer, given in votes.items()}
    silent = len(answers) - sum(counts.values())
    total, every = 0.0, math.comb(len(answers), k)
    for answer, given in votes.items():
        if any(given):
            others = [count for other, count in counts.items() if other != answer]
            total += fmean(given) * _wins(counts[answer], others, silent, k) / every
    return total


def _wins(own: int, others: list[int], silent: int, k: int) -> float:
    """Choices of k responses that an answer with `own` votes wins; where t others are level with it, 1 / (t + 1)."""
    wins = 0.0
    for most in range(1, min(own, k) + 1):
        rest = k - most
        ways = [[math.comb(silent, drawn) for drawn in range(rest + 1)]]  # [others that are level][responses drawn]
        for count in others:
            grown = [[0] * (rest + 1) for _ in range(min(len(ways) + 1, rest // most + 1))]
            for level, row in enumerate(ways):
                for drawn, number in enumerate(row):
                    for more in range(min(count, most, rest - drawn) + 1) if number else ():
                        grown[level + (more == most)][drawn + more] += number * math.comb(count, more)
            ways = grown
        wins += math.comb(own, most) * math.fsum(row[rest] / (level + 1) for level, row in enumerate(ways))
    return wins


def within_problem_error(verdicts: Sequence[Sequence[float]]) -> float:
    """
    Standard error of avg@k from sampling alone, the problems being fixed: sqrt(mean p (1 - p) / (n k)), as a share.

    Args:
        verdicts (`Sequence[Sequence[float]]`): for each of n problems the verdicts about its k responses; a problem
            without any is left out. `nan` where none is left.
    """
    variances = []
    for given in filter(len, verdicts):
        p = fmean(given)
        variances.append(p * (1 - p) / len(given))
    return math.sqrt(math.fsum(variances)) / len(variances) if variances else math.nan


def mean_interval(scores: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """
    Confidence interval of a mean over problems that are a sample of their kind.

    Wilson's where all scores are 0 or 1, which does not shrink to nothing where all are right; else Student's t, within
    0 and 1 where all scores are.

    Args:
        scores (`Sequence[float]`): of each problem, two at least.
        confidence (`float`): 0.95 as in the paper's field; ours.

    Returns:
        `tuple[float, float]`: lower and upper end.

    Raises:
        ValueError: fewer than two scores, or a confidence that is no share.
    """
    if len(scores) < 2 or not 0 < confidence < 1:
        raise ValueError(f"{len(scores)} scores, confidence {confidence}: give two or more, and a share below 1")
    n, mean, z = len(scores), fmean(scores), NormalDist().inv_cdf((1 + confidence) / 2)
    if all(score in (0, 1) for score in scores):
        centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + (z / (2 * n)) ** 2)
    else:
        centre, half = mean, _student(z, n - 1) * stdev(scores) / math.sqrt(n)
    low, high = centre - half, centre + half
    return (max(0.0, low), min(1.0, high)) if all(0 <= score <= 1 for score in scores) else (low, high)


def _student(z: float, freedom: int) -> float:
    """Quantile of Student's t from that of the normal distribution (Abramowitz and Stegun, 26.7.5; exact below 3)."""
    p = NormalDist().cdf(z)
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
