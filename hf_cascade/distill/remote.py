"""`RemoteTeacher`: a teacher in another process or on another machine, asked for its final hidden states.

`trainers/serve_teacher.py` is the other side. While the student runs its forward, the teacher already runs its own.

B rows, T tokens of a row, N positions that count, E the teacher's hidden size, V vocabulary.
"""

import http.client
import json
import logging
import os
import threading
import time
from concurrent.futures import Future
from urllib.parse import urlsplit

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hf_cascade.distill.identity import tokenizer_sha256
from hf_cascade.distill.teacher import HiddenTargets, Teacher
from hf_cascade.distill.wire import (
    HEAD,
    HIDDEN,
    PROTOCOL,
    SERVICE,
    SHA256_HEADER,
    TOKEN_VARIABLE,
    TeacherInfo,
    check_token,
    pack_request,
    unpack_answer,
)

START = "python trainers/serve_teacher.py --model_name_or_path TEACHER --port 8000"
CONNECT_SECONDS = 30.0  # ours: to reach the machine; the answer has `timeout_seconds`
RETRIES = 8  # ours: with waits of 1, 2, 4, ... seconds three minutes, in which a server can be started anew
LONGEST_WAIT_SECONDS = 60.0  # ours
DTYPES = ("float64", "float32", "bfloat16", "float16")
logger = logging.getLogger(__name__)


class _ServerError(Exception):
    """An answer of 5xx: the request may do better next time."""


class _Connection:
    """One kept connection to a server, opened again when it breaks. One request at a time."""

    def __init__(self, url: str, token: str | None, timeout_seconds: float, backoff_seconds: float):
        self.url, self.sha256 = url, None
        self._timeout_seconds, self._backoff_seconds = timeout_seconds, backoff_seconds
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = http.client.HTTPConnection(*_address(url), timeout=min(CONNECT_SECONDS, timeout_seconds))
        self._lock = threading.Lock()

    def ask(self, method: str, path: str, body: bytes | None = None, retries: int = RETRIES) -> bytes:
        """
        The body of the answer.

        Raises:
            ValueError: the server refuses the request, or another teacher answers.
            ConnectionError: no answer after `retries` repetitions.
        """
        with self._lock:
            for attempt in range(retries + 1):
                try:
                    return self._once(method, path, body)
                except (OSError, http.client.HTTPException, _ServerError) as error:
                    self._http.close()
                    cause, reason = error, str(error) or type(error).__name__
                if attempt < retries:
                    seconds = min(self._backoff_seconds * 2**attempt, LONGEST_WAIT_SECONDS)
                    where = f"{self.url} did not answer ({reason})"
                    logger.warning("the teacher at %s: try %d of %d in %.3g s", where, attempt + 1, retries, seconds)
                    time.sleep(seconds)
        raise ConnectionError(
            f"the teacher at {self.url} did not answer {retries + 1} times ({reason}): see whether its server runs; "
            "the same training command goes on from the last checkpoint"
        ) from cause

    def _once(self, method: str, path: str, body: bytes | None) -> bytes:
        if self._http.sock is None:
            self._http.connect()
            self._http.sock.settimeout(self._timeout_seconds)
        self._http.request(method, path, body, self._headers)
        response = self._http.getresponse()
        answer = response.read()
        if response.status >= 500:
            raise _ServerError(f"status {response.status}: {_text(answer)}")
        if response.status == 401:
            raise ValueError(f"the teacher at {self.url} refuses the token: set {TOKEN_VARIABLE} to its server's")
        if response.status != 200:
            raise ValueError(f"{self.url}{path} refuses with status {response.status}: {_text(answer)}")
        sha256 = response.headers.get(SHA256_HEADER)
        if self.sha256 is not None and sha256 != self.sha256:
            raise ValueError(
                f"another teacher answers at {self.url} now (fingerprint {sha256}, at the start {self.sha256}): serve "
                "the first one again, or start the training anew"
            )
        return answer

    def close(self) -> None:
        """Close it; a later request would open it again."""
        with self._lock:
            self._http.close()


