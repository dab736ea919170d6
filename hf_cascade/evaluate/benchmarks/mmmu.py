"""MMMU (arXiv 2311.16502), 2-shot as in the paper's Table 3: college questions about one to seven images.

Rows: MMMU/MMMU, split validation, 30 subjects of 30 questions; shots are the first of the same subject's split dev.
Options that no response names are wrong; the official evaluation and lm-eval's task guess one at random. Open questions
go by the official rule (github.com/MMMU-Benchmark/MMMU, eval/eval_utils.py), applied to the part that states the
answer, with whole words, and without answers that name several.
"""

import ast
import logging
import os
import re

from hf_cascade.evaluate.benchmarks import data
from hf_cascade.evaluate.benchmarks.final_part import final_part, number_in, option_in, plain, says
from hf_cascade.evaluate.benchmarks.letters import LETTERS, letter_of
from hf_cascade.evaluate.benchmarks.pictures import Documents, inline, rows_of
from hf_cascade.evaluate.benchmarks.sampled import Verdict, once
from hf_cascade.evaluate.conformance.case import Case
from hf_cascade.rewards.matching import TIMES_TEN
from hf_cascade.rewards.maths import LONGEST

logger = logging.getLogger(__name__)

SUBJECTS = (
    *("Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science"),
    *("Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design", "Diagnostics_and_Laboratory_Medicine"),
    *("Economics", "Electronics", "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage"),
    *("Marketing", "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology"),
    *("Public_Health", "Sociology"),
)
IMAGES = tuple(f"image_{number}" for number in range(1, 8))
NEEDED = ("id", "question", "options", "answer", "question_type")
CHOICE = "multiple-choice"
FRACTION = re.compile(r"\\[dt]?frac\s?\{(-?\d{1,9})\}\s?\{(\d{1,9})\}")
# The official prompts (eval/configs/llava1.5.yaml in the repository above); the cue after them is ours.
ASK_LETTER = "Answer with the option's letter from the given choices directly."
ASK_WORDS = "Answer the question using a single word or phrase."
CUE = "Answer:"


def load(
    repo: str, split: str, shots_split: str, num_fewshot: int = 2, subjects: list[str] | None = None, **metadata
) -> dict[str, Documents]:
    """
    Questions of all subjects, each with its shots.

    Args:
        repo (`str`): on the Hub, or a folder in `HFC_EVAL_DATA`.
        split (`str`), shots_split (`str`): as the Hub calls them.
        num_fewshot (`int`): shots; the first rows of the subject's `shots_split`.
        subjects (`list[str]`, *optional*): configs; unset, all 30. Those that a folder lacks are left out with a
            warning.
        **metadata: the task's other metadata.

    Returns:
        `dict[str, Documents]`: `test`; rows of the Hub's schema, pictures unopened, with `subject` and `shots`.

    Raises:
        MissingData: there is no subject, or one without enough shots.
        ValueError: rows without a column that is read.
    """
    documents, wanted, missing, read = Documents(), subjects or SUBJECTS, {}, {}
    for subject in wanted:
        try:
            rows = rows_of(repo, split, subject, IMAGES, NEEDED, NEEDED)
        except data.MissingData as error:
            if not os.environ.get(data.VARIABLE):
                raise
            missing[subject] = error
            continue
        entry = data.used[f"{repo}/{subject}/{split}"]
        if entry["path"] is not None and entry["path"] in read:  # a file for all subjects: it has the rows of all
            entry["full_rows"] = entry["full_rows"] and entry["full_rows"] * len(wanted)
            read[entry["path"]]["full_rows"] = entry["full_rows"]
            continue
        read[entry["path"] or subject] = entry
        shots = _shots(repo, shots_split, subject, num_fewshot)
        for row in rows:
            own = subject_of(row["id"]) or subject
            shown = shots.get(own, shots.get(subject, []))[:num_fewshot]
            if len(shown) < num_fewshot:
                raise data.MissingData(f"{repo}: {shots_split} has fewer than {num_fewshot} rows of {own}, for shots")
            documents.append({**row, "subject": own, "shots": shown})
    if not documents:
        raise missing[wanted[0]]
    if missing:
        logger.warning("%s: without %s", repo, ", ".join(missing))
    return {"test": documents}


def subject_of(identifier: str) -> str | None:
    """`Art_Theory` of `validation_Art_Theory_3`; `None` where an id has another form."""
    found = re.fullmatch(r"[a-z]+_(\w+)_\d+", str(identifier))
    return found and found[1]


def _shots(repo: str, split: str, subject: str, count: int) -> dict[str, list[dict]]:
    """Rows to show, by subject."""
    shots: dict[str, list[dict]] = {}
    for row in rows_of(repo, split, subject, IMAGES, NEEDED, NEEDED) if count else []:
        shots.setdefault(subject_of(row["id"]) or subject, []).append(row)
    return shots


def options_of(doc: dict) -> list[str]:
    """
    Texts of a row's options; the Hub has the text of a Python list.

    Raises:
        ValueError: it is no list, or has more options than there are letters.
    """
    options = doc["options"]
    if isinstance(options, str):
        try:
            options = ast.literal_eval(options)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"{doc['id']}: options are {options[:80]!r}, not the text of a list") from error
    if not isinstance(options, list | tuple) or len(options) > len(LETTERS):
        raise ValueError(f"{doc['id']}: options are {str(options)[:80]!r}; give a list of at most {len(LETTERS)}")
    return [str(option) for option in options]


