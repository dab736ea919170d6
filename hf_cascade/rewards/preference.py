"""What ranks two responses: the probability that the first is preferred (paper section 4), as a TRL reward too."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from hf_cascade.completions import without_thinking


class PairwisePreference(ABC):
    """
    Says how probable it is that the first of two responses is preferred.

    Attributes:
        last_metrics (`dict[str, float]`): means over the last `compare`, such as `position_disagreement`.
    """

    def __init__(self, name: str | None = None):
        self.__name__ = name or type(self).__name__  # TRL logs a reward under its `__name__`
        self.last_metrics: dict[str, float] = {}

    @abstractmethod
    def compare(self, prompts: list, first: list, second: list, **columns) -> list[float | None]:
        """
        P(first preferred over second) of each row; `None` where there is no judgement.

        Args:
            prompts (`list`): text, or list of messages, that both responses of a row answer.
            first (`list`): responses as TRL gives completions, text or list of messages; thinking removed.
            second (`list`): the other responses, alike.
            **columns (`list`): further columns of the dataset.
        """

    def __call__(self, prompts: list, completions: list, log_metric: Callable | None = None, **columns) -> list:
        """
        A TRL reward function over pairs: rows 2i and 2i + 1 are the two responses to one prompt.

        Args:
            prompts (`list`): of every row.
            completions (`list`): of every row; thinking is removed before they are compared.
            log_metric (`Callable`, *optional*): TRL's; called with `"name/key"` and a mean over the pairs.
            **columns (`list` or other): TRL's columns of every row; what is not a list of that many passes as it is.

        Returns:
            `list[float | None]`: p and 1 - p of every pair, or `None` twice.

        Raises:
            ValueError: the number of rows is odd, or the prompts of a pair differ.
        """
        if len(prompts) % 2 or len(prompts) != len(completions):
            raise ValueError(
                f"{self.__name__} compares pairs, rows 2i and 2i + 1: got {len(prompts)} prompts and "
                f"{len(completions)} completions; use num_generations=2 and an even batch"
            )
        for i in range(0, len(prompts), 2):
            if prompts[i] != prompts[i + 1]:
                raise ValueError(
                    f"{self.__name__} compares two responses to one prompt: rows {i} and {i + 1} have different "
                    "prompts; use num_generations=2 and keep pairs together"
                )
        answers = [without_thinking(completion) for completion in completions]
        every = {key: v[::2] if isinstance(v, list) and len(v) == len(prompts) else v for key, v in columns.items()}
        probabilities = self.compare(prompts[::2], answers[::2], answers[1::2], **every)
        if log_metric is not None:
            for key, value in self.last_metrics.items():
                log_metric(f"{self.__name__}/{key}", value)
        return [q for p in probabilities for q in ((None, None) if p is None else (p, 1.0 - p))]


def win_probability(first_reward: float, second_reward: float, scale: float) -> float:
    """
    P(first preferred) from two scalar rewards: sigmoid((first - second) / scale), the Bradley-Terry model.

    Args:
        first_reward (`float`): reward of the first response.
        second_reward (`float`): reward of the second.
        scale (`float`): reward difference that makes the odds e to 1; positive.

    Raises:
        ValueError: `scale` is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive: the reward difference at which the odds are e to 1")
    return 0.5 * (1.0 + math.tanh((first_reward - second_reward) / scale / 2))  # sigmoid without overflow
