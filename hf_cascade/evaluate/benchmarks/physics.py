"""PhyBench: problems of physics whose answer is a formula (arXiv 2504.16074; paper section 6, Table 5).

A response's answer is its last `\\boxed{}`. It is right where it has the right formula's value whatever the symbols
are; the benchmark's EED score, which gives points for what is nearly right, stands beside it. The paper does not say
which of both Table 5 has: the row is compared by accuracy, as the table's others are.
"""

import os
import sys
from functools import lru_cache
from pathlib import Path

from hf_cascade.evaluate.benchmarks import data, maths
from hf_cascade.evaluate.benchmarks.answers import answer_of
from hf_cascade.evaluate.benchmarks.sampled import Verdict, several
from hf_cascade.evaluate.conformance.case import Case
from hf_cascade.rewards.maths import Worker

REPO = "Eureka-Lab/PHYBench"
ANSWERED = "PHYBench-fullques_v1"  # its file of the 100 problems with answers; `train` is all three on the Hub
# The benchmark's own words (arXiv 2504.16074, appendix D).
PROMPT = (
    "You are a physics expert. Please read the following question and provide a step-by-step solution. Put your final "
    "answer, which must be a readable LaTeX formula, in a \\boxed{{}} environment.\n\nQuestion: {content}\n\nAnswer:"
)
SECONDS = 20.0  # of one comparison, sympy's simplification in it; ours


class FormulaWorker(Worker):
    """A process that compares formulas: [`edit_distance.compare`]'s dictionary in place of a verdict."""

    def __init__(self, seconds: float):
        super().__init__(seconds)
        self.command = [sys.executable, "-P", str(Path(__file__).with_name("edit_distance.py")), str(seconds)]


WORKER = FormulaWorker(SECONDS)


def load_phybench(repo: str = REPO, split: str = "train", **metadata) -> dict:
    """
    Problems with a published answer, each once: 100 of the 500. The set's three files overlap.

    Returns:
        `dict[str, Dataset]`: `test`, with the columns `content` and `answer` among others.
    """
    try:
        rows = data.read(repo, split)
    except data.MissingData:
        if not os.environ.get(data.VARIABLE):
            raise
        rows = data.read(repo, ANSWERED)  # the files as they are on the Hub name no split
    data.need(rows, repo, ("content", "answer"))
    names = rows["content"]
    if "id" in rows.column_names:
        names = [content if name in (None, "") else name for name, content in zip(rows["id"], names, strict=True)]
    seen, kept = set(), []
    for place, (name, answer) in enumerate(zip(names, rows["answer"], strict=True)):
        if answer and answer.strip() and name not in seen:
            seen.add(name)
            kept.append(place)
    if not kept:
        raise ValueError(f"{repo}: no row has an answer; {ANSWERED}.json holds the rows that have one")
    return {"test": rows.select(kept)}


def prompt(doc: dict) -> str:
    """The benchmark's prompt."""
    return PROMPT.format(content=doc["content"].strip())


def process_phybench(doc: dict, results: list) -> dict:
    """`process_results`: [`sampled.several`]'s figures and `eed`, the mean EED score as a share of 1."""
    responses = [results[0]] if isinstance(results[0], str) else results[0]
    scores = [compare(doc["answer"], given)["eed"] / 100 if given else 0.0 for given in map(_stated, responses)]
    return {**several(results, lambda answer: judge(doc["answer"], answer)), "eed": sum(scores) / len(scores)}


def judge(right: str, answer: str) -> Verdict:
    """The verdict about a response without its thinking; formulas that sympy makes one are one in the vote."""
    given = maths.stated(answer)
    if given is None:
        return Verdict(0.0, None)
    found = compare(right, given)
    if found["equal"]:
        return Verdict(1.0, maths.notation(right))
    return Verdict(0.0, found["form"] or maths.notation(given))


@lru_cache(maxsize=4096)
def compare(right: str, given: str) -> dict:
    """
    Two formulas, in LaTeX: `equal`, `eed` (0 to 100) and `form`, the given one's in sympy's notation or `None`.

    A comparison that takes too long finds them unequal. A right answer that is no formula with one value (an integral,
    a list) is left to math-verify and has an EED score of 0 or 100.
    """
    right = maths.gold_of(right) or right
    if maths.notation(right) == maths.notation(given):
        return {"equal": True, "eed": 100.0, "form": None}
    for _ in range(2):  # a worker that was ended from outside gets a second chance
        found, late = WORKER.compare(right, given)
        if found is not None or late:
            break
    if found is None:
        return {"equal": False, "eed": 0.0, "form": None}
    if found["equal"] is None:
        equal = maths.compare(right, given)[0]
        return {"equal": equal, "eed": 100.0 * equal, "form": None}
    return found


def _stated(response: str) -> str | None:
    return maths.stated(answer_of(response))


def _right(doc: dict) -> list[str]:
    """Ways in which models give a formula."""
    formula = doc["answer"].strip().strip("$").rpartition("=")[2].strip()
    return [
        f"Using conservation of energy we find \\[\\boxed{{{formula}}}\\]",
        f"**Answer:** $\\boxed{{X = {formula}}}$",
        f"\\boxed{{\\left({formula}\\right)\\cdot\\frac{{7}}{{7}}}}",
        f"At first sight $\\boxed{{0}}$, but friction changes this.\n\n$$\\boxed{{ \\displaystyle {formula} }}$$",
        f"\\boxed{{X=\\frac{{1}}{{2}}\\left[{formula}\\right]+\\dfrac{{{formula}}}{{2}}}}",
        f"The final answer is ${formula}$.",
        f"\\boxed{{X_{{\\text{{max}}}} \\approx {formula}}}",
    ]


def _wrong(doc: dict) -> list[str]:
    """Wrong formulas, and responses that would fool a careless scorer."""
    formula = doc["answer"].strip().strip("$").rpartition("=")[2].strip()
    return [
        f"\\boxed{{{formula} + 1}}",
        f"\\boxed{{2\\left({formula}\\right)}}",
        f"\\boxed{{-\\left({formula}\\right)}}",
        f"\\boxed{{X = 2, X = {formula}}}",
        f"\\boxed{{\\zeta_{{0}}}} or \\boxed{{{formula}}}",
        f"It is not ${formula}$, but I cannot say what it is.",
        f"\\boxed{{{formula} \\text{{ or }} 0}}",
        "",
    ]


CASES = {"cascade_phybench": Case(right=_right, wrong=_wrong, metric="avg_at_k")}
