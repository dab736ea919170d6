"""Reward for mathematics: 1 where the boxed answer of a completion equals the right one (paper section 5).

math-verify compares, in worker processes: its own time-out is SIGALRM, which threads cannot use, and sympy can take
hours for `10^{10^{10}}`. A comparison that takes too long ends with its worker.
"""

import json
import os
import queue
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from hf_cascade.rewards.answers import answer_of

SECONDS = 5.0  # math-verify's own limit; ours: paper silent
LONGEST = 2000  # characters of an answer; a longer one is none; ours: paper silent
DEEPEST = 40  # brackets in brackets; parsers take minutes for a thousand; ours: paper silent
WORKER = Path(__file__).parent / "comparing.py"
BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # an escaped brace is part of a set
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
SPACES = re.compile(r"\\[!,;:]|(?<!\d)\s|\s(?!\d)")  # 1 2 is not 12
WORDS = re.compile(r"[^\W\d_][^\W\d_'’. -]*(?:[ '’.-]+[^\W\d_]+)*")
FUNCTIONS = re.compile(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp|sqrt|pi|infty|inf|min|max|gcd|lcm", re.I)
UNIT = re.compile(r"([-+]?\d[\d,.]*)((?: +[A-Za-z]{3,})+)")  # words; math-verify knows shorter ones
# Beside one number these make more of it than one; math-verify passes over words, and over what a value is below.
NUMBER = re.compile(r"[-+]?[\d.,]*\d")
SEVERAL = re.compile(r"(?<![A-Za-z])(?:or|and|not|\\(?:le|ge|lt|gt|leq|geq|ne|neq))(?![A-Za-z])|[<>≤≥≠]", re.I)
# Without a space it is a product, but for the ones nobody writes as one: to math-verify 2m and 2ab are 2 too.
PRODUCT = re.compile(r"(?<=[\d}])(?!(?:i|[cmk]m|kg|ft|lb|oz)$)([A-Za-z]{1,2})$")
SYMBOLS = {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt "}
SYMBOLS |= {"≤": r"\le ", "≥": r"\ge ", "°": r"^\circ ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset "}
SYMBOLS |= {"±": r"\pm ", "²": "^2", "³": "^3", "½": r"\frac12 ", r"\varnothing": r"\emptyset ", "**": "^"}


class Worker:
    """
    A process that compares answers; it is started anew after it was ended.

    Args:
        seconds (`float`): of one comparison.
    """

    def __init__(self, seconds: float):
        self.command = [sys.executable, "-P", str(WORKER), str(seconds)]
        self.process = None

    def compare(self, right: str, given: str) -> tuple[bool | None, bool]:
        """
        Whether they are equal, `None` where there is no verdict; and whether the time ran out.

        Raises:
            RuntimeError: the worker does not start.
        """
        if self.process is None:
            started = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if started.stdout.readline() != "ready\n":
                raise RuntimeError(
                    f"{' '.join(self.command)} did not start: its error is above. Is math-verify installed?"
                )
            self.process = started
        try:
            self.process.stdin.write(json.dumps([right, given]) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:  # it was ended from outside
            line = ""
        if line:
            return json.loads(line), False
        ended, self.process = self.process, None
        ended.stdout.close()
        with suppress(BrokenPipeError):  # what was not written yet
            ended.stdin.close()
        return None, ended.wait() == -signal.SIGALRM


class MathsReward:
    """
    1 where the content of the last `\\boxed{}` of a completion equals `answer`, else 0; thinking is left out.

    Equal are notations of one value: fractions, decimals, percents, sets, intervals, matrices, equations; units are
    left out. Words must be the same but for case.

    Args:
        seconds (`float`): of one comparison, after which it has no verdict.
        workers (`int`, *optional*): comparisons at a time; the default shares the CPUs out among a machine's ranks.

    Raises:
        ValueError: a limit that leaves nothing.
    """

    def __init__(self, seconds: float = SECONDS, workers: int | None = None):
        workers = workers or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if not seconds > 0 or workers < 1:
            raise ValueError(f"seconds is {seconds} and workers {workers}: give a time above 0, and 1 or more")
        self.__name__ = "maths_reward"
        self.workers = workers
        self._workers = queue.LifoQueue()  # the one used last first: the others are not started before they are needed
        for _ in range(workers):
            self._workers.put(Worker(seconds))

    def __call__(
        self,
        prompts: list,
        completions: list,
        answer: list[str | int | float | None],
        log_metric: Callable[[str, float], None] | None = None,
        **columns,
    ) -> list[float | None]:
        """
        Rewards of a batch; `None` for a row without an answer, and where math-verify failed.

        Args:
            prompts (`list`): one that is text and ends with an opening tag opens the thinking.
            completions (`list`): text, or lists of messages, of which the last assistant message counts.
            answer (`list`): what is right, LaTeX or plain; of a text the last `\\boxed{}`, or what follows GSM8K's
                `####`.
            log_metric (`Callable`, *optional*): TRL's. Gets shares of the rows with an answer, under `maths_reward/`:
                `missing` (nothing boxed), `timeout`, `failed_rate` (no verdict, for time or any other reason).
            **columns: not looked at.

        Raises:
            RuntimeError: math-verify cannot be started.
        """
        pairs = [
            None if right is None else (gold(str(right)), boxed(answer_of(prompt, given)))
            for prompt, given, right in zip(prompts, completions, answer, strict=True)
        ]
        asked = dict.fromkeys(pair for pair in pairs if pair is not None)  # completions of a group agree: once each
        with ThreadPoolExecutor(self.workers) as pool:
            verdicts = dict(zip(asked, pool.map(lambda pair: self._judge(*pair), asked), strict=True))
        judged = [(pair, *verdicts[pair]) for pair in pairs if pair is not None]
        if log_metric is not None and judged:
            log_metric(f"{self.__name__}/missing", sum(pair[1] is None for pair, *_ in judged) / len(judged))
            log_metric(f"{self.__name__}/timeout", sum(late for *_, late in judged) / len(judged))
            log_metric(f"{self.__name__}/failed_rate", sum(equal is None for _, equal, _ in judged) / len(judged))
        equal = [None if pair is None else verdicts[pair][0] for pair in pairs]
        return [None if verdict is None else float(verdict) for verdict in equal]

    def _judge(self, right: str, given: str | None) -> tuple[bool | None, bool]:
        """Whether an answer is right, or `None`; and whether the time ran out."""
        if given is None or len(given) > max(LONGEST, 2 * len(right)) or depth(given) > max(DEEPEST, depth(right)):
            return False, False
        if SPACES.sub("", right) == SPACES.sub("", given):
            return True, False
        if NUMBER.fullmatch(right) and SEVERAL.search(given):
            return False, False
        if (words := words_of(right)) is not None:  # to math-verify they are products of letters
            return words == words_of(given, shortest=1), False
        worker = self._workers.get()
        try:
            return worker.compare(plain(right), plain(given))
        finally:
            self._workers.put(worker)


maths_reward = MathsReward()


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{}` that is closed, braces nested; `None`: there is none."""
    found, openings = None, []  # a pass over the text: a loop may write \boxed{ ten thousand times
    for mark in BRACES.finditer(text):
        if mark[0].endswith("{") and not mark[0].startswith(r"\{"):
            openings.append(mark)
        elif mark[0] == "}" and openings:
            opening = openings.pop()
            if opening[0] != "{" and (found is None or opening.start() > found[0]):
                found = opening.start(), text[opening.end() : mark.start()].strip()
    return found and found[1]


def depth(text: str) -> int:
    """How many brackets are open at most."""
    return max(accumulate(((mark in "([{") - (mark in ")]}") for mark in text), initial=0))


def gold(text: str) -> str:
    """The right answer in a dataset's text: in its last `\\boxed{}`, after its last `####`, or all of it."""
    found = boxed(text)
    return text.rpartition("####")[2].strip() if found is None else found


def words_of(text: str, shortest: int = 3) -> str | None:
    """
    An answer of words in lower case, with single spaces; `None`: an expression.

    Without `\\text` one word must have `shortest` letters: fewer are a product of variables.
    """
    inner = TEXT.sub(r"\1", text)
    bare = " ".join(inner.replace("$", "").strip(" .").split())
    bare = bare[1:-1].strip() if bare[:1] == "(" and bare[-1:] == ")" else bare
    if not WORDS.fullmatch(bare) or FUNCTIONS.fullmatch(bare.split()[0]):
        return None
    return bare.casefold() if inner != text or re.search(rf"[^\W\d_]{{{shortest}}}", bare) else None


def plain(text: str) -> str:
    """Text as math-verify reads it: without `$` around it, a final full stop, and marks it does not know."""
    for mark, latex in SYMBOLS.items():
        text = text.replace(mark, latex)
    text = re.sub(r"^(?:\$+|\\\(|\\\[)(.*?)(?:\$+|\\\)|\\\])$", r"\1", text.strip(), flags=re.DOTALL).strip()
    text = re.sub(r"(?<=\d)[  ](?=\d{3}(?!\d))", "", text.removesuffix("."))  # 1 000
    text = re.sub(r"(?<=\d)\s*x\s*(?=10\s*\^)", r"\\times ", text)  # 1.5 x 10^3
    text = re.sub(r"(?<=\d) +(?=i\b)", "", text)  # 6 + 9 i
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)
    text = PRODUCT.sub(r"{\1}", text)
    unit = UNIT.fullmatch(text)
    return unit[1] if unit and not any(map(FUNCTIONS.fullmatch, unit[2].split())) else text
