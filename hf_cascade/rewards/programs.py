"""Reward for programs: 1 where a completion's program passes its tests, as a TRL reward function (section 5)."""

import ast
import builtins
import hashlib
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from hf_cascade.rewards.answers import answer_of
from hf_cascade.rewards.judging import JUDGE, PROGRAM
from hf_cascade.rewards.sandbox import LIMITS, Backend, Bubblewrap, Job, Limits, SandboxUnavailable

logger = logging.getLogger(__name__)

LANGUAGES = ("python", "py", "python3")
MAX_TESTS = 20  # section 5
JUDGE_SECONDS = 3.0  # more than the program has, so that its limit comes first; ours: paper silent


class ProgramReward:
    """
    1 where the last fenced Python program of a completion passes all its tests, else 0; thinking is left out.

    Of each row's tests up to `max_tests` are drawn by the prompt, so that all completions of a group meet the same.
    A test is one of:

    - `{"input": ..., "output": ...}`: the program gets one as standard input, and what it prints is compared here with
      the other, white space at the end of lines and of the text left out. It must end with exit code 0.
    - a text of Python, `assert add(1, 2) == 3` for example. The program's functions are called in its sandbox, the
      test itself runs in another one: see [`hf_cascade.rewards.judging`]. Names that neither the test nor `setup`
      defines are the program's. Arguments and results are plain values: numbers, text, bytes, lists, tuples, sets,
      dictionaries, ranges, iterators, types of Python's. Another object of the program equals itself only; the test can
      give it back, and use methods of instances it makes, but for special ones (`len`, `str`). What a function does to
      its arguments is not seen.

    Nothing the program does in its sandbox can pass a test, except giving the right values. It can guess them, and
    where a test accepts many values (`assert f(x)`) that is easy.

    Args:
        max_tests (`int`): tests of a row.
        limits ([`Limits`]): of one test.
        share (`bool`): reward the share of passed tests. ours: the paper's is all or nothing.
        workers (`int`, *optional*): tests at a time in this process; the default shares the CPUs out among the ranks of
            a machine.
        backend ([`Backend`], *optional*): the sandbox; the default is [`Bubblewrap`].

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self,
        max_tests: int = MAX_TESTS,
        limits: Limits = LIMITS,
        share: bool = False,
        workers: int | None = None,
        backend: Backend | None = None,
    ):
        workers = workers or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if max_tests < 1 or workers < 1:
            raise ValueError(f"max_tests is {max_tests} and workers {workers}: give 1 or more for both")
        self.max_tests, self.limits, self.share, self.workers = max_tests, limits, share, workers
        self.backend = backend or Bubblewrap()
        self.__name__ = "program_reward"

    def __call__(
        self,
        prompts: list,
        completions: list,
        tests: list[Sequence[str] | Sequence[Mapping[str, str]] | None],
        setup: list[str | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns,
    ) -> list[float | None]:
        """
        Rewards of a batch; `None` for a row without tests, and where the sandbox failed, not the program.

        Args:
            prompts (`list`): text, or lists of messages.
            completions (`list`): text, or lists of messages, of which the last assistant message counts.
            tests (`list`): of each row a list of tests, all of one form.
            setup (`list[str | None]`, *optional*): Python that runs before each of a row's tests; a function that it
                defines is not the program's.
            log_metric (`Callable`, *optional*): TRL's. Gets shares of the programs, under `program_reward/`: `missing`
                (no fenced program), `timeout` and `memory` (in any test), `failed_rate` (`None` with tests).
            **columns: not looked at.

        Raises:
            ValueError: tests of another form.
            SandboxUnavailable: nothing can be run on this machine.
        """
        work = []
        for prompt, completion, row, code in zip(
            prompts, completions, tests, setup or [None] * len(tests), strict=True
        ):
            chosen = choose(check_tests(row, code or ""), prompt, self.max_tests) if row else []
            work.append((last_program(answer_of(prompt, completion)), chosen, code or ""))
        if any(program is not None and chosen for program, chosen, _ in work):
            self.backend.check()
        with ThreadPoolExecutor(self.workers) as pool:
            results = list(pool.map(lambda task: self._reward(*task), work))
        if log_metric is not None and (tested := [counts for _, counts in results if counts]):
            for name, key in (("missing", "missing"), ("timeout", "timeout"), ("memory", "memory")):
                log_metric(f"{self.__name__}/{name}", sum(bool(counts[key]) for counts in tested) / len(tested))
            failed = sum(reward is None and bool(counts) for reward, counts in results)
            log_metric(f"{self.__name__}/failed_rate", failed / len(tested))
        return [reward for reward, _ in results]

    def _reward(self, program: str | None, tests: list, setup: str) -> tuple[float | None, Counter]:
        """A completion's reward, and how often its runs ended in which way; no counts without tests."""
        if not tests:
            return None, Counter()
        if program is None:
            return 0.0, Counter(missing=1)
        counts, passed, unjudged = Counter(), 0, 0
        for test in tests:
            try:
                verdict, status = self._test(program, test, setup)
            except SandboxUnavailable as error:
                verdict, status = None, "sandbox"
                logger.warning("A test counts for nothing, the sandbox failed: %s", error)
            counts[status] += 1
            passed += verdict is True
            unjudged += verdict is None
            if verdict is False and not self.share:
                return 0.0, counts
        return (None if unjudged else passed / len(tests)), counts

    def _test(self, program: str, test: str | Mapping[str, str], setup: str) -> tuple[bool | None, str]:
        """Whether a program passes a test, and how its run ended."""
        if not isinstance(test, str):
            outcome = self.backend.run(Job({"main.py": program}, stdin=test["input"], limits=self.limits))
            return outcome.status == "ok" and _lines(outcome.stdout) == _lines(test["output"]), outcome.status
        task = json.dumps({"setup": setup, "test": test, "calls": called_names(test, setup)})
        side = Job({"main.py": PROGRAM, "program.py": program}, limits=self.limits)
        room = replace(self.limits, seconds=self.limits.seconds + JUDGE_SECONDS, memory_bytes=1_000_000_000)
        outcome, verdict = self.backend.run_pair(side, Job({"main.py": JUDGE, "test.json": task}, limits=room))
        if verdict.status in ("timeout", "memory"):  # the program's values can bring a test to this
            return False, outcome.status
        try:
            said = json.loads(verdict.stderr)
        except ValueError as error:
            raise SandboxUnavailable(f"the judge gave no verdict: {verdict}") from error
        if "problem" in said:
            logger.warning("A test counts for nothing, it cannot be judged: %s in %r", said["problem"], test[:500])
            return None, outcome.status
        return said["passed"], outcome.status


