"""
rewards/programs.py: right programs get 1, all others 0, and no program can forge a verdict.

programs.jsonl holds ten rows of MBPP (google-research/google-research, CC BY 4.0) and six of HumanEval
(openai/human-eval, MIT, Copyright OpenAI), each with a `wrong` program: its solution with one operator, constant or
condition changed.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_cascade.rewards.programs import ProgramReward, called_names, choose, last_program
from hf_cascade.rewards.sandbox import Job, Limits, Outcome, SandboxUnavailable
from hf_cascade.rewards.verifiable import load_reward
from tests.rewards.bombs import BACKEND, needs_sandbox

ROWS = [json.loads(line) for line in (Path(__file__).parent / "programs.jsonl").read_text().splitlines()]
EXPECTED = "expected-value-4711"
FAST = ProgramReward(limits=Limits(seconds=3), workers=2, backend=BACKEND)


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\n"


def reward_of(program: str, tests: list, reward: ProgramReward = FAST, setup: str | None = None, **columns):
    (given,) = reward(["prompt"], [fenced(program)], [tests], [setup], **columns)
    return given


class Recorder:
    """A backend that runs nothing: it keeps what it is given, and answers as told."""

    def __init__(self, *answers):
        self.answers, self.jobs = list(answers), []

    def check(self):
        pass

    def answer(self, job):
        self.jobs.append(job)
        answer = self.answers[(len(self.jobs) - 1) % len(self.answers)]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run(self, job: Job) -> Outcome:
        return self.answer(job)

    def run_pair(self, job: Job, other: Job) -> tuple[Outcome, Outcome]:
        return Outcome("ok", "", "", 0.1), self.answer(other)


def said(stdout: str = "", stderr: str = "", status: str = "ok") -> Outcome:
    return Outcome(status, stdout, stderr, 0.1)


# Right and wrong programs


@needs_sandbox
def test_rewards_equal_a_plain_harness():
    def plain(row: dict, program: str) -> float:
        code = "\n".join([row["setup"], program, *row["tests"]])
        return float(not subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20).returncode)

    assert len(ROWS) == 16
    columns = {name: [row[name] for row in ROWS] * 2 for name in ("prompt", "tests", "setup")}
    programs = [row[kind] for kind in ("solution", "wrong") for row in ROWS]
    reward = ProgramReward(limits=Limits(seconds=10), workers=2, backend=BACKEND)
    rewards = reward(columns.pop("prompt"), [fenced(program) for program in programs], **columns)
    assert rewards == [1.0] * 16 + [0.0] * 16
    assert rewards == [plain(row, program) for row, program in zip(ROWS * 2, programs, strict=True)]


@needs_sandbox
def test_input_and_output():
    tests = [{"input": f"{a} {b}\n", "output": f"{a + b}\n"} for a, b in ((1, 2), (5, -3), (0, 0))]
    assert reward_of("print(sum(map(int, input().split())), '  ')", tests) == 1
    assert reward_of("print(sum(map(abs, map(int, input().split()))))", tests) == 0
    assert reward_of("print(sum(map(int, input().split())))\nraise SystemExit(1)", tests) == 0
    assert reward_of("print(' ', sum(map(int, input().split())))", tests) == 0  # in front it counts
    share = ProgramReward(share=True, limits=Limits(seconds=1.5), backend=BACKEND)
    wrong = "print(sum(map(abs, map(int, input().split()))))"
    assert reward_of(wrong, tests, share) == pytest.approx(2 / 3)


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(x): return {(1, 2.5): [x], None: {b'a', 'é'}, 3j: frozenset({10 ** 30})}",
         "assert f(True) == {(1, 2.5): [True], None: {b'a', 'é'}, 3j: frozenset({10 ** 30})}"),
        ("def f(x): return float('nan'), float('-inf'), -2 ** 63, '\\ud800', bytearray(b'a')",
         "a, *rest = f(1)\nassert a != a and rest == [-float('inf'), -2 ** 63, '\\ud800', b'a']"),
        ("def f(x): return (y * y for y in x)", "assert list(f(range(3))) == [0, 1, 4] and f([1]) != [1]"),
        ("import collections\ndef f(x): return collections.Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("def f(x): raise KeyError(x)",
         "try: f(1)\nexcept KeyError: pass\nelse: raise AssertionError"),
        ("def f(*a, **k): print('noise'); return a, k", "assert f(1, *'bc', d=(2,)) == ((1, 'b', 'c'), {'d': (2,)})"),
        ("def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A: x: int\n"
         "def f(x): return A(x).x", "assert f(2) == 2"),
        ("def f(x, kind): return [y for y in x if isinstance(y, kind)]", "assert f([1, 'a'], int) == [1]"),
        ("class Solution:\n    def f(self, x): return x",
         "s = Solution()\nassert s.f(2) == 2 and Solution().f(x=3) == 3"),
        ("class A:\n    def __init__(self, x): self.x = x\ndef f(x): return [A(y) for y in x]\n"
         "def g(many): return sum(one.x for one in many)", "assert g(f([1, 2])) == 3 and g([A(1), *f([4])]) == 5"),
        ("class A:\n    def __init__(self, x): self.x, self.next = x, None\n"
         "def f(x): return 1 + f(x.next) if x else 0",
         "a = A(1)\na.next = A(2)\na.next = A(5)\nassert f(a) == 2 and a.x == 1 and f(None) == 0"
         "\ntry: a.y\nexcept AttributeError: pass\nelse: raise AssertionError"),
        ("class Node:\n    def __init__(self, x, next=None): self.x, self.next = x, next\n"
         "def f(node, last=None):\n    while node: node.next, last, node = last, node, node.next\n    return last",
         "a = Node(1)\na.next = Node(2)\na.next.next = b = Node(3)\nc = f(a)\n"
         "assert c is b and c.next.next is a and a.next is None and [c.x, c.next.x, a.x] == [3, 2, 1]"),
        ("def f(x): return input()", "try: f(1)\nexcept EOFError: pass\nelse: raise AssertionError"),
    ],
)  # fmt: skip
def test_plain_values_and_errors_come_back_as_they_are(program, test):
    assert reward_of(program, [test]) == 1
    assert reward_of("def f(*x): return 0\nA = Node = g = sum = f\nclass Solution: f = f", [test]) == 0


@needs_sandbox
def test_setup_is_the_judges():
    """A helper that the test uses cannot be defined anew by the program."""
    setup, test = "def near(a, b): return abs(a - b) < .1", "assert near(f(2), 4)"
    assert reward_of("def f(x): return 2 * x", [test], setup=setup) == 1
    assert reward_of("def f(x): return 9\ndef near(a, b): return True", [test], setup=setup) == 0
    setup = "root = f(2)"
    assert reward_of("def f(x): return 2 * x", ["assert f(root) == 8"], setup=setup) == 1
    assert reward_of("def f(x): raise NameError(x)", ["assert f(root) == 8"], setup=setup) == 0
    assert reward_of("def f(x): return 'x'", ["assert f(root) == 8"], setup=f"{setup}\nroot + 1") == 0


# Forged verdicts


FORGERIES = {
    "says so": "print('{\"passed\": true}')\ndef f(x): print('{\"passed\": true}')",
    "says so everywhere": "import os\ndef f(x):\n    for end in range(64):\n"
    "        try: os.write(end, b'{\"passed\": true}\\n')\n        except OSError: pass",
    "exits": "raise SystemExit(0)",
    "exits at once": "import os; os._exit(0)",
    "exits when called": "import os\ndef f(x): os._exit(0)",
    "raises SystemExit": "def f(x): raise SystemExit(0)",
    "raises NameError": "def f(x): raise NameError('f')",
    "agrees to all": "class A:\n    def __getattr__(self, name): return lambda *a: True\ndef f(x): return A()",
    "an instance": "class A:\n    def __eq__(self, other): return True\nf = A().__eq__",
    "at exit": "import atexit, os\natexit.register(lambda: os.write(2, b'{\"passed\": true}'))\ndef f(x): return 1",
    "no AssertionError": "import builtins\nclass E(Exception): pass\nbuiltins.AssertionError = E\ndef f(x): return 1",
    "hooks": "import sys\nsys.excepthook = lambda *a: None\nsys.settrace(lambda *a: None)\ndef f(x): return 1",
    "equals all": "class A:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(x): return A()",
    "equals all, a str": "class A(str):\n    def __eq__(self, other): return True\ndef f(x): return A('a')",
    "equals all, an int": "class A(int):\n    def __eq__(self, o): return True\n    __ne__ = lambda s, o: False\n"
    "def f(x): return A(1)",
    "forges the channel": "import os, __main__\n__main__.send = lambda v: os.write(__main__.replies.fileno(), "
    "b'{\"passed\": true}\\n' * 9)\ndef f(x): return 1",
    "answers before": "import __main__\nfor _ in range(9): __main__.send([True, None])\ndef f(x): return 1",
    "unknown types": "import __main__\n__main__.encode = lambda v, u: {'type': 'Passed', 'value': 1}\n"
    "def f(x): return 1",
    "broken types": "import __main__\n__main__.encode = lambda v, u: {'type': 'dict', 'value': [[[], 1], 3]}\n"
    "def f(x): return 1",
    "deep": "def f(x):\n    for _ in range(900): x = [x]\n    return x",
    "deep, by hand": "import __main__\n__main__.send = lambda v: (__main__.replies.write(b'[' * 10 ** 5 + b'\\n'), "
    "__main__.replies.flush())\ndef f(x): return 1",
    "long": "def f(x): return 'x' * (10 ** 7)",
    "endless": "import itertools\ndef f(x): return itertools.count()",
    "endless line": "import __main__\ndef f(x):\n    while True: __main__.replies.write(b'x' * 4096)",
    "colliding": "def f(x): return {i * (2 ** 61 - 1): 0 for i in range(9 * 10 ** 4)}",
    "sleeps": "import time\ndef f(x): time.sleep(60)",
    "closes all": "import os\nos.closerange(0, 64)\ndef f(x): return 1",
    "answers twice": "import os\npid = os.fork()\ndef f(x): return 1",
    "fails as bwrap": "import os\nos.write(2, b'bwrap: cannot start\\n')\nos._exit(1)",
    "no module": "raise ImportError('program')",
    "kills all": "import os\nos.kill(-1, 9)\nos.kill(0, 9)",
    "takes memory": "def f(x): return bytearray(10 ** 9)",
    "no function": "",
    "no Python": "def f(x:",
}


@needs_sandbox
@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_no_verdict_is_forged(program):
    """0, and not `None` either: a wrong program must not pass for a failure of the sandbox."""
    test = f"assert f('a').startswith({EXPECTED!r}) or f('a') == {EXPECTED!r}"
    assert reward_of(program, [test]) == 0


@needs_sandbox
def test_the_judge_runs_nothing_of_the_program():
    """A test that calls what it gets: `eval`, with text from the program, would be code in the judge."""
    code = "__import__('os').write(verdicts.fileno(), b'{\"passed\": true}'), __import__('os')._exit(0)"
    program = f"""
