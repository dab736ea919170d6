"""`hf-cascade card`: the model card of a finished folder with its pictures, rendered and checked, not published.

hf-cascade card --model runs/tiny/14b --license apache-2.0
hf-cascade card --model runs/tiny/14b --license apache-2.0 --output card/README.md --page card/card.html
"""

import argparse
import os
import sys
from pathlib import Path

from hf_cascade.publish import eval_results, facts, page, pictures
from hf_cascade.publish.card import render, validate
from hf_cascade.publish.lineage import HUB_ID

FAILED = 1  # exit status: the card has problems
FILE = "README.md"
GENERATED = ("hf-cascade", "generated_from_trainer")  # tags of cards of ours, and of transformers and TRL


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="hf-cascade card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a finished model's folder")
    parser.add_argument("--parent", metavar="DIR", help="folder of the model to set beside it; unset, by its manifests")
    parser.add_argument("--kind", choices=facts.KINDS, help="unset, by the stages that made the model")
    parser.add_argument("--repo_id", metavar="ORG/NAME", help="where the model will be published")
    parser.add_argument("--base_model", metavar="ORG/NAME", help="its direct parent on the Hub")
    parser.add_argument("--license", help="as the Hub names it: apache-2.0, ..., other; unset, the parent's card's")
    parser.add_argument("--license_name", help="with --license other")
    parser.add_argument("--license_link", help="with --license other")
    parser.add_argument("--language", nargs="+", metavar="CODE", help="ISO 639 codes; unset, the parent's card's")
    parser.add_argument("--output", metavar="FILE", help=f"unset, {FILE} in the model's folder")
    parser.add_argument("--page", metavar="FILE", help="also write the card as an HTML page, to look at")
    return parser


def main(argv: list[str]) -> int:
    """
    Write the card, its pictures and `.eval_results`, then check it.

    Returns:
        `int`: 0 for a card without problems, 1 otherwise: they are printed, one a line.

    Raises:
        ValueError, FileNotFoundError: an unfinished folder, a file that cannot be read, no Hub id; nothing is written.
    """
    given = make_parser().parse_args(argv)
    if given.repo_id and not HUB_ID.match(given.repo_id):
        raise ValueError(f"repo_id={given.repo_id}: give ORG/NAME")
    legal = {name: getattr(given, name) for name in ("license", "license_name", "license_link")}
    found = facts.read(
        given.model,
        given.parent,
        kind=given.kind,
        repo_id=given.repo_id,
        base_model=given.base_model,
        language=given.language,
        **legal,
    )
    output = Path(given.output or Path(given.model) / FILE)
    if given.output is None and output.is_file() and not _is_generated(output):
        raise ValueError(f"{output} was written by hand and would be lost: give --output FILE for the card, or move it")
    output.parent.mkdir(parents=True, exist_ok=True)
    drawn = pictures.draw(found, output.parent)
    images = {name: path.relative_to(output.parent).as_posix() for name, path in drawn.items()}
    text = render(found, images=images)
    write_whole(output, text)
    for name, content in eval_results.files(found).items():
        (output.parent / name).parent.mkdir(exist_ok=True)
        write_whole(output.parent / name, content)
    if given.page:
        page.write(text, Path(given.page), output.parent)
    problems = validate(text, set(images.values()))
    for problem in problems:
        print(f"{output}: {problem}", file=sys.stderr)
    if found.legal_source not in (None, "given"):
        print(f"license {found.legal['license']}: from {found.legal_source}")
    if given.repo_id is None:
        print(f"without --repo_id the card's code opens a model called {found.name}")
    print(f"{output}: a card of kind {found.kind}, {len(problems)} problems")
    return FAILED if problems else 0


def _is_generated(path: Path) -> bool:
    """Whether a README is a card that a program made, as its front matter says, or empty."""
    text = path.read_text(encoding="utf-8", errors="replace")
    front = text.partition("---\n")[2].partition("\n---\n")[0] if text.startswith("---\n") else ""
    return not text.strip() or any(line.strip().removeprefix("- ") in GENERATED for line in front.splitlines())


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
