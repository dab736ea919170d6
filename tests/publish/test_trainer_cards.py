"""`--push_to_hub` of the training scripts: one commit of the finished folder, with the complete card and no gate."""

import ast
import sys

import pytest
from huggingface_hub import ModelCard
from transformers.utils import hub as transformers_hub

from hf_cascade import assets, manifest, stage
from hf_cascade.publish.draft import push_draft
from tests.distill import setting
from tests.publish.hub import TOKEN

REPO = "org/draft"
SCRIPTS = ("distill", "grpo", "odpo", "pretrain", "pwrm", "sft")


@pytest.fixture
def trained(hub, tmp_path, monkeypatch):
    """A trainer, and what `stage.train` gave for it: the folder is finished, and nothing was pushed."""
    monkeypatch.setattr(transformers_hub, "_hf_api", None)  # it remembers the first endpoint
    monkeypatch.setattr(sys, "argv", ["sft.py", "--push_to_hub", "--learning_rate", "0.01"])
    settings = {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": "end", "max_steps": 1}
    trainer = setting.sft(tmp_path / "out", **settings)
    status = stage.train(trainer, {"model_name_or_path": "org/parent"})
    assert status == 0 and manifest.is_finished(tmp_path / "out")
    assert not hub.asked("POST", "/commit/")
    return trainer, status


def test_a_finished_stage_is_one_commit_with_the_complete_card(trained, hub, tmp_path):
    assert push_draft(*trained) == 0
    assert len(hub.asked("POST", f"/api/models/{REPO}/commit/")) == 1
    files = hub.repo(REPO).files()
    assert {"model.safetensors", "config.json", "tokenizer_config.json", "cascade.json", "README.md"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".py")) or name == "publish.json"]
    text = files["README.md"].decode()
    assert ModelCard(text).data.library_name == "transformers"
    assert "## How it was made" in text and "licence:" not in text and "generated_from_trainer" not in text
    assert (tmp_path / "out" / "README.md").read_text() == text
    assert hub.repo(REPO).private and not hub.leaks


def test_a_failed_push_says_how_to_go_on_and_leaves_nothing(trained, hub, capsys, tmp_path):
    hub.fail("POST", "/commit/", 403, times=None)
    assert push_draft(*trained) == 1
    said = capsys.readouterr().err
    assert f"hf-cascade publish --model {tmp_path / 'out'} --repo_id {REPO}" in said and TOKEN not in said
    assert list(hub.repo(REPO).files()) == [".gitattributes"]


def test_a_stopped_stage_pushes_nothing(trained, hub):
    trainer, _ = trained
    assert push_draft(trainer, 75) == 75
    assert not hub.asked("POST", "/commit/")


def test_without_the_flag_nothing_is_pushed(trained, hub):
    trainer, status = trained
    trainer.args.push_to_hub = False
    assert push_draft(trainer, status) == 0
    assert not hub.asked("POST", "/commit/")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_that_trains_ends_so(name):
    tree = ast.parse(assets.find(f"trainers/{name}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    trains = [call for call in calls if ast.unparse(call.func) == "stage.train"]
    wrapped = [call.args[1] for call in calls if ast.unparse(call.func) == "push_draft"]
    assert trains and trains == wrapped


def test_no_script_that_trains_is_missing_here():
    texts = {path.stem: path.read_text() for path in assets.find("trainers").glob("*.py")}
    assert {name for name, text in texts.items() if "stage.train(" in text} == set(SCRIPTS)