program_reward = ProgramReward()


def last_program(text: str) -> str | None:
    """The last fenced block in Python that is closed, without its fences and their indentation; `None`: none."""
    found, fence, indent, lines = None, None, 0, []
    for line in text.split("\n"):  # not splitlines: a form feed belongs to the program
        mark = line.strip()
        if fence is None and mark.startswith("```"):
            fence, indent, lines = mark[3:].strip().lower(), len(line) - len(line.lstrip()), []
        elif fence is not None and mark == "```":
            found, fence = ("".join(lines) if fence in LANGUAGES else found), None
        else:
            lines.append(line[min(indent, len(line) - len(line.lstrip())) :] + "\n")
    return found


def choose(tests: Sequence, prompt: str | list, count: int) -> list:
    """Up to `count` tests, in their order: the same ones for the same prompt, in every process."""
    seed = hashlib.sha256(json.dumps(prompt, sort_keys=True, default=str).encode()).hexdigest()
    places = random.Random(seed).sample(range(len(tests)), min(count, len(tests)))
    return [tests[place] for place in sorted(places)]


def called_names(test: str, setup: str = "") -> list[str]:
    """
    Names that a test or its setup uses and neither they nor Python define: the program's.

    Where there are none, the program defines a built-in name anew: the ones that are called.
    """
    used, called, defined = set(), set(), set()
    for node in (*ast.walk(ast.parse(test)), *ast.walk(ast.parse(setup))):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called.add(node.func.id)
    return sorted(used - defined - set(dir(builtins))) or sorted(called - defined)


def check_tests(tests: Sequence, setup: str) -> Sequence:
    """
    Tests of a row, as they are.

    Args:
        tests (`Sequence`): texts of Python, or of each its `input` and `output`.
        setup (`str`): Python that runs before each.

    Raises:
        ValueError: neither form, or not all of one form; Python that does not parse, or calls nothing of a program.
    """
    if isinstance(tests, str):  # of which each letter would be a test
        raise ValueError(f"tests are the text {tests[:200]!r}: give a list of tests; json.loads reads one from JSON")
    if all(isinstance(test, str) for test in tests):
        for test in tests:
            try:
                names = called_names(test, setup)
            except SyntaxError as error:
                raise ValueError(f"a test or its setup is no Python: {error}; the test is {test[:500]!r}") from error
            if not names:
                raise ValueError(f"the test {test[:500]!r} calls nothing of the program: its name must not be in setup")
        return tests
    keys = ("input", "output")
    if all(isinstance(test, Mapping) and all(isinstance(test.get(key), str) for key in keys) for test in tests):
        return tests
    raise ValueError(
        f"tests are {str(tests)[:200]}: give texts of Python, or of each a text as `input` and one as `output`"
    )


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
