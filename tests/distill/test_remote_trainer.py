"""Training from a teacher behind a URL ends with the weights of training from the same teacher in this process."""

import pytest
import torch
from transformers import TrainerCallback

from hf_cascade.distill.remote import RemoteTeacher
from hf_cascade.distill.trainer import CascadeDistillationTrainer
from tests.data import tiny
from tests.distill import served, setting
from tests.distill.served import connect


class Stop(TrainerCallback):
    """Saves and stops after step 3."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            control.should_save = control.should_training_stop = True


@pytest.fixture(scope="module")
def parent():
    return setting.teacher(dtype=torch.float32)


@pytest.fixture
def server(parent):
    with served.serving(parent) as running:
        yield running


def train(folder, teacher, callback=None, resume=None, **settings):
    """Final weights and logged losses of six steps."""
    model = setting.student(dtype=torch.float32, attention_dropout=0.1)
    trainer = setting.distiller(folder, model, teacher, max_steps=6, gradient_accumulation_steps=2, **settings)
    if callback is not None:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return setting.weights(model), setting.losses(trainer)


def assert_equal(one, other) -> None:
    assert setting.differ(one[0], other[0]) == 0 and one[1] == other[1] and len(one[1]) == 6


def test_equals_training_from_the_local_teacher(tmp_path, parent, server):
    local = train(tmp_path / "local", parent)
    server.faults = [None, served.drop, None, served.fail, served.cut]
    assert_equal(train(tmp_path / "remote", connect(server)), local)
    assert server.posts == 12 + 3, "one request a batch, and three again"


def test_bf16_equals_training_from_the_local_teacher(tmp_path):
    parent = setting.teacher(dtype=torch.bfloat16)
    local = train(tmp_path / "local", parent, bf16=True)
    with served.serving(parent) as server:
        assert_equal(train(tmp_path / "remote", connect(server), bf16=True), local)


def test_resumed_with_another_server_equals_the_local_run(tmp_path, parent):
    local = train(tmp_path / "local", parent)
    with served.serving(parent) as server:
        train(tmp_path / "remote", connect(server), Stop())
    with served.serving(parent) as server:
        assert_equal(train(tmp_path / "remote", connect(server), resume=True), local)


def test_window_and_evaluation(tmp_path):
    parent = setting.teacher(dtype=torch.float32, max_position_embeddings=6)
    held_out = tiny.packed(count=8, seed=5)
    with served.serving(parent) as server:
        losses = [
            setting.distiller(tmp_path, setting.student(dtype=torch.float32), teacher).evaluate(held_out)["eval_loss"]
            for teacher in (parent, connect(server))
        ]
        with pytest.raises(ValueError, match="beyond the teacher's window of 6"):
            setting.distiller(tmp_path, parent=connect(server), teacher_window="refuse")
    assert losses[0] == losses[1]


def test_vocabularies_are_compared(tmp_path, server):
    with pytest.raises(ValueError, match="vocabularies of 96 and 97"):
        setting.distiller(tmp_path, setting.student(vocab_size=96), connect(server))


def test_the_url_is_a_setting(tmp_path, server):
    settings = {**setting.COMMON, "teacher_url": server.url}
    args = setting.CascadeDistillationConfig(output_dir=str(tmp_path), **settings)
    make = {"args": args, "train_dataset": tiny.packed()}
    trainer = CascadeDistillationTrainer(setting.student(), processing_class=tiny.tokenizer(), **make)
    assert isinstance(trainer.teacher, RemoteTeacher)
    with pytest.raises(ValueError, match="another tokenizer than the student"):
        other = tiny.tokenizer("bacdefghijklmnopqrstuvwxyz .\n")
        CascadeDistillationTrainer(setting.student(), processing_class=other, **make)


def test_a_teacher_that_goes_away_stops_the_run(tmp_path, server):
    server.faults = [None, None, *[served.drop] * 4]
    with pytest.raises(ConnectionError, match="goes on from the last checkpoint"):
        train(tmp_path, connect(server))
