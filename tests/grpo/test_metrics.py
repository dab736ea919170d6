"""What is counted and what held-out prompts tell: generated tokens, in a resumed run too, rewards, the best model."""

import math
import re
from pathlib import Path

import pytest
from datasets import Dataset

from hf_cascade import grpo
from hf_cascade.grpo.config import CascadeGRPOConfig
from hf_cascade.grpo.report import REPORT
from tests.grpo.reference import generate
from tests.grpo.test_trainer import partly, varied
from tests.online.scene import PROMPTS, count_a

README = (Path(grpo.__file__).parent / "README.md").read_text()
HELD_OUT = Dataset.from_dict({"prompt": PROMPTS[:4]})


def test_what_refill_writes_is_counted_too_and_evaluation_is_not(make_trainer):
    trainer = make_trainer(
        varied, trainer={"eval_dataset": HELD_OUT}, max_refill_rounds=8, per_device_train_batch_size=16
    )
    lengths = []
    write = trainer._generate_single_turn

    def watched(*args, **kwargs):
        ids, extra = write(*args, **kwargs)
        ids = [of[: 1 + number % 8] for number, of in enumerate(ids)]
        lengths.extend(map(len, ids))
        return ids, extra

    trainer._generate_single_turn = watched
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert sum(entry["grpo/refill_rounds"] for entry in log) > 0
    expected = {"grpo/generated_responses": len(lengths), "grpo/generated_tokens": sum(lengths)}
    assert trainer.generated == expected and {key: log[-1][key] for key in expected} == expected
    assert 16 <= log[0]["grpo/generated_responses"] < log[1]["grpo/generated_responses"]
    trainer.evaluate()
    assert trainer.generated == expected


@pytest.mark.parametrize("logging_steps", [1, 3])
def test_counts_go_on_in_a_resumed_run(make_trainer, tmp_path, logging_steps):
    settings = {"max_refill_rounds": 2, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    settings["logging_steps"] = logging_steps  # nothing was logged before the checkpoint
    whole = make_trainer(varied, **settings)
    whole.train()
    resumed = make_trainer(varied, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert resumed.generated == whole.generated and whole.generated["grpo/generated_responses"] >= 24


def test_held_out_reward_is_without_the_length_penalty(make_trainer):
    settings = {"length_penalty": 0.5, "length_cache": 8, "reward_weights": [2.0]}
    found = make_trainer(count_a, trainer={"eval_dataset": HELD_OUT}, **settings).evaluate()
    assert found["eval_grpo/reward"] == pytest.approx(2 * found["eval_rewards/count_a/mean"])
    assert found["eval_rewards/length_penalty/mean"] < 0
    total = found["eval_grpo/reward"] + found["eval_rewards/length_penalty/mean"]
    assert found["eval_reward"] == pytest.approx(total)  # TRL's, of all functions
    assert not any(key.startswith("eval_grpo/generated") for key in found)


def test_reward_is_the_mean_over_responses_that_were_judged(make_trainer):
    trainer = make_trainer(partly, per_device_train_batch_size=16)
    batches = generate(trainer)
    rewards = [value for batch in batches for value in batch["rewards"].tolist()]
    judged = [value for value in rewards if not math.isnan(value)]
    assert 0 < len(judged) < 16
    assert trainer._metrics["train"]["grpo/reward"] == [pytest.approx(sum(judged) / len(judged))]


BEST = ({"load_best_model_at_end": True}, {"save_strategy": "best"}, {"lr_scheduler_type": "reduce_lr_on_plateau"})


@pytest.mark.parametrize("asked", BEST)
def test_the_best_is_by_reward(tmp_path, asked):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    args = CascadeGRPOConfig(**{**settings, **asked})
    assert args.metric_for_best_model == "grpo/reward" and args.greater_is_better
    assert CascadeGRPOConfig(**settings).metric_for_best_model is None
    assert CascadeGRPOConfig(**{**settings, **asked}, metric_for_best_model="loss").metric_for_best_model == "loss"


def test_the_best_checkpoint_is_loaded_at_the_end(make_trainer):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    trainer = make_trainer(
        count_a,
        trainer={"eval_dataset": HELD_OUT},
        load_best_model_at_end=True,
        learning_rate=1e-1,
        length_penalty=0.1,
        **settings,
    )
    trainer.train()
    found = {entry["step"]: entry["eval_grpo/reward"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = max(found, key=found.get)
    assert trainer.state.best_metric == found[best] and trainer.state.best_model_checkpoint.endswith(
        f"checkpoint-{trainer.state.best_global_step}"
    )
    assert found[trainer.state.best_global_step] == found[best]


def test_report_returns_what_was_evaluated_last(make_trainer, tmp_path):
    trainer = make_trainer(
        [count_a, varied], trainer={"eval_dataset": HELD_OUT}, eval_strategy="steps", eval_steps=1, length_penalty=0.1
    )
    trainer.train()
    told = REPORT.write(trainer.state.log_history, tmp_path)
    last = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert told["eval_grpo/reward"] == last["eval_grpo/reward"]
    assert {"eval_rewards/count_a/mean", "eval_completions/mean_length", "eval_grpo/loop_rate"} <= told.keys()
    assert "eval_loss" not in told and all(key.startswith("eval_") for key in told)
    assert (tmp_path / "progress.png").stat().st_size > 20_000 and (tmp_path / "progress.json").is_file()
    logged = {key.removeprefix("eval_") for entry in trainer.state.log_history for key in entry}
    assert {metric for _, metrics, _ in REPORT.panels for metric in metrics if "*" not in metric} <= logged


def test_the_readme_tells_every_metric(make_trainer):
    trainer = make_trainer(varied, trainer={"eval_dataset": HELD_OUT}, max_refill_rounds=1)
    trainer.train()
    told = {
        name
        for row in re.findall(r"^\| (`grpo/[^|]*) \|", README, re.MULTILINE)
        for name in re.findall(r"`(.*?)`", row)
    }
    logged = {key for entry in trainer.state.log_history for key in entry if key.startswith("grpo/")}
    assert len(logged) == 10 and told == logged | {"grpo/tool_timeouts"}


def test_the_readme_has_the_defaults(tmp_path):
    args = CascadeGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", README, re.MULTILINE))
    assert len(rows) == 11 and {name: str(getattr(args, name)).lower() for name in rows} == rows
