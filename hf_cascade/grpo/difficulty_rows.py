"""Prompts that are left out before anything is sampled: invalid, incomplete, or there twice (paper section 5)."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hf_cascade.data.image_documents import IMAGE_COLUMNS
from hf_cascade.grpo.difficulty import same_boxed, same_text
from hf_cascade.rewards.maths import MathsReward, maths_reward
from hf_cascade.rewards.programs import ProgramReward, program_reward
from hf_cascade.rewards.stem import StemReward
from hf_cascade.rewards.visual import VisualReward, visual_reward

BEFORE_SAMPLING = ("bad_prompt", "no_answer", "bad_answer", "duplicate")
ABSENT = (None, "", [], {})
OF_ANSWERS = ("answer_type", "choices", "tolerance", "precision")  # columns that say how an answer is compared


def judge_of(row: dict, reward: Callable) -> Callable | None:
    """The reward that compares what a row's responses box; `None`: their whole text is the answer, or a program."""
    if row.get("tests") not in ABSENT:
        return None
    if isinstance(reward, StemReward):
        return visual_reward if row.get("answer_type") not in ABSENT else maths_reward
    return reward if isinstance(reward, MathsReward | VisualReward) else None


def same_of(row: dict, reward: Callable) -> Callable[[str, str], bool | None]:
    """What says whether two answers to a row are equal."""
    judge = judge_of(row, reward)
    return same_text if judge is None else same_boxed(judge, {name: row[name] for name in OF_ANSWERS if name in row})


def gold_of(row: dict):
    """A row's right answer; `None` of a row without one, and of a program."""
    answer = row.get("answer")
    return None if row.get("tests") not in ABSENT or answer in ABSENT else answer


def screen(rows: list[dict], reward: Callable, needed: list[str]) -> list[str | None]:
    """
    Why each row is left out before sampling; `None`: it is not.

    `bad_prompt`: empty, or not ending with what is to be answered. `no_answer`: a column that the reward needs is
    empty. `bad_answer`: the right answer cannot be compared, or the tests have no form that can be
    run. `duplicate`: an earlier row has the same prompt.

    Args:
        rows (`list[dict]`): with `prompt`.
        reward (`Callable`): what will judge responses.
        needed (`list[str]`): the columns that it cannot do without.
    """
    reasons: list[str | None] = []
    first = next((row["prompt"] for row in rows if row["prompt"]), "")
    for row in rows:
        bad = not _can_be_answered(row["prompt"], type(first))
        reasons.append("bad_prompt" if bad else "no_answer" if _lacks_answer(row, reward, needed) else None)
    _mark_bad_answers(rows, reward, reasons)
    seen = set()
    for place, row in enumerate(rows):
        if reasons[place] is None:
            key = " ".join(json.dumps(row["prompt"], sort_keys=True, default=str).split())
            reasons[place] = "duplicate" if key in seen else None
            seen.add(key)
    return reasons


def check_no_images(rows: list[dict]) -> None:
    """
    Refuse rows with images.

    Raises:
        ValueError: a row has an image.
    """
    for column in IMAGE_COLUMNS:
        if any(row.get(column) not in ABSENT for row in rows):
            raise ValueError(
                f"the prompts have images (column {column!r}), and hf-cascade difficulty shows models text alone: "
                "leave those rows out here, and give them to trainers/grpo.py as they are"
            )


def _can_be_answered(prompt, kind: type) -> bool:
    if isinstance(prompt, str):
        return kind is str and bool(prompt.strip())
    if not isinstance(prompt, list) or kind is not list or not prompt:
        return False
    last = prompt[-1]
    return isinstance(last, dict) and last.get("role") in ("user", "tool") and last.get("content") not in ABSENT


def _lacks_answer(row: dict, reward: Callable, needed: list[str]) -> bool:
    if isinstance(reward, StemReward):
        return all(row.get(column) in ABSENT for column in ("answer", "tests"))
    return any(row[column] in ABSENT for column in needed)


def _mark_bad_answers(rows: list[dict], reward: Callable, reasons: list[str | None]) -> None:
    left = [place for place, reason in enumerate(reasons) if reason is None]
    boxes = [place for place in left if judge_of(rows[place], reward) is not None]
    with ThreadPoolExecutor(maths_reward.workers) as pool:
        for place, fine in zip(
            boxes, pool.map(lambda place: _can_be_compared(rows[place], reward), boxes), strict=True
        ):
            reasons[place] = None if fine else "bad_answer"
    if isinstance(reward, ProgramReward | StemReward):
        for place in left:
            if rows[place].get("tests") not in ABSENT:
                reasons[place] = None if _tests_can_run(rows[place]) else "bad_answer"


def _can_be_compared(row: dict, reward: Callable) -> bool:
    try:  # compared with anything at all, an answer that cannot be read has no verdict
        return same_of(row, reward)(row["answer"], "0") is not None
    except ValueError:  # a type of answer that there is not
        return False


def _tests_can_run(row: dict) -> bool:
    try:  # a completion without a program: the tests are read, and nothing is run
        program_reward([row["prompt"]], [""], [row["tests"]], [row.get("setup")])
    except ValueError:
        return False
    return True
