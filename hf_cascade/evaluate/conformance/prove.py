"""Conformance of many tasks on the rows that ship with hf-cascade, offline."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks.data import MissingData
from hf_cascade.evaluate.benchmarks.judge_settings import JudgeSettings
from hf_cascade.evaluate.conformance.case import Case
from hf_cascade.evaluate.conformance.cases import all_cases
from hf_cascade.evaluate.conformance.check import Finding, Prover
from hf_cascade.evaluate.conformance.judging import serve
from hf_cascade.evaluate.harness import open_tasks, quiet
from hf_cascade.evaluate.suite.settings import SuiteSettings
from hf_cascade.rewards.running import SandboxUnavailable

ROWS, TASKS, PACKAGE = "evals/rows", "evals/tasks", "hf_cascade/evaluate/benchmarks"
GREEN, RED, NOT_RUN = "green", "red", "not run"


def prove(tasks: list[str] | None = None, report: Callable[[int, int, str], None] | None = None) -> dict[str, dict]:
    """
    Check tasks that hf-cascade ships.

    Args:
        tasks (`list[str]`, *optional*): their names; unset, all that have a case.
        report (`Callable`, *optional*): called with tasks done, all tasks, and the next one's name.

    Returns:
        `dict`: task to `{"status", "reason", "checks", "failed", "seconds"}`: `status` is `"green"`, `"red"`, or `"not
        run"` (a sandbox is needed, and this machine has none); `checks` is name to `[passed, all]`; `failed` lists what
        was given and what came out.

    Raises:
        ValueError: a task has no case: it cannot be part of a suite.
    """
    cases = all_cases()
    names = list(cases) if tasks is None else tasks
    if unknown := [name for name in names if name not in cases]:
        raise ValueError(f"{', '.join(unknown)}: nothing proves their scorers; what is proved: {', '.join(cases)}")
    manager = open_tasks(names, TASKS)
    proved = {}
    for done, name in enumerate(names):
        if report is not None:
            report(done, len(names), name)
        started = time.monotonic()
        proved[name] = {**_prove(name, cases[name], manager), "seconds": time.monotonic() - started}
    return proved


def scorers_sha256() -> str:
    """Hash of what conformance depends on: scorers, tasks, and shipped rows. Another hash, another proof."""
    digest = hashlib.sha256()
    package = assets.root() / PACKAGE
    package = package if package.is_dir() else assets.root().parent / "evaluate" / "benchmarks"  # in a wheel
    for folder in (package, *(assets.find(name) for name in (TASKS, ROWS))):
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def record(
    tasks: list[str], known: dict | None = None, report: Callable[[int, int, str], None] | None = None
) -> dict[str, dict]:
    """
    What evals.json says of the scorers that made its figures.

    Args:
        tasks (`list[str]`): the tasks that are to be measured.
        known (`dict`, *optional*): an earlier record; of the same scorers, its green tasks are not proved again.
        report (`Callable`, *optional*): as of [`prove`].

    Returns:
        `dict`: `scorers_sha256`, and `tasks`: task to `{"status", "reason"}`.

    Raises:
        ValueError: a scorer is wrong, or has no case; nothing should be measured with it.
    """
    scorers = scorers_sha256()
    same = known["tasks"] if known and known["scorers_sha256"] == scorers else {}
    found = {task: same[task] for task in tasks if same.get(task, {}).get("status") == GREEN}
    proved = prove([task for task in tasks if task not in found], report)
    if red := [task for task, proof in proved.items() if proof["status"] == RED]:
        raise ValueError(
            f"the scorers of {', '.join(red)} fail their conformance, so their figures would mean nothing: see "
            f"`hf-cascade evaluate --conformance --tasks {' '.join(red)}`"
        )
    found |= {task: {"status": proof["status"], "reason": proof["reason"]} for task, proof in proved.items()}
    return {"scorers_sha256": scorers, "tasks": found}


def is_green(proved: dict[str, dict]) -> bool:
    """Whether every task was checked, and every check passed."""
    return bool(proved) and all(task["status"] == GREEN for task in proved.values())


def _prove(name: str, case: Case, manager) -> dict:
    with quiet(), _silent(), serve(case.judge or (lambda body: "")) as url:
        judge = JudgeSettings(url=url, model="knows the answers")  # in place of any that is set
        with SuiteSettings(data=str(assets.find(ROWS)), judge=judge).environment():
            try:
                findings = Prover(name, case, manager).findings()
            except (MissingData, SandboxUnavailable) as error:
                return {"status": NOT_RUN, "reason": str(error), "checks": {}, "failed": []}
    return _summary(findings)


@contextmanager
def _silent() -> Iterator[None]:
    """No warnings that rows are few, which here they are meant to be, and no bars."""
    ours = logging.getLogger("hf_cascade")
    level = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(level)


def _summary(findings: list[Finding]) -> dict:
    checks: dict[str, list[int]] = {}
    for finding in findings:
        passed, total = checks.setdefault(finding.check, [0, 0])
        checks[finding.check] = [passed + finding.passed, total + 1]
    failed = [f"{finding.check}: {finding.detail}" for finding in findings if not finding.passed]
    return {"status": RED if failed else GREEN, "reason": None, "checks": checks, "failed": failed}
