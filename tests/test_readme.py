"""README against the project: its results are the committed report's, its pictures exist, its commands are real."""

import re
from pathlib import Path

import pytest

from hf_cascade import assets, cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = README.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]


def test_the_result_tables_are_the_reports():
    report = assets.find("recipes/tiny/results/report.md").read_text().splitlines()
    rows = [line for line in RESULTS.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert not [row for row in rows if row not in report]


@pytest.mark.parametrize("name, count", [("instruct", 5), ("reasoning", 7)])
def test_tables_of_later_stages_are_their_reports(name, count):
    report = assets.find(f"recipes/tiny/results/{name}/report.md").read_text().splitlines()
    block = README.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]
    rows = [line for line in block.splitlines() if line.startswith("|")]
    assert len(rows) == count
    assert not [row for row in rows if row not in report]


def test_pictures_and_linked_files_exist():
    named = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert named and all((ROOT / name).exists() for name in named), named


def test_commands_are_words_of_the_program():
    words = set(re.findall(r"^(?:.venv/bin/)?hf-cascade (\w+)", README, re.MULTILINE))
    assert words and words <= set(cli.WORDS)