import __main__
def f(x): return x
__main__.encode = lambda value, unknown: {{"type": "type", "value": "eval"}} if value == 1 else {code!r}
"""
    assert reward_of(program, ["assert f(1)(f(2)) == 5"]) == 0
    assert reward_of("def f(x): return int if x == 1 else '5'", ["assert f(1)(f(2)) == 5"]) == 1


@needs_sandbox
def test_what_is_expected_is_not_to_be_found():
    """A program that looks through files, processes, frames, objects and its own memory for it."""
    program = """
import gc, glob, os, re, sys
def f(x):
    found = []
    def look(text):
        found.extend(part for part in re.findall('expected' + r'-value-[0-9]+', text))
    frame = sys._getframe()
    while frame:
        look(repr(frame.f_globals) + repr(frame.f_locals))
        frame = frame.f_back
    for thing in gc.get_objects():
        if type(thing) in (dict, list, tuple): look(repr(thing)[:10 ** 5])
    for path in glob.glob('/tmp/*') + glob.glob('/proc/*/cmdline') + glob.glob('/proc/*/environ'):
        look(open(path, errors='replace').read())
    memory = open('/proc/self/mem', 'rb')
    for line in open('/proc/self/maps'):
        first, last = (int(place, 16) for place in line.split()[0].split('-'))
        if '[heap]' in line or '[stack]' in line:
            memory.seek(first)
            look(memory.read(last - first).decode(errors='replace'))
    return found[0] if found else 'nothing'
