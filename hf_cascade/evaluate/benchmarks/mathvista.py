r"""MathVista (arXiv 2310.02255), split testmini, 0-shot: mathematics in charts, figures and photographs.

The official evaluation lets GPT-4 find the answer in a response and takes the option nearest to it, by edit distance,
where it is none. Here there is no judge: the answer is what a response states at its end, it is compared by its type
as in `rewards/visual.py`, and what is no option is wrong (ours). The comparison itself is the official one: whole
numbers, numbers rounded to the row's `precision`, lists item by item, options by their text.
"""

import re

from hf_cascade.evaluate.benchmarks.data import UnusableData
from hf_cascade.evaluate.benchmarks.final_part import final_part, number_in, option_in
from hf_cascade.evaluate.benchmarks.letters import LETTERS, letter_of
from hf_cascade.evaluate.benchmarks.pictures import MARK, Documents, rows_of, unmarked
from hf_cascade.evaluate.benchmarks.sampled import Verdict, once
from hf_cascade.evaluate.conformance.case import Case
from hf_cascade.rewards import matching
from hf_cascade.rewards.visual import visual_reward

IMAGE = "decoded_image"
NEEDED = ("pid", "question", "answer", "question_type", "answer_type", "choices", "precision")
FILLED = NEEDED[:5]
CHOICE = "multi_choice"
# The dataset's own hints, in its column `query` (github.com/lupantech/MathVista, README, "Task instruction").
HINTS = {
    CHOICE: "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at "
    "the end.",
    "float1": "Please answer the question requiring a floating-point number with one decimal place and provide the "
    "final value, e.g., 1.2, 1.3, 1.4, at the end.",
    "float2": "Please answer the question requiring a floating-point number with two decimal places and provide the "
    "final value, e.g., 1.23, 1.34, 1.45, at the end.",
    "list": "Please answer the question requiring a Python list as an answer and provide the final list, e.g., "
    "[1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}
CUE = "Solution:"  # evaluation/build_query.py there
FRACTION = re.compile(r"-?\\[dt]?frac.{2,40}|-?\d{1,9}\s*/\s*\d{1,9}")
LIST = re.compile(r"\[[^\[\]]{0,500}\]")
KINDS = {"integer": "number", "float": "number", "list": "list", "text": "text"}


def load(repo: str, split: str, config: str | None = None, **metadata) -> dict[str, Documents]:
    """
    Rows, pictures unopened.

    Args:
        repo (`str`), split (`str`), config (`str`, *optional*): see `benchmarks.data.read`.
        **metadata: the task's metadata.

    Returns:
        `dict[str, Documents]`: `test`.

    Raises:
        MissingData: no rows, or an image that is not beside them.
        ValueError: rows without a column that is read.
    """
    rows = rows_of(repo, split, config, (IMAGE,), NEEDED, FILLED)
    if any(row[IMAGE] is None for row in rows):  # JSON lines with paths alone
        by_path = rows_of(repo, split, config, ("image",), (*NEEDED, "image"), FILLED)
        rows = [{**row, IMAGE: row["image"]} for row in by_path]
    if bare := [row["pid"] for row in rows if row[IMAGE] is None]:
        raise UnusableData(f"{repo}: no image in the rows {', '.join(map(str, bare[:5]))}: column {IMAGE}, or image")
    return {"test": Documents({**row, "image": str(row.get("image"))} for row in rows)}


def query_of(doc: dict) -> str:
    """The dataset's `query`, or the same made from the row's other columns."""
    if doc.get("query"):
        return str(doc["query"]).strip()
    kind = CHOICE if doc["question_type"] == CHOICE else str(doc["answer_type"])
    kind += str(int(doc["precision"] or 1)) if kind == "float" else ""
    lines = [f"Hint: {HINTS[kind]}"] if kind in HINTS else []
    lines.append(f"Question: {doc['question']}" + (f" (Unit: {doc['unit']})" if doc.get("unit") else ""))
    if doc["choices"]:
        lines += ["Choices:", *(f"({letter}) {text}" for letter, text in zip(LETTERS, doc["choices"], strict=False))]
    return "\n".join(lines)


def doc_to_text(doc: dict) -> str:
    """The prompt: the image, then the query."""
    return f"{MARK}\n{unmarked(query_of(doc))}\n{CUE}"


def doc_to_image(doc: dict) -> list:
    """The image; none where the row was made without one."""
    return [doc[IMAGE].open()] if doc.get(IMAGE) is not None else []


def judge(doc: dict, answer: str) -> Verdict:
    """
    Whether an answer is right.

    Args:
        doc (`dict`): a row.
        answer (`str`): without thinking.

    Returns:
        `Verdict`: without a verdict where the row has no answer (as in the split test), or one that is no option.
    """
    gold = str(doc["answer"]).strip()
    if doc["question_type"] == CHOICE:
        return _choice(list(map(str, doc["choices"])), gold, answer)
    kind = KINDS.get(doc["answer_type"])
    if kind is None:
        raise ValueError(f"row {doc['pid']}: answer_type is {doc['answer_type']!r}; known: {', '.join(KINDS)}")
    stated = {"number": value_in, "list": list_in, "text": final_part}[kind](answer)
    if not gold:
        return Verdict(None, stated or None)
    if not stated:
        return Verdict(0.0, None)
    precision = doc["precision"] if doc["answer_type"] == "float" else None
    correct = visual_reward(
        [""],
        [rf"\boxed{{{stated}}}"],
        answer=[gold],
        answer_type=[kind],
        precision=[None if precision is None else int(precision)],
    )[0]
    return Verdict(correct, stated)


def _choice(options: list[str], gold: str, answer: str) -> Verdict:
    """An option by its letter or its text; right where it reads as the right one."""
    letter = letter_of(answer, options)
    if letter is None and (place := option_in(answer, options)) is not None:
        letter = LETTERS[place]
    if gold not in [option.strip() for option in options]:
        return Verdict(None, letter)
    return Verdict(float(letter is not None and options[LETTERS.index(letter)].strip() == gold), letter)


def value_in(answer: str) -> str:
    """The number that a response states at its end, with its unit where it has one; "" where it states none."""
    stated = final_part(answer)
    if FRACTION.fullmatch(stated) or matching.number_of(stated) is not None:
        return stated
    return number_in(stated)


def list_in(answer: str) -> str:
    """The last list in square brackets, or what a response states at its end."""
    lists = LIST.findall(answer[-5000:])
    return lists[-1] if lists else final_part(answer)


def process_results(doc: dict, results: list) -> dict[str, float]:
    """lm-eval's metrics of a row."""
    return once(results, lambda answer: judge(doc, answer))


def _right(doc: dict) -> list[str]:
    gold = str(doc["answer"])
    if doc["question_type"] == CHOICE:
        letter = LETTERS[list(doc["choices"]).index(gold)]
        return [
            letter,
            f"({letter})",
            f"({letter}) {gold}",
            f"The answer is ({letter}) {gold}.",
            f"The correct answer is **({letter}) {gold}**.\n\nI hope this helps! Any other questions?.",
            f"I compare all of them.\n\n(A) is possible, (B) less so.\n\nAnswer: {letter}",
            rf"\boxed{{{letter}}}",
            f"Thus, the answer is {letter}.",
        ]
    return [
        gold,
        f"**{gold}**",
        f"The answer is {gold}.",
        f"First there are 77, then 3 fewer.\n\nSo the answer is {gold}.\n\nI hope this helps!",
        rf"Therefore \boxed{{{gold}}}.",
        f"Reading the chart step by step gives the value.\n\n**Final answer:** {gold}",
        f"x = {gold}",
        f"Based on the picture, the value is {gold}.",
    ]


def _wrong(doc: dict) -> list[str]:
    gold = str(doc["answer"])
    if doc["question_type"] == CHOICE:
        letters = LETTERS[: len(doc["choices"])]
        other = next(letter for letter in letters if doc["choices"][LETTERS.index(letter)] != gold)
        every = " ".join(f"({letter})" for letter in letters)
        return [
            other,
            f"({other})",
            f"Answer: {gold} or {other}",
            f"Not {gold}. Answer: {other}",
            every,
            "I cannot tell.",
        ]
    if doc["answer_type"] == "list":
        return ["[98765]", f"{gold} or [98765]", gold[:-1] + ", 98765]", "I cannot tell.", ""]
    return [
        "98765",
        f"{gold}98765",
        f"Answer: {gold} or 98765",
        f"98765, {gold}",
        f"98765 to {gold}",
        "I cannot tell.",
        "",
    ]


CASES = {"cascade_mathvista": Case(right=_right, wrong=_wrong)}
