"""The trainer's gradient against Magistral's loss by hand; dead groups, refill, clipping, logs, settings, learning."""

import json

import pytest
import torch
from datasets import Dataset, IterableDataset

from hf_cascade.grpo.config import CascadeGRPOConfig
from hf_cascade.grpo.trainer import CascadeGRPOTrainer
from hf_cascade.online.trainer import check_rewards
from hf_cascade.rewards.stem import stem_reward
from tests.grpo.reference import by_hand, generate, gradients, groups_of, unpadded
from tests.online.reference import distance, drifted
from tests.online.scene import PROMPTS, count_a

DEAD = ("Rust has", "A force of")


def varied(completions, prompts, **columns):
    """Rewards that differ, except of two prompts."""
    lengths = zip(prompts, completions, strict=True)
    return [1.0 if prompt in DEAD else sum(map(ord, text)) % 7 / 3 for prompt, text in lengths]


def partly(completions, prompts, **columns):
    """As `varied`, without a reward for about a third."""
    found = varied(completions, prompts)
    return [None if len(text) % 3 == 0 else reward for text, reward in zip(completions, found, strict=True)]


@pytest.mark.parametrize("scope", ["group", "batch"])
@pytest.mark.parametrize("reward", [varied, partly])
@pytest.mark.parametrize("rows", [16, 8, 2])
def test_gradient_equals_the_loss_by_hand(make_trainer, policy, scope, reward, rows):
    settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 16 // rows}
    trainer = make_trainer(reward, model=drifted(policy), length_scope=scope, **settings)
    batches = generate(trainer)
    responses = unpadded(batches)
    assert len(responses) == 16 and len({len(one.completion) for one in responses}) > 1
    unjudged = sum(one.reward is None for one in responses)
    assert (unjudged > 0) == (reward is partly)
    loss, ours = gradients(trainer, batches)
    expected, theirs = by_hand(trainer.model, responses, scope)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert distance(ours, theirs) < 1e-4


def test_a_generation_batch_of_several_optimizer_steps(make_trainer, policy):
    """Each step takes a part, weighed as the whole: together they are as many times the whole's gradient."""
    trainer = make_trainer(partly, model=drifted(policy), per_device_train_batch_size=4, steps_per_generation=4)
    batches = generate(trainer)
    loss, ours = gradients(trainer, batches)
    expected, theirs = by_hand(trainer.model, unpadded(batches))
    assert loss / 4 == pytest.approx(expected, abs=1e-5)
    assert distance({name: part / 4 for name, part in ours.items()}, theirs) < 1e-4


def test_scopes_differ(make_trainer, policy):
    trainer = make_trainer(varied, model=drifted(policy), per_device_train_batch_size=16)
    batches = generate(trainer)
    _, ours = gradients(trainer, batches)
    _, theirs = by_hand(trainer.model, unpadded(batches), "batch")
    assert distance(ours, theirs) > 1e-2


