"""A card as an HTML page, much as the Hub shows it, to look at before it is published."""

import html
import os
import re
from pathlib import Path

import yaml
from markdown_it import MarkdownIt

CSS = """
body { background: #f6f8fa; margin: 0; color: #1f2328; line-height: 1.55;
  font: 16px/1.55 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; }
main { max-width: 960px; margin: 24px auto; padding: 36px 48px; background: #fff; border: 1px solid #d1d9e0;
  border-radius: 8px; }
h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; } h1 { font-size: 2em; margin-top: .4em; }
h2 { font-size: 1.5em; margin-top: 1.6em; } h3 { font-size: 1.2em; margin-top: 1.4em; }
a { color: #0969da; text-decoration: none; }
code { font: 85% ui-monospace, "DejaVu Sans Mono", Menlo, monospace; background: #eff1f3; border-radius: 6px;
  padding: .2em .4em; white-space: break-spaces; }
pre { background: #f6f8fa; padding: 16px; overflow: auto; border-radius: 6px; }
pre code { background: none; padding: 0; white-space: pre; }
table { border-collapse: collapse; display: block; overflow-x: auto; width: max-content; max-width: 100%;
  font-size: 14px; }
th, td { border: 1px solid #d1d9e0; padding: 5px 11px; }
tr:nth-child(2n) { background: #f6f8fa; }
img { max-width: 100%; }
blockquote { margin: 0 0 16px; padding: 0 1em; color: #59636e; border-left: 4px solid #d1d9e0; }
blockquote.warning { border-color: #cf222e; background: #fff1f0; color: #1f2328; padding: 12px 16px; }
details { margin: 8px 0; } summary { cursor: pointer; font-weight: 600; }
.front { border: 1px solid #d1d9e0; border-radius: 6px; padding: 12px 16px; background: #f6f8fa; font-size: 13px; }
.front div { display: flex; } .front p { margin: 0; flex: 1; }
.front b { flex: none; width: 175px; font-weight: 600; color: #59636e; }
.front span { display: inline-block; background: #fff; border: 1px solid #d1d9e0; border-radius: 10px;
  padding: 0 8px; margin: 2px 4px 2px 0; }
"""
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_ALLOWED = re.compile(r"</?(?:details|summary)>|<br>")


def write(text: str, path: Path, folder: Path) -> None:
    """
    Write a page.

    Args:
        text (`str`): the card.
        path (`Path`): the HTML file.
        folder (`Path`): the card's, to which its images are relative.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    base = os.path.relpath(Path(folder).resolve(), path.parent.resolve())
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(render(text, "" if base == "." else base + "/"), encoding="utf-8")
    os.replace(draft, path)


def render(text: str, base: str = "") -> str:
    """A card's page; its images are at `base` and their paths. HTML but the card's own few tags is shown as text."""
    found = _FRONT.match(text)
    front, body = (found.group(1), text[found.end() :]) if found else ("", text)
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    rules = markdown.renderer.rules
    rules["html_block"] = rules["html_inline"] = lambda tokens, index, *_: _safe(tokens[index].content)
    shown = markdown.render(body)
    shown = re.sub(r'src="(?![a-z]+:|/)', f'src="{html.escape(base, quote=True)}', shown)
    shown = re.sub(r"<blockquote>\s*<p>\[!WARNING\]", '<blockquote class="warning"><p>', shown)
    title = html.escape(next(iter(re.findall(r"^# +(.+)$", body, re.MULTILINE)), "model card"))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{CSS}</style>'
    return f"<!doctype html><html><head>{head}</head><body><main>{_box(front)}{shown}</main></body></html>\n"


def _safe(content: str) -> str:
    """HTML in which only a card's own tags are tags."""
    parts = _ALLOWED.split(content)
    tags = _ALLOWED.findall(content)
    return "".join(html.escape(part) + tag for part, tag in zip(parts, [*tags, ""], strict=True))


def _box(front: str) -> str:
    """The front matter: a line a key, the values of lists side by side."""
    try:
        data = yaml.safe_load(front) or {}
    except yaml.YAMLError:
        return f"<pre>{html.escape(front)}</pre>"
    if not isinstance(data, dict):
        return f"<pre>{html.escape(front)}</pre>"
    lines = []
    for key, value in data.items():
        if key == "model-index":
            results = [result for model in value for result in model.get("results", [])]
            value = [f"{one['dataset']['name']}: {metric['value']}" for one in results for metric in one["metrics"]]
        values = value if isinstance(value, list) else [value]
        shown = "".join(f"<span>{html.escape(str(one))}</span>" for one in values)
        lines.append(f"<div><b>{html.escape(str(key))}</b><p>{shown}</p></div>")
    return f'<div class="front">{"".join(lines)}</div>' if lines else ""
