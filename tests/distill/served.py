"""A teacher's server in a thread, one that fails on demand among them, for the tests of this folder."""

import contextlib
import threading

import torch

from hf_cascade.distill.remote import RemoteTeacher
from hf_cascade.distill.serve import TeacherHandler, TeacherServer
from tests.data import tiny


class FaultyHandler(TeacherHandler):
    """Takes the next entry of `server.faults` before it answers `/hidden`: None, or a function of this handler."""

    def do_POST(self):
        self.server.posts += 1
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is None:
            super().do_POST()
        else:
            fault(self)


def drop(handler) -> None:
    """The connection breaks before an answer."""
    handler.close_connection = True


def cut(handler) -> None:
    """The connection breaks inside an answer."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
    handler.close_connection = True


def chatter(handler) -> None:
    """Something that is not HTTP."""
    handler.wfile.write(b"good morning\r\n\r\n")
    handler.close_connection = True


def fail(handler) -> None:
    """An answer of 500, the connection kept."""
    handler.rfile.read(int(handler.headers["Content-Length"]))
    body = b"no memory"
    handler.wfile.write(b"HTTP/1.1 500 Oops\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def answer(body: bytes, sha256: str | None = None):
    """A fault: status 200 with `body`, by the teacher of this fingerprint."""

    def fault(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        teacher = sha256 or handler.server.info.sha256
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nX-Teacher-Sha256: {teacher}\r\n\r\n"
        handler.wfile.write(head.encode() + body)

    return fault


@contextlib.contextmanager
def serving(model, faults=(), **kwargs):
    """A `TeacherServer` of `model` that runs in a thread; `posts` counts what was asked of `/hidden`."""
    server = TeacherServer(model, tiny.tokenizer(), **kwargs)
    server.RequestHandlerClass = FaultyHandler
    server.faults, server.posts = list(faults), 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.close()
        thread.join()


def ids_and_counts(rows: int = 2, tokens: int = 12, seed: int = 3) -> tuple[dict, torch.Tensor]:
    """Inputs without positions, and a mask of about two thirds of them."""
    draw = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(4, 97, (rows, tokens), generator=draw)
    return {"input_ids": ids_BT}, torch.rand((rows, tokens), generator=draw) > 0.33


def connect(server, **kwargs) -> RemoteTeacher:
    """A client of `server` that asks again three times, at once."""
    return RemoteTeacher(server.url, **{"retries": 3, "backoff_seconds": 0.001, "timeout_seconds": 30.0, **kwargs})


def assert_same(remote, local) -> None:
    """Equal targets, bit for bit."""
    for one, other in ((remote.hidden_NE, local.hidden_NE), (remote.head_VE, local.head_VE)):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert remote.softcap == local.softcap
