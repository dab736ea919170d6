"""`trainers/grpo.py` as a user runs it: rewards by name, SIGTERM and resuming, and what is refused."""

import json
import runpy
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_cascade import assets, manifest, stage
from tests.online.scene import REWARDS

FLAGS = (
    "--max_steps 3 --per_device_train_batch_size 8 --num_generations 4 --max_completion_length 8 --loop_min_tokens 6 "
    "--learning_rate 1e-2 --logging_steps 1 --report_to none --bf16 false --gradient_checkpointing false "
    "--use_cpu true --disable_tqdm true --max_refill_rounds 1"
).split()


@pytest.fixture
def grpo(policy, tmp_path, monkeypatch, capsys):
    """Call the script with flags: the exit status and what it wrote to stderr."""
    script = runpy.run_path(str(assets.find("trainers/grpo.py")), run_name="grpo")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": prompt} for prompt in ("The cell is", "Rust has", "A force of", "Water and", "The sun", "Let x")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets = "datasets: [{path: json, data_files: prompts.jsonl, split: train}]\n"
    (tmp_path / "grpo.yaml").write_text(datasets + "reward_funcs: ['rewards.py:count_a']\n")
    (tmp_path / "none.yaml").write_text(datasets)

    def call(output_dir, *flags, config="grpo.yaml"):
        words = ["grpo.py", "--config", config, "--output_dir", output_dir, "--model_name_or_path", str(policy)]
        monkeypatch.setattr(sys, "argv", [*words, *FLAGS, *flags])
        with pytest.raises(SystemExit) as ended:
            stage.run_script(script["main"], lambda: script["make_parser"]().parse_args_and_config())
        signal.signal(signal.SIGTERM, before)
        return ended.value.code, capsys.readouterr().err

    return call


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(grpo, tmp_path):
    assert grpo("whole")[0] == 0
    (tmp_path / "stop").touch()
    assert grpo("two")[0] == stage.STOPPED
    assert grpo("two")[0] == 0
    whole, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "two"))
    assert all(torch.equal(whole[name], two[name]) for name in whole)
    AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert manifest.read(tmp_path / "whole")["run"] == "grpo"
    log = json.loads((tmp_path / "whole" / "log.json").read_text())
    assert len(log) == 3 and all("grpo/kept_groups" in entry for entry in log)
    totals = {key: log[-1][key] for key in ("grpo/generated_responses", "grpo/generated_tokens")}
    for name in ("whole", "two"):
        assert manifest.read(tmp_path / name)["metrics"].items() >= totals.items()
    assert 24 <= totals["grpo/generated_responses"] <= 48


def test_held_out_prompts_are_reported(grpo, tmp_path):
    flags = "--test_split_size 0.34 --eval_strategy steps --eval_steps 1 --per_device_eval_batch_size 4".split()
    assert grpo("held", *flags)[0] == 0
    entries = json.loads((tmp_path / "held" / "progress.json").read_text())
    evaluated = {entry["step"]: entry for entry in entries if "eval_grpo/reward" in entry}
    assert [*evaluated] == [1, 2, 3] and (tmp_path / "held" / "progress.png").stat().st_size > 20_000
    metrics = manifest.read(tmp_path / "held")["metrics"]
    told = {key: value for key, value in evaluated[3].items() if key.startswith(("eval_grpo/", "eval_reward"))}
    assert "eval_rewards/count_a/mean" in told and metrics.items() >= told.items()


@pytest.mark.parametrize(
    ("flags", "config", "message"),
    [
        ((), "none.yaml", "nothing given to score responses: set reward_funcs"),
        (("--beta", "0.1"), "grpo.yaml", "beta"),
        (("--reward_funcs", "nothing.at_all"), "grpo.yaml", "reward 'nothing.at_all'"),
        (("--chat_template_path", "mistral"), "grpo.yaml", "chat_template_path=mistral and prompts of text"),
        (("--eval_strategy", "steps", "--eval_steps", "1"), "grpo.yaml", "set test_split_size"),
    ],
)
def test_what_is_refused_is_one_line_and_leaves_nothing(grpo, tmp_path, flags, config, message):
    status, error = grpo("out", *flags, config=config)
    lines = [line for line in error.splitlines() if line.startswith("hf-cascade: error")]
    assert status == stage.BAD_INPUT and len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out").exists()
