"""A trainer's own data in a cache: whatever that trainer reads is found, and checking finds what is wrong."""

import json

import pytest
import torch
from datasets import Dataset

from hf_cascade.distill.cache import CachedTeacher
from hf_cascade.distill.cache_fill import fill, labels_of, trainer_batches, verify
from hf_cascade.distill.cache_writer import CacheWriter
from hf_cascade.distill.teacher import LocalTeacher
from tests.data import tiny
from tests.distill import setting
from tests.distill.caching import build, identity

TEXT = {"text": [text for text in tiny.texts(14, longest=30) if text]}
DIALOGUES = {"prompt": ["abc", "defgh", "xyzabc"] * 3, "completion": [f" {text}" for text in tiny.texts(9, seed=1)]}


@pytest.fixture(scope="module")
def parent():
    return build()


def source(folder, parent, rows, **settings):
    """The trainer whose data go into a cache: the teacher is in the student's place."""
    return setting.sft(folder, parent, rows if not isinstance(rows, dict) else Dataset.from_dict(rows), **settings)


def cached(folder, parent, rows, of=None, **settings) -> CachedTeacher:
    trainer = source(folder / "source", parent, rows, **settings)
    writer = CacheWriter(folder / "cache", LocalTeacher(trainer.model), of or identity(parent))
    fill(writer, trainer)
    writer.finish()
    return CachedTeacher(folder / "cache", tiny.tokenizer())


@pytest.mark.parametrize("rows", [TEXT, DIALOGUES], ids=["text", "prompts"])
@pytest.mark.parametrize(
    "written, read",
    [
        ({}, {"per_device_train_batch_size": 3, "seed": 5}),
        ({}, {"packing": True}),
        ({"packing": True, "per_device_train_batch_size": 1}, {"num_train_epochs": 2, "max_steps": -1}),
    ],
    ids=["batches", "packed", "unpacked"],
)
def test_a_stage_finds_what_was_cached_for_it(tmp_path, parent, rows, written, read):
    size = {"max_length": 24}
    teacher = cached(tmp_path, parent, rows, **size, **written)
    trainer = setting.distiller(
        tmp_path / "out", build(hidden_size=48), teacher, Dataset.from_dict(rows), **size, **read
    )
    trainer.train()
    assert torch.tensor(setting.losses(trainer)).isfinite().all()


def test_only_labels_are_stored(tmp_path, parent):
    teacher = cached(tmp_path, parent, DIALOGUES, max_length=24)
    completions = set(zip(*DIALOGUES.values(), strict=True))
    index = json.loads((teacher.folder / "index.json").read_text())
    # the text and one EOS each; none of the prompts
    assert index["tokens"] == sum(min(len(text), 24 - len(prompt) - 2) + 1 for prompt, text in completions) > 0
    assert index["sequences"] == len(completions)


def test_labels_are_counted_before_anything_is_asked(tmp_path, parent, monkeypatch):
    trainer = source(tmp_path / "source", parent, DIALOGUES, max_length=24)
    batches, total = trainer_batches(trainer)
    assert labels_of(trainer.train_dataset) == sum(int(counts_BT.sum()) for _, counts_BT in batches)
    assert total == 5
    assert labels_of(tiny.packed().dataset(3)) is None
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 0}))
    writer = CacheWriter(tmp_path / "cache", LocalTeacher(trainer.model), identity(parent))
    with pytest.raises(OSError, match="its disk has 0.00 GB free"):
        fill(writer, trainer)


def test_packed_text_read_once_can_be_cached(tmp_path, parent):
    """Streamed, as long as the stage reads it; position ids keep its documents apart."""
    teacher = cached(tmp_path, parent, tiny.packed())
    trainer = setting.distiller(tmp_path / "out", build(hidden_size=48), teacher)
    trainer.train()
    own = setting.distiller(tmp_path / "own", build(hidden_size=48), parent)
    own.train()
    read, whole = setting.losses(trainer), setting.losses(own)
    assert len(read) == 3
    assert all(part < all_of for part, all_of in zip(read, whole, strict=True))  # K tokens and a tail: a lower bound


def test_verify_asks_the_teacher_again(tmp_path, parent):
    teacher = cached(tmp_path, parent, TEXT, max_length=24)
    trainer = source(tmp_path / "again", parent, TEXT, max_length=24, per_device_train_batch_size=3)
    report = verify(teacher, LocalTeacher(trainer.model), trainer, 2)
    assert report["sequences"] == len(TEXT["text"]) == len(teacher)
    assert 0 < report["positions"] < sum(shard["tokens"] for shard in teacher.shards)
    assert 0 < report["mean_distance"] <= report["largest_distance"] < 1e-3


def test_verify_finds_another_teacher_and_missing_data(tmp_path, parent):
    other = build(hidden_size=48)
    teacher = cached(tmp_path, other, TEXT, of=identity(parent), max_length=24)  # says it is the parent's
    trainer = source(tmp_path / "again", parent, TEXT, max_length=24)
    with pytest.raises(ValueError, match=r"says something else than the teacher \(total variation 0\.\d+"):
        verify(teacher, LocalTeacher(trainer.model), trainer, 2)
    trainer = source(tmp_path / "more", parent, {"text": [*TEXT["text"], "another"]}, max_length=24)
    with pytest.raises(ValueError, match="is not in the cache"):
        verify(teacher, LocalTeacher(trainer.model), trainer, 0)
