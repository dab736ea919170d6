"""Models that know a task's answers, to prove its scorer: an oracle gets everything right, an anti-oracle nothing.

Stock lm-eval tasks fail this surprisingly often (a correct answer scored 0, choices shuffled again at scoring), so
every task we ship passes it in the tests.
"""

from collections import Counter
from collections.abc import Callable

from lm_eval.api.model import LM

LIKELY, UNLIKELY = 0.0, -1e4  # log-likelihoods, nats


def answer_of(row: dict) -> str:
    """The true continuation of a tiny task's row: multiple choice, cloze, or a passage."""
    if "choices" in row:
        return row["choices"][row["answer"]]
    return row["target"] if "target" in row else row["text"]


class Knowing(LM):
    """
    Answers log-likelihood requests from the row they come from.

    Args:
        right (`bool`): whether the row's answer is the likely continuation (an oracle) or the only unlikely one.
        gold (`Callable[[dict], str]`, *optional*): a row's right continuation, but for spaces at its ends.
    """

    MULTIMODAL = True

    def __init__(self, right: bool, gold: Callable[[dict], str] = answer_of):
        super().__init__()
        self.right, self.gold = right, gold

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each request."""
        answers = [self.gold(request.doc).strip() == request.args[1].strip() for request in requests]
        return [(LIKELY, True) if known == self.right else (UNLIKELY, False) for known in answers]

    def loglikelihood_rolling(self, requests):
        """
        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("no task we ship asks for it")

    def generate_until(self, requests):
        """
        Raises:
            NotImplementedError: always; [`Responding`] generates.
        """
        raise NotImplementedError("this model only knows likelihoods")


class Uniform(Knowing):
    """Every byte is one of 256 at equal odds, so it knows nothing: a choice's score is the same for all choices."""

    def __init__(self):
        super().__init__(right=True)

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """(-bytes, False): nats are scaled so that scores per byte are exactly equal."""
        return [(-float(len(request.args[1].encode())), False) for request in requests]


class Positional(Knowing):
    """Takes the same option of every row, whatever it says."""

    def __init__(self, position: int):
        super().__init__(right=True)
        self.position = position

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """Likely where the request is the one at `position` among its row's."""
        return [(LIKELY, True) if request.idx == self.position else (UNLIKELY, False) for request in requests]


class Responding(Knowing):
    """
    Answers generation requests from the row they come from.

    Args:
        respond (`Callable[[dict, int], str]`): gets the row, and which of the row's samples is asked for.
    """

    def __init__(self, respond: Callable[[dict, int], str]):
        super().__init__(right=True)
        self.respond = respond

    def generate_until(self, requests) -> list[str]:
        """The response to each request; a row's samples are requests that repeat."""
        asked, responses = Counter(), []
        for request in requests:
            responses.append(self.respond(request.doc, asked[id(request)]))
            asked[id(request)] += 1
        return responses
