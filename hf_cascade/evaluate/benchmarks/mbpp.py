"""MBPP, 3-shot pass@1 (Table 3): Austin et al., 2021, "Program synthesis with large language models", arXiv 2108.07732.

Prompt and shots are that paper's (its tasks 2, 3 and 4). A program passes if the assertions of `test_list` do, all in
one run, as the paper runs them; they stand in a process of their own, which the program cannot reach.
"""

import ast
import builtins
import re
import sys
import textwrap

from lm_eval.api.registry import register_filter

from hf_cascade.evaluate.benchmarks.data import MissingData, UnusableData, need, read
from hf_cascade.evaluate.benchmarks.programs import ProgramJudge, RunPrograms, Trial, fenced, in_python, parses
from hf_cascade.evaluate.benchmarks.sampled import once
from hf_cascade.evaluate.conformance.case import Case
from hf_cascade.rewards.programs import called_names, check_tests
from hf_cascade.rewards.sandbox import Limits

PROMPT = (  # github.com/google-research/google-research, mbpp/README.md
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
    "{tests}\n[BEGIN]\n"
)
INTRO = PROMPT.partition("{")[0].strip()
BEGIN, DONE = "[BEGIN]", "[DONE]"
OPENING_TAG = re.compile(r"\A\s*(?:\[[A-Z]+\]|<\w+>|python)[ \t]*\n")
CLOSING_TAG = re.compile(r"^(?:\[(?:/[A-Z]+|END)\]|</\w+>)[ \t]*$", re.MULTILINE)
FENCED = re.compile(r"^[ \t]*(?:`{3}|~{3})", re.MULTILINE)
SHOTS = (2, 3, 4)  # task_id; the same README
COLUMNS = ("task_id", "text", "code", "test_list")
# ours: paper silent. Of the set's solutions one takes seconds (task 123: 2.4 s on a CPU that has nothing else to do).
LIMITS = Limits(seconds=20.0, memory_bytes=1_000_000_000)
BUILT_IN = frozenset(dir(builtins))  # names that no program needs from another block
DEFINING = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
LONGEST = 200_000  # characters of an answer that is searched for the code between prose
CODE_LINE = re.compile(  # a line at the margin that is not prose
    r"[#@\"'({\[]|(?:def|class|import|from|async|if|elif|else|for|while|try|except|finally|with|return|assert|raise|global"
    r"|pass|del)\b|\w+(?:[(\[]|\.\w|\s*[-+*/|&]?=)"
)


def load(
    repo: str = "google-research-datasets/mbpp",
    config: str | None = "full",
    split: str = "test",
    shots: str = "prompt",
    num_fewshot: int = len(SHOTS),
    **metadata,
) -> dict:
    """
    `custom_dataset`: the rows, with the whole prompt as column `prompt`.

    Args:
        repo (`str`), config (`str`, *optional*), split (`str`): see [`read`].
        shots (`str`): split of the rows that stand before the question.
        num_fewshot (`int`): how many of them.
        **metadata: the task's other `metadata`.

    Raises:
        SandboxUnavailable: this machine cannot run programs safely; nothing is run, and nothing is scored.
        MissingData: the rows or the shots are not there.
        ValueError: a column or a value is missing; tests of a row that are no Python, or call nothing.
    """
    JUDGE.backend.check()
    rows = read(repo, split, config)
    need(rows, repo, COLUMNS, filled=COLUMNS, unique="task_id")
    for row in rows:  # now, not after hours of generation
        try:
            check_tests([test_of(row)], setup_of(row))
        except (SyntaxError, TypeError, ValueError) as error:
            raise UnusableData(f"{repo}: tests of task {row['task_id']}, {row['test_list']!r:.200}: {error}") from error
    before = ""
    if num_fewshot:
        examples = read(repo, shots, config)
        need(examples, repo, COLUMNS, filled=COLUMNS)
        known = {row["task_id"]: row for row in examples}
        if num_fewshot > len(SHOTS) or not set(SHOTS[:num_fewshot]) <= set(known):
            raise MissingData(
                f"{repo}, {shots}: {num_fewshot} shots are asked for, from tasks {SHOTS}; it has {sorted(known)}"
            )
        before = "".join(_shot(known[task]) for task in SHOTS[:num_fewshot])
    return {"test": rows.add_column("prompt", [before + question(row) for row in rows])}


def question(row: dict) -> str:
    """The prompt of a row, without shots."""
    return PROMPT.format(text=row["text"].strip(), tests="\n".join(row["test_list"]))


def _shot(row: dict) -> str:
    code = row["code"].replace("\r\n", "\n").strip()
    return f"{question(row)}{code}\n{DONE}\n\n"


def process_results(doc: dict, results: list) -> dict:
    """lm-eval's: `acc` (pass@1 of one greedy response), `unparsed`, `unfinished`."""
    return once(results, lambda answer: JUDGE.verdict(doc, answer))


def trial(row: dict, answer: str) -> Trial | None:
    """The program of an answer, and what its row tests it with."""
    program = program_of(answer, names_of(row))
    return None if program is None else Trial(program, [test_of(row)], setup_of(row), program.strip())


JUDGE = ProgramJudge(trial, LIMITS)


@register_filter("run_mbpp")
class RunMbpp(RunPrograms):
    """Runs all programs of `cascade_mbpp`."""

    judge = JUDGE


def test_of(row: dict) -> str:
    """All tests of a row as one."""
    return "\n".join(row["test_list"])


def setup_of(row: dict) -> str:
    """What stands before the tests of a row: they use names that are not the program's."""
    return imports_of(test_of(row)) + (row.get("test_setup_code") or "").replace("\r\n", "\n")


def names_of(row: dict) -> list[str]:
    """What the tests of a row take from the program."""
    return called_names(test_of(row), setup_of(row))


