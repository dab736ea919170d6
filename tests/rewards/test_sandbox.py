"""rewards/sandbox.py: hostile programs end within their limits, reach nothing, and leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hf_cascade.rewards import sandbox
from hf_cascade.rewards.sandbox import Bubblewrap, Job, Limits, SandboxUnavailable, UnsafeSubprocess
from tests.rewards.bombs import BACKEND, explode, needs_sandbox, survivors

pytestmark = needs_sandbox
SECRET = "a-token-of-the-trainer"


@pytest.fixture
def open_folder():
    """A folder that nobody, as whom root's programs run, can read; pytest's own are closed."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


# What a program gets


def test_a_program_gets_its_input_and_gives_output_and_exit_code():
    outcome = explode("import sys; print(input() * 2); print('note', file=sys.stderr)", stdin="ab\n")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "abab\n", "note\n")
    outcome = explode("import sys; print(sys.argv[0]); sys.exit(3)")
    assert (outcome.status, outcome.stdout) == ("error", "main.py\n")
    outcome = sandbox.run(["sh", "-c", "cat note; kill -9 $$"], files={"note": "é"}, backend=BACKEND)
    assert (outcome.status, outcome.stdout) == ("killed", "é")
    assert sandbox.run("print(1)").stdout == "1\n"


def test_large_input_is_read_whole_or_not_at_all_and_cannot_be_changed():
    text = "0123456789abcde\n" * (50 << 16)  # 50 MiB
    assert explode("import sys; print(len(sys.stdin.read()))", stdin=text, seconds=10).stdout == f"{len(text)}\n"
    assert explode("print('unread')", stdin=text).stdout == "unread\n"
    change = "import os\nfor way in (0, os.open('/proc/self/fd/0', os.O_RDWR)):\n    os.pwrite(way, b'x', 0)"
    assert "PermissionError" in explode(change, stdin="abc").stderr


def test_two_programs_talk_and_the_second_ends_both():
    first = Job({"main.py": "import time; print(int(input()) + 1, flush=True); time.sleep(60)"})
    second = Job({"main.py": "import sys; print(41, flush=True); sys.stderr.write(input())"})
    start = time.monotonic()
    (_, outcome) = BACKEND.run_pair(first, second)
    assert (outcome.status, outcome.stderr) == ("ok", "42")
    assert time.monotonic() - start < 30  # and not the 60 it sleeps


def test_an_environment_with_packages_and_further_folders(open_folder):
    subprocess.run([BACKEND.python, "-m", "venv", "--without-pip", open_folder / "environment"], check=True)
    (packages,) = (open_folder / "environment").glob("lib/python*/site-packages")
    (packages / "of_the_environment.py").write_text("name = 'found'")
    (open_folder / "data").mkdir()
    (open_folder / "data" / "note").write_text("read")
    python = str(open_folder / "environment/bin/python")
    backend = Bubblewrap(python, readable=[str(open_folder / "data")])
    code = f"import of_the_environment as one, os; print(one.name, open('{open_folder}/data/note').read())\n"
    code += f"for folder in ('data', 'environment'):\n    try: open('{open_folder}/' + folder + '/x', 'w')\n"
    code += "    except OSError as error: print(error.errno)"
    outcome = sandbox.run(code, backend=backend)
    assert (outcome.status, outcome.stdout.split()) == ("ok", ["found", "read", "30", "30"]), outcome  # EROFS


def test_many_at_a_time():
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda number: explode(f"print({number})", seconds=20), range(24)))
    assert [int(outcome.stdout) for outcome in outcomes] == list(range(24))


# Processes


def test_a_fork_bomb_meets_the_limit_on_processes_and_is_gone():
    bomb = """
import os
count = 0
while True:
    try:
        if os.fork() == 0:
            while True:
                try: os.fork()
                except OSError: pass
        count += 1
    except OSError:
        os.write(1, b'%d\\n' % count)
        break
while True: pass
"""
    outcome = explode(bomb, seconds=1)
    assert outcome.status == "timeout"
    assert 1 <= int(outcome.stdout.split()[0]) < Limits().processes
    assert sandbox.run(["sh", "-c", "b() { b | b & }; b; sleep 9"], "", Limits(1), BACKEND).status in (
        "error",
        "timeout",
    )


def test_threads_count_as_processes():
    threads = "import threading, time\nfor _ in range(99): threading.Thread(target=time.sleep, args=(9,)).start()"
    assert "can't start new thread" in explode(threads, seconds=2).stderr


def test_a_daemon_goes_with_its_program():
    daemon = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3): os.close(number)
        time.sleep(60)
    os._exit(0)
