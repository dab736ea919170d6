"""A started program of a sandbox: read until it ends or passes a limit, and then ended whole (limits: section 5)."""

import errno
import json
import os
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02  # between two looks at the memory
END_SECONDS = 10
NAMESPACES = (
    "bwrap 0.8 or newer and user namespaces are needed. Docker's default profile refuses them: run the container with "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined, or "
    "--privileged. Ubuntu 24.04 does too: sysctl kernel.apparmor_restrict_unprivileged_userns=0. UnsafeSubprocess() "
    "runs programs without isolation"
)


class SandboxUnavailable(RuntimeError):
    """The sandbox did not start a program: the machine's fault, never the program's."""


@dataclass(frozen=True)
class Limits:
    """
    What one run may take. Time and memory are the paper's (section 5); the others ours: paper silent.

    Args:
        seconds (`float`): of the wall clock, start of the interpreter included; rounded up it also is the CPU time
            of each process.
        memory_bytes (`int`): address space of each process, and memory of all of them together, what they
            share counted for each.
        processes (`int`): processes and threads at a time.
        output_bytes (`int`): standard output and error together.
        disk_bytes (`int`): of `/tmp`, the only folder that can be written to; also the size of a file.

    Raises:
        ValueError: a limit that leaves nothing.
    """

    seconds: float = 4.0
    memory_bytes: int = 300_000_000
    processes: int = 16
    output_bytes: int = 8_000_000
    disk_bytes: int = 64_000_000

    def __post_init__(self):
        if not 0 < self.seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"seconds is {self.seconds}: give a finite time above 0")
        for name in ("memory_bytes", "processes", "output_bytes", "disk_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")


LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """
    How a run ended.

    Attributes:
        status (`str`): "ok" (exit code 0), "error" (another one), "killed" (by a signal), or the limit that ended it:
            "timeout", "memory", "output".
        stdout, stderr (`str`): what was written, together at most `output_bytes`.
        seconds (`float`): of the wall clock.
    """

    status: str
    stdout: str
    stderr: str
    seconds: float


