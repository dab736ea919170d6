"""How a model is talked to: its chat template and the marks around its thinking, read off its own files."""

from dataclasses import dataclass
from pathlib import Path

from hf_cascade import companions

THINKING = (("[THINK]", "[/THINK]"), ("<think>", "</think>"))


@dataclass(frozen=True)
class Chat:
    """
    What a model's chat template says.

    Attributes:
        thinking (`tuple[str, str]`, *optional*): marks around thinking, `None` where the template has none.
        tools (`bool`): whether it renders tools.
    """

    thinking: tuple[str, str] | None
    tools: bool


def chat_of(folder: Path) -> Chat | None:
    """The chat template of a folder: its own file, or an entry of its tokenizer's config. `None` without one."""
    template = companions.templates(folder).get("default")
    if template is None:
        return None
    marks = next((pair for pair in THINKING if all(mark in template for mark in pair)), None)
    return Chat(marks, "tools" in template)
