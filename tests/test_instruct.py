"""The tiny instruct recipe end to end with a few steps a stage: what every stage leaves, and that it fits the next."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_cascade import manifest
from tests.short_recipe import run

STEPS = {"teacher": 3, "sft": 3, "pwrm": 3, "odpo": 3, "offline-dpo": 3}
FLAGS = {
    "14b-pruned": {"calibration_samples": 16},
    "14b-short": {"train_tokens": 4096},
    "odpo": {"eval_steps": 2, "per_device_eval_batch_size": 100},
    "offline-dpo": {"eval_strategy": "'no'", "eval_on_start": "false"},
    "instruct-report": {"limit": 20},
    "instruct-tables": {"limit": 20},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run's folder."""
    folder = tmp_path_factory.mktemp("instruct") / "run"
    settings = {name: {"max_steps": steps} for name, steps in STEPS.items()}
    for name, flags in FLAGS.items():
        settings.setdefault(name, {}).update(flags)
    return run("recipes/tiny/instruct.yaml", folder, settings)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_stage_leaves_what_is_promised(finished):
    for name in STEPS:
        AutoModelForCausalLM.from_pretrained(finished / name)
        assert "[INST]" in AutoTokenizer.from_pretrained(finished / name).chat_template
        assert manifest.read(finished / name)["run"] == {"offline-dpo": "odpo", "teacher": "sft"}.get(name, name)
    assert (finished / "pwrm" / "decision.json").exists() and (finished / "pwrm" / "reliability.png").exists()
    assert {"before", "after"} <= set(manifest.read(finished / "pwrm")["metrics"]["calibration"])
    steps = [entry["step"] for entry in json.loads((finished / "odpo" / "progress.json").read_text())]
    assert 0 in steps and 2 in steps
    assert (finished / "odpo" / "progress.png").exists() and list((finished / "odpo" / "completions").glob("*.parquet"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_report_compares_all_three(finished):
    report = json.loads((finished / "instruct-report" / "results.json").read_text())
    preference = {model["name"]: model["preference"] for model in report["models"]}
    assert set(preference) == {"sft", "offline-dpo", "odpo"}
    assert set(preference["odpo"]["wins"]) == {"pwrm", "exact_match", "similarity"}
    assert (finished / "instruct-report" / "preference.png").exists()
