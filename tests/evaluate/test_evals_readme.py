"""evals/README.md against the folder: tasks, datasets, suites, metrics and commands are the ones that exist."""

import re

import pytest
import yaml

from hf_cascade import assets
from hf_cascade.evaluate.conformance import command
from hf_cascade.evaluate.conformance.cases import all_cases
from hf_cascade.evaluate.suite import suites

README = assets.find("evals/README.md").read_text(encoding="utf-8")
TASKS = README.partition("## Tasks")[2].partition("Each YAML says")[0]


def test_the_table_has_every_row_of_the_papers_tables():
    named = set(re.findall(r"`(cascade_\w+)`", TASKS))
    groups = {"cascade_agieval", "cascade_mmmlu"}
    assert named - groups <= set(all_cases())
    wanted = {task for name in ("table2", "table3", "table4", "table5") for task in suites.load(name).tasks}
    missing = {task for task in wanted - named if not task.startswith(tuple(f"{group}_" for group in groups))}
    assert not missing and len(wanted) > 30


def test_datasets_are_those_of_the_yaml():
    known = set(yaml.safe_load(assets.find("evals/datasets.yaml").read_text()))
    named = set(re.findall(r"(?<![\w/])([A-Za-z][\w-]*/[\w.-]+)(?=[ ,|(])", TASKS)) - {"hails/agieval-"}
    assert named and named <= known, named - known


def test_suites_and_metrics_are_listed():
    row = next(line for line in README.splitlines() if line.startswith("| `suites/`"))
    listed = {name for name in suites.names() if not name.startswith("table")}
    assert listed <= set(re.findall(r"`(\w+)`", row))
    row = next(line for line in README.splitlines() if line.startswith("| `metrics/`"))
    assert all(path.name in row for path in assets.find("evals/metrics").iterdir() if path.is_dir())


def test_the_folders_are_there():
    folders = re.findall(r"^\| `(\w+/|\w+\.yaml)` \|", README, re.MULTILINE)
    assert len(folders) == 7 and all((assets.find("evals") / name).exists() for name in folders)


def test_what_is_given_to_lm_evals_command_is_there():
    (command,) = re.findall(r"lm-eval run (.*?)\n```", README.replace("\\\n", ""), re.DOTALL)
    flags = dict(re.findall(r"--(\w+) (\S+)", command))
    assert (assets.find(flags["include_path"]) / f"cascade/groups/{flags['tasks']}.yaml").is_file()
    assert set(flags) == {"model", "model_args", "include_path", "tasks", "batch_size"}


def test_the_metric_shown_is_computed(monkeypatch):
    import evaluate

    (shown,) = re.findall(r"`(evaluate\.load\(.*?\))`", README)
    monkeypatch.chdir(assets.root())
    assert eval(shown, {"evaluate": evaluate}) == {"pass_at_1": 0.5, "pass_at_2": 1.0}


def test_every_column_of_the_conformance_table_is_explained():
    explained = README.partition("| column |")[2].partition("<!-- conformance -->")[0]
    assert [column for column in command.COLUMNS if f"\n| {column} | " not in explained] == []


@pytest.mark.parametrize(
    "path", sorted(assets.find("evals/metrics").glob("*/README.md")), ids=lambda path: path.parent.name
)
def test_examples_of_metrics_run_as_they_stand(path):
    (code,) = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    *lines, last = code.strip().splitlines()
    names: dict = {}
    exec("\n".join(lines), names)
    assert all(isinstance(value, float) for value in eval(last, names).values())
