"""How a model is talked to: its chat template and the marks around its thinking, read off its own files."""

import json
from dataclasses import dataclass
from pathlib import Path

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
    template = _template(folder)
    if template is None:
        return None
    marks = next((pair for pair in THINKING if all(mark in template for mark in pair)), None)
    return Chat(marks, "tools" in template)


def _template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "processor_config.json", "chat_template.json"):
        if (folder / name).is_file():
            given = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
            if isinstance(given, str):
                return given
    return None
