"""What a completion answers, its thinking left out: what rewards look at, and where the thinking begins."""

from hf_cascade.completions import THINKING_TAGS, text_of


def opening_tag(prompt: str | list[dict]) -> str:
    """The tag of thinking that a text ends with, as some templates open the thinking; "" where it does not."""
    text = prompt.rstrip() if isinstance(prompt, str) else ""
    return next((begin for begin, _ in THINKING_TAGS if text.endswith(begin)), "")


def answer_of(prompt: str | list[dict], completion: str | list[dict]) -> str:
    """
    The text of a completion, or of its last assistant message, without thinking; "" where it never ends.

    Args:
        prompt (`str` or `list[dict]`): a text that ends with an opening tag opens the thinking.
        completion (`str` or `list[dict]`): text, or messages.
    """
    return text_of(opening_tag(prompt) + completion if isinstance(completion, str) else completion)
