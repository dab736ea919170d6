"""Runs the programs of a whole task at once, in the sandbox of the rewards, before lm-eval scores them row by row.

lm-eval calls `process_results` for one row after the other, but its filters get all responses of a task: there the
programs run, as many at a time as there are CPUs, and `process_results` finds their verdicts done. The judge is
[`ProgramReward`]'s: a program cannot see or write its verdict.
"""

import ast
import hashlib
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from lm_eval.api.filter import Filter
from tqdm import tqdm

from hf_cascade.evaluate.benchmarks.answers import answer_of, is_unfinished
from hf_cascade.evaluate.benchmarks.sampled import Verdict
from hf_cascade.rewards.programs import LANGUAGES, ProgramReward
from hf_cascade.rewards.sandbox import Backend, Limits

logger = logging.getLogger(__name__)

FENCE = re.compile(r"(`{3,}|~{3,})[^\w`~]*([\w+#]*)")  # and its language: ```python, ```{python}, ```python:main.py
TRIED = 20  # lines of an answer with backticks behind code that are tried as the end of a block; ours


class Trial(NamedTuple):
    """
    What is run for one response.

    Args:
        program (`str`): Python source.
        tests (`list`): [`ProgramReward`]'s.
        setup (`str`): Python that stands before the tests.
        answer (`str`): the program as the response has it, by which two are the same answer.
    """

    program: str
    tests: list
    setup: str
    answer: str


class ProgramJudge(ProgramReward):
    """
    Verdicts about the programs of a task, each run once.

    Args:
        trial (`Callable[[dict, str], Trial | None]`): from a row and a response without thinking to what is run;
            `None` where the response has no program.
        limits ([`Limits`]): of one test.
        workers (`int`, *optional*), backend (`Backend`, *optional*): as of [`ProgramReward`].
    """

    def __init__(
        self,
        trial: Callable[[dict, str], Trial | None],
        limits: Limits,
        workers: int | None = None,
        backend: Backend | None = None,
    ):
        super().__init__(limits=limits, workers=workers, backend=backend)
        self.trial = trial
        self._known: dict[bytes, float] = {}

    def use(self, backend: Backend) -> None:
        """Run programs in another sandbox from now on, those too whose verdicts are known."""
        self.backend = backend
        self._known.clear()

    def verdict(self, row: dict, answer: str) -> Verdict:
        """
        Whether an answer's program passes the tests of its row; no verdict where the sandbox failed.

        Raises:
            SandboxUnavailable: nothing can be run on this machine.
        """
        trial = self.trial(row, answer)
        if trial is None:
            return Verdict(0.0, None)
        key = hashlib.sha256(repr(trial[:3]).encode(errors="surrogatepass")).digest()
        if key not in self._known:
            self.backend.check()
            correct, _ = self._reward(trial.program, trial.tests, trial.setup)
            if correct is None:
                return Verdict(None, trial.answer)
            self._known[key] = correct
        return Verdict(self._known[key], trial.answer)

    def run(self, rows: list[dict], responses: list[list[str]]) -> None:
        """Find the verdicts about all responses to all rows, concurrently; [`verdict`] gives them from then on."""
        work = []
        for row, several in zip(rows, responses, strict=True):
            answers = dict.fromkeys(answer_of(response) for response in several if not is_unfinished(response))
            work += [(row, answer) for answer in answers]
        with ThreadPoolExecutor(self.workers) as pool:
            silent = None if logger.isEnabledFor(logging.WARNING) else True  # `None`: where there is no terminal
            verdicts = pool.map(lambda pair: self.verdict(*pair), work)
            list(tqdm(verdicts, total=len(work), desc="Running programs", disable=silent))


class RunPrograms(Filter):
    """Base of a task's filter, which stands after `keep_all`: responses pass as they are, when their programs ran."""

    judge: ProgramJudge

    def apply(self, resps, docs):
        """All responses of a task and their rows."""
        resps = [list(responses) for responses in resps]
        self.judge.run(list(docs), resps)
        return resps


def fenced(text: str) -> list[tuple[str, str]]:
    """
    Fenced blocks of a text, in their order.

    A closing fence stands alone on its line; behind code it counts where a block would not close otherwise, or where
    the block is a program without it alone, and not with it, as in a comment. A line of `~` opens a block if another
    follows, but does not where it underlines a heading.

    Returns:
        `list[tuple[str, str]]`: the first word after the opening fence in lower case, and what stands between the
        fences, their indentation taken off. A block that is not closed is the last one, and its word has a "?" behind.
    """
    blocks, fence, word, indent, lines, tried = [], "", "", 0, [], 0
    given = text.replace("\r\n", "\n").split("\n")  # not splitlines: a form feed belongs to the program
    longest = _longest_fences(given)
    for place, line in enumerate(given):
        mark, inner = line.strip(), line[min(indent, len(line) - len(line.lstrip())) :]
        opening = FENCE.match(mark)
        said = opening[2].lower() if opening else ""
        if opening and said not in LANGUAGES and mark[0] == "~" and not fence:
            above = given[place - 1].strip() if place else ""
            underlines = bool(above) and not mark.strip("~") and len(mark) >= len(above)
            opening = None if underlines or longest["~"][place + 1] < len(opening[1]) else opening
        if opening and (not fence or said in LANGUAGES):  # a program begins although the last was not closed
            blocks += [(word, "".join(lines))] * bool(fence)
            fence, word, indent, lines = opening[1], said, len(line) - len(line.lstrip()), []
            continue
        closes = bool(fence) and len(mark) - len(body := mark.rstrip(fence[0])) >= len(fence) and fence[0] not in body
        if closes and body:  # the fence stands behind a line
            bare = inner.rstrip().rstrip(fence[0]) + "\n"
            closes = longest[fence[0]][place + 1] < len(fence)
            if not closes and tried < TRIED:
                tried += 1
                closes = parses("".join([*lines, bare])) and not parses("".join([*lines, inner]))
            inner = bare.removesuffix("\n") if closes else inner
        if not closes or body:
            lines.append(inner + "\n")
        if closes:
            blocks.append((word, "".join(lines)))
            fence = ""
    return [*blocks, (word + "?", "".join(lines))] if fence else blocks


def parses(code: str) -> bool:
    """Whether it is Python."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _longest_fences(lines: list[str]) -> dict[str, list[int]]:
    """Of each place in a text the length of the longest fence, alone on its line, from there on."""
    found = {mark: [0] * (len(lines) + 1) for mark in "`~"}
    for place in range(len(lines) - 1, -1, -1):
        line = lines[place].strip()
        for mark, lengths in found.items():
            lengths[place] = max(lengths[place + 1], 0 if line.strip(mark) else len(line))
    return found


def in_python(blocks: list[tuple[str, str]]) -> list[str]:
    """The blocks said to be Python; where none is, those that say nothing."""
    said = [code for word, code in blocks if word in LANGUAGES]
    return said or [code for word, code in blocks if not word]
