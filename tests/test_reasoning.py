"""The tiny reasoning recipe end to end with a few steps a stage: what every stage leaves, and that it fits the next."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_cascade import manifest
from tests.short_recipe import run

RUNS = {
    "reasoning-teacher": "sft",
    "reasoning-sft": "sft",
    "stem": "grpo",
    "stem-long": "grpo",
    "judge": "sft",
    "general": "grpo",
    "reasoning-pwrm": "pwrm",
    "reasoning": "odpo",
}
FLAGS = {
    "14b-pruned": {"calibration_samples": 16},
    "14b-short": {"train_tokens": 4096},
    "14b": {"train_tokens": 4096},
    # a model that has learnt nothing passes nothing: every prompt stays
    "difficulty": {"limit": 24, "min_pass_rate": 0.0, "majority_share": 1.0, "samples_per_prompt": 2},
    "reasoning": {"eval_steps": 2, "per_device_eval_batch_size": 80},
    "reasoning-report": {"limit": 20},
    "reasoning-tables": {"limit": 20},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run's folder."""
    folder = tmp_path_factory.mktemp("reasoning") / "run"
    settings = {name: {"max_steps": 2} for name in RUNS}
    settings |= {name: {**settings[name], "max_barren_batches": 1000} for name in ("stem", "stem-long", "general")}
    for name, flags in FLAGS.items():
        settings.setdefault(name, {}).update(flags)
    return run("recipes/tiny/reasoning.yaml", folder, settings)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_stage_leaves_what_is_promised(finished):
    for name, word in RUNS.items():
        AutoModelForCausalLM.from_pretrained(finished / name)
        assert "[THINK]" in AutoTokenizer.from_pretrained(finished / name).chat_template
        assert manifest.read(finished / name)["run"] == word
    data = json.loads((finished / "reasoning-sft" / "reasoning_data.json").read_text())
    assert set(data["filters"]) == {"format", "repetition", "language"}
    assert all(part["removed"] > 0 for part in data["filters"].values())
    kept = [json.loads(line) for line in (finished / "difficulty" / "prompts.jsonl").read_text().splitlines()]
    assert kept and {"prompt", "answer", "pass_rate"} <= set(kept[0])
    for name in ("stem", "stem-long", "general"):
        assert (finished / name / "progress.png").exists()
    assert manifest.read(finished / "general")["inputs"]["judge_model_name_or_path"].endswith("judge")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_report_compares_all(finished):
    report = json.loads((finished / "reasoning-report" / "results.json").read_text())
    names = {model["name"] for model in report["models"]}
    assert names == {"reasoning-sft", "stem", "stem-long", "general", "reasoning"}
    assert (finished / "reasoning-report" / "verbosity.png").exists()
