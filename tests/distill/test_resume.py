"""Stopped and resumed training is the uninterrupted one, bit for bit, and reads the same text."""

import json
import shutil

import pytest
import torch
from transformers import TrainerCallback

from hf_cascade.data.checkpoints import last_checkpoint
from tests.data import tiny
from tests.distill import setting

LOADERS = {"": {}, "prefetch": {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 3}}


class Stop(TrainerCallback):
    """Stops after a step, like a crash when `how` is an exception."""

    def __init__(self, step: int, how=None):
        self.step, self.how = step, how

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.how is not None:
            raise self.how


def run(folder, callback=None, resume=None, steps=8, make=setting.distiller, **settings):
    """Train and return the final weights, the place in the text, and the trainer."""
    model = setting.student(dtype=torch.float32, attention_dropout=0.1)
    kind = {} if make is setting.sft else {"parent": setting.teacher(dtype=torch.float32)}
    trainer = make(folder, model, max_steps=steps, weight_decay=0.1, lr_scheduler_type="cosine", **kind, **settings)
    if callback is not None:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return setting.weights(model), trainer.data_state, trainer


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("make", [setting.sft, setting.distiller])
def test_resumed_is_bitwise_equal(tmp_path, make, loader):
    straight, state, trainer = run(tmp_path / "straight", make=make, **loader)
    run(tmp_path / "broken", Stop(4), make=make, **loader)
    resumed, resumed_state, after = run(tmp_path / "broken", resume=True, make=make, **loader)
    assert setting.differ(straight, resumed) == 0
    assert state == resumed_state and state["tokens"] == 8 * 32
    assert setting.losses(trainer) == setting.losses(after)
    assert [entry["num_tokens"] for entry in after.state.log_history if "loss" in entry][-1] == state["tokens"]


def test_resume_after_a_crash_with_accumulation(tmp_path):
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    straight, state, _ = run(tmp_path / "straight", **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", Stop(3, KeyboardInterrupt()), **options)
    resumed, resumed_state, _ = run(tmp_path / "broken", resume=True, **options)
    assert setting.differ(straight, resumed) == 0 and state == resumed_state


def test_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path):
    straight, state, _ = run(tmp_path / "straight")
    run(tmp_path / "broken", Stop(4))
    whole = last_checkpoint(tmp_path / "broken")
    for step, content in ((5, None), (6, '{"global_step": 6, "sta')):
        torn = tmp_path / "broken" / f"checkpoint-{step}"
        shutil.copytree(whole, torn)
        (torn / "trainer_state.json").unlink()
        if content:
            (torn / "trainer_state.json").write_text(content)
    assert last_checkpoint(tmp_path / "broken") == whole
    resumed, resumed_state, _ = run(tmp_path / "broken", resume=True)
    assert setting.differ(straight, resumed) == 0 and state == resumed_state


def test_newest_checkpoint_counts_by_its_step(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-last").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


def test_resume_after_the_last_step_trains_no_further(tmp_path):
    """Killed between the last checkpoint and the end: transformers would take one step more."""
    straight, state, _ = run(tmp_path, save_strategy="steps", save_steps=4)
    assert last_checkpoint(tmp_path).endswith("checkpoint-8")
    resumed, resumed_state, trainer = run(tmp_path, resume=True)
    assert setting.differ(straight, resumed) == 0 and state == resumed_state
    assert trainer.state.global_step == 8


def test_checkpoint_of_another_trainer_is_refused(tmp_path):
    run(tmp_path, Stop(2))
    file = tmp_path / "checkpoint-2" / "trainer_state.json"
    state = json.loads(file.read_text())
    del state["stateful_callbacks"]["CursorCallback"]
    file.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="holds no place in packed text"):
        run(tmp_path, resume=True)


def test_checkpoint_of_an_older_version_goes_on(tmp_path):
    """It knew the place and the tokens alone."""
    straight, state, _ = run(tmp_path / "straight")
    run(tmp_path / "broken", Stop(4))
    file = tmp_path / "broken" / "checkpoint-4" / "trainer_state.json"
    saved = json.loads(file.read_text())
    known = saved["stateful_callbacks"]["CursorCallback"]["attributes"]
    saved["stateful_callbacks"]["CursorCallback"]["attributes"] = {name: known[name] for name in ("cursor", "tokens")}
    file.write_text(json.dumps(saved))
    resumed, resumed_state, _ = run(tmp_path / "broken", resume=True)
    assert setting.differ(straight, resumed) == 0
    assert all(state[name] == resumed_state[name] for name in ("cursor", "tokens"))


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        run(tmp_path, resume=True)


def test_next_stage_reads_on_where_this_one_stopped(tmp_path):
    _, state, _ = run(tmp_path / "short", steps=3)
    stream = tiny.packed(24, tuple(state["cursor"]))
    read = [token for row in tiny.packed().rows(6) for token in row["input_ids"]]
    assert read + next(stream.rows())["input_ids"] == tiny.all_tokens(stream.documents)[: 6 * 16 + 24]
    trainer = setting.distiller(tmp_path / "long", dataset=stream, max_length=24, max_steps=2)
    trainer.train()
    assert trainer.data_state["tokens"] == 2 * 2 * 24
    assert trainer.data_state["cursor"] == list(stream.rows(4))[-1]["cursor"]


# --- a run that diverged


@pytest.mark.parametrize("make", [setting.sft, setting.distiller])
def test_loss_that_is_no_number_stops_at_that_step(tmp_path, make):
    """Transformers leaves NaN out of its log and goes on."""

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.get_output_embeddings().weight.data[0, 0] = float("nan")

    trainer = make(tmp_path, max_steps=6)
    trainer.add_callback(Poison())
    with pytest.raises(FloatingPointError, match="loss is nan at step 3.*learning_rate"):
        trainer.train()
    assert trainer.data_state["tokens"] == 2 * 32 and trainer.state.global_step == 2


def test_gradient_that_is_no_number_stops(tmp_path):
    model = setting.student()
    model.model.norm.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(FloatingPointError, match="norm of the gradient is (inf|nan) at step 1"):
        setting.distiller(tmp_path, model).train()
