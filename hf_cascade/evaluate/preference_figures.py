"""From responses, log-probabilities and rewards to the figures of a report: pure functions (ours: paper silent)."""

import random
from statistics import fmean

RESAMPLES = 2000  # ours
INTERVAL = 0.95


def share_of_wins(ours: list[float | None], theirs: list[float | None]) -> list[float | None]:
    """1, 0 or for a tie 0.5 of each pair of rewards; `None` where one has none."""
    pairs = zip(ours, theirs, strict=True)
    return [None if a is None or b is None else float(a > b) + 0.5 * (a == b) for a, b in pairs]


def interval(values: list[float | None], rows: list[int]) -> dict:
    """
    A mean and its 95% interval: prompts are drawn with replacement, since responses to one prompt go together.

    Args:
        values (`list[float | None]`): of each response: wins, 0 to 1, rewards, or tokens; `None`: not judged.
        rows (`list[int]`): its prompt.

    Returns:
        `dict`: `rate` (mean over prompts of their mean), `low`, `high`, `judged` (responses); the first three are
        `None` where nothing was judged.
    """
    by_row: dict[int, list[float]] = {}
    for value, row in zip(values, rows, strict=True):
        if value is not None:
            by_row.setdefault(row, []).append(value)
    judged = sum(map(len, by_row.values()))
    if not by_row:
        return {"rate": None, "low": None, "high": None, "judged": 0}
    means = [fmean(group) for group in by_row.values()]
    draw = random.Random(0)
    rates = sorted(fmean(draw.choices(means, k=len(means))) for _ in range(RESAMPLES))
    tail = (1 - INTERVAL) / 2
    low, high = rates[int(tail * RESAMPLES)], rates[int((1 - tail) * RESAMPLES) - 1]
    return {"rate": fmean(means), "low": low, "high": high, "judged": judged}


def divergence(own: list[float], baseline: list[float], tokens: list[int]) -> dict[str, float]:
    """
    KL(model || baseline) estimated on the model's responses: the mean of log p_model - log p_baseline.

    Args:
        own (`list[float]`): log-probability of each response by the model that wrote it.
        baseline (`list[float]`): by the baseline.
        tokens (`list[int]`): of each response.

    Returns:
        `dict`: `kl_response`, nats a response, and `kl_token`, nats a token.
    """
    total = sum(own) - sum(baseline)
    return {"kl_response": total / len(own), "kl_token": total / sum(tokens)}


def lengths_and_loops(responses: list, baseline: list) -> dict[str, float]:
    """`tokens` (mean), `tokens_drift` against the baseline's and its `tokens_drift_percent`, `loop_rate`, and
    `truncated_rate` of the responses that were cut off without a loop."""
    tokens, before = (fmean(len(response.token_ids) for response in group) for group in (responses, baseline))
    return {
        "responses": len(responses),
        "loop_rate": fmean(response.looped for response in responses),
        "truncated_rate": fmean(response.truncated for response in responses),
        "tokens": tokens,
        "tokens_drift": tokens - before,
        "tokens_drift_percent": 100 * (tokens - before) / before,
    }


def mean_reward(rewards: list[float | None]) -> float | None:
    """Mean over the responses that have one."""
    known = [reward for reward in rewards if reward is not None]
    return fmean(known) if known else None