os.wait()
print('parent')
"""
    for _ in range(5):  # without waiting for it, it is gone a moment later, and often enough before that
        outcome = explode(daemon)
        assert (outcome.status, outcome.stdout) == ("ok", "parent\n") and outcome.seconds < 30


def test_the_same_daemon_outlives_an_unsafe_process():
    """That `survivors` can find one."""
    token = uuid.uuid4().hex
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)"
    UnsafeSubprocess().run(Job({"main.py": code}, (sys.executable, "main.py", token)))
    left = survivors(token)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left


def test_a_sandbox_goes_with_the_trainer():
    token = uuid.uuid4().hex
    code = "import sys; from hf_cascade.rewards.sandbox import Bubblewrap, Job, Limits; backend = Bubblewrap()\n"
    code += f"backend.run(Job({{'main.py': 'import time; time.sleep(60)'}}, ({BACKEND.python!r}, 'main.py', "
    code += "sys.argv[1]), limits=Limits(60)))"
    trainer = subprocess.Popen([sys.executable, "-c", code, token], cwd=Path(__file__).parents[2])
    while len(survivors(token)) < 4:  # the trainer, bwrap, its init, the program
        assert trainer.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    trainer.kill()
    trainer.wait()
    end = time.monotonic() + 30
    while survivors(token) and time.monotonic() < end:
        time.sleep(0.05)
    assert survivors(token) == []


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(99)",
        "import signal, time\nfor number in {*range(1, 65)} - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)\n"
        "while True: time.sleep(1)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import os, time\nfor number in range(3): os.close(number)\ntime.sleep(99)",
        "import os, signal, time; os.kill(1, 9); os.kill(os.getppid(), 9); time.sleep(99)",
        "print(len(str(9 ** 9 ** 9)))",
    ],
    ids=["busy", "sleep", "ignores signals", "stopped", "closes all", "kills its init", "large number"],
)
def test_it_ends_at_its_time(code):
    outcome = explode(code, seconds=0.7)
    assert outcome.status == "timeout" and 0.7 <= outcome.seconds < 20.7


def test_it_can_kill_only_itself():
    assert "No such process" in explode("import os; os.kill(-1, 9)").stderr
    assert explode("import os; os.kill(0, 9)", seconds=2).status in ("killed", "timeout")
    assert explode(f"import os; os.kill({os.getpid()}, 9)").stderr.endswith("No such process\n")


def test_processor_time_is_limited_beside_the_clock():
    """Four threads of a C loop use it up faster than the clock runs; on one processor the clock comes first."""
    code = "import hashlib, threading\ndef work():\n    while True: hashlib.sha256(bytes(1 << 20))\n"
    code += "for _ in range(4): threading.Thread(target=work).start()"
    assert explode(code, seconds=1).status == "timeout"


# Memory, disk, output


@pytest.mark.parametrize(
    "code",
    [
        "kept = bytearray(10 ** 9)",
        "kept = []\nwhile True: kept.append(bytearray(10 ** 6))",
        "import gzip; kept = gzip.decompress(60 * gzip.compress(bytes(10 ** 7)))",
        "print(len('a' * 10 ** 12))",
        "import mmap; kept = mmap.mmap(-1, 10 ** 9)",
    ],
    ids=["at once", "piece by piece", "unpacked", "a string", "mapped"],
)
def test_a_memory_bomb_meets_the_limit(code):
    outcome = explode(code, seconds=10)
    assert outcome.status == "memory" or "Cannot allocate memory" in outcome.stderr


@pytest.mark.parametrize("take", ["bytearray(b'1' * 10 ** 8)", "mapped()"], ids=["private", "shared"])
def test_memory_is_limited_over_all_processes(take):
    code = f"""
import mmap, os, time
def mapped():
    memory = mmap.mmap(-1, 10 ** 8)
    for place in range(0, 10 ** 8, 4096): memory[place] = 1
    return memory
for _ in range(5):
    if os.fork() == 0: break
kept = {take}
time.sleep(60)
"""
    outcome = explode(code, seconds=20)
    assert outcome.status == "memory"
    assert explode(code.replace("10 ** 8", "10 ** 7").replace("(60)", "(.1)"), seconds=10).status == "ok"


def test_memory_of_no_process_is_refused():
    assert "PermissionError" in explode("import os; os.memfd_create('x')").stderr
    code = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); print(libc.shmget(0, 4096, 0o1600))"
    assert explode(code).stdout == "-1\n"


def test_the_disk_is_small_and_the_rest_cannot_be_written():
    code = """
import errno, os
total = 0
try:
    for number in range(99):
        with open(f'/tmp/{number}', 'wb', buffering=0) as file:
            for _ in range(10): total += file.write(bytes(10 ** 6))
except OSError as error:
    print(total, errno.errorcode[error.errno])
for folder in ('/', '/dev', '/usr', '/usr/bin', '/etc', '/proc', '/proc/sys/kernel'):
    try:
        open(f'{folder}/x', 'w')
        print('wrote to', folder)
    except OSError: pass
"""
    total, reason = explode(code, seconds=10).stdout.split()
    assert reason == "ENOSPC" and 50_000_000 < int(total) <= 64_000_000
    huge = "file = open('/tmp/x', 'wb'); file.truncate(10 ** 12)"
    assert "File too large" in explode(huge).stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_is_ended_and_cut(stream):
    outcome = explode(f"import sys\nwhile True: sys.{stream}.write('x' * 4096)", output_bytes=100_000)
    assert outcome.status == "output" and len(getattr(outcome, stream)) == 100_000
    assert explode("print('é' * 50000, end='')", output_bytes=100_000).stdout == "é" * 50_000


# The host


def test_no_network_and_no_socket_of_the_host():
    name = f"\0{uuid.uuid4().hex}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name)
        abstract.listen()
        code = f"""
