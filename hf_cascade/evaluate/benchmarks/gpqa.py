r"""GPQA Diamond by likelihood of letters for base models and by chain of thought for chat models (paper, Tables 3, 5).

The set gives the right option first. Ours stand in the order of the SHA-256 of question and option, which no random
state, no other row and no order of columns can change: prompt, request and verdict see the same letters.
"""

import hashlib
from functools import cache

from hf_cascade.evaluate.benchmarks.data import need, read
from hf_cascade.evaluate.benchmarks.letters import letter_of
from hf_cascade.evaluate.benchmarks.sampled import Verdict, several
from hf_cascade.evaluate.conformance.case import Case

LETTERS = "ABCD"
RIGHT = "Correct Answer"
COLUMNS = ("Question", RIGHT, "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
ASKED = (  # of simple-evals (github.com/openai/simple-evals, common.py, MIT), which most reports of GPQA use
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    "'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before answering."
)


def load(repo: str, split: str, config: str | None = None, **metadata) -> dict:
    """
    Rows with their options in order: `options`, the letters of right ones `right`, and `target`, the first's place.

    Raises:
        ValueError: a column is missing, or a row has an empty question or option.
    """
    from datasets import Dataset

    rows = read(repo, split, config)
    need(rows, repo, COLUMNS)
    columns = [*COLUMNS, *(name for name in ("Record ID",) if name in rows.column_names)]
    return {"test": Dataset.from_list([_ordered(row, at, repo) for at, row in enumerate(rows.select_columns(columns))])}


def ordered(question: str, options: list[str]) -> list[str]:
    """Options without spaces around them, by the SHA-256 of the question's words, a NUL byte, and the option."""
    words = " ".join(question.split())
    options = [option.strip() for option in options]
    return sorted(options, key=lambda option: hashlib.sha256(f"{words}\0{option}".encode()).digest())


def prompt(doc: dict) -> str:
    """The question as MMLU's code writes one (github.com/hendrycks/test), up to `Answer:`, for base models."""
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, doc["options"], strict=True))
    return f"{doc['Question'].strip()}\n{options}\nAnswer:"


def prompt_cot(doc: dict) -> str:
    """The question as simple-evals writes it, for chat models."""
    options = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, doc["options"], strict=True))
    return f"{ASKED}\n\n{doc['Question'].strip()}\n\n{options}"


def process(doc: dict, results: list) -> dict[str, float]:
    """`acc`: whether the likeliest letter is a right one's; an option that is there twice is right twice."""
    scores = [score for score, _ in results]
    return {"acc": float(LETTERS[scores.index(max(scores))] in doc["right"])}


def process_cot(doc: dict, results: list) -> dict:
    """Figures over the responses to one question."""

    @cache  # of k samples many are the same
    def verdict(answer: str) -> Verdict:
        letter = letter_of(answer, doc["options"])
        return Verdict(float(letter is not None and letter in doc["right"]), letter)

    return several(results, verdict)


def _ordered(row: dict, at: int, repo: str) -> dict:
    for column in COLUMNS:
        if not isinstance(row[column], str) or not row[column].strip():
            raise ValueError(f"{repo}, row {at}: {column!r} is {row[column]!r}: give text")
    options = ordered(row["Question"], [row[column] for column in COLUMNS[1:]])
    right = [letter for letter, option in zip(LETTERS, options, strict=True) if option == row[RIGHT].strip()]
    return {**row, "options": options, "right": right, "target": LETTERS.index(right[0])}


def _gold(doc: dict) -> str:
    return LETTERS[doc["options"].index(doc[RIGHT].strip())]


def _responses(doc: dict, letter: str) -> list[str]:
    """Formats in which models name a letter."""
    text, other = doc["options"][LETTERS.index(letter)], "ABCD".replace(letter, "")[0]
    return [
        f"Let us think step by step.\n\nAnswer: {letter}",
        letter,
        f"({letter})",
        f"**{letter}**",
        f"**Answer: {letter}**",
        f"**Answer:** ({letter})",
        f"Answer: ${letter}$",
        f"Answer: {letter}) {text}",
        f"The correct answer is {letter}.",
        f"The correct answer is **({letter}) {text}**.",
        f"$$\\boxed{{{letter}}}$$",
        f"\\[\\boxed{{\\text{{{letter}}}}}\\]",
        f"\\boxed{{\\textbf{{({letter})}}}}",
        f"{letter}) {text}",
        f"Option {letter}",
        f"### Final Answer\n\n**{letter}**",
        f"At first the answer is {other}, it seems. But the units do not agree with it.\n\nAnswer: {letter}",
        f"Option {other} fails the check. So option {letter} is correct.",
        f"答案：{letter}",
        f"La respuesta correcta es la {letter}.",
        f"La bonne réponse est {letter}.",
        f"Die richtige Antwort ist {letter}.",
        f"正解は{letter}です。",
        f"정답은 {letter}입니다.",
        f"Answer: {letter}\n\nThe other options, {other} among them, contradict the data.",
        text,
    ]


def _right(doc: dict) -> list[str]:
    return _responses(doc, _gold(doc))


def _wrong(doc: dict) -> list[str]:
    gold, every = _gold(doc), doc["options"]
    other = "ABCD".replace(gold, "")[-1]
    return [
        *_responses(doc, other),
        f"Answer: {gold} or {other}",
        f"Answer: {gold}, {other}",
        f"\\boxed{{{gold}}} or \\boxed{{{other}}}",
        "Answer: A, B, C, D",
        "Answer: ABCD",
        "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, every, strict=True)),
        " ".join(every),
        f"Answer: not {gold}",
        f"The answer is not {gold}.",
        f"I do not think that the answer is {gold}.",
        f"If the answer is {gold}, the energy must be conserved. I cannot say whether it is.",
        f"Is the answer {gold}?",
        f"Answer: {gold}{gold.lower()}bcd",
        f"Answer: {gold}-terminal",
        f"Answer: {gold}\nAnswer: {other}",
        f"\\boxed{{{gold}",
        "A possible answer is hard to give.",
        "I cannot answer this question.",
        "Answer: $LETTER",
        "Answer: E",
        f"Answer: {gold}\n\nOn second thought, that ignores the second law.\n\nAnswer: {other}",
        "",
    ]


CASES = {
    "cascade_gpqa_diamond": Case(gold=_gold, chance=0.25),
    "cascade_gpqa_diamond_cot": Case(right=_right, wrong=_wrong, metric="avg_at_k", chance=0.25),
}
