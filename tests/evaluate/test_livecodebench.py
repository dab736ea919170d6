"""benchmarks/livecodebench.py: the official comparison, both kinds of problem, and programs that would cheat."""

import base64
import json
import pickle
import time
import zlib
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from datasets import Dataset
from lm_eval import evaluate
from lm_eval.tasks import TaskManager

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import livecodebench
from hf_cascade.evaluate.benchmarks.livecodebench import load, same_output, unpacked
from hf_cascade.evaluate.conformance.knowing import Responding
from hf_cascade.rewards.sandbox import SandboxUnavailable
from tests.rewards.bombs import needs_sandbox

ROWS = assets.find("evals/rows")
DOCS = [json.loads(line) for line in (ROWS / "lighteval/code_generation_lite/v6/test.jsonl").read_text().splitlines()]
METHOD, STDIN = (next(doc for doc in DOCS if bool(doc["starter_code"]) is wanted) for wanted in (True, False))


@pytest.fixture(autouse=True)
def shipped_rows(monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(ROWS))


def made(tests: list[tuple[str, str]], method: str | None = None) -> dict:
    tests = [{"input": given, "output": wanted, "testtype": "x"} for given, wanted in tests]
    return STDIN | {
        "public_test_cases": "[]",
        "private_test_cases": json.dumps(tests),
        "metadata": json.dumps({"func_name": method} if method else {}),
    }


def verdict(doc: dict, program: str) -> float | None:
    figures = livecodebench.process_results(doc, [[f"```python\n{program}\n```"]])
    return figures.get("avg_at_k")


