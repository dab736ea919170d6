"""Mathematics: MATH with two shots and in a chat, AIME 2024 and 2025, HMMT 2025 (paper section 6, Tables 2 to 5).

A response's answer is its last `\\boxed{}`, a value said to be the answer after it, or without boxes what it says its
answer is (`stated.py`). math-verify compares it, in a notation that it reads (`notations.py`) and in a process
(`rewards/maths.py`). A comparison that runs out of time, or that math-verify cannot make, is a wrong answer: to leave
it out would count such rows only where they are right.
"""

from collections.abc import Callable
from functools import lru_cache

from hf_cascade.evaluate.benchmarks import data
from hf_cascade.evaluate.benchmarks.notations import INTEGER, based, in_tuples, notation, readable
from hf_cascade.evaluate.benchmarks.sampled import Verdict, once, several
from hf_cascade.evaluate.benchmarks.stated import SHORT, gold_of, stated
from hf_cascade.evaluate.conformance.case import Case
from hf_cascade.rewards.maths import DEEPEST, LONGEST, MathsReward, boxed, depth

# EleutherAI's copy is on the Hub; hendrycks/competition_math is not, and MATH-500 is a part of it.
MATH = "EleutherAI/hendrycks_math"
MATH_CONFIGS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory")
MATH_CONFIGS += ("prealgebra", "precalculus")
# The form of Minerva's shots (Lewkowycz et al., 2022, arXiv 2206.14858). "Our 2 shots" of the paper are not public:
# these two problems are ours.
SHOTS = (
    (
        "A rectangle has perimeter $34$, and its length is $3$ more than its width. What is its area?",
        "Let the width be $w$, so that the length is $w + 3$. The perimeter is $2(w + w + 3) = 34$, so $2w + 3 = 17$ "
        "and $w = 7$. The length is $7 + 3 = 10$, and the area is $7 \\cdot 10 = \\boxed{70}$.",
        "70",
    ),
    (
        "Two fair six-sided dice are rolled. What is the probability that the product of the two numbers is a multiple "
        "of $5$? Express your answer as a common fraction.",
        "The product is a multiple of $5$ exactly when at least one die shows a $5$. Neither does with probability "
        "$\\left(\\frac{5}{6}\\right)^2 = \\frac{25}{36}$, so the probability is "
        "$1 - \\frac{25}{36} = \\boxed{\\frac{11}{36}}$.",
        "\\frac{11}{36}",
    ),
)
# Words of the Qwen2.5-Math and DeepSeek-R1 model cards; ours: paper silent.
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

REWARD = MathsReward(seconds=10)  # twice the reward's limit: a wrong figure is worse than a slow one; ours


def load_math(repo: str = MATH, split: str = "test", **metadata) -> dict:
    """
    MATH's seven configs one after the other (5000 test rows), or a folder's one file with all rows, MATH-500 say.

    Returns:
        `dict[str, Dataset]`: `test`, with the column `answer`: what the last `\\boxed{}` of `solution` holds.
    """
    from datasets import concatenate_datasets

    parts = {}
    for config in MATH_CONFIGS:
        rows = data.read(repo, split, config)
        parts[data.used[f"{repo}/{config}/{split}"]["path"] or config] = rows
    if len(parts) == 1:  # one file, which is the split of every config
        for config in MATH_CONFIGS:
            del data.used[f"{repo}/{config}/{split}"]
        parts = {split: data.read(repo, split)}
    elif len(parts) < len(MATH_CONFIGS):
        raise data.MissingData(f"{repo}: give a file for each of {', '.join(MATH_CONFIGS)}, or one with all rows")
    for part in parts.values():
        data.need(part, repo, ("problem", "solution"))
    rows = concatenate_datasets(list(parts.values()))
    answers = [gold_of(solution) for solution in rows["solution"]]
    if None in answers:
        raise ValueError(f"{repo}, row {answers.index(None)}: its solution has no \\boxed{{}}, so no right answer")
    rows = rows.remove_columns("answer") if "answer" in rows.column_names else rows
    return {"test": rows.add_column("answer", answers)}


def load_competition(repo: str, split: str, **metadata) -> dict:
    """
    Problems with short answers: columns `problem` and `answer` in any case, as copies of the sets on the Hub differ.

    Returns:
        `dict[str, Dataset]`: `test`, with the columns `problem` and `answer`, text, among others.
    """
    rows = data.read(repo, split)
    for column in ("problem", "answer"):
        if column not in rows.column_names and column.title() in rows.column_names:
            rows = rows.rename_column(column.title(), column)
    data.need(rows, repo, ("problem", "answer"))
    answers = ["" if answer is None else str(answer) for answer in rows["answer"]]
    if "" in answers:
        raise ValueError(f"{repo}, row {answers.index('')}: no answer; give rows of which the answer is known")
    return {"test": rows.remove_columns("answer").add_column("answer", answers)}


def two_shots(doc: dict) -> str:
    """Two solved problems and the row's own, for base models."""
    shots = [
        f"Problem:\n{problem}\n\nSolution:\n{solution}\nFinal Answer: The final answer is ${answer}$. I hope it is "
        "correct.\n\n"
        for problem, solution, answer in SHOTS
    ]
    return "".join(shots) + f"Problem:\n{doc['problem']}\n\nSolution:"


def instruction(doc: dict) -> str:
    """The problem and how to answer it, for chat models."""
    return f"{doc['problem'].strip()}\n\n{INSTRUCTION}"


