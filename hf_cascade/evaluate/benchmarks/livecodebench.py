"""LiveCodeBench v6, avg@5 (Table 5): Jain et al., 2024, arXiv 2403.07974, and github.com/LiveCodeBench/LiveCodeBench.

Rules of its `lcb_runner/evaluation/testing_util.py`, written anew: all public and private tests must pass, 6 s each.
What is printed is compared by lines without spaces at their ends, lines of numbers as decimals. A value that a method
returns must equal the expected one, a tuple counting as a list. Programs find the standard library imported.
Here they run in the sandbox: a program with standard input as a script of its own for each test, which the official
runner wraps into a function of its own process; methods are called from another process, which holds what is expected.
"""

import base64
import functools
import json
import pickletools
import zlib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from lm_eval.api.registry import register_filter

from hf_cascade.evaluate.benchmarks.data import UnusableData, need, read
from hf_cascade.evaluate.benchmarks.programs import ProgramJudge, RunPrograms, Trial, fenced, in_python
from hf_cascade.evaluate.benchmarks.sampled import several
from hf_cascade.evaluate.conformance.case import Case
from hf_cascade.rewards.sandbox import Bubblewrap, Job, Limits

COLUMNS = ("question_content", "contest_date", "starter_code", "public_test_cases", "private_test_cases", "metadata")
SECONDS = 6  # of a test: run_test(timeout=6)
START_SECONDS = 2.0  # of the interpreter and its imports, which the official runner does not count; ours
MEMORY_BYTES = 4_000_000_000  # "max memory is set to 4GB", testing_util.py
ALL_SECONDS = 600.0  # of a method's tests together; ours: each has SECONDS
AROUND = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP")  # opcodes of a pickle of one text
TEXTS = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
LARGEST = 1_000_000_000  # bytes of a row's tests; ours: the set's largest are below 100 MB

# Modules whose names a program finds, and those it finds by themselves, in testing_util.py's order: later ones win.
STARRED = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys"
STARRED = f"{STARRED} json builtins typing".split()
PRELUDE = "".join(f"from {name} import *\n" for name in STARRED)
PRELUDE += f"import {', '.join(STARRED[:16])}\nsys.setrecursionlimit(50000)\nsys.set_int_max_str_digits(50000)\n"
IMPORTED = PRELUDE + "exec(compile({source!r}, 'program.py', 'exec', dont_inherit=True), globals())\n"
# An exit by any code is the program's end, as there; what it printed decides.
SCRIPT = f"{PRELUDE}try:\n    exec(compile({{source!r}}, 'main.py', 'exec', dont_inherit=True), globals())\n"
SCRIPT += "except SystemExit:\n    pass\n"
SETUP = f"""
import json, signal

def late(*_):
    raise TimeoutError

def timed(ask):
    signal.setitimer(signal.ITIMER_REAL, {SECONDS})
    value = ask()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return list(value) if isinstance(value, tuple) else value

signal.signal(signal.SIGALRM, late)
"""
CALLS = """
cases = [([json.loads(line) for line in given.split("\\n")], json.loads(wanted)) for given, wanted in {cases!r}]
method = timed(lambda: {method})
for given, wanted in cases:
    assert timed(lambda: method(*given)) == wanted
"""

TASK = "Write a Python program that solves this problem and passes all its tests.\n\n### Problem\n{content}\n\n"
READ = (
    "Read the input from standard input and print the answer to standard output; do not run it on the examples. Put "
    "the program in one block, as follows.\n```python\n# YOUR CODE HERE\n```\n"
)
COMPLETE = "Complete the following starter code, and put the whole program in one block.\n```python\n{starter}\n```\n"
ANSWER = "\n### Answer (a block with backticks, in the format above)\n"


