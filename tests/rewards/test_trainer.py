"""`CascadePairwiseTrainer` against TRL's SFT, soft labels against hard ones, accumulation, and what is left out."""

import pytest
import torch
from datasets import Dataset, IterableDataset
from trl import SFTConfig, SFTTrainer

from hf_cascade.rewards.comparison import Comparison
from hf_cascade.rewards.pairwise import PairwiseRewardModel
from hf_cascade.rewards.trainer import CascadePairwiseTrainer, comparisons
from tests.rewards import scene

PAIRS = [("what is it", "a stone", "no idea"), ("say a word", "yes", "no and no again"), ("x", "abc", "abcdefg")]
SETTINGS = {
    "max_length": 200,
    "max_steps": 1,
    "per_device_train_batch_size": 6,
    "optim": "sgd",
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def rows(*probabilities: float) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": prompt, "first": first, "second": second, "probability": probability}
            for (prompt, first, second), probability in zip(PAIRS, probabilities, strict=True)
        ]
    )


def trained(folder, data, family="ministral3", **settings) -> tuple[dict, list[dict]]:
    """Change of the weights, and the log."""
    model = scene.model(family)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    args = SFTConfig(str(folder), **{**SETTINGS, **settings})
    trainer = CascadePairwiseTrainer(model, args, data, processing_class=scene.tokenizer())
    trainer.train()
    changes = {name: weight.detach() - before[name] for name, weight in model.named_parameters()}
    return changes, trainer.state.log_history


def assert_same(one: dict, other: dict) -> None:
    assert max(float(change.abs().max()) for change in one.values()) > 1e-4
    for name, change in one.items():
        assert torch.allclose(change, other[name], atol=2e-7), name


def sft(folder) -> tuple[dict, float]:
    """TRL's own SFT on the label of the better response, both orders: rows padded on the right, all logits."""
    comparison, data = Comparison.new(scene.tokenizer()), []
    for history, first, second in PAIRS:
        for ids, label in zip(comparison.encode_both(history, first, second), comparison.label_ids, strict=True):
            data.append({"input_ids": [*ids, label], "labels": [*[-100] * len(ids), label]})
    model = scene.model("ministral3")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    args = SFTConfig(str(folder), **SETTINGS, dataset_kwargs={"skip_prepare_dataset": True})
    trainer = SFTTrainer(model, args=args, train_dataset=Dataset.from_list(data), processing_class=scene.tokenizer())
    trainer.train()
    changes = {name: weight.detach() - before[name] for name, weight in model.named_parameters()}
    return changes, trainer.state.log_history[0]["loss"]


def test_hard_labels_are_plain_sft(tmp_path):
    wanted, loss = sft(tmp_path / "sft")
    got, log = trained(tmp_path / "hard", rows(1.0, 1.0, 1.0))
    assert_same(got, wanted)
    assert log[0]["loss"] == pytest.approx(loss, rel=1e-4)
    preference = Dataset.from_list([{"prompt": p, "chosen": a, "rejected": b} for p, a, b in PAIRS])
    assert_same(trained(tmp_path / "preference", preference)[0], wanted)


def test_soft_labels_are_the_mean_of_hard_ones(tmp_path):
    first, second, soft = (trained(tmp_path, rows(*[p] * 3))[0] for p in (1.0, 0.0, 0.3))
    assert_same(soft, {name: 0.3 * first[name] + 0.7 * second[name] for name in first})


def test_small_batches_add_up(tmp_path):
    whole, log = trained(tmp_path, rows(1.0, 0.3, 0.0))
    parts, log_of_parts = trained(
        tmp_path, rows(1.0, 0.3, 0.0), per_device_train_batch_size=2, gradient_accumulation_steps=3
    )
    assert_same(parts, whole)
    assert log_of_parts[0]["loss"] == pytest.approx(log[0]["loss"], rel=1e-5)


def test_it_learns_and_saves_a_reward_model(tmp_path):
    data = rows(1.0, 0.0, 1.0)
    settings = {"max_steps": 40, "optim": "adamw_torch", "learning_rate": 3e-3, "eval_strategy": "steps"}
    args = SFTConfig(str(tmp_path), **{**SETTINGS, **settings, "eval_steps": 40})
    model = scene.model(dtype=torch.float32)
    trainer = CascadePairwiseTrainer(model, args, data, {"held": data}, scene.tokenizer(True), ("x", "y"), "Which?")
    trainer.train()
    trainer.save_model()
    held = next(entry for entry in trainer.state.log_history if "eval_held_loss" in entry)
    assert held["eval_pairwise_accuracy"] == 1.0 and held["eval_label_mass"] > 0.9
    scorer = PairwiseRewardModel.from_pretrained(tmp_path, device="cpu")
    assert [round(p) for p in scorer.compare(*map(list, zip(*PAIRS, strict=True)))] == [1, 0, 1]
    assert scorer.comparison.config.labels == {"choice": ["x", "y"]} and scorer.max_length == 200


def test_both_orders_and_what_is_left_out(capsys):
    data = [
        {"prompt": "p", "first": "a", "second": "bb", "probability": 0.2},
        {"prompt": "p", "first": "c", "second": "c", "probability": 0.9},
        {"prompt": "p" * 200, "first": "a", "second": "b", "probability": 1.0},
    ]
    comparison = Comparison.new(scene.tokenizer(), max_length=150)
    made, counts = comparisons(Dataset.from_list(data), comparison)
    assert counts == {"kept": 1, "equal": 1, "long": 1}
    assert made[:] == {"input_ids": list(comparison.encode_both("p", "a", "bb")), "probability": [0.2, 0.8]}
    assert "1 pairs of equal responses and 1 longer than max_length=150 are left out of 3" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no pair to learn from: 1 pairs of equal responses and 1 longer"):
        comparisons(Dataset.from_list(data[1:]), comparison)
    with pytest.raises(ValueError, match="row 1: probability=2"):
        comparisons(Dataset.from_list([data[0], {**data[0], "probability": 2.0}]), comparison)
    with pytest.raises(ValueError, match="cannot be streamed"):
        comparisons(IterableDataset.from_generator(lambda: iter(data)), comparison)


@pytest.mark.parametrize(
    "settings",
    [{"packing": True}, {"label_smoothing_factor": 0.1}, {"loss_type": "dft"}, {"chat_template_path": "x"}],
)
def test_settings_without_meaning_are_refused(tmp_path, settings):
    args = SFTConfig(str(tmp_path), **{**SETTINGS, **settings})
    with pytest.raises(ValueError, match=f"{next(iter(settings))} do not go with comparisons"):
        CascadePairwiseTrainer(scene.model(), args, rows(1, 1, 1), processing_class=scene.tokenizer())
