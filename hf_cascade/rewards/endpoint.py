"""`ChatEndpoint`: many questions to a chat model behind an OpenAI-compatible endpoint (ours).

Standard library only: threads and blocking requests, which run beside any event loop of a trainer.
"""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from hf_cascade.rewards.answer_cache import AnswerCache, key_of

KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_WAIT_SECONDS = 60.0  # ours
LONGEST_ANSWER_BYTES = 2**24  # ours
RETRIED = (408, 409, 429)  # and 5xx
T = TypeVar("T")
_COUNTING = threading.Lock()  # of the module: an endpoint can be pickled


class UnusableAnswer(ValueError):
    """An answer came, and does not say what was asked; asking again would not help."""


class RequestBudgetError(ConnectionError):
    """As many requests as allowed were sent, and answers are missing."""


class _Failed(Exception):
    """One answer that did not come; `again` where another try may do better."""

    def __init__(self, reason: str, again: bool, wait_seconds: float = 0.0):
        super().__init__(reason)
        self.again, self.wait_seconds = again, wait_seconds


class ChatEndpoint:
    """
    A chat model at an OpenAI-compatible server, asked many things at once.

    ```python
    >>> endpoint = ChatEndpoint("http://10.0.0.7:8000/v1", "mistralai/Mistral-Small-3.2-24B-Instruct-2506")
    >>> bodies = [{"messages": [{"role": "user", "content": text}], "temperature": 0} for text in questions]
    >>> endpoint.ask(bodies, lambda answer: choices_of(answer)[0]["message"]["content"])
    ```

    Args:
        url (`str`): the server's base, which ends in `/v1`, or the whole address of its `/chat/completions`.
        model (`str`): the model's name at the server.
        api_key_variable (`str`, *optional*, defaults to `"OPENAI_API_KEY"`): environment variable that holds the key.
            The default one may be unset; the key is never logged.
        concurrency (`int`, *optional*, defaults to `16`): requests at once.
        timeout_seconds (`float`, *optional*, defaults to `60.0`): for one answer.
        retries (`int`, *optional*, defaults to `4`): further tries after 429, 5xx, a timeout or a broken connection.
        backoff_seconds (`float`, *optional*, defaults to `1.0`): wait before the first retry; it doubles.
        cache (`str` or `Path`, *optional*): file that keeps answers by url, model and body; what is in it is not asked
            again. Several processes may share it. Samples of one prompt need a `seed` each, or they are one answer.
        max_requests (`int`, *optional*): requests this object may send, retries too, in this process.

    Attributes:
        requests (`int`): sent so far.

    Raises:
        ValueError: a URL, number, key or cache file that cannot work.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key_variable: str = KEY_VARIABLE,
        concurrency: int = 16,
        timeout_seconds: float = 60.0,
        retries: int = 4,
        backoff_seconds: float = 1.0,
        cache: str | Path | None = None,
        max_requests: int | None = None,
    ):
        self.url, self.model, self.concurrency = _address(url), model, concurrency
        self.timeout_seconds, self.retries, self.backoff_seconds = timeout_seconds, retries, backoff_seconds
        self.max_requests, self.requests = max_requests, 0
        lowest = {"concurrency": 1, "timeout_seconds": 1e-3, "retries": 0, "backoff_seconds": 0, "max_requests": 0}
        for flag, least in lowest.items():
            if getattr(self, flag) is not None and getattr(self, flag) < least:
                raise ValueError(f"{flag}={getattr(self, flag)}: give {least} or more")
        self._key_variable = api_key_variable
        self._headers()
        self.cache = None if cache is None else AnswerCache(cache)

    def ask(
        self, bodies: list[dict], read: Callable[[dict], T], reasons: dict[int, str] | None = None
    ) -> list[T | None]:
        """
        What `read` makes of the answer to each body; `None` where none came, or none that it can use.

        Args:
            bodies (`list[dict]`): of chat completion requests; `model` is added.
            read (`Callable`): takes the JSON of an answer (see [`choices_of`]); raises [`UnusableAnswer`] for one that
                does not say what was asked. Called by several threads at once.
            reasons (`dict[int, str]`, *optional*): gets, by the place of a body, why there is no answer to it.

        Raises:
            RequestBudgetError: `max_requests` are used up. What was answered until then is in the cache.
            ConnectionError: not one usable answer came.
        """
        if not bodies:
            return []
        call = _Call(self, self._headers(), read, {} if reasons is None else reasons)
        bodies = [{"model": self.model, **body} for body in bodies]
        keys = [key_of(self.url, body) for body in bodies] if self.cache else [None] * len(bodies)
        known = self.cache.read(keys) if self.cache else {}
        pool = ThreadPoolExecutor(min(self.concurrency, len(bodies)), thread_name_prefix="endpoint")
        try:
            answers = list(pool.map(call.answer, range(len(bodies)), bodies, keys, map(known.get, keys)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        missing = sum(answer is None for answer in answers)
        if call.out_of_budget:
            raise RequestBudgetError(
                f"all of max_requests={self.max_requests} were sent to {self.model} at {self.url}, and {missing} of "
                f"{len(bodies)} answers are missing: raise max_requests (judge_max_requests among a script's flags)"
            )
        if missing == len(bodies):
            raise ConnectionError(
                f"{self.model} at {self.url} gave none of {missing} answers that were needed; the last error: "
                f"{call.last_error}. See whether its server runs and serves this model, and that {self._key_variable} "
                "holds its key if it needs one; the same training command goes on from the last checkpoint"
            )
        return answers

    def _headers(self) -> dict[str, str]:
        """Read anew at every call: the object holds no key that a log or a pickle could show."""
        key = os.environ.get(self._key_variable, "").strip()
        if not key and self._key_variable != KEY_VARIABLE:
            raise ValueError(f"api_key_variable={self._key_variable}: it is not set; set it to the endpoint's key")
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"{self._key_variable} holds characters that no key has (not shown): set it again")
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def _take(self) -> bool:
        """Whether one more request may be sent; it counts as sent."""
        with _COUNTING:
            allowed = self.max_requests is None or self.requests < self.max_requests
            self.requests += allowed
        return allowed


class _Call:
    """The requests of one `ask`, and what they share."""

    def __init__(self, endpoint: ChatEndpoint, headers: dict[str, str], read: Callable, reasons: dict[int, str]):
        self.endpoint, self.headers, self.read, self.reasons = endpoint, headers, read, reasons
        self.last_error, self.out_of_budget = "", False
        self._answered, self._failing = -float("inf"), -float("inf")  # when: the last answer; see `_hopeless`
        self._open = urllib.request.build_opener(_NoRedirect).open

    def answer(self, place: int, body: dict, key: str | None, known: dict | None):
        """What `read` makes of the answer to one body, `None` if none came that it can use."""
        try:
            if known is not None:
                return self.read(known)
            answer = self._ask(json.dumps(body).encode())
            found = self.read(answer)
        except _Failed as failed:
            self.last_error = self.reasons[place] = str(failed)
            return None
        except UnusableAnswer as error:
            self.last_error = self.reasons[place] = self._hidden(str(error))
            return None
        if key is not None:
            self.endpoint.cache.write(key, answer)
        return found

    def _ask(self, body: bytes) -> dict:
        """One answer, after retries."""
        attempt, began = 0, time.monotonic()
        while True:
            if not self.endpoint._take():
                self.out_of_budget = True
                raise _Failed("max_requests are used up", again=False)
            try:
                answer = self._try(body)
                self._answered = time.monotonic()
                return answer
            except _Failed as failed:
                if not failed.again or attempt >= self.endpoint.retries or self._hopeless():
                    if failed.again:
                        self._failing = max(self._failing, began)
                    raise
                wait = max(self.endpoint.backoff_seconds * 2**attempt, failed.wait_seconds)
            time.sleep(min(wait, LONGEST_WAIT_SECONDS))
            attempt += 1

    def _hopeless(self) -> bool:
        """Whether no answer came since a request began that failed to its end: then others are not retried."""
        return self._failing > self._answered

    def _try(self, body: bytes) -> dict:
        try:
            answer = self._send(body)
        except TimeoutError:
            raise _Failed(f"no answer within {self.endpoint.timeout_seconds:g} s", again=True) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _Failed(self._hidden(f"{type(reason).__name__}: {reason}"), again=True) from None
        try:
            return json.loads(answer)
        except ValueError:
            raise _Failed(f"an answer that is no JSON: {self._hidden(str(answer[:100]))}", again=False) from None

    def _send(self, body: bytes) -> bytes:
        seconds = self.endpoint.timeout_seconds
        until = time.monotonic() + seconds
        request = urllib.request.Request(self.endpoint.url, body, self.headers, method="POST")
        try:
            with self._open(request, timeout=seconds) as response:
                return b"".join(_chunks(response, until))
        except urllib.error.HTTPError as error:
            with error:
                wait = error.headers.get("Retry-After", "")
                said = self._hidden(error.read(300).decode(errors="replace").strip())
            again = error.code in RETRIED or error.code >= 500
            raise _Failed(f"status {error.code}: {said}", again, float(wait) if wait.isdecimal() else 0.0) from None

    def _hidden(self, text: str) -> str:
        """Servers quote what they refuse."""
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return text.replace(key, "***") if key else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the named host only."""

    def redirect_request(self, *_):
        """No request: urllib then raises the redirect's own `HTTPError`."""
        return None