def load(
    repo: str = "lighteval/code_generation_lite",
    config: str | None = "v6",
    split: str = "test",
    after: str | None = None,
    before: str | None = None,
    python: str | None = None,
    **metadata,
) -> dict:
    """
    `custom_dataset`: the problems of a release, or of a window of dates.

    Args:
        repo (`str`), config (`str`, *optional*), split (`str`): see [`read`].
        after (`str`, *optional*): first day of the contests, as `2025-02-01`.
        before (`str`, *optional*): first day that does not count.
        python (`str`, *optional*): [`Bubblewrap`]'s: interpreter of the programs, of an environment with numpy for
            example. The default has the standard library alone.
        **metadata: the task's `metadata`.

    Raises:
        SandboxUnavailable: this machine cannot run programs safely; nothing is run, and nothing is scored.
        MissingData: the rows are not there.
        ValueError: a column or a value is missing, no problem is in the window, or its tests cannot be read.
    """
    if python is not None:
        JUDGE.use(Bubblewrap(python))
    JUDGE.backend.check()
    rows = read(repo, split, config)
    need(rows, repo, COLUMNS, filled=set(COLUMNS) - {"starter_code"})
    dates = [_day(date) for date in rows["contest_date"]]
    kept = [at for at, day in enumerate(dates) if (after or "") <= day and (before is None or day < before)]
    if not kept:
        raise ValueError(
            f"{repo}, {config}: no problem from {after} to before {before}; its contests are from "
            f"{min(dates, default=None)} to {max(dates, default=None)}"
        )
    rows = rows if len(kept) == len(rows) else rows.select(kept)
    for at, row in enumerate(rows):  # now, not after hours of generation
        try:
            tests_of(row["public_test_cases"], row["private_test_cases"], row["metadata"])
        except (ValueError, TypeError, AttributeError, RecursionError, zlib.error) as error:
            raise UnusableData(f"{repo}, {config}: tests of row {row.get('question_id', at)}: {error}") from error
    return {"test": rows}


def _day(date) -> str:
    return (date if isinstance(date, str) else date.isoformat())[:10]


def doc_to_text(doc: dict) -> str:
    """The prompt: what LiveCodeBench's says (`lcb_runner/prompts/code_generation.py`), in our words."""
    starter = (doc["starter_code"] or "").rstrip()
    form = COMPLETE.format(starter=starter) if starter else READ
    return TASK.format(content=doc["question_content"].strip()) + "### Format\n" + form + ANSWER


def process_results(doc: dict, results: list) -> dict:
    """lm-eval's: `avg_at_k`, `pass_at_k`, `unparsed`, `unfinished`, `within_problem`. Programs have no majority."""
    figures = several(results, lambda answer: JUDGE.verdict(doc, answer))
    return {name: value for name, value in figures.items() if name != "maj_at_k"}


def trial(row: dict, answer: str) -> Trial | None:
    """The last fenced program of an answer, and the row's tests: of a method as one, of standard input each."""
    codes = in_python(fenced(answer))
    if not codes:
        return None
    source = codes[-1]
    tests, method = tests_of(row["public_test_cases"], row["private_test_cases"], row["metadata"])
    if method is None:
        return Trial(SCRIPT.format(source=source), tests, "", source.strip())
    cases = [(test["input"], test["output"]) for test in tests]
    path = f"Solution().{method}" if "class Solution" in source else method  # the official rule
    return Trial(IMPORTED.format(source=source), [CALLS.format(cases=cases, method=path)], SETUP, source.strip())


@functools.lru_cache(maxsize=8)
def tests_of(public: str, private: str, metadata: str) -> tuple[list[dict], str | None]:
    """
    Tests of a row, public ones first, and the name of the method that they call; `None`: standard input.

    Raises:
        ValueError: columns that are not what the dataset's are.
    """
    tests = [*json.loads(public), *unpacked(private)]
    if not tests or not all(isinstance(test.get(key), str) for test in tests for key in ("input", "output")):
        raise ValueError(f"tests of a row are {str(tests)[:200]}: give a list of inputs and outputs, at least one")
    method = json.loads(metadata).get("func_name")
    if method is not None and not method.isidentifier():
        raise ValueError(f"func_name is {method!r}: give a method's name")
    return tests, method


def unpacked(private: str) -> list[dict]:
    """
    Private tests: JSON, or base64 of zlib of a pickled text of JSON.

    The pickle is read as a list of its opcodes, and is never run.

    Raises:
        ValueError: it holds more than one text, it is torn, or too large.
    """
    if private.lstrip()[:1] in ("[", "{"):
        return json.loads(private)
    stream = zlib.decompressobj()
    data = stream.decompress(base64.b64decode(private, validate=True), LARGEST)
    if stream.unconsumed_tail:
        raise ValueError(f"private_test_cases unpack to more than {LARGEST} bytes")
    codes = [(code.name, argument) for code, argument, _ in pickletools.genops(data) if code.name not in AROUND]
    if [name in TEXTS for name, _ in codes] != [True]:
        raise ValueError(f"private_test_cases pickle {', '.join(name for name, _ in codes)[:80]}: give a text of JSON")
    return json.loads(codes[0][1])


