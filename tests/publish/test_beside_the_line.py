"""A post-trained model on its card: who taught and judged it, on which prompts, and what its answers are worth."""

import json
import shutil

import pytest

from hf_cascade.publish import card, facts
from hf_cascade.publish.history import amount, beside_table, commands, data_table, hub_datasets, line_table
from hf_cascade.publish.limitations import limitations
from hf_cascade.publish.lineage import Stage, in_order
from hf_cascade.publish.results import preference_table
from tests.publish.card_folders import TEMPLATE, folder

PROMPTS = {"prompts": "org/problems", "reward": ["maths_reward"]}
COMPARISON = {"prompts": "runs/heldout.jsonl.gz", "rows": 200, "baseline": "sft", "reward_model": "runs/x/pwrm"}


def change(path, **entries) -> None:
    """Change entries of a folder's manifest."""
    record = json.loads((path / "cascade.json").read_text())
    (path / "cascade.json").write_text(json.dumps({**record, **entries}))


@pytest.fixture
def run(tmp_path):
    """A run with a pruned and tuned model, its teacher, its chosen prompts, its judge and its reward model."""
    root = tmp_path / "run"
    parent = folder(root / "parent", "pretrain", config={"intermediate_size": 256})
    pruned = folder(root / "pruned", "prune", parent)
    settings = {"max_length": 128, "filters": ["format"], "learning_rate": 1e-3}
    teacher = folder(root / "teacher", "sft", parent)
    sft = folder(root / "sft", "sft", pruned)
    change(sft, inputs={"model_name_or_path": str(pruned), "teacher_model_name_or_path": str(teacher)})
    change(sft, config=settings, metrics={"epoch": 1.5})
    (sft / "log.json").write_text(json.dumps([{"num_tokens": count} for count in (50.0, 100.0, 40.0)]))
    difficulty = folder(root / "difficulty", "difficulty", sft)
    change(difficulty, config=PROMPTS, output=None, metrics={"kept": 834, "dropped": 166, "seconds": 4.0})
    judge, pwrm = folder(root / "judge", "sft", parent), folder(root / "pwrm", "pwrm", teacher)
    change(pwrm, metrics={"calibration": {"trained": {"kept": 4400}}, "epoch": 0.5})
    stem = folder(root / "stem", "grpo", sft, inputs={"model_name_or_path": str(sft), "prompts_from": str(difficulty)})
    change(stem, config={"reward_funcs": ["stem_reward"], "max_completion_length": 64})
    general = folder(root / "general", "grpo", stem)
    change(general, inputs={"model_name_or_path": str(stem), "judge_model_name_or_path": str(judge)})
    change(general, config={"reward_funcs": ["rubric_reward", "x/rules.py:met"], "max_completion_length": 80})
    last = folder(root / "last", "odpo", general)
    change(last, inputs={"model_name_or_path": str(general), "reward_model": str(pwrm)})
    (last / "chat_template.jinja").write_text(TEMPLATE)
    return root


def column(table: tuple[list[str], list[list[str]]], name: str) -> dict[str, str]:
    header, rows = table
    return {row[0].strip("`"): row[header.index(name)] for row in rows}


def test_the_line_names_teachers_judges_and_rewards(run):
    told = line_table(facts.read(run / "last").stages)
    judges = column(told, "teacher, judge or rewards")
    assert judges == {
        "parent": "–",
        "pruned": "–",
        "sft": "`teacher`",
        "stem": "`stem_reward`",
        "general": "`judge`, `rubric_reward`, `rules.py:met`",
        "last": "`pwrm`",
    }
    assert column(told, "what was done")["sft"] == "fine-tuned on chains of thought"


def test_data_of_every_stage(run):
    stages = facts.read(run / "last").stages
    told = data_table(stages)
    assert column(told, "data")["stem"] == "`org/problems, chosen by difficulty`"
    assert column(told, "read")["sft"] == "1.5 epochs, 140 tokens"  # resumed: counted anew
    assert hub_datasets(stages) == ["org/problems"]
    beside = column(beside_table(stages), "read")
    assert list(beside) == ["teacher", "difficulty", "judge", "pwrm"]
    assert beside["difficulty"] == "834 of 1,000 prompts kept" and beside["pwrm"] == "4,400 pairs, 0.5 times"
    assert [stage.name for stage in in_order(stages)] == [
        *("parent", "pruned", "teacher", "sft", "difficulty", "stem", "judge", "general", "pwrm", "last")
    ]
    assert amount({"run": "sft", "metrics": {}}) == "–"


