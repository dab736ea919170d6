"""`Case`: what is known about a task's answers, from which its conformance is tested."""

from collections.abc import Callable
from dataclasses import dataclass, field


def none(doc: dict) -> list[str]:
    """No responses."""
    return []


@dataclass(frozen=True)
class Case:
    """
    What is known about one task. A benchmark's module has `CASES`, a dictionary from task names to these.

    Exactly one of `gold` and `right` is given. Functions take a row as the task's documents have it; they must not call
    the scorer, or the proof goes round in a circle.

    Args:
        gold (`Callable[[dict], str]`, *optional*): of a task scored by log-likelihood: the right continuation, as the
            request has it but for spaces at its ends.
        right (`Callable[[dict], list[str]]`, *optional*): of a task that generates: right responses, one an answer
            format that real models use; the first is the plainest. All must score 1.
        wrong (`Callable[[dict], list[str]]`): wrong responses: a parsable wrong answer first, then answers meant to
            deceive the scorer (all options, the gold answer inside other words, ...). All must score 0.
        thinking (`bool`): whether the task must take the same responses after a thinking block, and none inside an
            unfinished one. All tasks that may be asked of chat models.
        metric (`str`): the metric that must be `oracle` for right and `anti` for wrong responses.
        oracle (`float`): the best score.
        anti (`float`, *optional*): the worst score; `None` where there is no worst.
        chance (`float`, *optional*): score of a model that knows nothing; of tasks with options.
        needs (`tuple[str, ...]`): `"sandbox"`, `"judge"`.
        judge (`Callable[[dict], str]`, *optional*): of judged tasks: what a perfect judge answers to the body of a chat
            completion request. It is served by a real local server.
    """

    gold: Callable[[dict], str] | None = None
    right: Callable[[dict], list[str]] | None = None
    wrong: Callable[[dict], list[str]] = none
    thinking: bool = True
    metric: str = "acc"
    oracle: float = 1.0
    anti: float | None = 0.0
    chance: float | None = None
    needs: tuple[str, ...] = field(default=())
    judge: Callable[[dict], str] | None = None
    real: str | None = None

    def __post_init__(self):
        if (self.gold is None) == (self.right is None):
            raise ValueError("a case has either gold (log-likelihood) or right (generation)")