import errno, socket
def attempt(family, address):
    try:
        with socket.socket(family) as made:
            made.settimeout(1)
            made.connect(address)
        return 'connected'
    except OSError as error: return errno.errorcode.get(error.errno, repr(error))
print(attempt(socket.AF_INET, ('127.0.0.1', {server.getsockname()[1]})))
print(attempt(socket.AF_INET, ('1.1.1.1', 53)))
print(attempt(socket.AF_UNIX, {name!r}))
print(attempt(socket.AF_VSOCK, (2, 1)))
"""
        assert explode(code).stdout.split() == ["ECONNREFUSED", "ENETUNREACH", "ECONNREFUSED", "EPERM"]


def test_no_file_process_or_variable_of_the_host(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "secret").write_text(SECRET)
    os.chmod(tmp_path / "secret", 0o644)
    hidden = ["/etc/shadow", "/etc/passwd", "/root", "/home", "/sys", "/run", "/var", str(Path(__file__))]
    hidden += [str(tmp_path / "secret"), f"/proc/{os.getpid()}/environ", "/proc/1/root/etc/shadow", "/dev/kmsg"]
    code = f"""
import glob, os
os.symlink('/etc/shadow', 'link')
for path in [*{hidden!r}, 'link']:
    for look in (os.listdir, open):
        try:
            look(path)
            print('saw', path)
        except OSError: pass
for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):
    if {SECRET[:9]!r} + {SECRET[9:]!r} in open(path, errors='replace').read(): print('read', path)
print(os.environ.get('HF_TOKEN'), len(glob.glob('/proc/[0-9]*')) < 5, len(os.listdir('/proc/self/fd')))
"""
    assert explode(code).stdout.split("\n") == ["None True 4", ""]  # the fourth is the listing's own


def test_it_has_no_rights():
    code = """
import os
rights = dict(line.split(':\\t') for line in open('/proc/self/status').read().splitlines())
print(os.getuid(), rights['CapEff'], rights['CapBnd'], rights['NoNewPrivs'], rights['Seccomp'])
for call in (lambda: os.setuid(0), lambda: os.chroot('/tmp'), lambda: os.setresgid(0, 0, 0)):
    try:
        call()
        print('may')
    except PermissionError: pass
"""
    said = explode(code).stdout.split()
    assert said == ["65534", "0" * 16, "0" * 16, "1", "2"]
    for flags in (0x10000000, 0x20000):  # a namespace of users, of mounts
        code = f"import ctypes; print(ctypes.CDLL(None).unshare({flags}))"
        assert explode(code).stdout == "-1\n"
    clone = "import ctypes, platform; n = {'x86_64': 56}.get(platform.machine(), 220)\n"
    clone += "print(ctypes.CDLL(None).syscall(n, 0x10000011, 0, 0, 0, 0))"
    assert explode(clone).stdout == "-1\n"


# Failures of the sandbox


def test_a_program_cannot_pass_for_a_failure_of_the_sandbox():
    code = "import os, sys\nsys.stderr.write('bwrap: cannot start')\nfor end in range(3, 99):\n"
    code += """    try: os.write(end, b'{"exit-code": 0}\\n')\n    except OSError: pass\nos._exit(1)"""
    assert explode(code).status == "error"


def test_without_bwrap_nothing_runs(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxUnavailable, match="bwrap is not installed. Install bubblewrap"):
        sandbox.run("print(1)")


def test_a_bwrap_that_fails_is_no_outcome(monkeypatch, open_folder):
    (open_folder / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    os.chmod(open_folder / "bwrap", 0o755)
    monkeypatch.setenv("PATH", f"{open_folder}:{os.environ['PATH']}")
    with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace.*user namespaces"):
        sandbox.run("print(1)")
    with pytest.raises(SandboxUnavailable, match="does not run"):
        Bubblewrap(python="/bin/false").check()
    with pytest.raises(SandboxUnavailable, match="does not run.*No such file"):
        Bubblewrap(python="/nowhere/python").check()


@pytest.mark.parametrize("change", [{"seconds": 0}, {"seconds": float("nan")}, {"memory_bytes": 0}, {"processes": -1}])
def test_limits_must_leave_something(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .*give"):
        Limits(**change)


def test_an_unsafe_process_has_limits_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    unsafe = UnsafeSubprocess()
    unsafe.check()

    def run(code: str, **limits):
        return unsafe.run(Job({"main.py": code}, limits=Limits(**limits)))

    assert run("import os, time; os.fork(); time.sleep(60)", seconds=1).status == "timeout"
    assert run("kept = bytearray(10 ** 9)").status == "memory"
    assert run("while True: print('x' * 4096)", output_bytes=10_000).status == "output"
    assert list(tmp_path.iterdir()) == []


def test_threads_and_pipes_are_given_back():
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for code in ("print(1)", "while True: print(1)", "import time; time.sleep(9)"):
        explode(code, seconds=0.5, output_bytes=1000)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (files, threads)