def official(printed: str, expected: str) -> bool:
    """grade_stdio's comparison in LiveCodeBench's testing_util.py, its steps one after the other."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (printed, expected))
    if len(ours) != len(theirs):
        return False
    for mine, wanted in zip(ours, theirs, strict=True):
        if mine != wanted:
            try:
                if [Decimal(word) for word in mine.split()] != [Decimal(word) for word in wanted.split()]:
                    return False
            except Exception:
                return False
    return True


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("7\n", "7", True),
        ("\n 7 \n\n", "7\n", True),
        ("7\n8", "7 8", False),
        ("1.50 2", "1.5 2.0", True),
        ("1.5000001", "1.5", False),
        ("50000000000000000", "50000000000000001", False),
        ("1e3", "1000", True),
        ("YES", "Yes", False),
        ("a  b", "a b", False),
        ("1  2", "1 2", True),
        ("nan", "nan", True),
        ("nan", "NaN", False),
        ("sNaN", "1", False),
        ("007", "7", True),
        ("", "", True),
        ("", "0", False),
        ("1\n\n2", "1\n2", False),
        ("1\r\n2\r\n", "1\n2", True),
        ("3 x", "3.0 x", False),
        ("１", "1", True),
    ],
)
def test_output_is_compared_as_officially(printed, expected, same):
    assert same_output(printed, expected) is same is official(printed, expected)


@needs_sandbox
def test_lm_eval_scores_the_oracle_1_the_anti_oracle_0_and_a_mixture_by_samples():
    task = TaskManager(include_path=str(assets.find("evals/tasks")), include_defaults=False)
    loaded = task.load(["cascade_livecodebench"])["tasks"]["cascade_livecodebench"]
    assert loaded.config.repeats == 5

    def score(respond):
        found = evaluate(Responding(respond), {"tasks": {loaded.config.task: loaded}}, bootstrap_iters=0)
        return {name.removesuffix(",none"): value for name, value in found["results"][loaded.config.task].items()}

    def of(responses, doc, sample):
        return responses(doc)[sample % len(responses(doc))]

    places = {doc["question_id"]: place for place, doc in enumerate(DOCS)}
    right = score(lambda doc, sample: of(livecodebench.right, doc, sample // 3 + places[doc["question_id"]]))
    assert (right["avg_at_k"], right["pass_at_k"], right["unparsed"], right["within_problem"]) == (1.0, 1.0, 0.0, 0.0)
    wrong = score(lambda doc, sample: of(livecodebench.wrong, doc, sample + 4))
    assert (wrong["avg_at_k"], wrong["pass_at_k"]) == (0.0, 0.0) and wrong["unparsed"] > 0
    both = score(lambda doc, sample: of((livecodebench.right, livecodebench.wrong)[sample % 2], doc, 0))
    assert both["avg_at_k"] == pytest.approx(0.6) and both["pass_at_k"] == 1.0
    assert both["within_problem"] == pytest.approx((0.6 * 0.4 / (8 * 5)) ** 0.5)


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "correct"),
    [
        ("class Solution:\n    def f(self, a, b):\n        return (a, b)", 1.0),  # a tuple counts as a list
        ("class Solution:\n    def f(self, a: List[int], b: Optional[int]):\n        return [a, b]", 1.0),
        ("from __future__ import annotations\ndef f(a, b):\n    return [a, b]", 1.0),
        ("class Solution:\n    def __init__(self): self.seen = []\n    def f(self, *p):\n        return [*p]", 1.0),
        ("class Solution:\n    def f(self, a, b):\n        print('[1]'); return [a, b]", 1.0),
        ("class Solution:\n    def f(self, a, b):\n        return [tuple(a), b]", 0.0),  # but not inside a list
        ("class Solution:\n    def f(self, a, b):\n        return [a, b] if b == 1 else [a, 1]", 0.0),
        ("class Solution:\n    def g(self, a, b):\n        return [a, b]", 0.0),
        ("def f(a, b):\n    return [a, b]\n# class Solution", 0.0),
        ("class Solution:\n    def f(self, a, b):\n        raise SystemExit(0)", 0.0),
        ("class All(list):\n    def __eq__(self, other): return True\ndef f(a, b):\n    return All()", 0.0),
        ("import json\njson.loads = lambda text: 1\nclass Solution:\n    def f(self, a, b):\n        return 1", 0.0),
        ("import os\nif os.fork():\n    os._exit(0)\ndef f(a, b):\n    return [b, a]", 0.0),
        ("import inspect, gc\ndef f(a, b):\n    return [o for o in gc.get_objects() if type(o) is list][0]", 0.0),
    ],
)
def test_methods(program, correct):
    assert verdict(made([("[1]\n1", "[[1], 1]"), ("[2, 3]\n4", "[[2, 3], 4]")], "f"), program) == correct


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "correct"),
    [
        ("print(int(input()) * 2)", 1.0),
        (
            "def main():\n    print(int(sys.stdin.readline()) * 2, end='  ')\nif __name__ == '__main__':\n    main()",
            1.0,
        ),
        ("print(2 * int(open(0).read()))\nexit(3)", 1.0),  # an exit is the end, by whatever code
        ("n = int(input())\ndef f():\n    global n\n    n *= 2\nf()\nprint(f'{n}.0')", 1.0),
        ("import threading\nt = threading.Thread(target=lambda: print(int(input()) * 2))\nt.start()", 1.0),
        ("def f(n):\n    return n and 1 + f(n - 1)\nprint(f(20000) - 20000 + int(input()) * 2)", 1.0),
        ("print(int(input()) * 2)\nraise ValueError", 0.0),
        ("print(int(input()) * 2)\nprint()", 1.0),
        ("print(int(input()) * 2)\nprint(1)", 0.0),
        ("print(2)", 0.0),
        ("print(sys.argv, os.environ)", 0.0),
        ("sys.exit(0)", 0.0),
        ("print = lambda *x: None\nprint(int(input()) * 2)", 0.0),
        ("x = bytearray(6 * 10**9)\nprint(int(input()) * 2)", 0.0),
    ],
)
def test_standard_input(program, correct):
    assert verdict(made([("1\n", "2\n"), ("21\n", "42\n")]), program) == correct


@needs_sandbox
def test_a_call_that_does_not_return_ends_at_its_own_limit(monkeypatch):
    limit = f"ITIMER_REAL, {livecodebench.SECONDS})"
    assert livecodebench.SETUP.count(limit) == 1
    monkeypatch.setattr(livecodebench, "SETUP", livecodebench.SETUP.replace(limit, "ITIMER_REAL, 0.7)"))
    start = time.monotonic()
    program = "import time\nclass Solution:\n    def f(self, n):\n        time.sleep(n)\n        return n"
    assert verdict(made([("0.5", "0.5")] * 3, "f"), program) == 1.0  # longer than one limit together
    assert verdict(made([("0", "0"), ("50", "50")], "f"), program) == 0.0
    assert time.monotonic() - start < 40  # and not the 50 it sleeps


def packed(value, protocol: int | None = None) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/hf_cascade_evil", "w"))


def test_private_tests_are_read_and_run_nothing(tmp_path):
    tests = [{"input": "ä", "output": "2", "testtype": "stdin"}]
    assert unpacked(json.dumps(tests)) == unpacked(packed(json.dumps(tests))) == tests
    assert unpacked(packed(json.dumps(tests).encode())) == tests
    long = json.dumps([tests[0] | {"output": "x" * 100_000}])
    assert all(unpacked(packed(long, protocol)) == json.loads(long) for protocol in range(6))
    evil = Path("/tmp/hf_cascade_evil")
    evil.unlink(missing_ok=True)
    for value in (Evil(), tests, 7, [json.dumps(tests)] * 2, bytearray(b"[]")):
        for protocol in range(6):
            with pytest.raises(ValueError, match="private_test_cases pickle .*: give a text of JSON"):
                unpacked(packed(value, protocol))
    for torn in (b"", b"\x80\x04", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x80\x04."):
        with pytest.raises(ValueError):
            unpacked(base64.b64encode(zlib.compress(torn)).decode())
    assert not evil.exists()
    for doc in DOCS:
        found, method = livecodebench.tests_of(doc["public_test_cases"], doc["private_test_cases"], doc["metadata"])
        assert len(found) >= 3 and bool(method) == bool(doc["starter_code"])
    with pytest.raises(ValueError, match="at least one"):
        livecodebench.tests_of("[]", "[]", "{}")
    with pytest.raises(ValueError, match="give a method's name"):
        livecodebench.tests_of(json.dumps(tests), "[]", json.dumps({"func_name": "f() or g"}))


def test_a_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(livecodebench, "LARGEST", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        unpacked(packed("[" + " " * 5000 + "]"))


@needs_sandbox
def test_a_window_of_dates(monkeypatch):
    days = [doc["contest_date"][:10] for doc in DOCS]
    found = load(after="2025-02-01", before="2025-04-06")["test"]["contest_date"]
    assert [day[:10] for day in found] == [day for day in days if "2025-02-01" <= day < "2025-04-06"]
    assert 0 < len(found) < len(DOCS) == len(load(version=1.0, needs=["sandbox"])["test"])
    with pytest.raises(ValueError, match="its contests are from 2025-01-18 to 2025-04-06"):
        load(after="2026-01-01")
    dated = Dataset.from_list([doc | {"contest_date": datetime.fromisoformat(doc["contest_date"])} for doc in DOCS])
    monkeypatch.setattr(livecodebench, "read", lambda *names: dated)
    assert len(load(after="2025-02-01", before="2025-04-06")["test"]) == len(found)


@needs_sandbox
def test_rows_that_cannot_be_used_are_named_before_anything_is_generated(monkeypatch):
    monkeypatch.setattr(livecodebench, "read", lambda *names: Dataset.from_list([{"question_content": "?"}]))
    with pytest.raises(ValueError, match="no column contest_date, starter_code"):
        load()
    for broken in (
        "",
        "x",
        "AAAA",
        packed(Evil()),
        packed("{"),
        packed("[" * 100_000),
        packed("[1]"),
        packed('[{"input": 1, "output": ""}]'),
    ):
        rows = Dataset.from_list([STDIN | {"private_test_cases": broken}])
        monkeypatch.setattr(livecodebench, "read", lambda *names, rows=rows: rows)
        with pytest.raises(ValueError, match="v6: tests of row synthetic_1: "):
            load()


def test_without_a_sandbox_nothing_is_scored(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    fresh = type(livecodebench.JUDGE)(livecodebench.trial, livecodebench.JUDGE.limits)
    monkeypatch.setattr(livecodebench, "JUDGE", fresh)
    with pytest.raises(SandboxUnavailable, match="bwrap is not installed. Install bubblewrap"):
        load()


def test_prompts_say_where_the_program_goes():
    assert METHOD["starter_code"].rstrip() in livecodebench.doc_to_text(METHOD)
    prompt = livecodebench.doc_to_text(STDIN | {"question_content": "Print {braces} and %s."})
    assert "Print {braces} and %s." in prompt and "standard input" in prompt and "```python\n" in prompt
