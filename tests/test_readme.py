"""README against the project: its results are the committed report's, its pictures exist, its commands are real."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from hf_cascade import assets, cli, flag_help, recipe
from hf_cascade.publish import targets

ROOT = Path(__file__).parent.parent
READMES = [path for folder in (".", "evals", "trainers", "hf_cascade/*") for path in ROOT.glob(f"{folder}/README.md")]
SCRIPT = re.compile(r"(?:accelerate launch|python|torchrun).*?trainers/(\w+)\.py (.*)")
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


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Words and arguments of our commands in a README's blocks of bash."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.partition("  #")[0].strip()
            if line.startswith("hf-cascade "):
                _, word, *arguments = shlex.split(line)
                found.append((word, arguments))
            elif script := SCRIPT.match(line):
                found.append((script[1], shlex.split(script[2])))
    return found


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_have_the_flags_that_they_show(path):
    for word, arguments in commands(path.read_text()):
        if word in cli.OWN:
            cli.make_parser().parse_args([word, *arguments])
        elif word in cli.READ_FROM_SOURCE and cli.CONFORMANCE not in arguments and arguments[-1] != "...":
            flag_help.check(word, arguments)


def test_commands_are_found():
    assert len(commands(README)) > 25 and {"prune", "grpo", "run", "publish"} <= {word for word, _ in commands(README)}
    with pytest.raises(ValueError, match="--outptu_dir"):
        flag_help.check(
            *commands("```bash\naccelerate launch trainers/sft.py --seed 1 \\\n  --outptu_dir z  # no\n```")[0]
        )


def test_the_yaml_shown_is_read():
    shown = re.search(r"```yaml\n(# distill\.yaml.*?)```", README, re.DOTALL)[1]
    assert recipe.check_flags("distill", yaml.safe_load(shown), "README") == []


def test_the_limits_shown_are_read(tmp_path):
    text = (ROOT / "hf_cascade/publish/README.md").read_text()
    (tmp_path / "targets.yaml").write_text(re.search(r"```yaml\n(suites:.*?)```", text, re.DOTALL)[1])
    assert targets.load(tmp_path / "targets.yaml").suites == ("base",)
