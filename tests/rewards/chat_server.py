"""A chat server of this process that answers, refuses, hangs and breaks off as a test says."""

import json
import math
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def says(text, top=None):
    """A chat completion; `top`: label to probability at the label's token."""
    content = [{"token": t, "top_logprobs": [{"token": k, "logprob": math.log(p)} for k, p in top.items()]}
               for t in ([text] if top else [])]  # fmt: skip
    return {"choices": [{"message": {"content": text}, "logprobs": {"content": content} if top else None}]}


class Server(ThreadingHTTPServer):
    """`answer(body, number)` gives a dict (200), (status, text[, headers]) or None after which the line is cut."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.bodies, self.headers = answer, [], []
        self.lock, self.now, self.most = threading.Lock(), 0, 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            number = len(server.bodies)
            server.now += 1
            server.most = max(server.most, server.now)
        answer = server.answer(body, number)
        with server.lock:
            server.now -= 1
        if answer is None:
            return
        status, text, *headers = (200, json.dumps(answer)) if isinstance(answer, dict) else answer
        self.send_response(status)
        for name, value in (headers or [{}])[0].items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        try:
            self.wfile.write(text.encode())
        except OSError:
            pass  # the client has hung up

    def log_message(self, *_):
        pass


@contextmanager
def serving(answer):
    """A `Server` while it runs."""
    server = Server(answer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
