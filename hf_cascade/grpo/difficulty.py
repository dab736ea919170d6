"""How hard a prompt is for a model, from its responses: pass rate, majority answer, and whether it stays (section 5).

Magistral (arXiv 2506.10910, section 4) draws 16 responses, leaves out problems that are never or nearly always solved,
and those where most responses agree on another answer than the right one: that one is probably wrong. Pure functions.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_cascade.rewards.answers import answer_of
from hf_cascade.rewards.maths import LONGEST, boxed

KEPT = "kept"
AFTER_SAMPLING = ("too_easy", "too_hard", "contradicted", "unjudged")
JUDGED_SHARE = 0.5  # fewer judged responses than this share say nothing; ours: paper silent
FEWEST_AGREEING = 2  # one response is no majority; ours


@dataclass(frozen=True)
class Window:
    """
    Which prompts stay.

    Args:
        min_pass_rate (`float`), max_pass_rate (`float`): both are in. Magistral names no numbers: it leaves out what is
            never solved, and what is solved at "a high success rate".
        majority_share (`float`): share of the judged responses that a wrong answer must have to contradict the right
            one. Magistral: a majority.
        above (`float`): a response passes with a reward above it.

    Raises:
        ValueError: a number that is no share, or a window that holds nothing.
    """

    min_pass_rate: float = 0.01
    max_pass_rate: float = 0.8
    majority_share: float = 0.5
    above: float = 0.5

    def __post_init__(self):
        if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1:
            raise ValueError(
                f"min_pass_rate={self.min_pass_rate} and max_pass_rate={self.max_pass_rate}: give shares from 0 to 1, "
                "the first not above the second"
            )
        if not 0 < self.majority_share <= 1:
            raise ValueError(f"majority_share={self.majority_share}: give a share above 0 and up to 1")
        if not math.isfinite(self.above):
            raise ValueError(f"pass_above={self.above}: give a number; a response passes with a reward above it")


@dataclass(frozen=True)
class Majority:
    """
    The answer that more responses give than any other.

    Attributes:
        answer (`str`, *optional*): as most of them write it; `None` where there is no answer, or two are as frequent.
        count (`int`): responses that give it.
        right (`bool`): it equals the right answer.
    """

    answer: str | None = None
    count: int = 0
    right: bool = False


@dataclass(frozen=True)
class Difficulty:
    """
    What responses say of one prompt.

    Attributes:
        outcome (`str`): `kept`, or one of `AFTER_SAMPLING`.
        pass_rate (`float`, *optional*): share of the judged responses that pass; `None` where none was judged.
        samples (`int`): judged responses.
        majority ([`Majority`]): over the judged responses.
    """

    outcome: str
    pass_rate: float | None
    samples: int
    majority: Majority


def pass_rate(rewards: Sequence[float | None], above: float = 0.5) -> tuple[float | None, int]:
    """
    Share of the judged responses whose reward is above `above`, and how many were judged. `None` is a missing
    judgement, not a wrong response.
    """
    judged = [reward for reward in rewards if reward is not None]
    return (sum(reward > above for reward in judged) / len(judged) if judged else None), len(judged)


def majority(
    answers: Sequence[str | None], passed: Sequence[bool], gold: str | None, same: Callable[[str, str], bool | None]
) -> Majority:
    """
    The most frequent answer, where different notations of one answer count together.

    All responses that passed are one answer, the right one, and so is what equals `gold`: a response may be right and
    fail for its form.

    Args:
        answers (`Sequence[str | None]`): final answer of each response; `None`: it has none.
        passed (`Sequence[bool]`): whether each passed.
        gold (`str`, *optional*): the right answer.
        same (`Callable[[str, str], bool | None]`): whether two answers are equal, the right one first; `None`: unknown.
    """
    pairs = list(zip(answers, passed, strict=True))
    counts = Counter(answer for answer, _ in pairs if answer is not None)
    right = {answer for answer, did in pairs if did and answer is not None}
    right |= {answer for answer in counts if answer not in right and gold is not None and same(gold, answer)}
    groups: list[Counter] = [Counter({answer: counts[answer] for answer in right})]
    for answer, count in counts.most_common():
        if answer not in right:
            group = next((group for group in groups[1:] if same(next(iter(group)), answer)), None)
            if group is None:
                groups.append(group := Counter())
            group[answer] = count
    sizes = [group.total() for group in groups]
    most = max(sizes)
    if most == 0 or sizes.count(most) > 1:
        return Majority(count=most)
    place = sizes.index(most)
    written = max(counts, key=lambda answer: groups[place][answer])  # the earliest of equally frequent notations
    return Majority(written, most, right=place == 0)


def difficulty(
    rewards: Sequence[float | None],
    answers: Sequence[str | None],
    gold: str | None,
    same: Callable[[str, str], bool | None],
    window: Window = Window(),
) -> Difficulty:
    """
    Whether a prompt stays, by its responses.

    A majority that contradicts the right answer goes before the window: such a prompt is wrong, not hard.

    Args:
        rewards (`Sequence[float | None]`): of each response; `None`: not judged. Such responses do not count.
        answers (`Sequence[str | None]`): final answer of each response.
        gold (`str`, *optional*): the right answer. `None`: nothing to contradict.
        same (`Callable[[str, str], bool | None]`): see [`majority`].
        window ([`Window`]): what stays.
    """
    rate, judged = pass_rate(rewards, window.above)
    both = zip(rewards, answers, strict=True)
    known = [(answer, reward > window.above) for reward, answer in both if reward is not None]
    found = majority([answer for answer, _ in known], [did for _, did in known], gold, same)
    if rate is None or judged < JUDGED_SHARE * len(rewards):
        outcome = "unjudged"
    elif gold is not None and _contradicts(found, judged, window):
        outcome = "contradicted"
    elif rate < window.min_pass_rate:
        outcome = "too_hard"
    elif rate > window.max_pass_rate:
        outcome = "too_easy"
    else:
        outcome = KEPT
    return Difficulty(outcome, rate, judged, found)


def _contradicts(found: Majority, judged: int, window: Window) -> bool:
    enough = found.count >= max(FEWEST_AGREEING, window.majority_share * judged)
    return found.answer is not None and not found.right and enough


def final_answer(prompt: str | list[dict], completion: str | list[dict], in_box: bool) -> str | None:
    """What a completion answers, without its thinking: the content of its last `\\boxed{}`, or all its text."""
    text = answer_of(prompt, completion)
    if in_box:
        answer = boxed(text)
        return answer if answer and len(answer) <= LONGEST else None
    answer = " ".join(text.split())
    if len(answer) > LONGEST:  # still equal to itself alone
        answer = f"{answer[:LONGEST]}... ({hashlib.sha256(answer.encode()).hexdigest()[:12]})"
    return answer or None


def same_boxed(reward: Callable, columns: dict) -> Callable[[str, str], bool | None]:
    """
    Whether two answers are equal to a reward that compares what is boxed, in any notation; `None`: it cannot be told.

    Args:
        reward (`Callable`): `maths_reward` or `visual_reward`.
        columns (`dict`): what else the row says of its answer, such as `choices`.
    """

    def same(right: str, given: str) -> bool | None:
        rest = {name: [value] for name, value in columns.items()}
        verdict = reward(prompts=[""], completions=[f"\\boxed{{{given}}}"], answer=[right], **rest)[0]
        return None if verdict is None else bool(verdict)

    return same


def same_text(right: str, given: str) -> bool:
    """Whether two texts are equal but for case, white space and a full stop at the end."""
    first, second = (" ".join(text.split()).removesuffix(".").rstrip().casefold() for text in (right, given))
    return first == second
