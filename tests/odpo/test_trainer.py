"""The trainer's gradient against DPO written by hand; accumulation, pair and weight form; loops, offline DPO, logs."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hf_cascade.odpo.trainer import shuffle_pairs
from tests.odpo.reference import Prefer, by_hand, gradients, longer
from tests.online.reference import distance, drifted
from tests.online.scene import PROMPTS, count_a


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(
    "form", [{}, {"loss_form": "weight", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}]
)
def test_gradient_equals_dpo_by_hand(make_trainer, policy, form, rescale):
    settings = {"per_device_train_batch_size": 8, "beta": 0.2, "rescale_beta": rescale, **form}
    trainer = make_trainer(Prefer(longer), model=drifted(policy), **settings)
    loss, ours, buffered = gradients(trainer, trainer.args.gradient_accumulation_steps)
    expected, theirs = by_hand(policy, trainer.model, buffered, 0.2, rescale)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert distance(ours, theirs) < 1e-4


def test_accumulation_does_not_matter_even_with_dropped_pairs(make_trainer, policy):
    def only_some(a, b):  # no judgement on about half of the pairs
        return None if (len(a) + len(b)) % 2 else longer(a, b)

    whole = make_trainer(Prefer(only_some), model=drifted(policy), per_device_train_batch_size=8)
    loss, ours, buffered = gradients(whole)
    assert 0 < buffered[0]["num_pairs"] < 4
    parts = make_trainer(
        Prefer(only_some), model=drifted(policy), per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    in_parts, theirs, _ = gradients(parts, 4)
    assert in_parts == pytest.approx(loss, rel=1e-4)
    assert distance(ours, theirs) < 1e-4


def test_pairs_stay_neighbours_in_a_new_order():
    torch.manual_seed(0)
    batch = {"completion_ids": torch.arange(20).reshape(20, 1), "names": list(range(20)), "count": torch.tensor(3)}
    shuffled = shuffle_pairs(batch)
    order = shuffled["completion_ids"].flatten().tolist()
    assert order == shuffled["names"] and order != sorted(order) and sorted(order) == list(range(20))
    assert all(b == a + 1 and a % 2 == 0 for a, b in zip(order[0::2], order[1::2], strict=True))
    assert shuffled["count"] == 3


def test_learns_what_is_preferred(make_trainer):
    trainer = make_trainer(
        max_steps=40, learning_rate=1e-2, per_device_train_batch_size=16, beta=0.02, reward_scale=0.2
    )
    trainer.train()
    rewards = [entry["rewards/count_a/mean"] for entry in trainer.state.log_history if "rewards/count_a/mean" in entry]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])
    last = trainer.state.log_history[-2]
    assert last["odpo/kl"] > 0 and last["odpo/accuracy"] >= 0 and "odpo/loop_rate" in last


@pytest.mark.parametrize("looping", [(True, False), (False, True), (True, True)])
def test_a_loop_loses_and_two_loops_teach_nothing(make_trainer, monkeypatch, looping):
    trainer = make_trainer(Prefer(longer), per_device_train_batch_size=2)
    monkeypatch.setattr(trainer, "find_loops", lambda ids, masks: list(looping))
    _, _, (batch,) = gradients(trainer)
    assert batch["keep"].tolist() == [not all(looping)] * 2
    if not all(looping):
        assert batch["win_probability"].tolist() == [float(looping[1])] * 2  # the pair's, that its first wins


def test_nothing_to_learn_from_stops_with_an_error(make_trainer):
    trainer = make_trainer(Prefer(lambda a, b: None), max_barren_batches=2, max_steps=5)
    with pytest.raises(ValueError, match=r"2 generation batches in a row had no pair.*unjudged_rate 1.00"):
        trainer.train()


def test_offline_the_starting_policy_writes(make_trainer, policy):
    """The policy replaced by a uniform one, offline responses are still the reference's."""
    model = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # uniform
    for source, is_uniform in (("policy", True), ("reference", False)):
        trainer = make_trainer(Prefer(longer), model=model, per_device_train_batch_size=8, sample_from=source)
        _, _, (batch,) = gradients(trainer)
        likely = batch["ref_per_token_logps"][batch["completion_mask"].bool()].mean().item()
        uniform = -torch.log(torch.tensor(float(model.config.vocab_size))).item()
        assert (likely < uniform) == is_uniform


def test_evaluation_compares_with_the_start(make_trainer):
    held_out = Dataset.from_dict({"prompt": PROMPTS[:4]})
    trainer = make_trainer(Prefer(longer), trainer={"eval_dataset": held_out})
    first = trainer.evaluate()
    assert 0 <= first["eval_odpo/win_rate"] <= 1 and "eval_odpo/length_drift_tokens" in first
    written = dict(trainer.start._written)
    trainer.evaluate()
    assert trainer.start._written == written and len(written) == 8  # two answers to each prompt, written once


def test_completions_table_shows_judgement_and_loops(make_trainer, tmp_path):
    pandas = pytest.importorskip("pandas")
    make_trainer([count_a, Prefer(longer)], log_completions=True).train()
    tables = sorted((tmp_path / "out" / "completions").glob("*.parquet"))
    table = pandas.read_parquet(tables[-1])
    assert {"prompt", "completion", "win_probability", "looped", "count_a", "prefer"} <= set(table.columns)
    pairs = table["win_probability"].to_numpy().reshape(-1, 2)
    assert ((pairs.sum(1) - 1).__abs__() < 1e-6).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}, "must be even"),
        ({"per_device_train_batch_size": 1, "loss_form": "weight"}, "must be divisible by num_generations"),
        ({"beta": 0.0}, "beta=0.0: must be above 0"),
        ({"num_generations": 4}, "num_generations=4: must be 2"),
        ({"temperature": 0.7}, "set sampling_temperature"),
        ({"mask_truncated_completions": True}, "spare the response that loops"),
        ({"loss_type": "grpo"}, "Online DPO does not use it"),
        ({"generation_kwargs": {"temperature": 1.0}}, "set sampling_temperature"),
        ({"loss_form": "both"}, "not one of pair, weight"),
        ({"sample_from": "teacher"}, "not one of policy, reference"),
    ],
)
def test_bad_settings(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**settings)


def test_a_model_in_memory_without_a_folder_is_refused(make_trainer, policy):
    model = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(policy).config)
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match="save it with save_pretrained"):
        make_trainer(model=model)
