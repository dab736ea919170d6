"""The distillation trainer on packed text: a plain float64 KL, what changes nothing, and the teacher's window."""

import pytest
import torch
from datasets import Dataset

from tests.data import tiny
from tests.distill import setting
from tests.prune import families


@pytest.mark.parametrize("family", ["llama", "ministral3"])
def test_first_loss_is_the_plain_kl(tmp_path, family):
    model, parent = setting.student(family), setting.teacher(family)
    expected = setting.plain_kl(model, parent, setting.first_batch())
    trainer = setting.distiller(tmp_path, model, parent, max_steps=1)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)
    assert trainer.state.log_history[0]["distill/kl"] == pytest.approx(expected, rel=1e-6)


def test_gradient_is_the_plain_kls(tmp_path):
    model, parent = setting.student(), setting.teacher()
    trainer = setting.distiller(tmp_path, model, parent)
    batch = setting.first_batch()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    twin = setting.student()
    log_q = twin(**inputs, use_cache=False).logits.log_softmax(-1)
    log_p = parent(**inputs, use_cache=False).logits.log_softmax(-1).detach()
    counts = batch["labels"][:, 1:] != -100
    ((log_p.exp() * (log_p - log_q)).sum(-1)[:, :-1][counts].sum() / counts.sum()).backward()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_kl_falls_and_the_teacher_stays(tmp_path):
    parent = setting.teacher()
    before = setting.weights(parent)
    trainer = setting.distiller(tmp_path, parent=parent, max_steps=12)
    trainer.train()
    losses = setting.losses(trainer)
    assert losses[-1] < 0.7 * losses[0]
    assert setting.differ(before, setting.weights(parent)) == 0 and not parent.training
    assert all(not p.requires_grad and p.grad is None for p in parent.parameters())


@pytest.mark.parametrize("kind", ["packed", "text"])
def test_accumulation_changes_nothing(tmp_path, kind):
    def final(size, accumulation):
        model = setting.student()
        data = None if kind == "packed" else Dataset.from_dict({"text": tiny.texts(16, longest=12)})
        trainer = setting.distiller(
            tmp_path, model, dataset=data, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation
        )
        trainer.train()
        return setting.weights(model), setting.losses(trainer), trainer.data_state

    whole, parts = final(4, 1), final(2, 2)
    assert setting.differ(whole[0], parts[0]) < 1e-6
    assert parts[1] == pytest.approx(whole[1], rel=1e-6)
    assert whole[2] == parts[2]


def test_loss_chunk_tokens_change_nothing(tmp_path):
    finals = []
    for chunk in (None, 1, 5):
        model = setting.student()
        setting.distiller(tmp_path, model, loss_chunk_tokens=chunk).train()
        finals.append(setting.weights(model))
    assert setting.differ(finals[0], finals[1]) < 1e-9 and setting.differ(finals[0], finals[2]) < 1e-9


def test_padding_free_changes_nothing(tmp_path):
    finals = []
    for padding_free in (False, True):
        model = setting.student()
        trainer = setting.distiller(tmp_path, model, padding_free=padding_free)
        assert trainer.args.padding_free is padding_free
        trainer.train()
        finals.append((setting.weights(model), trainer.data_state))
    assert setting.differ(finals[0][0], finals[1][0]) < 1e-9 and finals[0][1] == finals[1][1]


def test_next_token_mixture_and_its_log(tmp_path):
    model, parent = setting.student(), setting.teacher()
    batch = setting.first_batch()
    with torch.no_grad():
        nll = float(
            model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], labels=batch["labels"]).loss
        )
    kl = setting.plain_kl(model, parent, batch)
    trainer = setting.distiller(tmp_path, model, parent, max_steps=1, next_token_weight=0.25)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(0.75 * kl + 0.25 * nll, rel=1e-6)
    assert log["distill/kl"] == pytest.approx(kl, rel=1e-6)
    assert log["distill/next_token"] == pytest.approx(nll, rel=1e-6)


