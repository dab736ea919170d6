"""Models that know a task's answers, to prove its scorer: an oracle gets everything right, an anti-oracle nothing.

Stock lm-eval tasks fail this surprisingly often (a correct answer scored 0, choices shuffled again at scoring), so
every task we ship passes it in the tests.
"""

from lm_eval.api.model import LM

LIKELY, UNLIKELY = 0.0, -1e4  # log-likelihoods, nats


class Knowing(LM):
    """
    Answers log-likelihood requests from the row they come from.

    Args:
        right (`bool`): whether the row's answer is the likely continuation (an oracle) or the only unlikely one.
    """

    def __init__(self, right: bool):
        super().__init__()
        self.right = right

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each request."""
        answers = [answer_of(request.doc) == request.args[1] for request in requests]
        return [(LIKELY, True) if known == self.right else (UNLIKELY, False) for known in answers]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError("no task we ship asks for it")

    def generate_until(self, requests):
        raise NotImplementedError("no task we ship asks for it")


class Uniform(Knowing):
    """Every byte is one of 256 at equal odds, so it knows nothing: a choice's score is the same for all choices."""

    def __init__(self):
        super().__init__(right=True)

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """(-bytes, False): nats are scaled so that scores per byte are exactly equal."""
        return [(-float(len(request.args[1].encode())), False) for request in requests]


def answer_of(row: dict) -> str:
    """The true continuation of a row of ours: multiple choice, cloze, or a passage."""
    if "choices" in row:
        return row["choices"][row["answer"]]
    return row["target"] if "target" in row else row["text"]
