"""Starts programs in the sandbox for tests, and finds what they leave behind."""

import time
import uuid
from pathlib import Path

import pytest

from hf_cascade.rewards.sandbox import Backend, Bubblewrap, Job, Limits, Outcome, SandboxUnavailable

BACKEND = Bubblewrap()
try:
    BACKEND.check()
    REASON = ""
except SandboxUnavailable as error:
    REASON = str(error)
needs_sandbox = pytest.mark.skipif(bool(REASON), reason=REASON or "it runs")


def survivors(token: str) -> list[int]:
    """Processes on this machine, in whatever namespace, that have the token in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def explode(source: str, stdin: str = "", backend: Backend = BACKEND, **limits) -> Outcome:
    """Run a program that must end within its time and leave no process behind."""
    token = uuid.uuid4().hex
    job = Job({"main.py": source}, (BACKEND.python, "main.py", token), stdin, Limits(**limits))
    start = time.monotonic()
    outcome = backend.run(job)
    assert survivors(token) == []
    assert time.monotonic() - start < job.limits.seconds + 20  # a busy machine is late; a bomb never ends
    return outcome
