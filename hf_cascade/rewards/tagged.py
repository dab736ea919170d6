"""Texts as material for a judge: between tags that they cannot end, and without control tokens (ours)."""

import hashlib
import re

# what could end our tags, or a turn in the judge's chat template: <tag>, </tag>, <|token|>, [TOKEN], [/TOKEN];
# possessive, since a text of one "<" and much else would take quadratic time
_MARKUP = re.compile(r"<(?=\s*+/?\s*+\w[^<>]*+>|\s*+[|｜])|\[(?=/?[A-Z_]++\])")


def marked(texts: dict[str, str]) -> dict[str, str]:
    """
    Texts without markup, and under `mark` a hash of them all.

    A text cannot hold a hash of itself, so none can close a tag with the mark; and equal texts have equal marks.
    """
    texts = {name: _MARKUP.sub(break_up, text) for name, text in texts.items()}
    return {**texts, "mark": hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()[:12]}


def tagged(texts: dict[str, str]) -> tuple[str, str]:
    """
    Texts one after the other, each between a tag with its name and a mark.

    Args:
        texts (`dict[str, str]`): name to text.

    Returns:
        What to show, and the mark.
    """
    shown = marked(texts)
    mark = shown.pop("mark")
    return "\n\n".join(f"<{name} {mark}>\n{text}\n</{name} {mark}>" for name, text in shown.items()), mark


def break_up(markup: re.Match) -> str:
    """A zero-width space behind the first character: looks the same, and is no control token."""
    return f"{markup[0][0]}\u200b{markup[0][1:]}"
