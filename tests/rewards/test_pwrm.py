"""`trainers/pwrm.py` as a user runs it: what it leaves, adapters, a stop in between, and what is refused."""

import json
import random
import runpy
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_cascade import assets, manifest, stage
from hf_cascade.rewards.calibration import measure
from hf_cascade.rewards.pairwise import PairwiseRewardModel
from tests.prune import families
from tests.rewards import scene

SETTINGS = {
    "max_length": 200,
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "test_split_size": 0.25,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with students, and pairs of which the longer answer is better."""
    folder = tmp_path_factory.mktemp("pwrm")
    scene.model(dtype=torch.float32).save_pretrained(folder / "student")
    seeing = families.build("mistral3", seed=1, dtype=torch.float32, num_hidden_layers=2, max_position_embeddings=512)
    seeing.save_pretrained(folder / "seeing")
    for name in ("student", "seeing"):
        scene.tokenizer(chat=True).save_pretrained(folder / name)
    draw = random.Random(0)
    pairs = []
    for number in range(40):
        one, other = sorted(draw.sample(range(1, 20), 2))
        pairs.append({"prompt": f"ask {number}", "chosen": "a" * other, "rejected": "a" * one})
    write(folder / "pairs.jsonl", pairs)
    write(folder / "texts.jsonl", [{"text": "a"}, {"text": "b"}])
    return folder


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def pwrm(place, monkeypatch):
    """Call the script: its output folder's name, rows, and flags; the exit status."""
    script = runpy.run_path(str(assets.find("trainers/pwrm.py")), run_name="pwrm")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(place)

    def run(out: str, rows: str = "pairs", model: str | None = "student", **flags) -> int:
        settings = {**SETTINGS, "datasets": [{"path": "json", "data_files": f"{rows}.jsonl"}], **flags}
        (place / "pwrm.yaml").write_text(json.dumps(settings))  # JSON is YAML
        argv = ["--config", "pwrm.yaml", "--output_dir", out]
        argv += ["--model_name_or_path", model] if model else []
        monkeypatch.setattr(sys, "argv", ["pwrm.py", *argv])
        return script["main"](*script["make_parser"]().parse_args_and_config(argv))

    yield run
    signal.signal(signal.SIGTERM, before)


def test_a_calibrated_model_and_its_manifest(place, pwrm):
    assert pwrm("plain", eval_strategy="steps", eval_steps=3) == 0
    record = manifest.read(place / "plain")
    figures = record["metrics"]["calibration"]
    assert record["run"] == "pwrm" and record["inputs"] == {"model_name_or_path": "student"}
    assert figures["trained"] == {"kept": 30, "equal": 0, "long": 0}
    assert (figures["fit_pairs"], figures["report_pairs"]) == (5, 5)
    assert (place / "plain" / "reliability.png").is_file() and not list((place / "plain").glob("checkpoint-*"))

    scorer = PairwiseRewardModel.from_pretrained(place / "plain", device="cpu")
    assert scorer.comparison.temperature == figures["temperature"] != 1.0
    from datasets import load_dataset

    rows = load_dataset("json", data_files=str(place / "pairs.jsonl"), split="train")
    rows = rows.train_test_split(test_size=0.25, seed=0)["test"].select(range(5, 10))
    odds = scorer.log_odds(list(zip(rows["prompt"], rows["chosen"], rows["rejected"], strict=True)))
    assert figures["after"] == pytest.approx(measure(odds, torch.ones(5), figures["temperature"]), abs=1e-4)
    assert figures["before"] == pytest.approx(measure(odds, torch.ones(5)), abs=1e-4)
    with pytest.raises(SystemExit):
        pwrm("plain")  # finished already


def test_an_adapter_is_merged(place, pwrm):
    options = {"use_peft": True, "lora_target_modules": ["q_proj", "up_proj"], "learning_rate": 0.05}
    assert pwrm("lora", **options) == 0
    before, after = (load_file(place / name / "model.safetensors") for name in ("student", "lora"))
    moved = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"q_proj", "up_proj"} and (place / "lora" / "adapter" / "adapter_config.json").is_file()
    AutoModelForCausalLM.from_pretrained(place / "lora")
    scorer = PairwiseRewardModel.from_pretrained(place / "lora", device="cpu")
    assert scorer.comparison.temperature == manifest.read(place / "lora")["metrics"]["calibration"]["temperature"]


@pytest.mark.parametrize("model", ["student", "seeing"])
def test_a_stopped_run_goes_on_as_if_it_had_not(place, pwrm, monkeypatch, model):
    assert pwrm(f"{model}-whole", model=model) == 0

    def on_step_end(callback, args, state, control, **kwargs):
        if state.global_step == 3:
            control.should_save = control.should_training_stop = True

    with monkeypatch.context() as patch:
        patch.setattr(stage.StopOnRequest, "on_step_end", on_step_end)
        assert pwrm(f"{model}-parts", model=model) == stage.STOPPED
    assert pwrm(f"{model}-parts", model=model) == 0
    whole, parts, start = (
        load_file(place / name / "model.safetensors") for name in (f"{model}-whole", f"{model}-parts", model)
    )
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)
    still = {name.split(".")[0] for name in whole if torch.equal(whole[name], start[name])}
    assert still == (set() if model == "student" else {"vision_tower", "multi_modal_projector"})


def test_a_reward_model_learns_on(place, pwrm):
    """Its own template and temperature give way."""
    assert pwrm("first", question="Longer?", max_steps=1) == 0
    assert pwrm("second", model="first", question="Shorter?", max_steps=1) == 0
    assert "Shorter?" in (place / "second" / "decision_template.jinja").read_text()
    temperature = PairwiseRewardModel.from_pretrained(place / "second", device="cpu").comparison.temperature
    assert temperature == manifest.read(place / "second")["metrics"]["calibration"]["temperature"]


def test_held_out_prompts_that_are_trained_on_are_told(place, pwrm, capsys):
    write(place / "same.jsonl", [{"prompt": "p", "chosen": "a" * n, "rejected": "b"} for n in range(2, 14)])
    assert pwrm("same", "same", max_steps=1) == 0
    assert "3 of 3 held-out pairs have a prompt that is trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": None}, "give model_name_or_path"),
        ({"test_split_size": None}, "set test_split_size"),
        ({"train_tokens": 100}, "train_tokens is for packed text"),
        ({"rows": "texts"}, "chosen and rejected"),
        ({"labels": ["A", "AB"]}, "set labels to two such tokens"),
        ({"labels": ["A"]}, "two that differ"),
        ({"load_in_4bit": True}, "load_in_4bit"),
        ({"test_split_size": 1}, "at least 2 are needed"),
        ({"max_length": 30}, "no pair to learn from"),
    ],
)
def test_bad_input_is_refused(place, pwrm, flags, message):
    with pytest.raises(ValueError, match=message):
        pwrm("never", **flags)
    assert not (place / "never").exists()
