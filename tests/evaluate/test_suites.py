"""Suites: their tasks and metrics exist, the tables are whole, and what is wrong in a file is said."""

import pytest
import yaml

from hf_cascade import assets
from hf_cascade.evaluate.harness import open_tasks
from hf_cascade.evaluate.suite import published, suites
from hf_cascade.evaluate.suite.command_part import TASKS, known_metrics, read_yamls

PAPER = ["table2", "table3", "table4", "table5"]


@pytest.fixture(scope="module")
def index():
    return open_tasks([], TASKS).task_index


def test_the_suites_that_ship():
    assert {*PAPER, "base", "instruct", "reasoning", "tiny"} <= set(suites.names())
    assert [suites.load(name).chat for name in (*PAPER, "base", "instruct", "reasoning", "tiny")] == [
        *(False, False, True, True),
        *(False, True, True, False),
    ]


@pytest.mark.parametrize("name", suites.names())
def test_every_task_and_metric_of_a_suite_exists(name, index):
    suite = suites.load(name)
    assert suite.tasks
    suites.check_tasks(suite, known_metrics(read_yamls(index)), TASKS)


@pytest.mark.parametrize("table", PAPER)
def test_a_tables_suite_has_all_its_rows_in_order(table):
    rows = [row.published for row in suites.load(table).rows]
    assert rows == [(table, row) for row in published.load(table).protocol]
    assert all(row.label == row.published[1] for row in suites.load(table).rows)


@pytest.mark.parametrize("table", PAPER)
def test_a_tables_group_has_the_suites_tasks_and_no_joint_score(table, index):
    path = assets.find(f"evals/tasks/cascade/groups/cascade_{table}.yaml")
    group = yaml.safe_load(path.read_text(encoding="utf-8"))
    inner = {name: yaml.safe_load(entry.yaml_path.read_text())["task"]
             for name, entry in index.items() if entry.kind.name == "GROUP"}  # fmt: skip
    tasks = [task for name in group["task"] for task in inner.get(name, [name])]
    assert group["group"] == f"cascade_{table}" and tasks == suites.load(table).tasks
    assert "aggregate_metric_list" not in group


def test_included_suites_share_rows_once():
    base = suites.load("base")
    assert len(base.rows) == 17 and base.rows[0].published == ("table3", "MMLU 5-shot")
    assert [row.label for row in base.rows[15:]] == ["AGIEval 5-shot", "Multilingual MMLU 5-shot"]
    assert [row.label for row in suites.load("instruct").rows] == [row.label for row in suites.load("table4").rows]
    assert len(base.tasks) == len(set(base.tasks)) == 28


ROW = "rows: [{task: a, label: A}]"
BAD = {
    "no rows": ("title: x", "has no rows"),
    "a list": ("[1]", "not a mapping"),
    "an unknown key": (f"titel: x\n{ROW}", "no key titel.*title, chat"),
    "an unknown key of a row": ("rows: [{task: a, label: A, shots: 5}]", "no key shots"),
    "no task": ("rows: [{label: A}]", "either `task` or a list"),
    "task and tasks": ("rows: [{task: a, tasks: [b], label: A}]", "either `task` or a list"),
    "no label": ("rows: [{task: a}]", "has a `label`"),
    "tasks that is no list": ("rows: [{tasks: a, label: A}]", "either `task` or a list"),
    "a scale of nothing": ("rows: [{task: a, label: A, scale: 0}]", "scale=0"),
    "an unknown table": ("rows: [{task: a, label: A, published: {table: table9, row: x}}]", "table9"),
    "an unknown row": ("rows: [{task: a, label: A, published: {table: table3, row: x}}]", "'x' is not in table3"),
    "two rows of one name": ("rows: [{task: a, label: A}, {task: b, label: A}]", "two rows are called A"),
    "itself": ("include: [mine]", "includes itself: mine > mine"),
    "chat and none": ("include: [plain]\nchat: true", "two suites"),
    "an unknown suite": ("include: [nowhere]", "suite=nowhere.*allowed are mine, plain"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(case, tmp_path, monkeypatch):
    text, message = BAD[case]
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "plain.yaml").write_text(ROW)
    monkeypatch.setattr(suites, "FOLDER", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        suites.load("mine")


def test_unknown_tasks_and_metrics_are_refused():
    suite = suites.Suite("mine", "Mine", False, [suites.Row("A", ("a", "b"), "acc")])
    suites.check_tasks(suite, {"a": ["acc"], "b": None}, "there")
    with pytest.raises(ValueError, match="suite mine: b not in there; it has a"):
        suites.check_tasks(suite, {"a": ["acc"]}, "there")
    with pytest.raises(ValueError, match="mine, A: b has no metric acc; it has f1"):
        suites.check_tasks(suite, {"a": ["acc"], "b": ["f1"]}, "there")
