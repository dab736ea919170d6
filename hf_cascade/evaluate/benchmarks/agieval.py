"""AGIEval's English subsets 5-shot, by likelihood of letters, and its MATH by generation (paper, Table 2).

arXiv 2304.06364. Rows are those of `hails/agieval-<subset>`: the benchmark's zero-shot prompts (`query`), which
end with "the answer is". The shots of its own repository have another form, and are not in these sets: ours are other
rows of the same subset, and none is asked about itself.
"""

import logging

from hf_cascade.evaluate.benchmarks.data import MissingData, need, read
from hf_cascade.evaluate.benchmarks.maths import Judge
from hf_cascade.evaluate.benchmarks.sampled import once
from hf_cascade.evaluate.benchmarks.stated import continued, stated
from hf_cascade.evaluate.conformance.case import Case

LETTERS = "ABCDEFG"  # AGIEval's own code knows seven (src/dataset_loader.py)
SHOTS = 5  # paper, Table 2
SUBSETS = ("aqua-rat", "gaokao-english", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en", "sat-math")
logger = logging.getLogger(__name__)


def load(repo: str, split: str, config: str | None = None, **metadata) -> dict:
    """
    Rows of a subset with options: `context` (shots and query), `letters` (continuations), `target` (the first right).

    Raises:
        ValueError: a column is missing, or `gold` names no option.
    """
    from datasets import Dataset

    rows = read(repo, split, config)
    need(rows, repo, ("query", "choices", "gold"))
    rows = rows.select_columns(["query", "choices", "gold"]).to_list()
    for at, row in enumerate(rows):
        places = row["gold"] if isinstance(row["gold"], list) else [row["gold"]]
        count = len(row["choices"])
        if not 2 <= count <= len(LETTERS) or not places or any(not 0 <= int(place) < count for place in places):
            raise ValueError(
                f"{repo}, row {at}: gold {row['gold']!r} of {count} options; give places from 0, of 2 to 7"
            )
        row["gold"] = [int(place) for place in places]
        row["target"] = row["gold"][0]
        row["letters"] = [f" {letter}" for letter in LETTERS[:count]]
    answers = [LETTERS[row["target"]] if len(row["gold"]) == 1 else None for row in rows]
    contexts = with_shots([row["query"] for row in rows], answers, repo)
    return {"test": Dataset.from_list([{**row, "context": text} for row, text in zip(rows, contexts, strict=True)])}


def load_math(repo: str, split: str, config: str | None = None, **metadata) -> dict:
    """Rows of the subset `math`: `context` (shots and query) and `answer`, LaTeX without a box."""
    rows = read(repo, split, config)
    need(rows, repo, ("query", "answer"))
    rows = rows.select_columns(["query", "answer"])
    for at, row in enumerate(rows):
        if not str(row["answer"] or "").strip():
            raise ValueError(f"{repo}, row {at}: its answer is {row['answer']!r}: give the right one")
    return {"test": rows.add_column("context", with_shots(rows["query"], rows["answer"], repo))}


def with_shots(queries: list[str], answers: list[str | None], name: str) -> list[str]:
    """
    Each query after the first five others with one answer, in their order; never one with the same words.

    Args:
        queries (`list[str]`): each ends where its answer begins.
        answers (`list[str | None]`): `None` for a query with several.
        name (`str`): for the warning that there are too few.

    Raises:
        MissingData: no rows.
    """
    if not len(queries):
        raise MissingData(f"{name} has no rows: fetch it from the Hub again")
    words = [" ".join(query.split()) for query in queries]
    usable = [place for place, answer in enumerate(answers) if answer is not None]
    contexts, fewest = [], SHOTS
    for place, query in enumerate(queries):
        shots: list[int] = []
        for other in usable:
            if len(shots) == SHOTS:
                break
            if other != place and words[other] != words[place]:
                shots.append(other)
        fewest = min(fewest, len(shots))
        solved = "".join(f"{queries[shot].rstrip()} {str(answers[shot]).strip()}\n\n" for shot in shots)
        contexts.append(solved + query.rstrip())
    if fewest < SHOTS:
        logger.warning("%s: shots are %d in place of %d, as it has %d rows", name, fewest, SHOTS, len(queries))
    return contexts


def process(doc: dict, results: list) -> dict[str, float]:
    """`acc`: whether the likeliest letter is a right one's."""
    scores = [score for score, _ in results]
    return {"acc": float(scores.index(max(scores)) in doc["gold"])}


def process_math(doc: dict, results: list) -> dict[str, float]:
    """Figures of one response; one that only goes on with the query, "The answer is", is its first line."""
    return once(results, Judge(doc["answer"].strip(), lambda answer: stated(answer, False) or continued(answer)))


def _right(doc: dict) -> list[str]:
    """Ways in which models go on."""
    answer = doc["answer"]
    return [
        f" {answer}",
        f" ${answer}$.",
        f" {answer}\n\n",
        f" \\boxed{{{answer}}}",
        f" ${answer}$, since the other case leads to a contradiction.",
        f"Let us see. First we simplify, and then we solve.\n\nThe answer is ${answer}$.",
        f"We count 31337 cases at first, but not all differ.\n\nThus the answer is $\\boxed{{{answer}}}$.",
        f"**Final Answer**\n\n\\[\\boxed{{{answer}}}\\]",
        f"Final Answer: The final answer is ${answer}$. I hope it is correct.",
    ]


def _wrong(doc: dict) -> list[str]:
    """Wrong ones, and those that would fool a careless scorer."""
    answer = doc["answer"]
    return [
        " 31337",
        " $\\boxed{31337}$",
        f" 31337\n\n{answer}",
        f"The problem has to do with {answer}, but I do not know.",
        f"$\\boxed{{{answer}}}$ is what one might think, but it is $\\boxed{{31337}}$.",
        f" 31337 or {answer}",
        f" {answer} or 31337",
        f"\\boxed{{31337}} or \\boxed{{{answer}}}",
        f"\\boxed{{{answer} + 31337}}",
        "\\boxed{}",
        "",
    ]


CASES = {
    f"cascade_agieval_{subset.replace('-', '_')}": Case(gold=lambda doc: LETTERS[doc["gold"][0]], chance=chance)
    for subset, chance in zip(SUBSETS, (0.2, 0.25, 0.25, 0.2, 0.2, 0.2, 0.25, 0.25), strict=True)
}
CASES["cascade_agieval_math"] = Case(right=_right, wrong=_wrong, chance=0.0)
