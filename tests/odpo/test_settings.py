"""TRL's settings and rewards around the loss: checkpointing, bf16, long buffers, rewards of all kinds, environments."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from hf_cascade.data.chat import prepare_chat
from hf_cascade.online import trainer as module
from tests.odpo.reference import Prefer, by_hand, gradients, longer
from tests.online.reference import distance, drifted, kept
from tests.online.scene import PROMPTS

FORMS = {
    "pair": {"per_device_train_batch_size": 8},
    "weight": {"loss_form": "weight", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
}


@pytest.mark.parametrize("form", FORMS)
def test_gradient_checkpointing_changes_nothing(make_trainer, policy, form):
    trainer = make_trainer(Prefer(longer), drifted(policy), gradient_checkpointing=True, **FORMS[form])
    trainer.model.gradient_checkpointing_enable()  # as train() does
    assert trainer.model.is_gradient_checkpointing
    loss, ours, buffered = gradients(trainer, trainer.args.gradient_accumulation_steps)
    expected, theirs = by_hand(policy, trainer.model, buffered)
    assert loss == pytest.approx(expected, rel=1e-4) and distance(ours, theirs) < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_bf16(make_trainer, form):
    held_out = {"eval_dataset": Dataset.from_dict({"prompt": PROMPTS[:2]})}
    trainer = make_trainer(
        Prefer(longer), trainer=held_out, bf16=True, use_cpu=True, **{**FORMS[form], "logging_steps": 1}
    )
    trainer.train()
    assert all(math.isfinite(e["loss"]) and e["grad_norm"] > 0 for e in trainer.state.log_history if "loss" in e)
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_one_generation_batch_for_several_steps(make_trainer, policy):
    """The steps' mean gradient is that of the whole batch; dropped pairs make none of them count more."""
    trainer = make_trainer(
        Prefer(lambda a, b: None if len(a + b) % 3 == 0 else longer(a, b)),
        drifted(policy),
        per_device_train_batch_size=2,
        steps_per_generation=8,
        gradient_accumulation_steps=1,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    torch.manual_seed(7)
    batch = [{"prompt": prompt} for prompt in PROMPTS for _ in range(2)]
    losses = []
    for trainer._step in range(8):
        loss = trainer._compute_loss(trainer.model, trainer._prepare_inputs(batch))
        loss.backward()
        losses.append(loss.item())
    ours = {name: grad / 8 for name, grad in kept(trainer.model).items()}
    assert 0 < trainer._buffered_inputs[0]["num_pairs"] < 8 and 0.0 in losses
    expected, theirs = by_hand(policy, trainer.model, trainer._buffered_inputs)
    assert sum(losses) / 8 == pytest.approx(expected, rel=1e-4) and distance(ours, theirs) < 1e-4


def test_async_rewards_and_those_that_give_none_or_nan(make_trainer):
    async def patient(completions, **kwargs):
        return [float(len(text)) for text in completions]

    def sometimes(completions, **kwargs):
        return [None, 1.0, float("nan"), 1.0, 0.0, 5.0, None, None]

    trainer = make_trainer(sometimes, per_device_train_batch_size=8)
    _, _, (batch,) = gradients(trainer)
    assert batch["num_pairs"] == 1 and batch["keep"].sum() == 2
    chosen = batch["win_probability"][batch["keep"]]
    torch.testing.assert_close(chosen, torch.sigmoid(torch.tensor([-5.0, -5.0])))

    both = make_trainer(
        [patient, sometimes], per_device_train_batch_size=8, reward_weights=[1.0, 3.0], reward_scale=4.0
    )
    _, _, (batch,) = gradients(both)
    lengths = batch_lengths(both)
    expected = sorted(
        round(float(p), 5)
        for number, (a, b) in enumerate(zip(lengths[::2], lengths[1::2], strict=True))
        for p in [
            (torch.sigmoid(torch.tensor((a - b) / 4)) + 3 * torch.sigmoid(torch.tensor(-5 / 4))) / 4
            if number == 2
            else torch.sigmoid(torch.tensor((a - b) / 4))
        ]
    )
    assert sorted(round(p, 5) for p in batch["win_probability"][::2].tolist()) == pytest.approx(expected, abs=2e-5)


def batch_lengths(trainer):
    return [len(text) for text in trainer._logs["completion"]]


def test_a_classifier_with_one_logit_is_a_reward_model(make_trainer, policy):
    kit = AutoTokenizer.from_pretrained(policy)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    scorer = LlamaForSequenceClassification(
        LlamaConfig(vocab_size=len(kit), num_labels=1, pad_token_id=kit.pad_token_id, initializer_range=0.5, **shape)
    ).eval()
    trainer = make_trainer(scorer, trainer={"reward_processing_classes": kit}, per_device_train_batch_size=8)
    _, _, (batch,) = gradients(trainer)
    texts = [a + b for a, b in zip(trainer._logs["prompt"], trainer._logs["completion"], strict=True)]
    with torch.no_grad():
        scores = [
            scorer(**kit(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0].item() for text in texts
        ]
    expected = torch.sigmoid(torch.tensor(scores[::2]) - torch.tensor(scores[1::2]))
    torch.testing.assert_close(batch["win_probability"][::2].sort()[0], expected.sort()[0], rtol=1e-3, atol=1e-4)


class Room:
    """An environment that owns its reward."""

    def reset(self, **row):
        self.doors = 0
        return " The door is shut."

    def open(self, times: int) -> str:
        """
        Open the door.

        Args:
            times: how often.
        """
        self.doors += times
        return f"open {self.doors}"

    def get_reward(self):
        return float(self.doors)


def test_environments_own_the_reward_and_have_no_win_rate(make_trainer, policy, caplog):
    kit = AutoTokenizer.from_pretrained(policy)
    prepare_chat(kit, "mistral")
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "Open it."}]}] * 2)
    parts = {"environment_factory": Room, "processing_class": kit, "eval_dataset": rows}
    trainer = make_trainer(None, None, rows, parts, max_completion_length=128, max_steps=1)
    first = [f'[TOOL_CALLS]open[ARGS]{{"times": {number}}}</s>' for number in (2, 1, 0, 3)]

    def generate(prompt_ids, images, fields, num_generations, has_tool_images=False):
        texts = first if num_generations == 2 else ["Done.</s>"] * 4
        return [kit.encode(text, add_special_tokens=False) for text in texts], None

    trainer._generate_single_turn = generate
    _, _, (batch,) = gradients(trainer)
    expected = torch.sigmoid(torch.tensor([1.0, -3.0]))
    torch.testing.assert_close(batch["win_probability"][::2].sort()[0], expected.sort()[0])
    assert (batch["tool_mask"] == 0).any()
    trainer.train()
    with caplog.at_level("WARNING"):
        found = trainer.evaluate()
    assert "eval_odpo/win_rate" not in found and "eval_odpo/loop_rate" in found and "environments" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_device_train_batch_size": 32}, "8 prompts, and one generation batch takes 16: give more prompts"),
        ({"reward_weights": [-1.0]}, "reward_weights=.*must not be negative"),
        ({"router_aux_loss_coef": 0.1}, "Online DPO does not use it"),
        ({"per_device_eval_batch_size": 3}, "per_device_eval_batch_size=3: must be even"),
        ({"reward_scale": -1.0}, "reward_scale=-1.0: must be above 0"),
        ({"tool_max_characters": 0}, "must be at least 1"),
        ({"num_iterations": 2}, "num_iterations=2: must be 1"),
    ],
)
def test_refusals(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**settings)


def test_what_is_no_probability_is_refused(make_trainer):
    with pytest.raises(ValueError, match="probabilities are from 0 to 1"):
        gradients(make_trainer(Prefer(lambda a, b: 1.5)))


def test_a_trl_that_is_another_is_refused_first(make_trainer, monkeypatch):
    def refuse():
        raise ValueError("another TRL")

    monkeypatch.setattr(module, "check_seams", refuse)
    with pytest.raises(ValueError, match="another TRL"):
        make_trainer()
