"""One step on the Hub: ask whether it is done, do it, try again where the Hub stumbled, say in one line what failed."""

import json
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from hf_cascade.secrets import scrub

Found = TypeVar("Found")
HTTPError = HfHubHTTPError.__mro__[
    1
]  # of the HTTP library that this huggingface_hub is built on; broken connections too
PASSING = (408, 429, 500, 502, 503, 504)  # the statuses after which huggingface_hub's own http_backoff tries again
STAYING = (400, 401, 402, 403, 404, 413, 422)  # a token, right, name or file that must change first
TRIES, FIRST_WAIT_SECONDS = 4, 1.0  # ours: about 7 s; huggingface_hub waits 23 s where it tries again by itself
MOST_CHARACTERS = 400  # of what the Hub said
REMEDIES = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token with write access.",
    403: "The token needs write access to this namespace.",
    404: "Is the name right, and may this token see it?",
    412: "Someone else changed it at the same time.",
    409: "Someone else changed it at the same time.",
}


class ReleaseError(OSError):
    """
    A release that stopped: which step, why, what main holds, and how to go on.

    Attributes:
        step (`str`): the step's name.
    """

    def __init__(self, step: str, text: str):
        super().__init__(scrub(text))
        self.step = step


class Steps:
    """
    Runs the steps of a release.

    Args:
        where (`str`): the repository or collection, for messages.
        say (`Callable[[str], None]`): prints a line.

    Attributes:
        holds (`str`): what main holds now, for the message of a step that fails.
    """

    def __init__(self, where: str, say: Callable[[str], None]):
        self.where, self._say = where, say
        self.holds = "main is as it was."

    def say(self, text: str) -> None:
        """One line of progress."""
        self._say(scrub(f"{self.where}: {text}"))

    def run(
        self, step: str, make: Callable[[], Found], find: Callable[[], Found | None] | None = None, tries: int = TRIES
    ) -> Found:
        """
        Do one step once.

        Args:
            step (`str`): its name.
            make: does it, and returns what it made. Also for reading, which needs no `find`.
            find (*optional*): what an earlier call, or an earlier try whose answer was lost, has made, else `None`.
                Asked before every try, so nothing is made twice.
            tries (`int`): how often; 1 for calls that huggingface_hub tries again by itself.

        Raises:
            `ReleaseError`: it cannot be done now.
        """
        for left in reversed(range(tries)):
            try:
                found = find() if find else None
                return make() if found is None else found
            except ReleaseError:
                raise
            except (HTTPError, OSError, RuntimeError, ValueError) as error:  # the client raises all of these
                if not left or not is_passing(error):
                    raise self.error(step, describe(error), mend=stays(error)) from error
            time.sleep(FIRST_WAIT_SECONDS * 2 ** (tries - 1 - left))
        raise AssertionError("the last try returns or raises")

    def error(self, step: str, why: str, mend: bool = False) -> ReleaseError:
        """The error of a step; `mend`: the same command fails in the same way until something is mended."""
        why = " ".join(why.split()).rstrip(".")
        again = "When that is mended, the same command" if mend else "The same command"
        return ReleaseError(step, f"{self.where}: {step} failed: {why}. {self.holds} {again} goes on from here.")


def print_line(text: str) -> None:
    """A line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def is_passing(error: BaseException) -> bool:
    """Whether the same call may well go through in a moment: the Hub stumbled, or the connection broke."""
    if isinstance(error, json.JSONDecodeError):  # a page that says that the Hub is busy, where JSON was expected
        return True
    cause = _of_http(error)
    if cause is None:
        return False
    response = getattr(cause, "response", None)
    return response is None or response.status_code in PASSING


def stays(error: BaseException) -> bool:
    """Whether the same command fails in the same way, until a token, a right or a name is mended."""
    response = getattr(_of_http(error), "response", None)
    return response is not None and response.status_code in STAYING


def describe(error: BaseException) -> str:
    """What the Hub said, in one line, with no token in it."""
    cause = _of_http(error)
    response = getattr(cause, "response", None)
    if response is not None:
        said = getattr(cause, "server_message", None) or response.reason_phrase
        said = scrub(str(said))[:MOST_CHARACTERS].rstrip(".")
        text = f"the Hub answered {response.status_code}, {said}. {REMEDIES.get(response.status_code, '')}"
    elif cause is not None:
        text = f"the connection broke, {cause}. Is {constants.ENDPOINT} the Hub that is meant, and can it be reached?"
    elif isinstance(error, json.JSONDecodeError):
        text = "the Hub's answer is no JSON; it may be busy"
    else:
        text = str(error)[:MOST_CHARACTERS]
    return scrub(" ".join(text.split()))


def _of_http(error: BaseException | None) -> BaseException | None:
    """The HTTP error behind an error: the client wraps those of uploads."""
    while error is not None and not isinstance(error, HTTPError):
        error = error.__cause__
    return error
