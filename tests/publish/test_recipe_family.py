"""The shipped families of base, instruct and reasoning models: which folders, which links, and one command to a Hub."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_cascade import assets, cli
from hf_cascade.publish import family_file, targets
from hf_cascade.publish.config import PublishArguments
from hf_cascade.recipe import load_recipe
from tests.publish.card_folders import folder
from tests.publish.hub import TOKEN

ALL = "recipes/tiny/publish_all.yaml"
RUN = Path(__file__).parents[2] / "runs" / "tiny"
KINDS = {"14b": "base", "8b": "base", "3b": "base", "odpo": "instruct", "reasoning": "reasoning"}


def planned(run_dir: Path) -> dict[str, family_file.Planned]:
    found, _ = family_file.read(PublishArguments(family=ALL, run_dir=str(run_dir), namespace="org"))
    return {one.model.name: one for one in found}


def test_the_tiny_family_is_the_last_stages_of_its_three_recipes(tmp_path):
    for name in KINDS:
        (tmp_path / name).mkdir()
    found = planned(tmp_path)
    assert list(found) == list(KINDS)
    ids = {name: one.repo_id for name, one in found.items()}
    links = {"14b": None, "8b": ids["14b"], "3b": ids["8b"], "odpo": ids["14b"], "reasoning": ids["14b"]}
    assert {name: one.base_model for name, one in found.items()} == links
    for recipe, name in (("instruct", "odpo"), ("reasoning", "reasoning")):
        stages = {stage.name: stage for stage in load_recipe(f"recipes/tiny/{recipe}.yaml").stages}
        measured = stages[f"{recipe}-tables"]
        asked = targets.load(found[name].targets)
        assert asked == targets.load(f"recipes/tiny/{recipe}_targets.yaml")
        assert measured.inputs["model"] == [name] and set(asked.suites) <= set(measured.settings["suite"])
        assert name in stages[f"{recipe}-report"].inputs["model"]  # answers: the floors
        assert stages[name].run == "odpo" and ids[name].endswith(recipe)


def test_the_recipes_go_into_one_run():
    """Stages of one name are one stage in all three, so that they can share a folder."""
    seen: dict[str, str] = {}
    for recipe in ("cascade", "instruct", "reasoning"):
        for stage in load_recipe(f"recipes/tiny/{recipe}.yaml").stages:
            assert seen.setdefault(stage.name, stage.fingerprint) == stage.fingerprint, stage.name


def test_a_model_that_names_no_base_model_has_the_nearest_ancestor_of_the_family(tmp_path):
    base = folder(tmp_path / "runs" / "14b", "distill")
    sft = folder(tmp_path / "runs" / "sft", "sft", base)
    folder(tmp_path / "runs" / "instruct", "odpo", sft)
    folder(tmp_path / "runs" / "other", "distill")
    (tmp_path / "runs" / "other" / "cascade.json").write_text("{")  # which the gate says
    models = [{"model": name, "repo_id": name} for name in ("instruct", "14b", "other")]
    (tmp_path / "family.yaml").write_text(yaml.safe_dump({"models": models}))
    words = {"family": str(tmp_path / "family.yaml"), "run_dir": str(tmp_path / "runs"), "namespace": "org"}
    found, _ = family_file.read(PublishArguments(**words))
    assert [one.base_model for one in found] == ["org/14b", None, None]


@pytest.mark.parametrize("family, count", [("recipes/ministral3/publish.yaml", 9), (ALL, 5)])
def test_where_nothing_was_run_all_that_is_missing_is_said(family, count, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["publish", "--family", family, "--namespace", "org", "--dry_run"]) == 2
    said = capsys.readouterr().err
    models = [one["model"] for one in yaml.safe_load(assets.find(family).read_text())["models"]]
    folders = [model if "/" in model else f"runs/tiny/{model}" for model in models]
    assert len(models) == count and f"{count} of {count} models have no folder here" in said
    assert all(f"\n  {folder}\n" in said for folder in folders) and "run the recipe first" in said
    assert str(tmp_path) not in said


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not all((RUN / name / "evals.json").is_file() for name in KINDS), reason=f"needs the run that {ALL} describes"
)
def test_the_whole_tiny_family_goes_to_a_hub_with_one_command(hub, tmp_path):
    run = shutil.copytree(RUN, tmp_path / "tiny")
    assert cli.main(["publish", "--family", ALL, "--run_dir", str(run), "--namespace", "org"]) == 0
    (collection,) = hub.collections.values()
    expected = planned(run)
    assert [item.id for item in collection.items] == [one.repo_id for one in expected.values()]
    assert [item.note for item in collection.items] == list(KINDS.values())
    for name, one in expected.items():
        here = AutoModelForCausalLM.from_pretrained(run / name, trust_remote_code=False).state_dict()
        there = AutoModelForCausalLM.from_pretrained(one.repo_id, token=TOKEN, trust_remote_code=False).state_dict()
        assert all(torch.equal(there[key], here[key]) for key in here)
        card = ModelCard(hub.repo(one.repo_id).files()["README.md"].decode())
        assert card.data.base_model == ([one.base_model] if one.base_model else None)
        talks = AutoTokenizer.from_pretrained(one.repo_id, token=TOKEN, trust_remote_code=False).chat_template
        assert (KINDS[name] in card.data.tags, talks is not None) == (KINDS[name] != "base", KINDS[name] != "base")