def question_of(doc: dict) -> tuple[str, list]:
    """A row's question up to the cue, with marks for its pictures, and the pictures in order."""
    text = str(doc["question"]).strip()
    if doc["question_type"] == CHOICE:
        lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options_of(doc), strict=False)]
        text += "\n\n" + "\n".join(lines) + f"\n\n{ASK_LETTER}"
    else:
        text += f"\n\n{ASK_WORDS}"
    pictures = {int(column.removeprefix("image_")): doc[column] for column in IMAGES if column in doc}
    text, used = inline(text, pictures, doc["id"]) if pictures else (text, [])  # a row without its columns of images
    return f"Question: {text}\n{CUE}", used


def doc_to_text(doc: dict) -> str:
    """The prompt: shots and question, with `<image>` for each picture."""
    shots = [f"{question_of(shot)[0]} {golds_of(shot)[0]}\n\n" for shot in doc.get("shots", [])]
    return "".join(shots) + question_of(doc)[0]


def doc_to_image(doc: dict) -> list:
    """The images of the prompt, those of the shots first."""
    rows = [*doc.get("shots", []), doc]
    return [picture.open() for row in rows for picture in question_of(row)[1]]


def golds_of(doc: dict) -> list[str]:
    """The right answers: one, or for open questions the text of a Python list of several."""
    answer = doc["answer"]
    if isinstance(answer, str) and doc["question_type"] != CHOICE and re.match(r"\[\s*['\"]", answer):
        try:
            answer = ast.literal_eval(answer)
        except (ValueError, SyntaxError):
            pass  # an answer with brackets around it
    return [str(one) for one in answer] or [""] if isinstance(answer, list | tuple) else [str(answer)]


def judge(doc: dict, answer: str) -> Verdict:
    """
    Whether an answer is right.

    Args:
        doc (`dict`): a row.
        answer (`str`): without thinking.

    Returns:
        `Verdict`: without a verdict where the row has no answer (`?`, as in the split test).
    """
    golds = golds_of(doc)
    known = golds[0].strip() not in ("", "?")
    if doc["question_type"] == CHOICE:
        options = options_of(doc)
        letter = letter_of(answer, options)
        if letter is None and (place := option_in(answer, options)) is not None:
            letter = LETTERS[place]
        return Verdict(float(letter in golds) if known else None, letter)
    stated = final_part(answer)
    if not stated or not known:
        return Verdict(0.0 if known else None, stated or None)
    whole = plain(answer[:LONGEST]) in map(plain, golds)  # "x = 5" is no answer 5 where x = 5 is asked for
    return Verdict(float(whole or is_right(stated, golds)), stated)


def is_right(stated: str, golds: list[str]) -> bool:
    """
    The official rule for open questions: a number is right rounded to two decimals, words where they occur.

    Args:
        stated (`str`): the part of a response that states its answer.
        golds (`list[str]`): any of them is right.
    """
    stated = FRACTION.sub(r"\1/\2", stated)
    parts = re.fullmatch(r"(-?\d{1,9})/(\d{1,9})", plain(stated).strip("$ "))
    given = (
        as_number(str(int(parts[1]) / int(parts[2])))
        if parts and int(parts[2])
        else as_number(number_in(_with_e(stated)))
    )
    for gold in golds:
        value = as_number(_with_e(gold))
        if value == given is not None or value is None and says(stated, gold):
            return True
    return False


def _with_e(text: str) -> str:
    """Numbers such as 5.5 x 10^2 as 5.5e2."""
    return TIMES_TEN.sub(lambda power: f"e{power[1] or power[2]}", text)


def as_number(text: str) -> float | None:
    """A number rounded to two decimals; `None`: it is none."""
    try:
        return round(float(text.strip().replace(",", "")), 2)
    except ValueError:
        return None


def process_results(doc: dict, results: list) -> dict[str, float]:
    """lm-eval's metrics of a row."""
    return once(results, lambda answer: judge(doc, answer))


def _right(doc: dict) -> list[str]:
    gold = golds_of(doc)[0]
    if doc["question_type"] != CHOICE:
        return [
            gold,
            f"**{gold}**",
            f"The answer is {gold}.",
            f"Reading the picture, I get {gold}.\n\nAnswer: {gold}",
            rf"So the result is \boxed{{{gold}}}.",
            f"Final answer: {gold}\n\nI hope this helps! Let me know if you have any other questions.",
            f"I first thought of 12345, which cannot be.\n\n**Answer:** {gold}",
            f"The image shows it clearly. Therefore, the answer is: **{gold}**",
        ]
    option = options_of(doc)[LETTERS.index(gold)]
    return [
        gold,
        f"({gold})",
        f"**{gold}**",
        f"{gold}. {option}",
        f"The answer is ({gold}) {option}.",
        f"Let me look at each option.\n\nA does not fit, B is possible.\n\nAnswer: {gold}",
        rf"\boxed{{{gold}}}",
        f"The correct option is **{gold}**.\n\nI hope this helps!",
    ]


def _wrong(doc: dict) -> list[str]:
    gold = golds_of(doc)[0]
    if doc["question_type"] != CHOICE:
        return ["98765", f"x{gold}y", f"Answer: {gold} or 98765", f"It is not {gold}.", "I cannot tell.", ""]
    letters = LETTERS[: len(options_of(doc))]
    other = next(letter for letter in letters if letter != gold)
    every = ", ".join(letters)
    return [
        other,
        f"({other})",
        f"Not {gold}. Answer: {other}",
        f"Answer: {gold} or {other}",
        every,
        "I cannot tell.",
        "",
    ]


CASES = {"cascade_mmmu": Case(right=_right, wrong=_wrong, chance=None)}