class Running:
    """
    A started program: read until it ends or passes a limit.

    Args:
        process (`Popen`): whose exit ends the run.
        limits ([`Limits`]): what it may take.
        status (`int`, *optional*): bwrap's status pipe, read here; it tells its own failures from the program's.
        clean_up (`Callable`): called at the end.
    """

    def __init__(self, process: subprocess.Popen, limits: Limits, status: int | None, clean_up: Callable):
        self.process, self.limits, self.status, self.clean_up = process, limits, status, clean_up
        self.start = time.monotonic()
        self.written = {name: bytearray() for name in ("stdout", "stderr") if getattr(process, name)}
        self.streams = {name: getattr(process, name).fileno() for name in self.written}
        if status is not None:
            self.written["status"], self.streams["status"] = bytearray(), status
        for stream in self.streams.values():
            os.set_blocking(stream, False)
        self.init, self.killed, self.closed = None, False, False
        self._lock = threading.Lock()  # run_pair kills from another thread

    def wait(self) -> Outcome:
        """Outcome of the run, when all its processes are gone."""
        limit = None
        try:
            limit = self._watch()
        finally:
            self.kill()
            for name in list(self.streams):
                self._read(name)
            for name in ("stdout", "stderr"):
                if stream := getattr(self.process, name):
                    stream.close()
            with self._lock:
                for end in (self.status, self.init):
                    if end is not None:
                        os.close(end)
                self.closed = True
            self.clean_up()
        seconds = time.monotonic() - self.start
        room, texts = self.limits.output_bytes, {}
        for name in ("stdout", "stderr"):
            texts[name] = self.written.get(name, b"")[:room].decode(errors="replace")
            room -= len(self.written.get(name, b"")[:room])
        return Outcome(limit or self._status(texts["stderr"]), texts["stdout"], texts["stderr"], seconds)

    def kill(self) -> None:
        """End every process of the run, and wait until they are gone."""
        with self._lock:
            if self.closed:
                return
            self.killed |= self.process.poll() is None
            if self.status is None:
                _send_kill(os.killpg, self.process.pid)
            elif self._has_init():
                _end_namespace(self.init)
            else:
                self.process.kill()  # bwrap's child dies with it
            self.process.wait()

    def _has_init(self) -> bool:
        """Whether process 1 of the sandbox is known, as the pidfd `init`: taken when bwrap tells it, while it lives."""
        if self.init is None:
            if "status" in self.streams:
                self._read("status")
            first, end, _ = self.written["status"].partition(b"\n")
            try:
                self.init = os.pidfd_open(json.loads(first)["child-pid"]) if end else None
            except ProcessLookupError:
                return False
        return self.init is not None

    def _watch(self) -> str | None:
        """Read until the end; the limit that was passed, or `None`."""
        pidfd = os.pidfd_open(self.process.pid)
        look = self.start
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(pidfd, selectors.EVENT_READ, None)
                for name, stream in self.streams.items():
                    selector.register(stream, selectors.EVENT_READ, name)
                while True:
                    now = time.monotonic()
                    if now - self.start >= self.limits.seconds:
                        return "timeout"
                    if now - look >= POLL_SECONDS:
                        look = now
                        if _memory_bytes(self.process.pid) > self.limits.memory_bytes:
                            return "memory"
                    ready = [key.data for key, _ in selector.select(POLL_SECONDS)]
                    for name in filter(None, ready):
                        with self._lock:
                            if not self._read(name):
                                selector.unregister(self.streams.pop(name))
                            if name == "status":
                                self._has_init()
                    written = sum(len(text) for name, text in self.written.items() if name != "status")
                    if written > self.limits.output_bytes:
                        return "output"
                    if None in ready:
                        return None
        finally:
            os.close(pidfd)

    def _read(self, name: str) -> bool:
        """Read what is there, up to just over the limit; whether more may come."""
        while len(self.written[name]) <= self.limits.output_bytes:
            try:
                data = os.read(self.streams[name], 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.written[name] += data
        return True

    def _status(self, stderr: str) -> str:
        code = self.process.returncode
        if self.status is not None:
            lines = [json.loads(line) for line in self.written["status"].split(b"\n")[:-1]]
            code = next((line["exit-code"] for line in lines if "exit-code" in line), None)
            if code is None and self.killed:
                return "killed"
            if code is None:  # bwrap writes it only where the program was started
                raise SandboxUnavailable(f"bwrap did not start the program: {stderr.strip()[-500:]}. {NAMESPACES}")
        return error_status(code, stderr)


def error_status(code: int, stderr: str) -> str:
    """An [`Outcome`]'s status of an exit code, negative or above 128 for a signal."""
    if code == 0:
        return "ok"
    number = -code if code < 0 else code - 128  # bwrap's way
    if number == signal.SIGXCPU:
        return "timeout"
    if stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return "memory"
    return "killed" if number > 0 else "error"


def _children(pid: int) -> list[int]:
    try:
        files = list(Path(f"/proc/{pid}/task").glob("*/children"))
        return [int(child) for file in files for child in file.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _memory_bytes(pid: int) -> int:
    """Memory of a process and all its descendants, files left out; one that has just ended has none."""
    pids, total = [pid], 0
    for descendant in pids:
        pids += _children(descendant)
        try:
            status = Path(f"/proc/{descendant}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += 1024 * sum(map(int, re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE)))
    return total


def _end_namespace(init: int) -> None:
    """Kill process 1 of a sandbox and wait for its end, which the kernel lets no other process of it outlive."""
    _send_kill(signal.pidfd_send_signal, init)
    with selectors.DefaultSelector() as selector:
        selector.register(init, selectors.EVENT_READ)
        if not selector.select(END_SECONDS):
            raise SandboxUnavailable(f"a sandbox's process 1 does not end {END_SECONDS} s after SIGKILL")


def _send_kill(send: Callable[[int, int], None], target: int) -> None:
    try:
        send(target, signal.SIGKILL)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise
