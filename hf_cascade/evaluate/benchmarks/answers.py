"""The answer inside a response: what stands outside the thinking, or nothing where the thinking never ended.

Tags in Markdown code (a fence or a code span that is closed) of the answer are text; inside thinking they are tags. A
template that opens the thinking in the prompt leaves no opening tag in the response: whoever has the prompt puts the
tag in front, or a response that was cut off is taken for an answer.
"""

import re

from hf_cascade.completions import THINKING_TAGS

CLOSING = dict(THINKING_TAGS)
_TAGS = "|".join(re.escape(tag) for pair in THINKING_TAGS for tag in pair)
MARKS = re.compile(rf"```.*?```|`[^`\n]+`|(?P<tag>{_TAGS})", re.DOTALL)


def is_unfinished(response: str) -> bool:
    """Whether thinking was opened and not closed; such a response has no answer (paper section 6: ours)."""
    return _outside(response) is None


def answer_of(response: str) -> str:
    """
    A response without its thinking; "" where the thinking is not finished.

    All that stands before a closing tag that nothing opened is thinking. Text before, between and after blocks stays.
    """
    return _outside(response) or ""


def thinking_spans(response: str) -> tuple[list[tuple[int, int]], bool]:
    """Where a response thinks, as (start, end) of its characters in order, tags included; and whether it never ends."""
    spans, place = [], 0
    while (tag := next((mark for mark in MARKS.finditer(response, place) if mark["tag"]), None)) is not None:
        closing = CLOSING.get(tag["tag"])
        if closing is None:  # it closes what the prompt opened
            spans, place = [(0, tag.end())], tag.end()
            continue
        end = response.find(closing, tag.end())
        if end < 0:
            return [*spans, (tag.start(), len(response))], True
        place = end + len(closing)
        spans.append((tag.start(), place))
    return spans, False


def _outside(response: str) -> str | None:
    """What stands outside thinking; `None` where a block never ends."""
    spans, unfinished = thinking_spans(response)
    if unfinished or not spans:
        return None if unfinished else response
    starts, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(response)]
    return "".join(response[start:end] for start, end in zip(starts, ends, strict=True)).strip()
