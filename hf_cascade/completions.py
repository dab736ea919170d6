"""Generated text: infinite loops, which lose in the paper's online DPO, and what is left without the thinking."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

# What marks thinking: Mistral's tokens as text, and the tags of DeepSeek and Qwen.
THINKING_TAGS = (("[THINK]", "[/THINK]"), ("<think>", "</think>"))
THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")  # the names transformers' chat templates know
THINKING_PARTS = ("thinking", "reasoning")  # types of content parts
BLOCK = re.compile(
    "|".join(rf"{re.escape(begin)}.*?(?:{re.escape(end)}|\Z)" for begin, end in THINKING_TAGS), re.DOTALL
)


@dataclass(frozen=True)
class LoopRule:
    """
    When a response that was cut off counts as an infinite loop (every number ours: paper silent).

    Args:
        min_repeats (`int`): times a period must stand at the end.
        min_tokens (`int`): tokens the repeats must cover.
        max_period (`int`): longest period, in tokens.
        ngram (`int`): tokens of the n-grams that counter loops ("1. x 2. x") are told by.
        window_tokens (`int`): tokens at the end that are searched for counter loops. A shorter response is searched
            whole, from a quarter of it on: less text cannot tell a loop from a list.
        ngram_fraction (`float`): share of the window's n-grams that came before in it, from which on it is a counter
            loop; 1 - distinct / all, the seq-rep-n of Welleck et al., 2020, "Neural text generation with unlikelihood
            training".

    Raises:
        ValueError: a number that finds everything or nothing.
    """

    min_repeats: int = 4
    min_tokens: int = 64
    max_period: int = 1024
    ngram: int = 4
    window_tokens: int = 1024
    ngram_fraction: float = 0.75

    def __post_init__(self):
        lowest = {"min_repeats": 2}
        for name in (field.name for field in fields(self) if field.type is int):
            if getattr(self, name) < lowest.get(name, 1):
                raise ValueError(f"{name} is {getattr(self, name)}: give {lowest.get(name, 1)} or more")
        if not 0 < self.ngram_fraction <= 1:
            raise ValueError(f"ngram_fraction is {self.ngram_fraction}: give a share above 0 and up to 1")


@dataclass(frozen=True)
class Loop:
    """
    An infinite loop at the end of a response.

    Attributes:
        kind (`str`): "period", or "counter" where a few tokens change with every repeat.
        period (`int`): tokens of one repeat; of a counter loop the most frequent distance between equal n-grams.
        repeats (`int`): whole repeats from `start` to the end.
        start (`int`): index of the loop's first token; of a counter loop, of the first token that was searched.
    """

    kind: str
    period: int
    repeats: int
    start: int


def periodic_suffixes(token_ids: Sequence[int], max_period: int) -> list[int]:
    """
    For every period, how many tokens at the end repeat with it: a Z-function of the reversed tokens.

    Takes O(tokens + max_period) comparisons for all periods together: no token is compared with a later one twice.

    Args:
        token_ids (`Sequence[int]`): tokens of a response.
        max_period (`int`): longest period, in tokens.

    Returns:
        `list[int]`: at index p, the length of the longest suffix in which every token equals the one p before it, for
        p up to `max_period` and below the number of tokens; index 0 is the whole length.
    """
    last_first = token_ids[::-1]
    tokens = len(last_first)
    matches = [tokens] + [0] * min(max_period, tokens - 1)  # equal tokens between last_first and itself, shifted
    left = right = 0  # the match that reaches furthest
    for shift in range(1, len(matches)):
        match = min(right - shift, matches[shift - left]) if shift < right else 0
        while shift + match < tokens and last_first[match] == last_first[shift + match]:
            match += 1
        matches[shift] = match
        if shift + match > right:
            left, right = shift, shift + match
    return [tokens] + [shift + match for shift, match in enumerate(matches[1:], 1)]


def find_loop(token_ids: Sequence[int], rule: LoopRule = LoopRule()) -> Loop | None:
    """
    The infinite loop at the end of a response that did not end by itself.

    First an exact periodic suffix, of the shortest period that satisfies the rule; then a counter loop. A response
    that was cut off inside a legitimate run (a line of dashes, the zeros of a large number) is a loop to the rule.

    Args:
        token_ids (`Sequence[int]`): tokens of a response without EOS at its end.
        rule ([`LoopRule`]): what counts.

    Returns:
        [`Loop`] or `None`.
    """
    if not len(token_ids):
        return None
    for period, covered in enumerate(periodic_suffixes(token_ids, rule.max_period)[1:], 1):
        if covered >= max(rule.min_tokens, rule.min_repeats * period):
            return Loop("period", period, covered // period, len(token_ids) - covered)
    return _find_counter_loop(token_ids, rule)


def _find_counter_loop(token_ids: Sequence[int], rule: LoopRule) -> Loop | None:
    window = token_ids[-rule.window_tokens :]
    count = len(window) - rule.ngram + 1
    if count < 1 or len(window) < rule.window_tokens // 4:
        return None
    last, distances = {}, Counter()
    for place in range(count):
        ngram = tuple(window[place : place + rule.ngram])
        if ngram in last:
            distances[place - last[ngram]] += 1
        last[ngram] = place
    if 1 - len(last) / count < rule.ngram_fraction:
        return None
    period = distances.most_common(1)[0][0]
    return Loop("counter", period, len(window) // period, len(token_ids) - len(window))


def last_turn(token_ids: Sequence[int], tool_mask: Sequence[int] | None) -> list[int]:
    """
    The model's own tokens after the last token that a tool wrote.

    Args:
        token_ids (`Sequence[int]`): tokens of a completion, tool results among them.
        tool_mask (`Sequence[int]`, *optional*): TRL's: 0 for a token of a tool result. `None`: no tools.

    Raises:
        ValueError: the two are not equally long.
    """
    if tool_mask is None:
        return list(token_ids)
    if len(tool_mask) != len(token_ids):
        raise ValueError(f"tool_mask has {len(tool_mask)} entries for {len(token_ids)} tokens: give one for each")
    start = max((place + 1 for place, own in enumerate(tool_mask) if not own), default=0)
    return list(token_ids[start:])


def is_looping(
    token_ids: Sequence[int],
    tool_mask: Sequence[int] | None,
    eos_token_ids: Collection[int],
    rule: LoopRule = LoopRule(),
) -> bool:
    """
    Whether a completion's last turn is an infinite loop; never where it ended with EOS.

    Args:
        token_ids (`Sequence[int]`): tokens of a completion, without padding.
        tool_mask (`Sequence[int]`, *optional*): see [`last_turn`].
        eos_token_ids (`Collection[int]`): tokens that end a turn.
        rule ([`LoopRule`]): what counts.
    """
    own = last_turn(token_ids, tool_mask)
    return bool(own) and own[-1] not in eos_token_ids and find_loop(own, rule) is not None


def without_thinking(completion: str | list[dict]) -> str | list[dict]:
    """
    A TRL completion without its thinking; tool calls, tool results and other roles' messages stay as they are.

    Removed are [THINK]..[/THINK] and <think>..</think> in text, to the end where the model did not close them; what
    stands before a closing tag that nothing opened (templates that open the thinking in the prompt); the keys
    `reasoning_content`, `thinking` and `reasoning`; content parts of type thinking or reasoning.

    Args:
        completion (`str` or `list[dict]`): text, or messages. It is not changed.

    Returns:
        The same form. Text from which something was removed has no spaces at its ends.

    Raises:
        ValueError: something else was given.
    """
    if isinstance(completion, str):
        return _answer(completion)
    if not isinstance(completion, list) or not all(isinstance(message, dict) for message in completion):
        raise ValueError(f"a completion is a string or a list of messages, not {completion!r:.200}")
    return [_without_thinking(entry) if entry.get("role") == "assistant" else entry for entry in completion]


def text_of(completion: str | list[dict]) -> str:
    """The text of the last assistant message without thinking, or "" if there is none; arguments and errors as of
    [`without_thinking`]."""
    completion = without_thinking(completion)
    if isinstance(completion, str):
        return completion
    content = next((entry.get("content") for entry in reversed(completion) if entry.get("role") == "assistant"), "")
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    return content or ""


def _answer(text: str) -> str:
    """Text without thinking."""
    answer = text
    for begin, end in THINKING_TAGS:
        before, tag, after = answer.partition(end)
        if tag and begin not in before:
            answer = after
    answer = BLOCK.sub("", answer)
    return text if answer == text else answer.strip()


def _without_thinking(message: dict) -> dict:
    """An assistant's message without thinking."""
    message = {key: value for key, value in message.items() if key not in THINKING_KEYS}
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = _answer(content)
    elif isinstance(content, list):
        parts = [part for part in content if part.get("type") not in THINKING_PARTS]
        parts = [{**part, "text": _answer(part["text"])} if part.get("type") == "text" else part for part in parts]
        message["content"] = parts or ""  # templates read the first part of a list
    return message
