"""benchmarks/mbpp.py, programs.py: the verdicts of a plain run for every form of an answer; none without a sandbox."""

import json
import subprocess
import sys
import threading

import pytest
from lm_eval import evaluate
from lm_eval.tasks import TaskManager

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import mbpp
from hf_cascade.evaluate.benchmarks.data import MissingData
from hf_cascade.evaluate.benchmarks.programs import ProgramJudge, RunPrograms, Trial, fenced, in_python
from hf_cascade.evaluate.conformance.knowing import Responding
from hf_cascade.rewards.sandbox import Limits, Outcome, SandboxUnavailable, UnsafeSubprocess
from tests.growth import check_growth, repeated
from tests.rewards.bombs import needs_sandbox

ROWS = assets.find("evals/rows")
FOLDER = ROWS / "google-research-datasets/mbpp/full"
DOCS = [json.loads(line) for line in (FOLDER / "test.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def shipped_rows(monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(ROWS))


def run(name: str, respond) -> dict:
    """lm-eval's results of a task whose model answers `respond(doc, sample)`."""
    task = TaskManager(include_path=str(assets.find("evals/tasks")), include_defaults=False).load([name])["tasks"][name]
    return evaluate(Responding(respond), {"tasks": {name: task}}, bootstrap_iters=0)


def passes_plainly(program: str, row: dict) -> bool:
    """Programs here are the set's own and changed ones, so that nothing forges an exit code."""
    code = "\n".join([program, row["test_setup_code"], *row["test_list"]])
    return not subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20).returncode


@needs_sandbox
def test_verdicts_are_those_of_a_plain_run():
    changed = [("+", "-"), ("==", "!="), ("return", "return not"), ("0", "1")]
    programs = [(row, row["code"].replace("\r\n", "\n")) for row in DOCS]
    programs += [
        (row, code.replace(*change, 1)) for row, code in programs for change in changed[:: len(row["text"]) % 3 + 1]
    ]
    judge = ProgramJudge(mbpp.trial, mbpp.LIMITS, workers=2)
    judge.run([row for row, _ in programs], [[program] for _, program in programs])
    found = [judge.verdict(row, program).correct for row, program in programs]
    assert found == [float(passes_plainly(program, row)) for row, program in programs]
    assert found[: len(DOCS)] == [1.0] * len(DOCS) and 0.0 in found


@needs_sandbox
def test_lm_eval_scores_the_oracle_1_and_the_anti_oracle_0():
    places = {doc["task_id"]: place for place, doc in enumerate(DOCS)}

    def mixed(responses):
        return lambda doc, sample: responses(doc)[places[doc["task_id"]] % len(responses(doc))]

    right, wrong = run("cascade_mbpp", mixed(mbpp.right)), run("cascade_mbpp", mixed(mbpp.wrong))
    assert right["results"]["cascade_mbpp"]["acc,none"] == 1.0
    assert right["results"]["cascade_mbpp"]["unparsed,none"] == 0.0
    assert wrong["results"]["cascade_mbpp"]["acc,none"] == 0.0
    assert right["n-samples"]["cascade_mbpp"]["effective"] == len(DOCS)


@needs_sandbox
def test_the_prompt_is_the_benchmarks_own():
    first, bare = mbpp.load()["test"][0], mbpp.load(num_fewshot=0)["test"][0]
    intro = "You are an expert Python programmer, and here is your task: "
    assert first["prompt"].startswith(
        f"{intro}Write a function to find the similar elements from the given two tuple lists. Your code should pass "
        "these tests:\n\nassert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)\n"
    )
    assert first["prompt"].count(intro) == 4 and first["prompt"].count("\n[DONE]\n\n") == 3
    assert first["prompt"].endswith('\nassert remove_Occ("PHP","P") == "H"\n[BEGIN]\n') and "\r" not in first["prompt"]
    assert first["prompt"].endswith("[DONE]\n\n" + bare["prompt"])


@needs_sandbox
def test_rows_that_lack_something_are_named(tmp_path, monkeypatch):
    folder = tmp_path / "google-research-datasets/mbpp/full"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
    (folder / "test.jsonl").write_text(json.dumps({"task_id": 11, "text": "t", "code": "c"}) + "\n")
    with pytest.raises(ValueError, match="mbpp: no column test_list; the columns are task_id, text, code"):
        mbpp.load()
    (folder / "test.jsonl").write_text(json.dumps(DOCS[0]) + "\n")
    (folder / "prompt.jsonl").write_text(json.dumps(DOCS[1]) + "\n")
    with pytest.raises(MissingData, match=r"3 shots are asked for, from tasks \(2, 3, 4\); it has \[12\]"):
        mbpp.load()
    (folder / "test.jsonl").write_text(json.dumps(DOCS[0] | {"test_list": ["assert f("]}) + "\n")
    with pytest.raises(ValueError, match=r"tests of task 11, \['assert f\('\]: .*never closed"):
        mbpp.load(num_fewshot=0)


def test_without_a_sandbox_nothing_is_scored(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(mbpp, "JUDGE", ProgramJudge(mbpp.trial, mbpp.LIMITS))
    with pytest.raises(SandboxUnavailable, match="bwrap is not installed. Install bubblewrap"):
        run("cascade_mbpp", lambda doc, sample: "")
    with pytest.raises(SandboxUnavailable, match="bwrap"):
        mbpp.process_results(DOCS[0], [[mbpp.right(DOCS[0])[0]]])


class Failing(UnsafeSubprocess):
    """A sandbox that answered once, and fails from then on."""

    def check(self):
        pass

    def run_pair(self, job, other):
        raise SandboxUnavailable("no more processes")


def test_a_failed_sandbox_is_no_verdict(monkeypatch):
    monkeypatch.setattr(mbpp, "JUDGE", ProgramJudge(mbpp.trial, mbpp.LIMITS, backend=Failing()))
    figures = mbpp.process_results(DOCS[0], [[mbpp.right(DOCS[0])[0]]])
    assert figures == {"unparsed": 0.0, "unfinished": 0.0}


class Counting(UnsafeSubprocess):
    """Counts, and ends only when eight run at once."""

    runs, together = 0, threading.Barrier(8)

    def check(self):
        pass

    def run(self, job):
        Counting.runs += 1
        self.together.wait(60)
        return Outcome("ok", job.files["main.py"], "", 0.3)


def test_all_programs_of_a_task_run_at_once_and_each_once():
    judge = ProgramJudge(
        lambda row, answer: Trial(answer, [{"input": "", "output": row["output"]}], "", answer) if answer else None,
        Limits(),
        workers=8,
        backend=Counting(),
    )
    filtered = type("Filter", (RunPrograms,), {"judge": judge})()
    docs = [{"output": str(number)} for number in range(8)]
    responses = [[str(number % 4)] * 5 + ["[THINK]no end", "[THINK]0[/THINK]"] for number in range(8)]
    assert filtered.apply(responses, docs) == responses
    assert Counting.runs == 8
    found = [judge.verdict(doc, several[0]) for doc, several in zip(docs, responses, strict=True)]
    assert [one.correct for one in found] == [1.0] * 4 + [0.0] * 4 and found[0].parsed == "0"
    assert Counting.runs == 8 and judge.verdict(docs[0], "") == (0.0, None)


def test_fences():
    text = "a\n```python\nx = 1\n```\n  ````py\n  s = '''\n  ```\n  '''\n  ````\n```Python3 run\ny\n```\n"
    text += "```\n1\n```\n```cpp"
    blocks = fenced(text)
    assert blocks == [
        ("python", "x = 1\n"),
        ("py", "s = '''\n```\n'''\n"),
        ("python3", "y\n"),
        ("", "1\n"),
        ("cpp?", ""),
    ]
    assert in_python(blocks) == ["x = 1\n", "s = '''\n```\n'''\n", "y\n"]
    assert in_python([("", "a"), ("text", "b")]) == ["a"] and in_python([("cpp", "a")]) == []
    assert fenced("```python\na\n```python\nb\n```") == [("python", "a\n"), ("python", "b\n")]
    assert fenced("```\r\na\r\n```\r\n") == [("", "a\n")] and fenced("") == []
    for opening in ("```python:main.py", "``` python", "```{python}", '```python title="a"'):
        assert fenced(f"{opening}\nx = 1```\nThat is it.") == [("python", "x = 1\n")], opening
    for line in ("s = '''a```", "# a```", "# a ```"):
        program = f"{line}\n'''\nx = 1\n"
        assert fenced(f"```python\n{program}```\nDone.") == [("python", program)], line
    assert fenced("```\nx = 1```\nor\n```\ny = 1\n```") == [("", "x = 1\n"), ("", "y = 1\n")]
    assert fenced("~~~\nx = 1\n~~~") == [("", "x = 1\n")] and fenced("a\n~~~\nb") == []
    assert fenced("a: here\n~~~\nx = 1\n~~~") == [("", "x = 1\n")]
    assert fenced("~~~python\nx = 1") == [("python?", "x = 1\n")]
    assert fenced("~~~python\nx = '```'\n~~~\n```c++\n1\n```") == [("python", "x = '```'\n"), ("c++", "1\n")]


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("def f(x):\n    return x\n", "def f(x):\n    return x"),
        ("  \n\n", None),
        ("[DONE]\ndef f(x): pass", None),
        ("No fences, no code.", None),
        ("It's simple:\n\ndef f(x):\n    return x\n\nIt's done, isn't it?\n\nYes.", "def f(x):\n    return x"),
        ("import os\n\ndef f(x):\n    return (\n\nprint(f(1))", "import os\n\ndef f(x):\n    return (\n\nprint(f(1))"),
        ("def f(x):\n    return x\n\ndef g(:\n    pass", "def f(x):\n    return x\n\ndef g(:\n    pass"),
        ("```python\ndef f(x): return 1\n```\n```python\nprint(f(1))\n```", "def f(x): return 1"),
        ("```python\ndef f(x): return 1\n```\n```python\ndef f(x): return 2\n```", "def f(x): return 2"),
        ("```python\ndef g(x): return 1\n```", "def g(x): return 1"),
        (
            "```py\nONE = 1\n```\n```py\ndef h(): return 2\n```\n```py\ndef f(x): return ONE\n```\n```\n1\n```",
            "ONE = 1\n\ndef f(x): return ONE",
        ),
        ("```python\ndef f(x): return 1", "def f(x): return 1"),
        ("```py\nsum = 0\n```\n```py\ndef f(x): return sum(x)\n```", "def f(x): return sum(x)"),
        (
            "```py\nimport re\nN = 3\nsum = 0\n@re.cache\ndef g(x):\n    return h(x) + N\nT = g(1); print(g(1))\n"
            "assert g(1) == 2\n```\n```py\ndef f(x): return g(x)\n```",
            "import re\nN = 3\n@re.cache\ndef g(x):\n    return h(x) + N\n\ndef f(x): return g(x)",
        ),
        (
            "```py\nT = list('é'); print(T)\ndef g(x): return T\n```\n```py\ndef f(x): return g(x)\n```",
            "T = list('é')\ndef g(x): return T\n\ndef f(x): return g(x)",
        ),
        ("The code\n~~~~~~~~\n```\nf = abs\n```\nIts use\n~~~~~~~\nf(1)", "f = abs"),
        ("Code of mine:\n~~~~~\n```\nf = abs\n```", "f = abs"),
        ('```python\ndef f(x):\n    return x + """\n    ```"""\n```', 'def f(x):\n    return x + """\n    ```"""'),
        ("```cpp\nint f(int x);\n```", None),
        ("[BEGIN]\nf = abs\n[DONE] and more [DONE]", "f = abs"),
        ("[BEGIN]\nf = abs\n[END]\nIt is abs.", "f = abs"),
        ("[PYTHON]\nf = abs\n[/PYTHON]", "f = abs"),
        ("<code>\nf = abs\n</code>\n", "f = abs"),
        ("python\nf = abs", "f = abs"),
        ("f = abs\n```\n\nThat is it.", "f = abs"),
        (f"f = abs\n\n{mbpp.INTRO} Add.\n\nassert g(1)\n[BEGIN]\ng = f", "f = abs"),
        (f"Sure:\n\n{mbpp.INTRO} Add.\n[BEGIN]\nf = abs\n[DONE]", "f = abs"),
        (
            'def f(x):\n    """\n    ```python\n    f(1)\n    ```\n    """\n',
            'def f(x):\n    """\n    ```python\n    f(1)\n    ```\n    """',
        ),
    ],
)
def test_the_program_of_an_answer(answer, program):
    found = mbpp.program_of(answer, ["f"])
    assert (found and found.strip()) == program


@pytest.mark.parametrize(
    "part", ["(", "a\n\n", "`", "```\n", "~~~\n", "```py\na```\n", "a```\n", "def f(", "\x00def f(): pass"]
)
def test_no_answer_takes_long(part):
    check_growth(lambda answer: mbpp.program_of(answer, ["f"]), repeated(part), 20_000)


def test_a_module_that_tests_use_is_theirs():
    assert mbpp.imports_of("assert size((1,)) == sys.getsizeof((1,))") == "import sys\n"
    assert mbpp.imports_of("assert copy([1]).index(1) == 0 and bisect.x(bisect(1))") == ""
