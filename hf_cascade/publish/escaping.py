"""Text of others on a Markdown page: what a card prints is escaped, without paths of its maker's machine, unless it is
marked as Markdown of ours."""

import json
import re
import shlex
from urllib.parse import quote

import yaml

from hf_cascade.publish.paths import without_paths

_SPECIAL = re.compile(r"[\\`*\[\]{}|~$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is one to GitHub too
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_FIRST = re.compile(r"^([#+\-=]|\d+[.)](?=\s))")  # headings, lists and rules, where a text begins a line


class Markdown(str):
    """Text that is Markdown of ours already, and is printed as it is."""


def finalize(value) -> str:
    """
    What a template prints for a value; `jinja2`'s `finalize`.

    Raises:
        TypeError: the value is missing, or is no text or number: a card prints no `None`.
    """
    if isinstance(value, Markdown):
        return value
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    str(value)  # raises for what a template names and nobody gave
    raise TypeError(f"a card cannot print {value!r} ({type(value).__name__})")


def escape(text: str) -> str:
    """A text on one line that shows as it is: no link, table cell, HTML, formula or heading begins or ends in it."""
    text = _one_line(text)
    text = _SPECIAL.sub(lambda match: "\\" + match.group(), text)
    text = re.sub(r"[&<>]", lambda match: _HTML[match.group()], text)
    return Markdown(_FIRST.sub(lambda match: match.group()[:-1] + "\\" + match.group()[-1], text))


def code(text: str) -> Markdown:
    """A text as code within a line, also within a cell of a table."""
    text = _one_line(text).replace("|", "\\|") or " "
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{ticks}{space}{text}{space}{ticks}")


def _one_line(text: str) -> str:
    """Without line breaks, control characters and paths of the machine; a space that does not break stays."""
    text = re.sub(
        r"[\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]", "", without_paths(str(text))
    )
    return re.sub(r"[ \t\n\x0b\x0c\r\x85\u2028\u2029]+", " ", text).strip(" ")


def fence(text: str, language: str = "") -> Markdown:
    """A block of code that no text can end early."""
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return Markdown(f"{ticks}{language}\n{text.rstrip()}\n{ticks}")


def table(header: list[str], rows: list[list[str]]) -> Markdown:
    """A Markdown table of escaped cells, all but the first column to the right."""
    lines = [[finalize(cell) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(header) - 1)])
    return Markdown("".join(f"| {' | '.join(cells)} |\n" for cells in lines).rstrip())


def text_table(header: list[str], rows: list[list[str]]) -> Markdown:
    """[`table`] with all columns to the left."""
    lines = table(header, rows).split("\n")
    lines[1] = "|" + " --- |" * len(header)
    return Markdown("\n".join(lines))


def yaml_block(values: dict) -> Markdown:
    """Settings as a YAML block."""
    return fence(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100), "yaml")


def python(text: str) -> Markdown:
    """A text as a Python literal."""
    return Markdown(json.dumps(text, ensure_ascii=False))


def shell(text: str) -> Markdown:
    """A text as one word of a shell's line."""
    return Markdown(shlex.quote(text))


def plain(value) -> Markdown:
    """A number or word of ours as it is, within code; a text of others is refused."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if not re.fullmatch(r"[\w.,=/: +-]*", text):
        raise ValueError(f"{text!r} cannot be printed as it is; use another filter")
    return Markdown(text)


def link(path: str) -> Markdown:
    """A relative path as the target of a link."""
    return Markdown(quote(path))


def tex(text: str) -> Markdown:
    """A text within braces of BibTeX."""
    return Markdown(re.sub(r"[^\w .,:;/+()-]", "", " ".join(text.split())).replace("_", "\\_"))


FILTERS = {
    "plain": plain,
    "link": link,
    "tex": tex,
    "mark": Markdown,
    "code": code,
    "fence": fence,
    "table": lambda pair: table(*pair),
    "text_table": lambda pair: text_table(*pair),
    "yaml_block": yaml_block,
    "python": python,
    "shell": shell,
}