def test_clip_higher_on_responses_of_an_older_policy(make_trainer, policy):
    settings = {"num_iterations": 2, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    trainer = make_trainer(varied, model=drifted(policy), **settings)
    batches, old = generate(trainer), drifted(policy)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 0.01 * torch.randn_like(weight)
    loss, ours = gradients(trainer, batches)
    expected, theirs = by_hand(trainer.model, unpadded(batches), old=old)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert distance(ours, theirs) < 1e-4
    assert sum(trainer._metrics["train"]["clip_ratio/high_mean"]) > 0
    _, unclipped = by_hand(trainer.model, unpadded(batches), old=old, high=0.2)
    assert distance(ours, unclipped) > 1e-3


def test_the_length_penalty_is_a_reward(make_trainer):
    trainer = make_trainer(lambda completions, **columns: [1.0] * len(completions), length_penalty=0.1, length_cache=8)
    batches = generate(trainer)
    for one in unpadded(batches):
        assert one.reward == pytest.approx(1 - 0.1 * len(one.completion) / 8)
    assert trainer._metrics["train"]["rewards/length_penalty/mean"][0] < 0
    assert (
        CascadeGRPOConfig(output_dir="out", use_cpu=True, bf16=False, max_completion_length=20480).penalty_tokens
        == 4096
    )


def test_a_response_nobody_judged_gets_no_penalty_either(make_trainer):
    trainer = make_trainer(partly, length_penalty=0.1, per_device_train_batch_size=16)
    batches = generate(trainer)
    rewards = [one.reward for one in unpadded(batches)]
    assert None in rewards
    assert trainer._metrics["train"]["grpo/unjudged_rate"] == [rewards.count(None) / 16]
    advantages = torch.cat([batch["advantages"] for batch in batches])
    assert not advantages[[reward is None for reward in rewards]].any()


def test_base_advantages_are_the_centred_rewards(make_trainer):
    """The base's own, which the completions table shows, are ours before they are normalised."""
    trainer = make_trainer(partly, per_device_train_batch_size=16)
    batches = generate(trainer)
    centred = list(trainer._logs["advantages"])
    std = trainer._metrics["train"]["grpo/advantage_std"][0]
    (batch,), responses = batches, unpadded(batches)
    judged = [[one for one in group if one.reward is not None] for group in groups_of(responses)]
    lengths = {group[0].group: sum(len(one.completion) for one in group) for group in judged}
    live = [group[0].group for group in judged if len({one.reward for one in group}) > 1]
    ours = [
        advantage * std * len(live) * lengths[one.group] / batch["num_items_in_batch"].item()
        for advantage, one in zip(batch["advantages"].tolist(), responses, strict=True)
    ]
    assert sorted(ours) == pytest.approx(sorted(centred), abs=1e-5)


# --- refill ----------------------------------------------------------------------------------------------------------


def test_dead_groups_are_replaced(make_trainer, policy):
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_refill_rounds": 8}
    data = Dataset.from_dict({"prompt": [*PROMPTS, *(f"The number {n} is" for n in range(60))]})
    trainer = make_trainer(varied, drifted(policy), data, **settings)
    batches = generate(trainer)
    responses, metrics = unpadded(batches), trainer._metrics["train"]
    assert metrics["grpo/kept_groups"] == [4] and metrics["grpo/refill_rounds"][0] >= 1
    assert 0 < metrics["grpo/dead_rate"][0] < 1
    tokenizer = trainer.processing_class
    assert not {tokenizer.decode(one.prompt, skip_special_tokens=True) for one in responses} & {*DEAD}
    assert [len(group) for group in groups_of(responses)] == [4] * 4
    loss, ours = gradients(trainer, batches)
    expected, theirs = by_hand(trainer.model, responses)
    assert loss == pytest.approx(expected, abs=1e-5) and distance(ours, theirs) < 1e-4
    again = make_trainer(varied, drifted(policy), data, **settings)
    for batch, other in zip(batches, generate(again), strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in ("prompt_ids", "completion_ids", "advantages"))


def test_refill_is_bounded_and_what_stays_dead_is_out(make_trainer, policy):
    def only_one(completions, prompts, **columns):
        return [float(n) if p == PROMPTS[0] else 1.0 for n, p in enumerate(prompts)]

    settings = {"per_device_train_batch_size": 16, "max_refill_rounds": 2}
    data = Dataset.from_dict({"prompt": PROMPTS[:1] + ["dead"] * 7})
    trainer = make_trainer(only_one, model=drifted(policy), train_dataset=data, **settings)
    calls = []
    trainer._draw = lambda count, columns: calls.append(count) or [{"prompt": "dead"}] * 4 * count
    batches = generate(trainer)
    assert calls == [3, 3]
    metrics = trainer._metrics["train"]
    assert metrics["grpo/kept_groups"] == [1] and metrics["grpo/dead_rate"] == [9 / 10]
    _, ours = gradients(trainer, batches)
    _, theirs = by_hand(trainer.model, unpadded(batches))
    assert distance(ours, theirs) < 1e-4


def test_nothing_to_learn_from_stops_with_an_error(make_trainer):
    trainer = make_trainer(
        lambda completions, **columns: [1.0] * len(completions), max_barren_batches=2, max_steps=5, max_refill_rounds=1
    )
    with pytest.raises(ValueError, match=r"2 generation batches in a row.*dead_rate 1.00, unjudged_rate 0.00"):
        trainer.train()


def test_a_resumed_run_draws_what_the_first_would_have(make_trainer, tmp_path):
    settings = {"max_refill_rounds": 2, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    seen = []
    for resume in (None, str(tmp_path / "out" / "checkpoint-1")):
        trainer, drawn = make_trainer(varied, **settings), []
        draw = trainer._draw
        trainer._draw = lambda *args, draw=draw, drawn=drawn: drawn.append(draw(*args)) or drawn[-1]
        trainer.train(resume_from_checkpoint=resume)
        seen.append((drawn, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    (first, losses), (second, others) = seen
    assert second and first[-len(second) :] == second
    assert losses == pytest.approx(others, rel=1e-5)


# --- training --------------------------------------------------------------------------------------------------------


def test_learns_what_is_rewarded(make_trainer):
    trainer = make_trainer(max_steps=30, learning_rate=1e-2, per_device_train_batch_size=32, max_refill_rounds=1)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "rewards/count_a/mean" in entry]
    rewards = [entry["rewards/count_a/mean"] for entry in history]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])
    names = "kept_groups refill_rounds dead_rate advantage_std loop_rate truncated_not_loop_rate unjudged_rate"
    assert {f"grpo/{name}" for name in names.split()} <= history[-1].keys()
    assert trainer.ref_model is None


def test_an_adapter_alone_is_trained(make_trainer, policy):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    trainer = make_trainer(varied, str(policy), trainer={"peft_config": adapter}, max_refill_rounds=1)
    trainer.train()
    moved = [name for name, weight in trainer.model.named_parameters() if "lora_B" in name and weight.any()]
    assert moved and trainer.ref_model is None


def test_loops_are_counted(make_trainer):
    trainer = make_trainer(varied)
    trainer._generate_single_turn = lambda prompt_ids, *args, **kwargs: (
        [[6, 5, 6, 5, 6, 5, 6, 5] if row % 4 == 0 else [6, 8, 9, 11] for row in range(len(prompt_ids))],
        None,
    )
    generate(trainer)
    metrics = trainer._metrics["train"]
    assert metrics["grpo/loop_rate"] == [0.25] and metrics["grpo/truncated_not_loop_rate"] == [0.75]


def test_evaluation_is_the_base(make_trainer):
    held_out = Dataset.from_dict({"prompt": PROMPTS[:4]})
    found = make_trainer(count_a, trainer={"eval_dataset": held_out}, length_penalty=0.1).evaluate()
    assert {"eval_loss", "eval_rewards/count_a/mean", "eval_grpo/loop_rate"} <= found.keys()
    assert "eval_grpo/kept_groups" not in found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.1}, "beta=0.1: must be 0.0 here; there is no reference"),
        ({"loss_type": "grpo"}, "loss_type='grpo': must be 'dapo'"),
        ({"scale_rewards": "group"}, "scale_rewards='group': must be 'none'"),
        ({"importance_sampling_level": "sequence"}, "must be 'token'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "a response has one reward"),
        ({"mask_truncated_completions": True}, "counts, with its length penalty"),
        ({"epsilon_high": 0.1}, "epsilon_high=0.1: must not be below epsilon=0.2"),
        ({"length_scope": "token"}, "not one of group, batch"),
        ({"length_cache": 4}, "length_cache=4 with length_penalty=0"),
        ({"length_penalty": 0.1, "length_cache": 9}, "from 1 to max_completion_length=8"),
        ({"length_penalty": -0.1}, "length_penalty=-0.1: must be at least 0"),
        ({"length_penalty": 0.1, "max_completion_length": None}, "length_penalty needs max_completion_length"),
        ({"max_refill_rounds": -1}, "must be at least 0"),
        ({"generation_kwargs": {"temperature": 0.7}}, "set temperature"),
        ({"per_device_train_batch_size": 2, "num_generations": 2, "max_barren_batches": 0}, "must be at least 1"),
        ({"tool_seconds": 0.0}, "must be above 0"),
        ({"train_dataset": Dataset.from_dict({"prompt": ["one"]})}, "1 prompts, and one generation batch takes 2"),
    ],
)
def test_bad_settings(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**settings)


