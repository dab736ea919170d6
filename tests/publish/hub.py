"""A small real Hub on this machine, in memory, with fault rules and a log of requests; reached through HF_ENDPOINT."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.publish import hub_collections, hub_discussions, hub_routes  # noqa: F401, the first two register routes
from tests.publish.hub_routes import Answer, Request
from tests.publish.hub_state import Collection, Problem, Repo

TOKEN = "hf_testtesttesttesttesttesttesttest"
USER, ORGANIZATION = "releaser", "org"
DROP_BEFORE, DROP_AFTER = "drop before", "drop after"


@dataclass
class Rule:
    """What goes wrong (a status, a dropped connection, or a function to call first), where, and how often still."""

    method: str
    pattern: re.Pattern
    what: int | str | Callable[[], None]
    left: float
    skip: int = 0

    def takes(self, method: str, target: str) -> bool:
        if self.left <= 0 or self.method not in ("*", method) or not self.pattern.search(target):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.left -= 1
        return True


class Hub:
    """
    Repositories and collections, and the server before them.

    Attributes:
        url (`str`): where it listens.
        repos, collections: what it holds; `repo(id)` gives one.
        tokens (`dict[str, str]`): who each token belongs to.
        requests (`list[Request]`): what was asked, in order; bodies of large files are left out.
        leaks (`list[str]`): requests with a token anywhere but in the authorization header.
        page (`int`): entries on one page of a list.
        part_bytes (`int`, *optional*): send clients to upload larger files in parts of this size.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.collections: dict[str, Collection] = {}
        self.tokens, self.organizations = {TOKEN: USER}, [ORGANIZATION]
        self.requests: list[Request] = []
        self.leaks: list[str] = []
        self.page, self.part_bytes = 1000, None
        self.linked: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self._rules: list[Rule] = []
        self._damage: list[Rule] = []
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.storage_url = f"http://localhost:{self._server.server_port}"  # another host, which gets no token
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def repo(self, repo_id: str) -> Repo:
        """One repository."""
        return self.repos[repo_id]

    def collection(self, slug: str) -> Collection:
        """One collection."""
        if slug not in self.collections:
            raise Problem(404, f"no collection {slug}")
        return self.collections[slug]

    def fail(self, method: str, path: str, what: int | str, times: int | None = 1, skip: int = 0) -> None:
        """
        Let requests go wrong.

        Args:
            method (`str`): `GET`, `POST`, ... or `*`.
            path (`str`): regular expression, looked for in the path and query.
            what (`int` or `str`): a status; `drop before` cuts the connection with nothing done, `drop after` does what
                was asked and cuts the connection then.
            times (`int`, *optional*): how often; `None` for always.
            skip (`int`): how many such requests go well before.
        """
        self._rules.append(Rule(method, re.compile(path), what, float("inf") if times is None else times, skip))

    def meanwhile(self, method: str, path: str, action: Callable[[], None]) -> None:
        """Before the next such request is answered, somebody else does something."""
        self._rules.append(Rule(method, re.compile(path), action, 1))

    def flip(self, path: str, times: int = 1) -> None:
        """Flip a bit of the next committed files with such a path."""
        self._damage.append(Rule("*", re.compile(path), "", times))

    def mend(self) -> None:
        """No more faults."""
        self._rules, self._damage = [], []

    def asked(self, method: str, path: str) -> list[Request]:
        """Requests so far with this method and a path that holds this regular expression."""
        return [one for one in self.requests if one.method == method and re.search(path, one.target)]

    # what the routes ask

    def damaged(self, path: str, content: bytes) -> bytes:
        if any(rule.takes("*", path) for rule in self._damage):
            return content[:-1] + bytes([content[-1] ^ 1])
        return content

    def signed_in(self, request: Request) -> str:
        if request.user is None:
            raise Problem(401, "Invalid username or password.")
        return request.user

    def may_write(self, repo_id: str, user: str) -> None:
        namespace = repo_id.split("/")[0]
        if namespace != user and namespace not in self.organizations:
            raise Problem(403, f"You don't have the rights to create a model under the namespace {namespace!r}")

    def visible(self, repo_id: str, request: Request, write: bool) -> Repo:
        """A repository, if whoever asks may see it, and change it."""
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and request.user is None and not request.path.startswith("/objects/")):
            raise Problem(401 if request.user is None else 404, "Repository not found", "RepoNotFound")
        if write and not request.path.startswith("/objects/"):  # those addresses are signed
            self.may_write(repo_id, self.signed_in(request))
        return repo

    def answer(self, request: Request) -> Answer | str:
        """Apply the rules, then ask the routes; `drop before` or `drop after` for a cut connection."""
        with self._lock:
            authorization = request.headers.get("authorization", "")
            request.user = self.tokens.get(authorization.removeprefix("Bearer "))
            self._log(request)
            rules = [rule for rule in self._rules if rule.takes(request.method, request.target)]
            for rule in rules:
                if callable(rule.what):
                    rule.what()
            faults = [rule.what for rule in rules if not callable(rule.what)]
            if faults and isinstance(faults[0], int):
                return _fault(faults[0], authorization)
            if DROP_BEFORE in faults:
                return DROP_BEFORE
            made = hub_routes.answer(self, request)
            return DROP_AFTER if DROP_AFTER in faults else made

    def _log(self, request: Request) -> None:
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        elsewhere = f"{request.target} {headers}".encode() + request.body
        for token in self.tokens:
            if token.encode() in elsewhere:
                self.leaks.append(f"{request.method} {request.path}")
        body = b"" if request.method == "PUT" and request.path.startswith("/objects/") else request.body
        self.requests.append(Request(request.method, request.target, headers, body, request.user))


class _Handler(BaseHTTPRequestHandler):
    """Reads a request whole, writes the answer; one thread a connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write an answer
    disable_nagle_algorithm = True

    def _handle(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self._read(headers))
        try:
            answer = self.hub.answer(request)
        except Problem as problem:
            answer = _as_answer(problem)
        if isinstance(answer, str):
            self.close_connection = True
            return
        raw = isinstance(answer.body, bytes)
        body = answer.body if raw else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/octet-stream" if raw else "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (answer.headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _read(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_):
        """Tests print what they need."""


def _fault(status: int, authorization: str) -> Answer:
    """A page of a proxy in front of the Hub, or JSON of the Hub; a rude one, that repeats the token."""
    if status >= 500:
        return Answer(b"<html>Service unavailable</html>", status, {"X-Request-Id": "made-up"})
    return _as_answer(Problem(status, f"made up for {authorization}"))


def _as_answer(problem: Problem) -> Answer:
    headers = {"X-Error-Message": problem.message.replace("\n", " ")}
    if problem.code:
        headers["X-Error-Code"] = problem.code
    if "commit" in problem.more:
        headers["X-Repo-Commit"] = problem.more["commit"]
    return Answer({"error": problem.message}, problem.status, headers)


def main() -> None:
    """Serve until interrupted, for a look by hand: `python -m tests.publish.hub`, then what it prints in a shell."""
    with Hub() as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1 HF_HOME=$(mktemp -d)", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"held {', '.join(hub.repos) or 'nothing'}")


if __name__ == "__main__":
    main()