def same_output(printed: str, expected: str) -> bool:
    """The official comparison: as many lines, each equal without spaces at its ends, or equal as decimals."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (printed, expected))
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    try:
        return [Decimal(word) for word in ours.split()] == [Decimal(word) for word in theirs.split()]
    except (InvalidOperation, ValueError):
        return False


class LiveCodeBenchJudge(ProgramJudge):
    """[`ProgramJudge`] with the official comparison of what is printed."""

    input_limits = Limits(seconds=SECONDS + START_SECONDS, memory_bytes=MEMORY_BYTES)

    def _test(self, program: str, test: str | Mapping[str, str], setup: str) -> tuple[bool | None, str]:
        if isinstance(test, str):
            return super()._test(program, test, setup)
        outcome = self.backend.run(Job({"main.py": program}, stdin=test["input"], limits=self.input_limits))
        return outcome.status == "ok" and same_output(outcome.stdout, test["output"]), outcome.status


JUDGE = LiveCodeBenchJudge(trial, Limits(seconds=ALL_SECONDS, memory_bytes=MEMORY_BYTES))


@register_filter("run_livecodebench")
class RunLiveCodeBench(RunPrograms):
    """Runs all programs of `cascade_livecodebench`."""

    judge = JUDGE


def _knowing(row: dict, answers: dict[str, str]) -> str:
    """A program that has the answers to a row's inputs."""
    method = json.loads(row["metadata"]).get("func_name")
    if method is None:
        return f"import sys\nprint({answers!r}[sys.stdin.read().strip()])"
    return (
        f"import json\nANSWERS = {answers!r}\n\nclass Solution:\n    def {method}(self, *given):\n"
        "        return json.loads(ANSWERS['\\n'.join(json.dumps(part) for part in given)])"
    )


def _answers(row: dict, tests: list[dict]) -> dict[str, str]:
    if json.loads(row["metadata"]).get("func_name") is None:
        return {test["input"].strip(): test["output"] for test in tests}
    return {"\n".join(json.dumps(json.loads(line)) for line in t["input"].split("\n")): t["output"] for t in tests}


def right(row: dict) -> list[str]:
    """A program that knows the outputs of all tests, in the formats that models answer in."""
    tests, _ = tests_of(row["public_test_cases"], row["private_test_cases"], row["metadata"])
    code = _knowing(row, _answers(row, tests))
    return [
        f"```python\n{code}\n```",
        f"```python\nraise SystemExit\n```\nThat was wrong. Rather:\n\n```Python3\n{code}\n```\nPrints\n```\n1\n```\n",
        f"The answer:\n```py\n{code}\n\n# done\n```\n```text\nO(1)\n```",
        f"```\n{code}\n```",
        f"1. So:\n   ```python\n{_indented(code)}\n   ```",
        f"```python\r\n{code}\r\n```".replace("\n", "\r\n").replace("\r\r", "\r"),
        f"```python\nfrom __future__ import annotations\n{code}\n```",
    ]


def _indented(code: str) -> str:
    return "\n".join("   " + line for line in code.split("\n"))


def wrong(row: dict) -> list[str]:
    """Programs that are wrong for one test at least, or try to pass without being right."""
    tests, method = tests_of(row["public_test_cases"], row["private_test_cases"], row["metadata"])
    answers = _answers(row, tests)
    code, last = _knowing(row, answers), list(answers)[-1]
    off = _knowing(row, answers | {last: '"no"' if method else "no"})
    fence = "```python\n{}\n```".format
    if method is None:
        cheats = ["import sys; sys.exit(0)", "import glob, sys\nprint(open(sys.argv[-1]).read(), glob.glob('/**'))", ""]
    else:
        same = "class Same:\n    def __eq__(self, other):\n        return True\n"
        head = f"class Solution:\n    def {method}(self, *given):\n        "
        cheats = [f"{same}\n{head}return Same()", f"import os\n{head}os._exit(0)", f"{head}raise SystemExit(0)"]
    return [
        fence(off),
        *map(fence, cheats),
        f"{fence(code)}\nNo, rather:\n{fence(off)}",
        code,  # without fences
        f"```cpp\n{code}\n```",
        f"```python\n{code}",
        "I cannot solve this.",
        "",
    ]


CASES = {"cascade_livecodebench": Case(right=right, wrong=wrong, metric="avg_at_k", needs=("sandbox",))}