def process_math(doc: dict, results: list) -> dict[str, float]:
    """`process_results` of tasks with one response a problem."""
    return once(results, Judge(doc["answer"]))


def process_competition(doc: dict, results: list) -> dict:
    """`process_results` of tasks with k responses a problem."""
    return several(results, Judge(doc["answer"]))


class Judge:
    """
    Verdicts about the responses to one problem. Answers that are equal get one notation, so that they vote together.

    Args:
        right (`str`): the right answer, LaTeX or plain.
        read (`Callable[[str], str | None]`, *optional*): what a response gives as its answer.
    """

    def __init__(self, right: str, read: Callable[[str], str | None] = stated):
        self.right, self.read = right, read
        self.others: list[str] = []  # a notation of each wrong answer so far

    def __call__(self, answer: str) -> Verdict:
        """The verdict about a response without its thinking."""
        given = self.read(answer)
        if given is None:
            return Verdict(0.0, None)
        equal, late = compare(self.right, given)
        if equal:
            return Verdict(1.0, notation(self.right))
        form = notation(given)
        if form not in self.others:
            known = [] if late or INTEGER.fullmatch(form) or len(form) > SHORT else self.others
            form = next((other for other in known if not INTEGER.fullmatch(other) and compare(other, form)[0]), form)
            self.others.append(form)
        return Verdict(0.0, form)


@lru_cache(maxsize=4096)
def compare(right: str, given: str) -> tuple[bool, bool]:
    """Whether two answers are equal, and whether the time ran out before that was known."""
    numbers = INTEGER.fullmatch(right.strip()), INTEGER.fullmatch(given.strip())
    if all(numbers) or notation(right) == notation(given):
        return notation(right) == notation(given), False
    if (digits := based(right)) is not None:  # to math-verify 2220_5 is 2220_6
        parts = [based(part) or (notation(part), None) for part in given.split("=")]
        return any(number == digits[0] and base in (None, digits[1]) for number, base in parts), False
    if len(given) > max(LONGEST, 2 * len(right)) or depth(given) > max(DEEPEST, depth(right)):
        return False, False
    right, given = readable(right), readable(given)
    if ("matrix" in right) != ("matrix" in given):  # a vector as a column, and as a tuple
        right, given = in_tuples(right), in_tuples(given)
    box = f"\\boxed{{{given}}}"
    if boxed(box) != given:
        return False, False
    for _ in range(2):  # a worker that was ended from outside gets a second chance
        shares = {}
        equal = REWARD([""], [box], [right], log_metric=shares.__setitem__)[0]
        late = shares[f"{REWARD.__name__}/timeout"] > 0
        if equal is not None or late:
            break
    return bool(equal), late


def _right(doc: dict) -> list[str]:
    """Ways in which models give an answer."""
    answer = doc["answer"]
    return [
        f"We calculate step by step, and find $\\boxed{{{answer}}}$.",
        f"As $1 + 1 = 2$, the rest follows.\nFinal Answer: The final answer is ${answer}$. I hope it is correct.",
        f"**Answer:** $\\boxed{{ {answer} }}$",
        f"The answer is ${answer}$.",
        f"Thus, the final answer is: \\[\\boxed{{{answer}}}\\]",
        f"Perhaps $\\boxed{{31337}}$? No, that was a slip.\n\nAnswer: \\boxed{{{answer}}}. I hope this helps!",
        f"**Final Answer**\n\n\\(\\boxed{{\\displaystyle {answer}}}\\)",
        f"\\fbox{{{answer}}}",
    ]


def _wrong(doc: dict) -> list[str]:
    """Wrong responses, and those that would fool a careless scorer."""
    answer = doc["answer"]
    return [
        "We find $\\boxed{31337}$.",
        f"The problem has to do with {answer}, but I do not know.",
        f"$\\boxed{{{answer}}}$ is what one might think, but it is $\\boxed{{31337}}$.",
        f"\\boxed{{31337}} or \\boxed{{{answer}}}",
        f"The answer is $31337$ or ${answer}$.",
        f"\\boxed{{{answer} + 31337}}",
        f"The answer is \\boxed{{{answer}",
        "\\boxed{}",
        "",
    ]


def _right_integer(doc: dict) -> list[str]:
    """Integers come in more notations yet; other answers in those of [`_right`] alone."""
    answer = doc["answer"]
    if not INTEGER.fullmatch(answer):
        return _right(doc)
    number = int(answer)
    more = (f"**{answer}**", f"{answer}.", f"${answer}$", f"Answer: {answer}", f"The answer is **{number}**.")
    more += (
        f"\\boxed{{{number:03d}}}",
        f"\\boxed{{{number}.0}}",
        f"So the answer is {number:,}.",
        f"\\boxed {number}.",
    )
    return [*_right(doc), *more]


def _wrong_integer(doc: dict) -> list[str]:
    answer = doc["answer"]
    return [*_wrong(doc), f"We try 12, then 30, then 31337, and in the end there are 2 ways to get {answer}"]


CASES = {
    "cascade_math": Case(right=lambda doc: [*_right(doc), doc["solution"]], wrong=_wrong),
    "cascade_math_maj1": Case(right=lambda doc: [*_right(doc), doc["solution"]], wrong=_wrong),
    **{
        task: Case(right=_right_integer, wrong=_wrong_integer, metric="avg_at_k")
        for task in ("cascade_aime24", "cascade_aime25", "cascade_hmmt25")
    },
}