def imports_of(test: str) -> str:
    """Imports of the standard library's modules that a test uses (`sys.getsizeof`) without importing them."""
    nodes = list(ast.walk(ast.parse(test)))
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    parts = [node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return "".join(f"import {name}\n" for name in sorted(set(parts) & sys.stdlib_module_names - called))


def program_of(answer: str, names: list[str]) -> str | None:
    """
    The program in an answer.

    Up to [DONE] and after [BEGIN]. Of fenced blocks the last that defines one of the `names`, with those before it that
    it needs; where no block does, the text before them, or else the last one; without fences the text, or what is left
    of it without tags and prose before and after.

    Args:
        answer (`str`): a response without thinking.
        names (`list[str]`): what the tests take from the program.

    Returns:
        `str` or `None`: `None` where there is neither a block nor a definition of any of the names.
    """
    text = answer.replace("\r\n", "\n").partition(DONE)[0]
    if _defines(own := text.partition(f"\n{INTRO}")[0], names):  # the next task follows, without [DONE]
        text = own
    text = text.rpartition(BEGIN)[2]
    if blocks := [] if parses(text) else fenced(text):  # a docstring may have fences
        open_too = [(word.removesuffix("?"), code) for word, code in blocks]  # generation may end at [DONE], unclosed
        codes = in_python(open_too)
        places = [place for place, code in enumerate(codes) if _defines(code, names)]
        if places:
            return _with_needed(codes[: places[-1] + 1])
        if not _defines(text := FENCED.split(text, maxsplit=1)[0], names):
            return codes[-1] if codes else None
    text = _untagged(textwrap.dedent(text).strip("\n"))
    if not text.strip() or len(text) > LONGEST or parses(text):
        return text if text.strip() else None
    code = _without_prose(text)
    return code if _defines(code, names) else None


def _with_needed(codes: list[str]) -> str:
    """The last block, behind what those before it define, where it uses that: helpers may stand in their own blocks."""
    *before, code = codes
    for earlier in reversed(before):
        needed = set(called_names(code)) - BUILT_IN if parses(code) and parses(earlier) else ()
        if needed and _defines(kept := _definitions(earlier, code), sorted(needed)):
            code = f"{kept}\n{code}"
    return code


def _definitions(code: str, user: str) -> str:
    """Imports, functions, classes and constants of a block, without what tries or shows them; whole without such."""
    statements = ast.parse(code).body
    own = [statement for statement in statements if isinstance(statement, DEFINING)]
    used = {node.id for tree in (ast.parse(user), *own) for node in ast.walk(tree) if isinstance(node, ast.Name)}
    wanted = [statement for statement in statements if isinstance(statement, DEFINING) or _is_constant(statement, used)]
    if len(wanted) == len(statements):
        return code
    lines, found = re.split(rb"\r\n|\r|\n", code.encode()), []
    for statement in wanted:
        first = min((statement, *getattr(statement, "decorator_list", ())), key=lambda node: node.lineno)
        part = lines[first.lineno - 1 : statement.end_lineno]
        part[-1] = part[-1][: statement.end_col_offset]
        part[0] = part[0][statement.col_offset :]
        found.append(b"\n".join(part).decode() + "\n")
    return "".join(found)


def _is_constant(statement: ast.stmt, used: set[str]) -> bool:
    """Whether it gives names a value: no built-in ones, and where it calls something for it, ones that are used."""
    if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
        return False
    nodes = list(ast.walk(statement))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    plain = not any(isinstance(node, ast.Call) for node in nodes)
    return bool(stored) and not stored & BUILT_IN and (plain or bool(stored & used))


def _untagged(text: str) -> str:
    """Code from behind an opening tag to a closing one: `[PYTHON]`, `[/PYTHON]`, `[END]`, `<code>`."""
    return CLOSING_TAG.split(OPENING_TAG.sub("", text, count=1), maxsplit=1)[0]


def _without_prose(text: str) -> str:
    """Code without the paragraphs before and after it, where that makes it Python; else as it is."""
    lines = text.split("\n")
    first = next((place for place, line in enumerate(lines) if CODE_LINE.match(line)), 0)
    for start in (0, first):
        kept = lines[start:]
        for _ in range(20):  # paragraphs; ours
            if parses("\n".join(kept)):
                return "\n".join(kept)
            ends = [
                place for place, line in enumerate(kept) if place and line[:1].strip() and not kept[place - 1].strip()
            ]
            if not ends or CODE_LINE.match(kept[ends[-1]]):  # code that does not parse is wrong code
                break
            kept = kept[: ends[-1]]
    return text


def _defines(code: str, names: list[str]) -> bool:
    either = "|".join(names)
    return bool(re.search(rf"^[ \t]*(?:async +)?(?:def|class) +(?:{either})\b|^(?:{either}) *[=:]", code, re.MULTILINE))


def right(row: dict) -> list[str]:
    """The set's own program, in the formats that models answer in."""
    code = row["code"].replace("\r\n", "\n").strip("\n")
    return [
        code,
        f"{code}\n{DONE}\n\nYou are an expert Python programmer, and here is your task: Write",
        f"```python\n{code}\n```\n{DONE}",
        f"[BEGIN]\n{code}\n{DONE}",
        f"```python\n{code}",
        f"Here is a function that does it:\n\n```python\n{code}\n```\n\nIt passes the tests:\n\n```text\nok\n```\n",
        f"A first idea:\n```python\n{_stub(row)}\n```\nThat is wrong. Better:\n```python\n{code}\n```\nDone.",
        f"```\n{code}\n```",
        f"```python\n{code}\n```\nUse it so:\n```python\nprint('used')\n```",
        f"Here is the function you asked for:\n\n{code}\n\nThis function handles every case, it's quick too.",
        code.replace("\n", "\r\n"),
        "1. Solution:\n" + "\n".join("   " + line for line in f"```py\n{code}\n```".split("\n")),
    ]


def wrong(row: dict) -> list[str]:
    """A program that does nothing right, and tries to pass without being right."""
    code = row["code"].replace("\r\n", "\n")
    commented = "\n".join("# " + line for line in code.split("\n"))
    same = "class Same:\n    def __eq__(self, other):\n        return True\n    __ne__ = __hash__ = None\n"
    name = names_of(row)[0]
    cheat = f"def {name}(*args, **kwargs):\n    "
    return [
        _stub(row),
        f"{same}\n{cheat}return Same()",
        f"import os\n{cheat}os._exit(0)",
        "import sys\nsys.exit(0)",
        f"{cheat}raise SystemExit(0)",
        f"import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {{}})\n{_stub(row)}",
        f"import sys\nprint('{{\"passed\": true}}', file=sys.stderr)\n{_stub(row)}",
        f"{commented}\n{_stub(row)}",
        f"```python\n{code}\n```\nThat is wrong, rather:\n```python\n{_stub(row)}\n```",
        f"{DONE}\n{code}",
        "I cannot solve this task.",
        "",
    ]


def _stub(row: dict) -> str:
    """Functions of the right names whose values equal nothing."""
    names = names_of(row)
    return "\n".join(f"def {name}(*args, **kwargs):\n    return object()\n" for name in names)


CASES = {"cascade_mbpp": Case(right=right, wrong=wrong, needs=("sandbox",))}
