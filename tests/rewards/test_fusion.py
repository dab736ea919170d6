"""rewards/fusion.py against a server that speaks as SandboxFusion's run_code does."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hf_cascade.rewards.fusion import SandboxFusion
from hf_cascade.rewards.programs import ProgramReward
from hf_cascade.rewards.sandbox import Job, Limits, SandboxUnavailable


def run_code(body: dict) -> dict:
    """SandboxFusion's answer: server/sandbox_api.py and runners/types.py of it."""
    command = [sys.executable, "-c", body["code"]]
    try:
        done = subprocess.run(
            command, input=body["stdin"], capture_output=True, text=True, timeout=body["run_timeout"], check=False
        )
    except subprocess.TimeoutExpired:
        result = {"status": "TimeLimitExceeded", "return_code": None, "stdout": "", "stderr": ""}
    else:
        result = {"status": "Finished", "return_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    status = "Success" if result["return_code"] == 0 else "Failed"
    return {"status": status, "message": "", "compile_result": None, "run_result": {**result, "execution_time": 0.25}}


@pytest.fixture
def service():
    """A server; `answer` may be set to another function or to bytes; `bodies` are what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/run_code"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            answer = server.answer if isinstance(server.answer, bytes) else json.dumps(server.answer(body)).encode()
            self.send_response(server.code)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.bodies, server.code = run_code, [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url_of(service) -> str:
    return f"http://127.0.0.1:{service.server_port}/"


def test_runs_and_limits(service):
    backend = SandboxFusion(url_of(service))
    backend.check()
    cases = {"print(input())": "ok", "raise MemoryError": "memory", "raise SystemExit(3)": "error"}
    cases["import os; os.abort()"] = "killed"
    for code, status in cases.items():
        assert backend.run(Job({"main.py": code}, stdin="é")).status == status
    outcome = backend.run(Job({"main.py": "print(input())"}, stdin="é"))
    assert (outcome.stdout, outcome.seconds) == ("é\n", 0.25)
    sent = {"language": "python", "stdin": "é", "run_timeout": 4.0, "memory_limit_MB": 287, "files": {}}
    assert service.bodies[-1] == {"code": "print(input())", **sent}
    assert backend.run(Job({"main.py": "while True: pass"}, limits=Limits(seconds=0.3))).status == "timeout"
    backend.run(Job({"main.py": "", "a.txt": "b"}))
    assert service.bodies[-1]["files"] == {"a.txt": "Yg=="}


def test_rewards(service):
    reward = ProgramReward(backend=SandboxFusion(url_of(service)), workers=2)
    tests = [[{"input": "2", "output": "4"}]] * 2
    programs = [f"```python\nprint({sign} 2 * int(input()))\n```" for sign in "+-"]
    assert reward(["p"] * 2, programs, tests) == [1, 0]
    with pytest.raises(ValueError, match="two connected sandboxes"):
        reward(["p"], programs[:1], [["assert f(1) == 1"]])


@pytest.mark.parametrize(
    "answer",
    [
        b"no json",
        b"[]",
        b"{}",
        json.dumps({"status": "SandboxError", "message": "busy", "run_result": None}).encode(),
        json.dumps({"status": "Success", "message": "", "run_result": {"status": "Error"}}).encode(),
    ],
)
def test_its_failures_are_not_the_programs(service, answer):
    service.answer = answer
    with pytest.raises(SandboxUnavailable, match="run_code"):
        SandboxFusion(url_of(service)).run(Job({"main.py": "print(1)"}))


def test_errors_of_http_and_of_use(service):
    service.code = 500
    with pytest.raises(SandboxUnavailable, match="500"):
        SandboxFusion(url_of(service)).check()
    with pytest.raises(SandboxUnavailable, match="refused"):
        SandboxFusion("http://127.0.0.1:9").check()
    with pytest.raises(ValueError, match="http://"):
        SandboxFusion("localhost:8080")
    with pytest.raises(ValueError, match="runs main.py"):
        SandboxFusion(url_of(service)).run(Job(argv=("ls",)))
