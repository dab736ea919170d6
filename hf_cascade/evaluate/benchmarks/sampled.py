"""From verdicts about the responses to one problem to the figures that lm-eval averages over problems.

`filter_list: [{name: none, filter: [{function: keep_all}]}]` hands all `repeats` of a problem to its scorer; lm-eval's
own default keeps the first. One run gives avg@k, the paper's figure in Table 5, pass@k and maj@k (paper section 6).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter

from hf_cascade.evaluate import metrics
from hf_cascade.evaluate.benchmarks.answers import answer_of, is_unfinished, thinking_spans

_WATCHER: ContextVar[list | None] = ContextVar("watcher", default=None)


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
    """
    All responses to a problem, as a list.

    Args:
        until (`list[str]`, *optional*): the task's own `until`; what stands before the first of them is kept, as some
            servers do not stop there and a base model then goes on with questions of its own. Inside thinking they
            are text.
    """

    def __init__(self, until: Sequence[str] = ()):
        self.until = list(until)

    def apply(self, resps, docs):
        """lm-eval's hook: the responses of every problem, each cut where it should have stopped."""
        return [[self._stopped(response) for response in responses] for responses in resps]

    def _stopped(self, response: str) -> str:
        spans, _ = thinking_spans(response) if self.until else ([], False)
        places = sorted(mark.start() for stop in self.until for mark in re.finditer(re.escape(stop), response))
        at = 0
        for place in places:
            while at < len(spans) and spans[at][1] <= place:
                at += 1
            if at == len(spans) or place < spans[at][0]:
                return response[:place]
        return response


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
    passed = metrics.pass_at_k(len(correct), sum(verdict > metrics.RIGHT for verdict in correct), len(correct))
    averages = {"avg_at_k": metrics.avg_at_k(correct), "pass_at_k": passed, "maj_at_k": majority(found)}
    return averages | figures


def majority(verdicts: list[Verdict]) -> float:
    """Whether the answer most often given is right, [`metrics.maj_at_k`] of all that have a verdict."""
    judged = [one for one in verdicts if one.correct is not None]
    return metrics.maj_at_k([one.parsed for one in judged], [one.correct for one in judged]) if judged else 0.0


def within_problem(verdicts: list[list[float]]) -> float:
    """Aggregation of `within_problem`: [`metrics.within_problem_error`] over all problems."""
    return metrics.within_problem_error(verdicts)


@contextmanager
def watched() -> Iterator[list[Verdict]]:
    """All verdicts that are given meanwhile, in order: for whoever wants more than a task's figures."""
    seen: list[Verdict] = []
    token = _WATCHER.set(seen)
    try:
        yield seen
    finally:
        _WATCHER.reset(token)


def _verdict(response: str, verdict: Callable[[str], Verdict]) -> Verdict:
    found = Verdict(0.0, None) if is_unfinished(response) else verdict(answer_of(response))
    if (seen := _WATCHER.get()) is not None:
        seen.append(found)
    return found
