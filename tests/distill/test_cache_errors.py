"""What does not belong to a cached teacher is refused: other data and teachers, damaged or unfinished folders."""

import copy
import json
import shutil

import pytest
import torch

from hf_cascade.distill.cache import CachedTeacher
from hf_cascade.distill.cache_format import CacheIdentity
from hf_cascade.distill.cache_writer import CacheWriter
from hf_cascade.distill.teacher import LocalTeacher
from tests.data import tiny
from tests.distill.caching import K, batches, build, conversations, identity, write
from tests.prune import families


@pytest.fixture(scope="module")
def parent():
    return build()


@pytest.fixture(scope="module")
def made(tmp_path_factory, parent):
    folder = tmp_path_factory.mktemp("made") / "cache"
    write(folder, parent, conversations(), shard_bytes=600)
    return folder


def test_other_data_is_refused(made):
    rows = conversations(4, seed=7)
    for inputs, counts_BT in batches(rows, 4):
        with pytest.raises(ValueError, match="is not in the cache .* of 12 sequences.*max_length"):
            CachedTeacher(made).targets(inputs, counts_BT)
    shorter = [{name: row[name][:-1] for name in row} for row in conversations()]
    for inputs, counts_BT in batches(shorter, 12):
        with pytest.raises(ValueError, match="is not in the cache"):
            CachedTeacher(made).targets(inputs, counts_BT)


def test_another_tokenizer_or_teacher_is_refused(made, parent):
    with pytest.raises(ValueError, match="another tokenizer than the student's"):
        CachedTeacher(made, tiny.tokenizer("zyx"))
    of = identity(parent)
    assert CachedTeacher(made, tiny.tokenizer(), of.teacher_sha256).identity == of
    with pytest.raises(ValueError, match="is of parent .* the teacher named is another"):
        CachedTeacher(made, teacher_sha256="0" * 64)


@pytest.mark.parametrize("what", ["teacher", "k", "tokenizer", "vocabulary"])
def test_a_cache_of_something_else_is_not_added_to(made, parent, what):
    other = build(hidden_size=48)
    wider = build(vocab_size=101)
    model, of, words = {
        "teacher": (other, identity(other), "another teacher_sha256 "),
        "k": (parent, identity(parent, 9), r"another k \(k: 8 there, 9 here\)"),
        "tokenizer": (parent, CacheIdentity.of(parent, "parent", tiny.tokenizer("zyx"), K), "another tokenizer_sha256"),
        "vocabulary": (wider, identity(wider), "another teacher_sha256, vocabulary"),
    }[what]
    before = sorted(file.name for file in made.iterdir())
    with pytest.raises(ValueError, match=words):
        CacheWriter(made, LocalTeacher(model), of)
    assert sorted(file.name for file in made.iterdir()) == before


def test_settings_that_cannot_be(tmp_path, parent):
    for k in (0, families.VOCABULARY + 1):
        with pytest.raises(ValueError, match=f"k={k}: allowed is 1 to {families.VOCABULARY}"):
            identity(parent, k)
    wider = build(vocab_size=101)
    with pytest.raises(ValueError, match="vocabulary of 101"):
        CacheWriter(tmp_path / "cache", LocalTeacher(wider), identity(parent))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="is no cache of a teacher"):
        CacheWriter(tmp_path / "mine", LocalTeacher(parent), identity(parent))
    with pytest.raises(FileNotFoundError, match="holds no cache"):
        CachedTeacher(tmp_path / "mine")


@pytest.mark.parametrize("damage", ["missing", "short", "bit", "header", "index", "schema"])
def test_a_damaged_cache_is_refused(tmp_path, made, damage):
    folder = tmp_path / "cache"
    shutil.copytree(made, folder)
    shard, index = sorted(folder.glob("*.safetensors"))[1], folder / "index.json"
    content = bytearray(shard.read_bytes())
    match damage:
        case "missing":
            shard.unlink()
        case "short":
            shard.write_bytes(content[:-1])
        case "bit":
            content[-1] ^= 1
            shard.write_bytes(content)
            CachedTeacher(folder)  # only a full check can know
        case "header":
            shard.write_bytes(b"\xff" * len(content))
        case "index":
            index.write_text(index.read_text()[:-20])
        case "schema":
            index.write_text(json.dumps({**json.loads(index.read_text()), "schema": 2}))
    words = {"missing": "is missing", "short": "bytes and had", "bit": "is damaged", "header": "cannot be read",
             "index": "is not JSON", "schema": "has schema 2"}[damage]  # fmt: skip
    with pytest.raises(ValueError, match=words):
        CachedTeacher(folder, verify=damage == "bit")


def test_an_unfinished_cache_is_refused(tmp_path, parent):
    writer = CacheWriter(tmp_path / "cache", LocalTeacher(parent), identity(parent))
    writer.add(*next(batches(conversations(2), 2)))
    writer.save()
    with pytest.raises(ValueError, match="is not finished"):
        CachedTeacher(tmp_path / "cache")


def test_batches_that_cannot_be_told_from_others_are_refused(made):
    teacher, ids = CachedTeacher(made), torch.arange(4, 10)[None]
    counts_BT = torch.ones_like(ids, dtype=torch.bool)
    with pytest.raises(ValueError, match="padding on the right"):
        teacher.targets({"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])}, counts_BT)
    for positions in ([[3, 4, 5, 6, 7, 8]], [[0, 1, 2, 4, 5, 6]]):
        with pytest.raises(ValueError, match="do not count up from 0"):
            teacher.targets({"input_ids": ids, "position_ids": torch.tensor(positions)}, counts_BT)
    with pytest.raises(ValueError, match="knows no input token_type_ids"):
        teacher.targets({"input_ids": ids, "token_type_ids": ids}, counts_BT)
    with pytest.raises(ValueError, match="positions in the padding count"):
        teacher.targets({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]])}, counts_BT)


def test_a_full_disk_is_said(tmp_path, parent, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    writer = CacheWriter(tmp_path / "cache", LocalTeacher(parent), identity(parent))
    writer.add(*next(batches(conversations(2), 2)))
    with pytest.raises(OSError, match="its disk has 0.00 GB free"):
        writer.save()


def test_logits_that_are_no_numbers_are_not_kept(tmp_path, parent):
    broken = copy.deepcopy(parent)
    broken.lm_head.weight.data[5] = torch.nan
    writer = CacheWriter(tmp_path / "cache", LocalTeacher(broken), identity(parent))
    with pytest.raises(FloatingPointError, match="not finite"):
        writer.add(*next(batches(conversations(2), 2)))


def test_a_prefix_of_a_key_is_not_the_key(made):
    """Keys are looked up by their first 8 bytes and compared whole."""
    teacher = CachedTeacher(made)
    key = teacher._places.keys[3].tobytes()
    assert teacher._places.of(key) == [3]
    assert teacher._places.of(key[:8] + bytes(24)) == []
