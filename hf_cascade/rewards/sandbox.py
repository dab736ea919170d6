"""Runs a program that nobody has read, a model's, within limits and away from everything else (section 5)."""

import fcntl
import functools
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hf_cascade.rewards.running import LIMITS, NAMESPACES, Limits, Outcome, Running, SandboxUnavailable
from hf_cascade.rewards.seccomp import build_filter

NOBODY = 65534
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
ENVIRONMENT |= {"PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
ENVIRONMENT |= {"OPENBLAS_NUM_THREADS": "1"}  # a thread counts as a process
INSTALL = "Install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap)"


@dataclass(frozen=True)
class Job:
    """
    Something to run.

    Args:
        files (`Mapping[str, str]`): name -> content, in the folder it runs in.
        argv (`Sequence[str]`, *optional*): the default is the sandbox's Python with `main.py`.
        stdin (`str`): standard input.
        limits ([`Limits`]): what it may take.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    argv: Sequence[str] = ()
    stdin: str = ""
    limits: Limits = LIMITS


class Backend(Protocol):
    """What runs jobs: here, or a service behind HTTP. Every method raises SandboxUnavailable for its own failures."""

    def check(self) -> None:
        """Raise where nothing could be run."""

    def run(self, job: Job) -> Outcome:
        """Run to the end or a limit; when this returns, no process of it is left."""

    def run_pair(self, job: Job, other: Job) -> tuple[Outcome, Outcome]:
        """Run both, apart: each one's standard output is the other's input. When `other` ends, `job` is ended."""


def run(
    program: str | Sequence[str],
    stdin: str = "",
    limits: Limits = LIMITS,
    backend: Backend | None = None,
    files: Mapping[str, str] | None = None,
) -> Outcome:
    """
    Run a program in a sandbox.

    Args:
        program (`str | Sequence[str]`): Python source; or a command and its arguments.
        stdin (`str`): standard input.
        limits ([`Limits`]): what it may take.
        backend ([`Backend`], *optional*): the default is [`Bubblewrap`]. There is no fallback.
        files (`Mapping[str, str]`, *optional*): name -> content, in the folder it runs in.

    Raises:
        SandboxUnavailable: bwrap is missing or cannot start; the message says what to do.
    """
    source = {"main.py": program} if isinstance(program, str) else {}
    argv = () if isinstance(program, str) else program
    return (backend or Bubblewrap()).run(Job({**(files or {}), **source}, argv, stdin, limits))


class LocalBackend:
    """Runs jobs that `start` starts on this machine."""

    def start(self, job: Job, stdin: int, stdout: int) -> Running:
        """Start a job on two file descriptors."""
        raise NotImplementedError

    @functools.cached_property
    def _checked(self) -> bool:
        outcome = self.run(Job({"main.py": "print(6 * 7)"}, limits=Limits(seconds=20)))
        if (outcome.status, outcome.stdout) != ("ok", "42\n"):
            raise SandboxUnavailable(f"Python does not run in the sandbox: {outcome}. {NAMESPACES}")
        return True

    def check(self) -> None:
        """
        Run a program of one line, once.

        Raises:
            SandboxUnavailable: it does not run.
        """
        assert self._checked

    def run(self, job: Job) -> Outcome:
        """Run to the end or a limit."""
        stdin = memory_file(job.stdin)
        try:
            running = self.start(job, stdin, subprocess.PIPE)
        finally:
            os.close(stdin)
        return running.wait()

    def run_pair(self, job: Job, other: Job) -> tuple[Outcome, Outcome]:
        """Run both, each one's standard output being the other's input; `other`'s end is the end."""
        with ThreadPoolExecutor(1) as pool:
            with ExitStack() as ends:
                (first_in, other_out), (other_in, first_out) = os.pipe(), os.pipe()
                for end in (first_in, other_out, other_in, first_out):
                    ends.callback(os.close, end)
                first = self.start(job, first_in, first_out)
                outcome = pool.submit(first.wait)
                try:
                    second = self.start(other, other_in, other_out)
                except BaseException:
                    first.kill()
                    raise
            try:
                verdict = second.wait()
            finally:
                first.kill()
            return outcome.result(), verdict


class Bubblewrap(LocalBackend):
    """
    Linux namespaces by bubblewrap: no network, no processes and files of the host but `/usr` and Python, read-only.

    Started by root, it runs as nobody, since root passes by limits on processes: then nobody must be able to read
    `python`. Programs see an empty `/tmp`, their own `/proc` and a small `/dev`, and no environment variables.

    Args:
        python (`str`, *optional*): interpreter of the programs, of an environment with packages they may import for
            example. The default is the one below this environment, or `/usr/bin/python3` where nobody cannot read it.
        readable (`Sequence[str]`): further folders to show, read-only.

    Raises:
        SandboxUnavailable: from `check` and `run`: bwrap, prlimit or an interpreter is missing, or bwrap cannot start.
    """

    def __init__(self, python: str | None = None, readable: Sequence[str] = ()):
        self.python, self.readable = python, tuple(readable)

    @functools.cached_property
    def _prefix(self) -> list[str]:
        """Command line up to the job's own options."""
        for name in ("bwrap", "prlimit"):
            if shutil.which(name) is None:
                raise SandboxUnavailable(f"{name} is not installed. {INSTALL if name == 'bwrap' else 'See util-linux'}")
        if not Path("/proc/self/task").is_dir() or not list(Path("/proc/self/task").glob("*/children")):
            raise SandboxUnavailable("/proc/PID/task/TID/children is not there: memory cannot be watched")
        python = self.python = self.python or _find_python()
        question = [python, "-c", "import sys; print(sys.prefix, sys.base_prefix, sep='\\n')"]
        try:
            prefixes = subprocess.run(question, capture_output=True, text=True, check=True).stdout.splitlines()
        except (OSError, subprocess.CalledProcessError) as error:
            raise SandboxUnavailable(
                f"{python} does not run: {error}. Give Bubblewrap(python=...) one that does"
            ) from error
        if "/" in prefixes:
            raise SandboxUnavailable(f"{python} is installed in /, which would be shown whole: give another one")
        command = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--die-with-parent"]
        command += ["--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"]
        command += ["--clearenv", *(word for pair in ENVIRONMENT.items() for word in ("--setenv", *pair))]
        command += ["--proc", "/proc", "--dev", "/dev", "--size", "1000000", "--tmpfs", "/dev/shm"]
        command += ["--remount-ro", "/dev", "--ro-bind", "/usr", "/usr"]
        for folder in ("/bin", "/lib", "/lib64"):  # links into /usr, or folders
            if Path(folder).is_symlink():
                command += ["--symlink", os.readlink(folder), folder]
            elif Path(folder).is_dir():
                command += ["--ro-bind", folder, folder]
        shown = dict.fromkeys([*prefixes, *self.readable])
        self._shown = [folder for folder in shown if not Path(folder).is_relative_to("/usr")]
        return command + ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]

    def start(self, job: Job, stdin: int, stdout: int) -> Running:
        """Start a job on two file descriptors."""
        limits, command = job.limits, [*self._prefix]
        command += ["--size", str(limits.disk_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp"]
        command += [word for folder in self._shown for word in ("--ro-bind", folder, folder)]
        status, status_end = os.pipe()
        opened = [status_end]
        try:
            for name, content in job.files.items():
                opened.append(memory_file(content))
                command += ["--file", str(opened[-1]), f"/tmp/{name}"]
            opened.append(memory_file(build_filter()))
            command += ["--seccomp", str(opened[-1]), "--json-status-fd", str(status_end), "--remount-ro", "/", "--"]
            command += _prlimit(limits, f"--nproc={limits.processes}")
            process = subprocess.Popen(
                [*command, *(job.argv or (self.python, "main.py"))],
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath)},  # bwrap's own, which the program can read
                cwd="/",
                pass_fds=opened,
                start_new_session=True,
                **({"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}),
            )
        except BaseException as error:
            os.close(status)
            if isinstance(error, (OSError, ValueError)):
                raise SandboxUnavailable(f"bwrap did not start: {error}") from error
            raise
        finally:
            for end in opened:
                os.close(end)
        return Running(process, limits, status, lambda: None)


class UnsafeSubprocess(LocalBackend):
    """
    A bare process: it can read and write all that you can, and reach the network. For programs you trust only.

    Limits of time, address space, output and the size of a file hold; those on processes and on the disk do not, and a
    process that leaves its process group lives on.
    """

    def start(self, job: Job, stdin: int, stdout: int) -> Running:
        """Start a job on two file descriptors."""
        folder = tempfile.mkdtemp(prefix="hf-cascade-")
        try:
            for name, content in job.files.items():
                (Path(folder) / name).write_text(content, encoding="utf-8", errors="surrogatepass")
            process = subprocess.Popen(
                [*_prlimit(job.limits), *(job.argv or (sys.executable, "main.py"))],
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                env={**ENVIRONMENT, "HOME": folder},
                cwd=folder,
                start_new_session=True,
            )
        except BaseException as error:
            shutil.rmtree(folder)
            if isinstance(error, OSError):
                raise SandboxUnavailable(f"the program did not start: {error}") from error
            raise
        return Running(process, job.limits, None, lambda: shutil.rmtree(folder, True))  # what the program closed stays


def memory_file(content: str | bytes) -> int:
    """A file in memory that nobody can change, at its beginning; the caller closes it."""
    data = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    file = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(file, "wb", closefd=False) as stream:
        stream.write(data)
    os.lseek(file, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def _prlimit(limits: Limits, *further: str) -> list[str]:
    cpu = math.ceil(limits.seconds)
    words = [f"--as={limits.memory_bytes}", f"--cpu={cpu}:{cpu + 1}", f"--fsize={limits.disk_bytes}"]
    return ["prlimit", *words, "--core=0", "--nofile=128", *further, "--"]


def _find_python() -> str:
    """The interpreter below this environment, or Debian's; as root, one that nobody can read."""
    for candidate in (sys._base_executable, "/usr/bin/python3"):
        path = Path(candidate).resolve()
        reachable = os.geteuid() != 0 or all(folder.stat().st_mode & 1 for folder in path.parents if folder.is_dir())
        if path.is_file() and reachable:
            return str(path)
    raise SandboxUnavailable(
        f"root's programs run as nobody, who cannot read {sys._base_executable}, and there is no /usr/bin/python3: "
        "give Bubblewrap(python=...) one that all users can read"
    )
