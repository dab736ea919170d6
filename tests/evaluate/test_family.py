"""Children are recognised from lineage, not from names."""

import shutil

import pytest

from hf_cascade import manifest
from hf_cascade.evaluate.family import arrange, previous, read_members, step_labels, tokens_and_seconds

ALL = ["parent", "small-pruned", "small-short", "small", "tiny-pruned", "tiny"]


def members_of(family, names):
    return read_members([str(family / name) for name in names])


def test_children_and_their_stages(family):
    members = members_of(family, ALL)
    assert [member.step for member in members] == [None, 0, 1, 2, 0, 1]
    assert step_labels(members) == ["pruned", "short context", "long context"]
    assert arrange(members) == [
        {
            "name": "small",
            "stages": [
                {"step": "pruned", "model": "small-pruned"},
                {"step": "short context", "model": "small-short"},
                {"step": "long context", "model": "small"},
            ],
        },
        {
            "name": "tiny",
            "stages": [{"step": "pruned", "model": "tiny-pruned"}, {"step": "short context", "model": "tiny"}],
        },
    ]


def test_stages_that_are_not_measured_are_left_out(family):
    children = arrange(members_of(family, ["small", "tiny-pruned"]))
    assert [[stage["model"] for stage in child["stages"]] for child in children] == [["small"], ["tiny-pruned"]]
    assert children[0]["stages"][0]["step"] == "long context"


def test_names_of_steps_follow_the_longest_child(family):
    assert step_labels(members_of(family, ["parent"])) == ["pruned"]
    assert step_labels(members_of(family, ["tiny"])) == ["pruned", "distilled"]


def test_tokens_are_summed_along_the_lineage(family):
    members = {member.name: member for member in members_of(family, ALL)}
    cost = {name: tokens_and_seconds(member, list(members.values())) for name, member in members.items()}
    assert [cost[name]["total_tokens"] for name in ALL] == [None, 0, 1000, 1100, 1000, 3000]
    assert [cost[name]["child_tokens"] for name in ALL] == [None, 0, 1000, 1100, 0, 2000]
    assert [cost[name]["child_seconds"] for name in ALL] == [None, 10, 20, 30, 10, 20]


def test_ancestors_are_looked_up_beside_the_model_and_are_unknown_when_gone(family, tmp_path):
    (alone,) = members_of(family, ["tiny"])
    assert tokens_and_seconds(alone, [alone])["total_tokens"] == 3000
    moved = shutil.copytree(family / "tiny", tmp_path / "elsewhere" / "tiny")
    (lost,) = read_members([str(moved)])
    cost = tokens_and_seconds(lost, [lost])
    assert (cost["tokens"], cost["total_tokens"], cost["child_seconds"]) == (2000, None, None)


def test_bad_folders_are_refused(family, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="config.json"):
        read_members([str(tmp_path / "empty")])
    with pytest.raises(FileNotFoundError, match="missing"):
        read_members([str(tmp_path / "missing")])
    other = shutil.copytree(family / "parent", tmp_path / "other" / "parent")
    with pytest.raises(ValueError, match="parent given more than once"):
        read_members([str(family / "parent"), str(other)])


def test_post_training_costs_time_and_has_a_place_in_the_line(family):
    """`tuned` and `aligned` come after `small`; `instruct` after the parent, which no manifest describes."""

    def stage(name, run, start, seconds):
        folder = shutil.copytree(family / "parent", family / name)
        inputs = {"model_name_or_path": str(family / start)}
        manifest.write(folder, stage=name, run=run, config={}, inputs=inputs, metrics={"seconds": seconds})

    stage("tuned", "sft", "small", 5.0)
    stage("aligned", "odpo", "tuned", 7.0)
    stage("instruct", "sft", "parent", 3.0)
    members = members_of(family, ["small", "tuned", "aligned", "instruct", "parent"])
    cost = [tokens_and_seconds(member, members) for member in members[:4]]
    assert [one["seconds"] for one in cost] == [10, 5, 7, 3]
    assert [one["child_seconds"] for one in cost] == [30, 35, 42, 3]
    assert [one["child_tokens"] for one in cost] == [1100, None, None, None]  # post-training does not count them
    assert [one["total_tokens"] for one in cost] == [1100, 1100, 1100, 0]
    assert [previous(member, members) for member in members] == [None, "small", "tuned", None, None]
    assert previous(members[2], [members[0], members[2]]) == "small"  # the nearest that was measured
    assert [child["name"] for child in arrange(members)] == ["small"]  # a child is pruned and distilled
