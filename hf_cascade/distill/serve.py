"""A teacher's server: final hidden states over HTTP, 2 E bytes a token in bf16 where logits would be 2 V.

`GET /info` is JSON, `GET /head` and `POST /hidden` are safetensors (see `distill/wire.py`). One forward at a time; many
clients.

B rows, T tokens of a row, N positions that count, E the teacher's hidden size, V vocabulary.
"""

import hmac
import json
import logging
import sys
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from hf_cascade.distill.identity import model_sha256, tokenizer_sha256
from hf_cascade.distill.teacher import LocalTeacher
from hf_cascade.distill.wire import (
    HEAD,
    HIDDEN,
    PROTOCOL,
    SERVICE,
    SHA256_HEADER,
    TeacherInfo,
    check_token,
    pack_answer,
    unpack_request,
)

MAX_REQUEST_BYTES = 256 * 2**20  # ours: 15 million tokens, or nine images of 1540 x 1540 pixels in fp32
IDLE_SECONDS = 3600.0  # ours: a client may evaluate or save that long between two requests
logger = logging.getLogger(__name__)


class Refusal(Exception):
    """An answer that is an HTTP status and a reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class TeacherHandler(BaseHTTPRequestHandler):
    """One client's connection."""

    server: "TeacherServer"
    protocol_version = "HTTP/1.1"  # connections are kept
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """`/info` and `/head`."""
        self._respond({"/info": self.server.describe, "/head": self.server.head})

    def do_POST(self) -> None:
        """`/hidden`."""
        self._respond({"/hidden": self._hidden})

    def _respond(self, routes: dict) -> None:
        status, kind = 200, "application/octet-stream"
        try:
            self._authorise()
            if self.path not in routes:
                raise Refusal(404, f"{self.command} {self.path[:80]}: there are GET /info, GET /head and POST /hidden")
            body = routes[self.path]()
        except Refusal as refusal:
            status, kind, body = refusal.status, "text/plain; charset=utf-8", f"{refusal}\n".encode()
            self.close_connection = True  # what it sent was perhaps not read
            logger.warning("%s: refused with %d: %s", self.client_address[0], status, refusal)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(SHA256_HEADER, self.server.info.sha256)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _authorise(self) -> None:
        expected, given = self.server.token, self.headers.get("Authorization", "")
        # compared as bytes: text outside ASCII is an error to compare_digest
        if expected is not None and not hmac.compare_digest(f"Bearer {expected}".encode(), given.encode()):
            raise Refusal(401, "this teacher asks for a token")

    def _hidden(self) -> bytes:
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdigit()):
            raise Refusal(411, "a request needs Content-Length")
        length, limit = int(text), self.server.info.max_request_bytes
        if length > limit:
            raise Refusal(413, f"a request of {length} bytes: at most {limit} are read")
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionAbortedError(f"{len(body)} of {length} bytes arrived")
        return self.server.hidden(body)

    def log_request(self, code="-", size="-") -> None:
        """Say nothing of a request that went well."""

    def log_message(self, format, *args) -> None:  # noqa: A002 the base's name
        """Through `logging`, as everything else."""
        logger.warning("%s: %s", self.client_address[0], format % args)


class TeacherServer(ThreadingHTTPServer):
    """
    Serves one frozen model; `serve_forever()` runs it, `close()` ends it.

    Args:
        model (`PreTrainedModel`): the teacher, on the device it computes on.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer, for clients to compare.
        host (`str`, *optional*, defaults to `"127.0.0.1"`): address to listen on; `0.0.0.0` is every one.
        port (`int`, *optional*, defaults to `0`): 0 takes a free one.
        token (`str`, *optional*): asked of every client as `Authorization: Bearer TOKEN`.
        name (`str`, *optional*): what to call the teacher; unset, the folder or Hub id it was loaded from.
        max_request_bytes (`int`, *optional*): longer requests are refused.

    Raises:
        ValueError: the model's head is not linear, or the address cannot be had.
    """

    daemon_threads = True  # an idle client must not keep the process
    request_queue_size = 128  # ours: ranks that connect at the same moment

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        name: str | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ):
        self.token, self.closed, self._lock = check_token(token), False, threading.Lock()
        self._teacher, self._device = LocalTeacher(model), model.device
        one = torch.zeros((1, 1), dtype=torch.int64, device=self._device)
        hidden_NE = self._teacher.targets({"input_ids": one}, one == 0).hidden_NE  # it works, and in this type
        self.info = TeacherInfo(
            service=SERVICE,
            protocol=PROTOCOL,
            model=str(name or model.name_or_path),
            sha256=model_sha256(model),
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            vocabulary=self._teacher.vocabulary,
            hidden_size=hidden_NE.shape[1],
            dtype=str(hidden_NE.dtype).removeprefix("torch."),
            window=self._teacher.window,
            softcap=self._teacher.softcap,
            max_request_bytes=max_request_bytes,
        )
        try:
            super().__init__((host, port), TeacherHandler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"cannot listen on host {host}, port {port} ({error}): choose others") from error

    @property
    def url(self) -> str:
        """Where clients of this machine find it."""
        host, port = self.server_address[:2]
        return f"http://{self.server_name if host == '0.0.0.0' else host}:{port}"

    def describe(self) -> bytes:
        """The body of `/info`."""
        return json.dumps(asdict(self.info)).encode()

    def head(self) -> bytes:
        """The body of `/head`: [V, E]."""
        with self._lock:
            self._check_open()
            return pack_answer(HEAD, self._teacher.model.get_output_embeddings().weight)

    def hidden(self, body: bytes) -> bytes:
        """
        The body of `/hidden`: final hidden states [N, E] of a request's positions that count.

        Raises:
            Refusal: with 400, what was sent; with 500, the forward failed (out of memory, for instance).
        """
        try:
            inputs, counts_BT = unpack_request(body, self.info.vocabulary)
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        with self._lock:
            self._check_open()
            try:
                inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
                targets = self._teacher.targets(inputs, counts_BT.to(self._device))
            except (
                ValueError,
                TypeError,
                IndexError,
            ) as error:  # the model's own checks, as of images and their tokens
                raise Refusal(400, f"the teacher cannot read this batch ({error})") from error
            except RuntimeError as error:  # out of memory is one
                logger.exception("the teacher's forward failed")
                raise Refusal(500, f"the teacher's forward failed ({str(error).splitlines()[0]})") from error
            # inside the lock, so that `close` waits for it
            return pack_answer(HIDDEN, targets.hidden_NE)

    def _check_open(self) -> None:
        if self.closed:
            raise Refusal(503, "this teacher's server is stopping")

    def handle_error(self, request, client_address) -> None:
        """A client that went away costs one line of the log, not the server."""
        logger.warning("%s: %r", client_address[0], sys.exception())

    def close(self) -> None:
        """Stop listening and wait for a forward that runs: torch must compute in no thread when Python ends."""
        self.closed = True
        self.server_close()
        with self._lock:
            pass