def test_a_run_that_was_moved_is_read_where_it_is(run, tmp_path):
    moved = shutil.move(run, tmp_path / "elsewhere")
    stages = facts.read(moved / "last").stages
    assert all(stage.record for stage in stages) and column(data_table(stages), "data")["stem"].startswith("`org/prob")
    assert {stage.folder.parent for stage in in_order(stages)} == {moved}


def test_a_stage_whose_record_is_gone_is_told_by_later_ledgers(run):
    change(run / "pruned", data={"ledger": [{"stage": "begun", "tokens": 6499840}], "tokens": 1})
    stages = facts.read(run / "pruned").stages
    gone = [type(stages[0])("begun", "pretrain", "0" * 64), *stages]
    assert data_table(gone)[1][0][1:3] == ["its record is not here", "6.50M tokens"]


def test_answers_stand_beside_the_baseline_s(run):
    def answers(name: str, rate: float, comparison: dict) -> None:
        figures = {"rate": rate, "low": rate, "high": rate, "judged": 400}
        wins = {"pwrm": figures} if name == "last" else {}
        found = {"responses": 400, "wins": wins, "verbosity": {"rewards": {"exact_match": figures}}}
        (run / name / "evals.json").write_text(json.dumps({"preference": found, "comparison": comparison}))

    answers("last", 0.25, COMPARISON)
    answers("sft", 0.125, COMPARISON)
    found = facts.read(run / "last")
    table = preference_table(found)
    assert table.header == ["by", "figure", "last (95%)", "sft", "answers"]
    assert [row[3].split("\N{NO-BREAK SPACE}")[0] for row in table.rows] == ["–", "0.125"]
    text = card.render(found)
    assert "answers to 200 prompts of heldout.jsonl.gz" in text.replace("\\", "") and "50 is no difference" in text
    assert "fine-tuned on chains of thought by the logits of `teacher`" in text
    assert "hf-cascade pwrm --config pwrm.yaml" in text and "### Teachers, judges and prompts" in text
    told = " ".join(limitations(found))
    assert "It was trained to win by pwrm" in told and "they were cut off at 80 tokens" in told
    assert "only the first 128 were trained on since it was pruned, in stage sft" in told
    answers("sft", 0.125, {**COMPARISON, "rows": 100})  # of another run
    assert preference_table(facts.read(run / "last")).header == ["by", "figure", "last (95%)", "answers"]


def test_a_stage_named_as_its_hub_input_is_not_its_own_teacher(run):
    """`beside` finds the teacher; ORG/teacher of the Hub, which that began with, is not this folder."""
    change(run / "teacher", inputs={"model_name_or_path": "ORG/teacher"})  # no hash holds it: it is beside the line
    names = [stage.name for stage in in_order(facts.read(run / "sft").stages)]
    assert names == ["parent", "pruned", "teacher", "sft"]
    change(run / "teacher", inputs={"model_name_or_path": str(run / "judge")})
    change(run / "judge", inputs={"model_name_or_path": str(run / "teacher")})  # a circle, in records that were edited
    assert {"teacher", "judge"} < {stage.name for stage in in_order(facts.read(run / "sft").stages)}


def test_stages_of_one_name_are_told_apart(run, tmp_path):
    teacher = folder(tmp_path / "teachers" / "sft", "sft", run / "parent")
    change(run / "sft", inputs={"model_name_or_path": str(run / "pruned"), "teacher_model_name_or_path": str(teacher)})
    made = {name: (command, holds) for name, command, holds in commands(in_order(facts.read(run / "sft").stages))}
    assert list(made) == ["parent", "pruned", "teachers-sft", "run-sft"]
    assert made["run-sft"][0] == "hf-cascade sft --config run-sft.yaml --output_dir run-sft"
    assert made["run-sft"][1]["teacher_model_name_or_path"] == "teachers-sft"


@pytest.mark.parametrize(
    ("name", "hashes", "expected"),
    [
        ("data/calib.jsonl", {}, []),
        ("data/calib", {"data/calib/part": "00"}, []),
        ("org/calib", {}, ["org/calib"]),
    ],
)
def test_local_text_is_no_data_set_of_the_hub(name, hashes, expected):
    record = {"config": {"calibration": name}, "inputs": {}, "text_sha256": hashes}
    assert hub_datasets([Stage("pruned", "prune", "00", record)]) == expected