class RemoteTeacher(Teacher):
    """
    A teacher behind a URL. Its hidden states are those of the same model in this process, bit for bit in one type.

    The server computes in its own type, whatever autocast is on here. Give each process its own `RemoteTeacher`.

    ```python
    >>> teacher = RemoteTeacher("http://10.0.0.7:8000", tokenizer)
    >>> trainer = CascadeDistillationTrainer("child", teacher, args=args, train_dataset=dataset)
    ```

    Args:
        url (`str`): `http://host:port`, as the server printed it.
        tokenizer (`PreTrainedTokenizerBase`, `ProcessorMixin` or `str`, *optional*):
            The student's, or its `tokenizer_sha256`: the teacher's must be equal.
        timeout_seconds (`float`, *optional*, defaults to `600.0`):
            Longest silence while waiting for an answer. Several clients wait for one another's forward.
        token (`str`, *optional*): what the server asks for; unset, the environment's `HF_CASCADE_TEACHER_TOKEN`.
        retries (`int`, *optional*, defaults to `8`): repetitions of a request whose answer did not come.
        backoff_seconds (`float`, *optional*, defaults to `1.0`): wait before the first repetition; it doubles.

    Attributes:
        info (`TeacherInfo`): what the server said of its teacher.

    Raises:
        ValueError: a URL of another kind, no server there or another one, a wrong token, another tokenizer.
    """

    def __init__(
        self,
        url: str,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin | str | None = None,
        timeout_seconds: float = 600.0,
        token: str | None = None,
        retries: int = RETRIES,
        backoff_seconds: float = 1.0,
    ):
        token = check_token(token or os.environ.get(TOKEN_VARIABLE))
        self._connection = _Connection(url.rstrip("/"), token, timeout_seconds, backoff_seconds)
        self._retries, self._pending = retries, None
        self.info = self._read_info()
        if tokenizer is not None:
            ours = tokenizer if isinstance(tokenizer, str) else tokenizer_sha256(tokenizer)
            if ours != self.info.tokenizer_sha256:
                raise ValueError(
                    f"the teacher {self.info.model} at {url} has another tokenizer than the student: distil from a "
                    "teacher with the student's tokenizer"
                )
        self._connection.sha256 = self.info.sha256
        self.window, self.vocabulary = self.info.window, self.info.vocabulary
        body = self._connection.ask("GET", "/head", retries=retries)
        self._head_VE = unpack_answer(body, HEAD, (self.vocabulary, self.info.hidden_size))

    def _read_info(self) -> TeacherInfo:
        url = self._connection.url
        try:
            answer = self._connection.ask("GET", "/info", retries=0)
        except ConnectionError as error:
            raise ValueError(f"no teacher is served at {url}: start one with `{START}` ({error.__cause__})") from error
        try:
            entries = json.loads(answer)
            said = (entries.get("service"), entries.get("protocol"))
        except (ValueError, AttributeError):
            said = (None, None)
        if said != (SERVICE, PROTOCOL):
            raise ValueError(
                f"what answers at {url} is service {said[0]!r} of protocol {said[1]!r}, not {SERVICE!r} of {PROTOCOL}: "
                f"start one of this version with `{START}`"
            )
        try:
            info = TeacherInfo(**entries)
        except TypeError as error:
            raise ValueError(f"the teacher at {url} describes itself wrongly ({error})") from error
        if info.dtype not in DTYPES:
            raise ValueError(f"the teacher at {url} computes in {info.dtype}: allowed are {', '.join(DTYPES)}")
        return info

    def prefetch(self, inputs: dict, counts_BT: Tensor) -> None:
        """Send a batch now, so that the teacher computes while the student does; `targets` of it will wait less."""
        body = pack_request(inputs, counts_BT)
        self._pending = (body, self._send(body, int(counts_BT.sum())))

    def targets(self, inputs: dict, counts_BT: Tensor) -> HiddenTargets:
        """
        As the base, on the device of `counts_BT`.

        Raises:
            ValueError: the teacher is another one now, refuses the batch, or answers with what no teacher answers.
            ConnectionError: it does not answer.
        """
        body = pack_request(inputs, counts_BT)
        pending, self._pending = self._pending, None
        if pending is None or pending[0] != body:
            pending = (body, self._send(body, int(counts_BT.sum())))
        hidden_NE = pending[1].result().to(counts_BT.device)
        self._head_VE = self._head_VE.to(counts_BT.device)
        return HiddenTargets(hidden_NE, self._head_VE, self.info.softcap)

    def _send(self, body: bytes, count: int) -> Future:
        """The [N, E] of a request, sent by another thread: a daemon, so that no answer keeps a process that ends."""
        future = Future()

        def work():
            try:
                future.set_result(self._hidden(body, count))
            except Exception as error:  # whatever it is, it belongs to the thread that waits
                future.set_exception(error)

        threading.Thread(target=work, name="remote-teacher", daemon=True).start()
        return future

    def _hidden(self, body: bytes, count: int) -> Tensor:
        if len(body) > self.info.max_request_bytes:
            raise ValueError(
                f"a batch of {len(body)} bytes, and the teacher at {self._connection.url} reads at most "
                f"{self.info.max_request_bytes}: make per_device_train_batch_size smaller"
            )
        answer = self._connection.ask("POST", "/hidden", body, self._retries)
        return unpack_answer(answer, HIDDEN, (count, self.info.hidden_size), getattr(torch, self.info.dtype))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _address(url: str) -> tuple[str, int]:
    """Host and port of `url`."""
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise ValueError(f"{url!r} is no URL ({error}): allowed is http://host:port") from error
    if parts.scheme != "http" or not parts.hostname or parts.path or parts.query or parts.fragment:
        raise ValueError(f"{url!r}: allowed is http://host:port, as the server printed it (use a tunnel to encrypt)")
    if parts.username is not None:
        raise ValueError(f"a URL with a user name: set {TOKEN_VARIABLE} instead")  # not shown: it may hold a password
    return parts.hostname, port


def _text(answer: bytes) -> str:
    return answer[:500].decode(errors="replace").strip()
