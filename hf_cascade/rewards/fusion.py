"""Programs in a SandboxFusion service, over HTTP (github.com/bytedance/SandboxFusion, POST /run_code)."""

import base64
import http.client
import json
import time
import urllib.request

from hf_cascade.rewards.running import Limits, Outcome, SandboxUnavailable, error_status
from hf_cascade.rewards.sandbox import Job

WAIT_SECONDS = 60.0  # for an answer, beside the program's time: the service may have a queue; ours: paper silent


class SandboxFusion:
    """
    Runs jobs in a SandboxFusion service: for tests of input and output, since assertions need two connected sandboxes.

    Time and memory are limited by the service (it cuts output at 1 MiB a stream); other limits and the isolation are
    as it has been set up. Its failures (an HTTP error, no answer, `SandboxError`) raise SandboxUnavailable.

    Args:
        url (`str`): of the service, `http://localhost:8080` for example.

    Raises:
        ValueError: the URL is not one of HTTP.
    """

    def __init__(self, url: str):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url is {url!r}: give one that starts with http:// or https://")
        self.url = url.rstrip("/") + "/run_code"

    def check(self) -> None:
        """Run a program of one line."""
        outcome = self.run(Job({"main.py": "print(6 * 7)"}, limits=Limits(seconds=20)))
        if (outcome.status, outcome.stdout) != ("ok", "42\n"):
            raise SandboxUnavailable(f"{self.url} does not run Python: {outcome}")

    def run(self, job: Job) -> Outcome:
        """Run to the end or a limit."""
        if job.argv:
            raise ValueError(f"argv is {job.argv}: SandboxFusion runs main.py, in Python")
        files = {
            name: base64.b64encode(_encode(text)).decode() for name, text in job.files.items() if name != "main.py"
        }
        body = {"language": "python", "code": job.files["main.py"], "stdin": job.stdin, "files": files}
        body |= {"run_timeout": job.limits.seconds, "memory_limit_MB": -(-job.limits.memory_bytes // 2**20)}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        start = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=job.limits.seconds + WAIT_SECONDS) as answer:
                said = json.load(answer)
            result = said["run_result"] or {}
            failed = said["status"] == "SandboxError" or result.get("status") not in ("Finished", "TimeLimitExceeded")
            message = said.get("message")
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SandboxUnavailable(f"{self.url} did not answer as SandboxFusion does: {error!r}") from error
        if failed:
            raise SandboxUnavailable(f"{self.url} failed: {message}")
        stdout, stderr = result.get("stdout") or "", result.get("stderr") or ""
        ended = "timeout" if result["status"] == "TimeLimitExceeded" else error_status(result["return_code"], stderr)
        return Outcome(ended, stdout, stderr, result.get("execution_time") or time.monotonic() - start)

    def run_pair(self, job: Job, other: Job) -> tuple[Outcome, Outcome]:
        """Refused."""
        raise ValueError("assertions need two connected sandboxes: give tests of input and output, or use Bubblewrap")


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
