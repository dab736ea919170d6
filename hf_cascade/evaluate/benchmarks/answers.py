"""The answer inside a response: what follows the thinking, or nothing where the thinking never ended."""

from hf_cascade.completions import THINKING_TAGS, text_of


def is_unfinished(response: str) -> bool:
    """Whether thinking was opened and not closed; such a response has no answer (paper section 6: ours)."""
    return any(response.rfind(begin) > response.rfind(end) for begin, end in THINKING_TAGS)


def answer_of(response: str) -> str:
    """A response without its thinking; "" where the thinking is not finished."""
    return "" if is_unfinished(response) else text_of(response)