def choices_of(answer: dict) -> list[dict]:
    """
    The choices of a chat completion; each has a `message` with `content`, a text or `None`.

    Raises:
        UnusableAnswer: the answer is no chat completion.
    """
    try:
        choices = list(answer["choices"])
        texts = [choice["message"].get("content") for choice in choices]
    except (LookupError, TypeError, AttributeError):
        texts = [0]
    if not texts or not all(text is None or isinstance(text, str) for text in texts):
        raise UnusableAnswer(f"no chat completion: {str(answer)[:200]}")
    return choices


def _chunks(response: http.client.HTTPResponse, until: float) -> Iterator[bytes]:
    """What a server sends, until it is too late or too much: `timeout` alone bounds each silence only."""
    size = 0
    while chunk := response.read1(2**16):
        size += len(chunk)
        if time.monotonic() > until:
            raise TimeoutError
        if size > LONGEST_ANSWER_BYTES:
            raise _Failed(f"an answer of more than {LONGEST_ANSWER_BYTES:,} bytes", again=False)
        yield chunk


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is no number
    except ValueError as error:
        raise ValueError(f"{url!r} is no URL ({error}): give http://host:port/v1") from error
    if parts.username is not None:
        raise ValueError(f"a URL with a user name: put the key in {KEY_VARIABLE} instead")  # not shown
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{url!r}: give the server's address, as http://host:port/v1")
    base = url.rstrip("/")
    return base if base.endswith("/chat/completions") else f"{base}/chat/completions"
