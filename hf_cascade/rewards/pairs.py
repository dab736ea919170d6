"""Pairs of responses as text, read from TRL's preference rows and from rows with a soft label (paper section 4)."""

import json
import math
from typing import NamedTuple

from trl import extract_prompt

from hf_cascade.completions import without_thinking

HARD = ("chosen", "rejected")
SOFT = ("prompt", "first", "second", "probability")


class Pair(NamedTuple):
    """Two responses to one history, as text, and P(first preferred)."""

    history: str
    first: str
    second: str
    probability: float


def check_columns(columns: list[str]) -> None:
    """Raise `ValueError` unless rows with these columns are pairs."""
    if not (set(HARD) <= set(columns) or set(SOFT) <= set(columns)):
        raise ValueError(
            f"the dataset has the columns {sorted(columns)}, and one of these is needed: {' and '.join(HARD)} (with or "
            f"without prompt); {', '.join(SOFT)}. Rename yours"
        )


def read_pair(row: dict, number: int = 0) -> Pair:
    """
    The pair in a row.

    Args:
        row (`dict`): `chosen` and `rejected`, beside a `prompt` or with it inside as in TRL, or `prompt`, `first`,
            `second` and `probability`; each text or a list of messages. Thinking is left out.
        number (`int`, *optional*): the row's, for errors.

    Raises:
        ValueError: a value is missing, is no text, or is no probability.
    """
    try:
        if row.get("chosen") is None:
            history, first, second, probability = (row.get(name) for name in SOFT)
        else:
            history, first, second, probability = *_parts(row), 1.0
        number_given = isinstance(probability, int | float) and not isinstance(probability, bool)
        if not number_given or not 0 <= probability <= 1 or math.isnan(probability):
            raise ValueError(f"probability={probability!r}: P(first preferred) is a number from 0 to 1")
        answers = (response_text(without_thinking(completion)) for completion in (first, second))
        return Pair(history_text(history), *answers, float(probability))
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from error


def _parts(row: dict) -> tuple:
    """Prompt, chosen and rejected; a prompt repeated inside messages counts once, as in TRL's trainers."""
    chosen, rejected, prompt = row["chosen"], row.get("rejected"), row.get("prompt")
    if rejected is None:
        raise ValueError("rejected is missing")
    if prompt is None or (isinstance(prompt, str) and not isinstance(chosen, str)):
        row = extract_prompt({"chosen": chosen, "rejected": rejected})
        prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    return prompt, chosen, rejected


def history_text(prompt: str | list[dict]) -> str:
    """
    What both responses answer: text as it is, messages each under a line with its role, without earlier thinking.

    Raises:
        ValueError: neither of the two, or a message with something else than text.
    """
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list):
        raise ValueError(f"{prompt!r} is neither text nor a list of messages")
    return "\n\n".join(f"[{message['role']}]\n{_message_text(message)}" for message in without_thinking(prompt))


def response_text(completion: str | list[dict]) -> str:
    """A response: the text of a single message; of several, such as calls of tools, each with its role."""
    if isinstance(completion, list) and len(completion) == 1:
        return _message_text(completion[0])
    return history_text(completion)


def _message_text(message: dict) -> str:
    content = message.get("content")
    if isinstance(content, list):
        others = sorted({str(part.get("type")) for part in content if part.get("type") != "text"})
        if others:
            raise ValueError(
                f"a message has parts of type {', '.join(others)}: a pairwise reward model reads text alone"
            )
        content = "".join(part["text"] for part in content)
    calls = [
        f"[call] {call['name']}({_arguments(call.get('arguments'))})"
        for call in (one.get("function") or one for one in message.get("tool_calls") or ())
    ]
    return "\n".join([*([content] if content else []), *calls])


def _arguments(arguments) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, sort_keys=True)