def test_bf16_training_stays_close_to_fp32(tmp_path):
    losses = []
    for bf16 in (False, True):
        model, parent = setting.student(dtype=torch.float32), setting.teacher(dtype=torch.float32)
        trainer = setting.distiller(tmp_path, model, parent, bf16=bf16, max_steps=4)
        trainer.train()
        losses.append(setting.losses(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0], "mixed precision must not be lost on the way"


def test_gradient_checkpointing_changes_nothing(tmp_path):
    finals = []
    for checkpointing in (False, True):
        model = setting.student()
        setting.distiller(tmp_path, model, gradient_checkpointing=checkpointing).train()
        finals.append(setting.weights(model))
    assert setting.differ(*finals) < 1e-9


@pytest.mark.parametrize("make", [setting.sft, setting.distiller])
def test_logged_tokens_are_those_trained_on(tmp_path, make):
    """TRL counts one row of a batch without an attention mask."""
    trainer = make(tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    trainer.train()
    logged = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    assert logged[:3] == [96, 192, 288]
    assert trainer.data_state["tokens"] == 288
    assert trainer.data_state["cursor"] == list(tiny.packed().rows(18))[-1]["cursor"]


def test_train_tokens_set_the_steps(tmp_path):
    trainer = setting.distiller(tmp_path, train_tokens=100, max_steps=-1)
    assert trainer.args.max_steps == 3 and trainer.args.tokens_per_step == 32


def test_text_that_just_suffices(tmp_path):
    """The data loader reads one batch ahead, and the end of the text is an error."""
    rows = len(tiny.packed().held_out())
    trainer = setting.distiller(tmp_path, per_device_train_batch_size=1, max_steps=rows, logging_steps=100)
    trainer.train()
    assert trainer.data_state["tokens"] == rows * 16
    with pytest.raises(ValueError, match="the text ended"):
        setting.distiller(tmp_path, per_device_train_batch_size=1, max_steps=rows + 1, logging_steps=100).train()


# --- the teacher's window


@pytest.mark.parametrize("window", ["mask", "extrapolate"])
def test_teacher_window(tmp_path, window):
    model, parent = setting.student(), setting.teacher(max_position_embeddings=6)
    batch = setting.first_batch()
    counts = batch["labels"] != -100
    if window == "mask":  # a position counts where the teacher's prediction was made inside its window
        counts = counts & (torch.nn.functional.pad(batch["position_ids"], (1, 0), value=99)[:, :-1] < 6)
    assert (counts.sum() < (batch["labels"] != -100).sum()) == (window == "mask")
    expected = setting.plain_kl(model, parent, batch, counts)
    trainer = setting.distiller(tmp_path, model, parent, max_steps=1, teacher_window=window)
    assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(expected, rel=1e-6)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-6), "the mean over what counts"


def test_teacher_window_and_accumulation(tmp_path):
    finals = []
    for parts in (1, 2):
        model, parent = setting.student(), setting.teacher(max_position_embeddings=6)
        sizes = {"per_device_train_batch_size": 2 // parts, "gradient_accumulation_steps": parts}
        setting.distiller(tmp_path, model, parent, **sizes).train()
        finals.append(setting.weights(model))
    assert setting.differ(*finals) < 1e-6


def test_nothing_inside_the_teachers_window_trains_nothing(tmp_path):
    model, parent = setting.student(), setting.teacher(max_position_embeddings=6)
    trainer = setting.distiller(tmp_path, model, parent, max_steps=1)
    trainer.teacher.window = 0
    before = setting.weights(model)
    trainer.train()
    assert setting.losses(trainer) == [0.0] and setting.differ(before, setting.weights(model)) == 0


def test_teacher_window_of_text_without_positions(tmp_path):
    model, parent = setting.student(), setting.teacher(max_position_embeddings=6)
    ids = families.ids(2, 12)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    counts = (torch.arange(12) <= 6).expand(2, 12)
    expected = setting.plain_kl(model, parent, batch, counts)
    trainer = setting.distiller(tmp_path, model, parent)
    assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(expected, rel=1e-6)


def test_teacher_window_refuse(tmp_path):
    with pytest.raises(ValueError, match="max_length=16 is beyond the teacher's window of 6"):
        setting.distiller(tmp_path, parent=setting.teacher(max_position_embeddings=6), teacher_window="refuse")
    setting.distiller(tmp_path, parent=setting.teacher(max_position_embeddings=16), teacher_window="refuse")
