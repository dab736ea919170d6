"""What suites will lack is told before any work."""

import pytest

from hf_cascade.evaluate.harness import open_tasks
from hf_cascade.evaluate.suite import suites
from hf_cascade.evaluate.suite.ahead import Able, lacks
from hf_cascade.evaluate.suite.command_part import TASKS as FOLDER
from hf_cascade.evaluate.suite.command_part import read_yamls
from hf_cascade.evaluate.suite.suites import Row, Suite

TASKS = {
    "plain": {"dataset_kwargs": {"repo": "org/plain"}},
    "made": {"metadata": {"positions": 4096}},
    "seen": {"metadata": {"needs": ["images"]}, "dataset_kwargs": {"repo": "org/seen"}},
    "judged": {"metadata": {"needs": ["judge"]}, "dataset_kwargs": {"repo": "org/judged"}},
}


def suite(*tasks: str) -> list[Suite]:
    return [Suite("s", "S", False, [Row(task.upper(), (task,)) for task in tasks])]


def test_each_reason_is_told_once_with_its_rows(tmp_path):
    for repo in ("org/plain", "org/seen"):
        (tmp_path / repo).mkdir(parents=True)
    models = {"blind": Able(images=False, window=512), "large": Able()}
    assert lacks(suite(*TASKS), TASKS, models, True, None) == [
        "MADE: blind has a window of 512 tokens",
        "SEEN: blind reads no images",
    ]
    assert lacks(suite(*TASKS), TASKS, {"large": Able()}, False, None) == [
        "JUDGED: there is no judge: give --judge_url and --judge_model"
    ]
    assert lacks(suite(*TASKS), TASKS, {"large": Able()}, True, str(tmp_path)) == [
        f"JUDGED: {tmp_path} has no org/judged"
    ]
    rows = [
        Suite("s", "S", False, [Row("MEAN", ("plain", "judged")), Row("JUDGED", ("judged",)), Row("MADE", ("made",))])
    ]
    assert lacks(rows, TASKS, {"large": Able()}, True, str(tmp_path)) == [f"MEAN, JUDGED: {tmp_path} has no org/judged"]


def test_where_nothing_is_left_there_is_an_error(tmp_path):
    models = {"blind": Able(images=False)}
    with pytest.raises(ValueError, match="nothing of what is asked for can be run. blind reads no images"):
        lacks(suite("seen"), TASKS, models, True, None)
    with pytest.raises(ValueError, match="PLAIN: .* has no org/plain; JUDGED: there is no judge"):
        lacks(suite("plain", "judged"), TASKS, models, False, str(tmp_path))
    assert lacks(suite("seen"), TASKS, {**models, "sees": Able()}, True, None)


def test_every_task_with_rows_of_a_dataset_says_which():
    """Else a folder without them would not be told."""
    tasks = read_yamls(open_tasks([], FOLDER).task_index)
    paper = [task for name in ("base", "instruct", "reasoning") for task in suites.load(name).tasks]
    unnamed = [task for task in paper if "repo" not in tasks[task]["dataset_kwargs"]]
    assert len(paper) > 30 and unnamed == ["cascade_arena_hard"]  # its files are of no dataset's schema