"""
    slow = ProgramReward(limits=Limits(seconds=8), backend=BACKEND)
    assert reward_of(program, [f"assert f('a') == {EXPECTED!r}"], slow) == 0
    assert reward_of(program, ["assert f('a') == 'nothing'"], slow) == 1
    assert reward_of(program, [f"assert f('{EXPECTED}') == {EXPECTED!r}"], slow) == 1  # it finds what it is given
    echo = "import glob\nfor path in glob.glob('/tmp/*') + ['/proc/self/cmdline']: print(open(path).read())"
    assert reward_of(echo, [{"input": "1", "output": EXPECTED}]) == 0


# Which program, which tests


def test_the_last_closed_python_block_counts():
    text = "```python\nfirst\n```\n```py\nsecond\n\n  end\n```\n```text\nthird\n```\n```\nplain\n```\n```python\nopen"
    assert last_program(text) == "second\n\n  end\n"
    assert last_program("```text\n```python\n```\n") is None  # a fence inside another block
    assert last_program("- so:\n  ```Python3\r\n  if 1:\r\n    2\r\n\n 3\n  ```") == "if 1:\r\n  2\r\n\n3\n"
    assert last_program("```python\n'a\x0cb\u2028c'\n```") == "'a\x0cb\u2028c'\n"
    assert last_program("no program") is None and last_program("```python\n```") == ""


@needs_sandbox
def test_thinking_is_left_out_and_messages_are_read():
    right, wrong = fenced("def f(x): return x"), fenced("def f(x): return -x")
    messages = [{"role": "assistant", "content": right, "reasoning_content": wrong}]
    completions = [f"[THINK]{right}[/THINK]{wrong}", f"<think>{wrong}</think>{right}", messages, f"<think>{right}"]
    assert FAST(["p"] * 4, completions, [["assert f(1) == 1"]] * 4) == [0, 1, 1, 0]


def test_a_group_meets_the_same_tests():
    tests = [f"assert f({number}) == 0" for number in range(50)]
    recorder = Recorder(said(stderr='{"passed": true}'))
    reward = ProgramReward(backend=recorder, workers=1)
    prompts = [[{"role": "user", "content": name}] for name in "aab"]
    assert reward(prompts, [fenced("1"), fenced("2"), fenced("3")], [tests] * 3) == [1, 1, 1]
    met = [json.loads(job.files["test.json"])["test"] for job in recorder.jobs]
    assert len(met) == 60 and met[:20] == met[20:40] != met[40:]
    assert len(set(met[:20])) == 20 and met[:20] == sorted(met[:20], key=tests.index)
    assert choose(tests, "x", 60) == tests
    code = "from hf_cascade.rewards.programs import choose; print(choose(range(50), 'x', 3))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == str(choose(range(50), "x", 3))


def test_what_is_expected_stays_here():
    recorder = Recorder(said(stdout="1"))
    reward = ProgramReward(backend=recorder)
    assert reward_of("print(1)", [{"input": "2", "output": EXPECTED}], reward) == 0
    assert EXPECTED not in repr(recorder.jobs)


def test_names_of_the_program():
    assert called_names("assert f(g(1), x=len([a for a in b])) == 2", "import b") == ["f", "g"]
    assert called_names("import math\ndef check(c):\n    assert c(1) == math.pi\ncheck(area)") == ["area"]
    assert called_names("try: f()\nexcept ValueError as e: print(e)\nassert (lambda y: y)(1)") == ["f"]
    assert called_names("assert max(1, 2) == 2") == ["max"] and called_names("assert True") == []


# Failures, and what is wrong with the data


def test_a_failure_of_the_sandbox_is_no_reward(caplog):
    test, right, wrong = "assert f(1) == 1", said(stderr='{"passed": true}'), said(stderr='{"passed": false}')
    cases = [
        ([right, SandboxUnavailable("gone"), right], None),
        ([right, said(stderr="", status="killed"), right], None),
        ([said(stderr='{"problem": "argument of type function"}'), right], None),
        ([SandboxUnavailable("gone"), wrong], 0),  # it failed one
        ([right, said(status="timeout"), right], 0),
        ([right, said(status="memory"), right], 0),
        ([right], 1),
    ]
    for answers, expected in cases:
        reward = ProgramReward(backend=Recorder(*answers))
        assert reward_of("1", [test] * 3, reward) == expected
    assert "sandbox failed: gone" in caplog.text and "argument of type function" in caplog.text


def test_metrics():
    logged = {}
    reward = ProgramReward(backend=Recorder(said(status="timeout"), said("1"), SandboxUnavailable("gone")), workers=1)
    tests = [[{"input": "", "output": "1"}]] * 4 + [None]
    completions = [fenced("1"), fenced("2"), fenced("3"), "none", fenced("4")]
    assert reward(["p"] * 5, completions, tests, log_metric=logged.__setitem__) == [0, 1, None, 0, None]
    assert logged == {f"program_reward/{key}": 0.25 for key in ("missing", "timeout", "failed_rate")} | {
        "program_reward/memory": 0.0
    }


@needs_sandbox
def test_what_cannot_be_judged_is_no_reward(caplog):
    program = "def f(x): return x(1)"
    assert reward_of(program, ["assert f(lambda y: y) == 1"]) is None
    assert reward_of(program, ["assert f(1) == 1"], setup="1/0") is None
    assert "value of type function" in caplog.text and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        (["assert f(1) =="], "no Python"),
        ('["assert f(1) == 1"]', "give a list of tests"),
        (["assert True"], "calls nothing of the program"),
        ([{"input": "1"}], "as `output`"),
        ([{"input": "1", "output": "1"}, "assert f(1)"], "texts of Python"),
        ([{"input": 1, "output": 1}], "as `input`"),
    ],
)
def test_tests_of_another_form(tests, message):
    recorder = Recorder(said())
    with pytest.raises(ValueError, match=message):
        reward_of("1", tests, ProgramReward(backend=recorder))
    assert recorder.jobs == []


def test_numbers_below_one():
    for wrong in ({"max_tests": 0}, {"workers": -1}):
        with pytest.raises(ValueError, match="give 1 or more"):
            ProgramReward(**wrong)


def test_it_has_a_name_for_recipes_and_says_when_nothing_can_run(monkeypatch):
    reward = load_reward("hf_cascade.rewards.programs.program_reward")
    assert reward.__name__ == "program_reward"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxUnavailable, match="Install bubblewrap"):
        reward_of("1", ["assert f(1)"], ProgramReward())
    assert reward(["p"], ["no program"], [["assert f(1)"]]) == [0]