def test_refill_needs_whole_groups_and_a_dataset(make_trainer, monkeypatch):
    settings = {"output_dir": "out", "use_cpu": True, "bf16": False}
    settings |= {"per_device_train_batch_size": 2, "num_generations": 4}
    with monkeypatch.context() as two:
        two.setattr(CascadeGRPOConfig, "world_size", 2)
        with pytest.raises(ValueError, match="is 2: must be a multiple of num_generations=4"):
            CascadeGRPOConfig(**settings)
        CascadeGRPOConfig(**settings, max_refill_rounds=0)
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": "a"}]))
    with pytest.raises(ValueError, match="IterableDataset, of which no other prompts can be drawn"):
        make_trainer(train_dataset=stream, max_refill_rounds=1)


def test_columns_that_a_reward_needs_are_looked_for_before_the_weights(tmp_path):
    def needs(completions, prompts, completion_ids, trainer_state, log_metric, first, second, third=None, **columns):
        """All of TRL's arguments, and two columns that must be there."""

    args = CascadeGRPOConfig(str(tmp_path), num_generations=2, per_device_train_batch_size=2, bf16=False)
    rows = Dataset.from_list([{"prompt": "a", "first": 1}] * 4)
    for reward, message in (
        (needs, "'needs' needs the columns second beside"),
        (stem_reward, "stem_reward needs a col"),
    ):
        with pytest.raises(ValueError, match=message):
            CascadeGRPOTrainer("no/such-model", [reward], args=args, train_dataset=rows)
    check_rewards([needs, "a/reward-model", torch.nn.Linear(1, 1)], rows.add_column("second", [1] * 4))


def test_settings_are_json(make_trainer):
    args = make_trainer(count_a, length_penalty=0.1).args
    assert json.loads(args.to_json_string())["epsilon_high"] == 0.28 and args.beta == 0 and args.temperature == 1
    assert make_trainer(count_a, length_penalty=0.1).args.reward_weights is None
