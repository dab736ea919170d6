"""evals/README.md against the folder: tasks, datasets, suites, metrics and commands are the ones that exist."""

import re

import yaml

from hf_cascade import assets
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
