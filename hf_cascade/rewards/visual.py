r"""Reward for questions about images: 1 where the boxed answer is the right one (paper section 5: visual STEM).

Answers are judged by their type, which is MathVista's (arXiv 2310.02255) and ChartQA's (arXiv 2203.10244): a choice, a
number, words, a list, an expression. Images are not looked at.
"""

import re
from collections.abc import Callable
from math import isfinite

from hf_cascade.rewards import matching
from hf_cascade.rewards.answers import answer_of
from hf_cascade.rewards.maths import LONGEST, MathsReward, boxed, gold, maths_reward

TYPES = ("choice", "number", "text", "list", "set", "expression")
ALIASES = {"multi_choice": "choice", "integer": "number", "float": "number"}  # MathVista's names
EXPRESSION = re.compile(r"[\\^_=+*√π∞≤≥<>±½]|\d\s*/\s*\d|\d[a-z](?![a-z])|^[-(]*[A-Za-z]\s*[-/]\s*[A-Za-z\d]$")


class VisualReward:
    """
    1 where the content of the last `\\boxed{}` of a completion is the right answer, else 0; thinking is left out.

    - `choice`: the option's letter, `B`, `(b)`, `B) 12 cm`, or, with column `choices`, its text. The right answer is a
      letter, the text, or a whole number, the option's place from 0.
    - `number`: the value; `1,000`, `1.5 million`, `$5`, `50%`, `12 cm`. Known units must agree where both are given. It
      is exact, but for columns `tolerance` (relative; ChartQA's is 0.05; years stay exact) and `precision` (decimals to
      which it is rounded). Fractions and roots go to math-verify, exact.
    - `text`: the same words; case, articles and punctuation are left out.
    - `list`, `set`: the same items, in this order or in any. A list, or items between commas or semicolons.
    - `expression`: as [`MathsReward`].

    Where `answer` is a list and the type neither `list` nor `set`, each item is right. Without a type: a row with
    `choices` is a `choice`; else it is told by `answer`: a single capital letter is a `choice`, a number with a unit or
    without one a `number`, text in square brackets a `list`, text with marks of formulas an `expression`, all else
    `text`.

    Args:
        tolerance (`float`): for rows without one.
        maths ([`MathsReward`], *optional*): judges expressions; the default is `maths_reward`.

    Raises:
        ValueError: a tolerance that makes everything right.
    """

    def __init__(self, tolerance: float = 0.0, maths: MathsReward | None = None):
        self.tolerance = _checked(tolerance, 0.0)
        self.maths = maths or maths_reward
        self.__name__ = "visual_reward"

    def __call__(
        self,
        prompts: list,
        completions: list,
        answer: list,
        answer_type: list[str | None] | None = None,
        choices: list[list[str] | None] | None = None,
        tolerance: list[float | None] | None = None,
        precision: list[int | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns,
    ) -> list[float | None]:
        """
        Rewards of a batch; `None` for a row without an answer, with one that is nothing of its type, and where
        math-verify failed.

        Args:
            prompts (`list`): one that is text and ends with an opening tag opens the thinking.
            completions (`list`): text, or lists of messages, of which the last assistant message counts.
            answer (`list`): what is right: text, a number, or a list of them; of a text as [`MathsReward`] has it.
            answer_type (`list[str | None]`, *optional*): one of `TYPES`, or MathVista's `integer`, `float`,
                `multi_choice`.
            choices (`list[list[str] | None]`, *optional*): the options' texts.
            tolerance (`list[float | None]`, *optional*): of numbers, relative.
            precision (`list[int | None]`, *optional*): of numbers, decimals.
            log_metric (`Callable`, *optional*): TRL's. Gets shares of the rows with an answer, under `visual_reward/`:
                `missing` (nothing boxed), `failed_rate` (no verdict).
            **columns: not looked at.

        Raises:
            ValueError: a type or tolerance that is none.
            RuntimeError: math-verify cannot be started.
        """
        none = [None] * len(prompts)
        columns = [column or none for column in (answer_type, choices, tolerance, precision)]
        answer = [gold(right) if isinstance(right, str) else right for right in answer]
        given = [boxed(answer_of(*pair)) for pair in zip(prompts, completions, strict=True)]
        verdicts = [
            None if right is None else self._judge(right, text, *row)
            for right, text, row in zip(answer, given, zip(*columns, strict=True), strict=True)
        ]
        self._ask_maths(verdicts, given)
        known = [
            (text, verdict) for text, verdict, right in zip(given, verdicts, answer, strict=True) if right is not None
        ]
        if log_metric is not None and known:
            log_metric(f"{self.__name__}/missing", sum(text is None for text, _ in known) / len(known))
            log_metric(f"{self.__name__}/failed_rate", sum(verdict is None for _, verdict in known) / len(known))
        return [None if verdict is None else float(verdict) for verdict in verdicts]

    def _judge(self, right, given: str | None, kind: str | None, choices, tolerance, precision):
        """Whether one answer is right; `None`: cannot be told; a list: answers for math-verify to compare with."""
        kind = _kind(right, kind, choices)
        tolerance = _checked(tolerance, self.tolerance)
        if precision is not None and not (isinstance(precision, int | float) and 0 <= precision <= 100):
            raise ValueError(f"precision is {precision!r}: give decimals, 0 to 100")
        if kind == "choice":
            wanted = _wanted(right, choices or [])
            if wanted is None:
                return None
            return given is not None and matching.option_of(given[:LONGEST], choices or []) == wanted
        rights = right if isinstance(right, list | tuple) and kind not in ("list", "set") else [right]
        rights = [one for one in rights if str(one).strip() not in ("", "[]")]
        if not rights:
            return None
        if given is None or len(given) > max(LONGEST, *(2 * len(str(one)) for one in rights)):
            return False
        verdicts = [_compare(one, given, kind, tolerance, precision) for one in rights]
        unknown = [str(one) for one, verdict in zip(rights, verdicts, strict=True) if verdict is None]
        return True in verdicts or unknown or False

    def _ask_maths(self, verdicts: list, given: list[str | None]) -> None:
        """Put math-verify's verdicts where one is open: right where one right answer is met, else unknown if one is."""
        asked = [(row, one) for row, rights in enumerate(verdicts) if isinstance(rights, list) for one in rights]
        completions = [rf"\boxed{{{given[row]}}}" for row, _ in asked]
        found = self.maths([""] * len(asked), completions, [one for _, one in asked]) if asked else []
        by_row: dict[int, list] = {}
        for (row, _), value in zip(asked, found, strict=True):
            by_row.setdefault(row, []).append(value)
        for row, values in by_row.items():
            verdicts[row] = True if 1.0 in values else None if None in values else False


def _kind(right, kind: str | None, choices) -> str:
    """The type of an answer, by its form where it is not said."""
    if kind is not None:
        if ALIASES.get(kind, kind) not in TYPES:
            raise ValueError(f"answer_type is {kind!r}: give {', '.join(TYPES)}, or leave it empty")
        return ALIASES.get(kind, kind)
    if choices:
        return "choice"
    text = str(right[0] if isinstance(right, list | tuple) and right else right).strip()
    if re.fullmatch(r"\(?[A-Z]\)?", text):
        return "choice"
    if matching.number_of(text) is not None:
        return "number"
    if text[:1] + text[-1:] == "[]":
        return "list"
    return "expression" if EXPRESSION.search(text) else "text"


def _wanted(right, options: list[str]) -> int | None:
    """The place of the right option; `None`: it names none."""
    if isinstance(right, int) and not isinstance(right, bool) and str(right) not in options:
        return right if 0 <= right < len(options) else None
    return matching.option_of(str(right), options) if not isinstance(right, list | tuple) else None


def _compare(right, given: str, kind: str, tolerance: float, precision: int | None):
    """Whether an answer is a right one; `None`: that is for math-verify."""
    if kind in ("list", "set"):
        return matching.same_items(
            matching.items_of(right), matching.items_of(given), kind == "list", tolerance, precision
        )
    if kind == "number":
        numbers = matching.number_of(str(right)), matching.number_of(given)
        if None not in numbers:
            return matching.same_number(*numbers, tolerance, precision)
        return False if numbers[1] is None and matching.names_several(given) else None
    return matching.same_text(str(right), given) if kind == "text" else None


def _checked(tolerance: float | None, default: float) -> float:
    if tolerance is None:
        return default
    if not (isinstance(tolerance, int | float) and isfinite(tolerance) and 0 <= tolerance < 1):
        raise ValueError(f"tolerance is {tolerance!r}: give a share of the right number, 0 up to 1, such as 0.05")
    return float(tolerance)


visual_reward = VisualReward()
