"""Rewards that compare with a known answer, as TRL reward functions; and rewards by name (ours: paper silent)."""

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable

from hf_cascade import assets
from hf_cascade.rewards.answers import answer_of
from hf_cascade.rewards.form import format_reward
from hf_cascade.rewards.language import language_reward
from hf_cascade.rewards.maths import maths_reward
from hf_cascade.rewards.programs import program_reward
from hf_cascade.rewards.rubric import rubric_reward
from hf_cascade.rewards.stem import stem_reward
from hf_cascade.rewards.visual import visual_reward

# what TRL calls a reward with beside the columns of its prompts
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


def exact_match(prompts: list, completions: list, answer: list, **columns) -> list[float | None]:
    """
    1 where a completion is its answer, else 0; thinking is left out, and runs of white space count as one space.

    Args:
        prompts (`list`): one that is text and ends with an opening tag opens the thinking.
        completions (`list`): text, or lists of messages, of which the last assistant message counts.
        answer (`list`): what is right, text or a number; `None`: no reward.
        **columns: not looked at.
    """
    rows = zip(map(answer_of, prompts, completions), answer, strict=True)
    return [None if right is None else float(_words(given) == _words(str(right))) for given, right in rows]


def similarity(prompts: list, completions: list, answer: list, **columns) -> list[float | None]:
    """
    How much of a completion and its answer is equal, 0 to 1: difflib's 2 * matching characters / all characters.

    Takes the product of both lengths: for short answers. Arguments and white space as of [`exact_match`].
    """
    rows = zip(map(answer_of, prompts, completions), answer, strict=True)
    return [None if right is None else _similarity(_words(given), _words(str(right))) for given, right in rows]


def load_reward(name: str) -> Callable:
    """
    A reward function by name. A file or module that is named is executed.

    Args:
        name (`str`): one of `REWARDS`, `package.module.function` or `path/to/file.py:function`.

    Raises:
        ValueError: there is no such function.
    """
    return REWARDS[name] if name in REWARDS else load_function(name, "reward", (*REWARDS,))


def load_function(name: str, kind: str, known: tuple[str, ...] = ()) -> Callable:
    """
    A function by its place. A file or module that is named is executed.

    Args:
        name (`str`): `package.module.function` or `path/to/file.py:function`, found as by [`assets.find`].
        kind (`str`): what it is wanted as, for the error.
        known (`tuple[str, ...]`, *optional*): names that would have done too, for the error.

    Raises:
        ValueError: there is no such function.
    """
    allowed = f"allowed are {', '.join([*known, 'package.module.function'])} and path/to/file.py:function"
    if ".py:" in name:
        given, _, function = name.rpartition(":")
        try:
            file = assets.find(given)  # a shipped recipe's, from any working directory
        except FileNotFoundError as error:
            raise ValueError(f"{kind} {name!r}: there is no file {given} ({error}); {allowed}") from error
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        path, _, function = name.rpartition(".")
        try:
            module = importlib.import_module(path or name)
        except ModuleNotFoundError as error:
            raise ValueError(f"{kind} {name!r}: {error}; {allowed}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"{kind} {name!r}: {module.__name__} has no function {function!r}; {allowed}")
    return found


def check_columns(name: str, reward: Callable, columns: Iterable[str], given: tuple[str, ...] = GIVEN) -> list[str]:
    """
    Refuse prompts without a column that a reward cannot do without; returns those columns.

    Args:
        name (`str`): the reward's, for the error.
        reward (`Callable`): it.
        columns (`Iterable[str]`): of the prompts.
        given (`tuple[str, ...]`, *optional*): what it is called with beside the prompts' columns; TRL's by default.

    Raises:
        ValueError: a column is not there.
    """
    if hasattr(reward, "check_columns"):  # what a signature does not say
        reward.check_columns(list(columns))
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parts = inspect.signature(reward).parameters.items()
    needed = [
        key
        for key, part in parts
        if part.default is inspect.Parameter.empty and part.kind not in kinds and key not in given
    ]
    missing = [key for key in needed if key not in columns]
    if missing:
        raise ValueError(
            f"reward {name!r} needs the columns {', '.join(missing)} beside `prompt`, and the prompts have "
            f"{', '.join(sorted(columns)) or 'no others'}"
        )
    return needed


def _words(text: str) -> str:
    return " ".join(text.split())


def _similarity(given: str, right: str) -> float:
    return difflib.SequenceMatcher(None, given, right, autojunk=False).ratio()


REWARDS = {"exact_match": exact_match, "similarity": similarity, "maths_reward": maths_reward}
REWARDS |= {"program_reward": program_reward, "format_reward": format_reward, "language_reward": language_reward}
REWARDS |= {"stem_reward": stem_reward, "visual_reward": visual_reward, "rubric_reward": rubric_reward}
