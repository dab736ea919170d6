"""From verdicts about the responses to one problem to the figures that lm-eval averages over problems.

`filter_list: [{name: none, filter: [{function: keep_all}]}]` hands all `repeats` of a problem to its scorer; lm-eval's
own default keeps the first. One run gives avg@k, the paper's figure in Table 5, pass@k and maj@k (paper section 6).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter

from hf_cascade.evaluate.benchmarks.answers import answer_of, is_unfinished


class Verdict(NamedTuple):
    """
    What a scorer says of one response.

    Args:
        correct (`float` or `None`): 1 or 0, a part of 1 where the benchmark has such; `None` where it cannot say.
        parsed (`str` or `None`): the answer in one notation, for majority votes; `None` where none was found.
    """

    correct: float | None
    parsed: str | None


@register_filter("keep_all")
class KeepAll(Filter):
    """All responses to a problem, as a list."""

    def apply(self, resps, docs):
        return [list(responses) for responses in resps]


def once(results: list, verdict: Callable[[str], Verdict]) -> dict[str, float]:
    """
    Figures of a task with one response a problem, for its `process_results`.

    Args:
        results (`list`): lm-eval's, one list of responses (`keep_all`), or one response.
        verdict (`Callable[[str], Verdict]`): gets the answer without thinking. Not called for unfinished thinking.

    Returns:
        `dict`: `acc`, `unparsed`, `unfinished`; no `acc` where there is no verdict.
    """
    response = results[0] if isinstance(results[0], str) else results[0][0]
    unfinished, found = is_unfinished(response), _verdict(response, verdict)
    figures = {"unparsed": float(found.parsed is None and not unfinished), "unfinished": float(unfinished)}
    return figures if found.correct is None else {"acc": found.correct, **figures}


def several(results: list, verdict: Callable[[str], Verdict]) -> dict:
    """
    Figures of a task with k responses a problem; arguments as of [`once`].

    Returns:
        `dict`: `avg_at_k`, `pass_at_k` (any of k), `maj_at_k`, `unparsed`, `unfinished`, and `within_problem`, the
        verdicts themselves, for [`within_problem`]. Without any verdict: the last three alone.
    """
    responses = [results[0]] if isinstance(results[0], str) else results[0]
    found = [_verdict(response, verdict) for response in responses]
    unfinished = [is_unfinished(response) for response in responses]
    unparsed = [one.parsed is None and not late for one, late in zip(found, unfinished, strict=True)]
    correct = [one.correct for one in found if one.correct is not None]
    figures = {"unparsed": sum(unparsed) / len(found), "unfinished": sum(unfinished) / len(found)}
    figures["within_problem"] = correct
    if not correct:
        return figures
    averages = {"avg_at_k": sum(correct) / len(correct), "pass_at_k": max(correct), "maj_at_k": majority(found)}
    return averages | figures


def majority(verdicts: list[Verdict]) -> float:
    """Whether the answer most often given is right: the mean over answers that are tied; 0 where none was parsed."""
    votes: dict[str, list[float]] = {}
    for correct, parsed in verdicts:
        if parsed is not None and correct is not None:
            votes.setdefault(parsed, []).append(correct)
    most = max(map(len, votes.values()), default=0)
    tied = [sum(correct) / len(correct) for correct in votes.values() if len(correct) == most]
    return sum(tied) / len(tied) if tied else 0.0


def within_problem(verdicts: list[list[float]]) -> float:
    """
    Standard error of avg@k from sampling alone, the problems being fixed: sqrt(mean p (1 - p) / (n k)), as a share.

    Args:
        verdicts (`list[list[float]]`): for each of n problems the verdicts about its k responses.
    """
    variances = []
    for correct in filter(None, verdicts):
        p = sum(correct) / len(correct)
        variances.append(p * (1 - p) / len(correct))
    return math.sqrt(sum(variances)) / len(variances) if variances else math.nan


def _verdict(response: str, verdict: Callable[[str], Verdict]) -> Verdict:
    return Verdict(0.0, None) if is_unfinished(response) else verdict(answer_of(response))
