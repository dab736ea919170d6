"""A cached teacher says what the teacher said, wherever a sequence turns up."""

import copy

import pytest
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from hf_cascade.distill import cache_format
from hf_cascade.distill.cache import CachedTeacher
from hf_cascade.distill.cache_format import CacheIdentity, decode, encode
from hf_cascade.distill.cache_writer import CacheWriter
from hf_cascade.distill.teacher import HiddenTargets, LocalTeacher, Teacher
from tests.data import tiny
from tests.distill.caching import HALF, Counting, K, batches, build, check, conversations, identity, write
from tests.prune import families


@pytest.fixture(scope="module")
def parent():
    return build()


@pytest.mark.parametrize("vocabulary, k", [(97, 5), (97, 97), (65536, 20), (65537, 20), (131072, 50), (262144, 7)])
def test_values_are_the_top_of_the_full_softmax(vocabulary, k):
    torch.manual_seed(0)
    logits = 4 * torch.randn(9, vocabulary, dtype=torch.float64)
    logits[0, 1] = 60.0  # one token has nearly all
    logits[1] = 0.0  # none has more than another
    logits[1, :k] = torch.linspace(0.2, 0.1, k, dtype=torch.float64)
    of = CacheIdentity("parent", "", "", k, vocabulary, 16)
    values = encode(logits.float(), of)
    assert sum(value.nbytes for value in values.values()) == 9 * of.bytes_per_token
    targets = decode(values, of)
    top = logits.log_softmax(-1).topk(k)
    torch.testing.assert_close(targets.ids_NK, top.indices, rtol=0, atol=0)
    torch.testing.assert_close(targets.log_probs_NK.double(), top.values, rtol=1.01 * HALF, atol=1e-3)
    tail = 1 - targets.log_probs_NK.exp().sum(-1).double()
    if k == vocabulary:
        assert tail.abs().max() < 1e-6
    else:  # to half a percent of itself, however small beside the rest; at least what fp32's sum cannot lose
        exact = logits.scatter(1, top.indices, -torch.inf).logsumexp(-1) - logits.logsumexp(-1)
        torch.testing.assert_close(tail, exact.exp().clamp(min=cache_format.LEAST_TAIL), rtol=5e-3, atol=3e-7)
        assert tail.min() > 0


def test_size_is_the_formula(tmp_path, parent):
    rows = conversations(60)
    index = write(tmp_path / "cache", parent, rows)
    assert CacheIdentity("", "", "", 20, 131072, 16).bytes_per_token == 85
    assert CacheIdentity("", "", "", 50, 131072, 16).bytes_per_token == 209
    assert index["sequences"] == 60
    assert index["tokens"] == sum(sum(label != -100 for label in row["labels"][1:]) for row in rows)
    beside = sum(40 + -(-len(row["input_ids"]) // 8) for row in rows)
    sizes = [file.stat().st_size for file in (tmp_path / "cache").glob("*.safetensors")]
    assert 0 <= sum(sizes) - index["tokens"] * (4 * K + 2) - beside < 1000  # the shard's header
    assert sum(sizes) == index["bytes"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_back_what_the_teacher_said(tmp_path, parent, dtype):
    model, rows = copy.deepcopy(parent).to(dtype), conversations()
    write(tmp_path / "cache", model, rows)
    teacher = CachedTeacher(tmp_path / "cache", tiny.tokenizer(), verify=True)
    assert (teacher.window, teacher.vocabulary, teacher.model, len(teacher)) == (256, families.VOCABULARY, None, 12)
    for number, (inputs, counts_BT) in enumerate(batches(rows, 4)):
        targets = teacher.targets(inputs, counts_BT)
        if dtype == torch.float32:
            check(targets, parent, rows[4 * number : 4 * number + 4])
        else:  # the logits are fp32, made of bf16 hidden states: the same ones here
            hidden = LocalTeacher(model).targets(inputs, counts_BT)
            top = (hidden.hidden_NE.double() @ hidden.head_VE.double().T).log_softmax(-1).topk(K)
            torch.testing.assert_close(targets.log_probs_NK.double(), top.values, rtol=1.01 * HALF, atol=2e-3)


@pytest.mark.parametrize(
    "size, collator",
    [
        (1, {}),
        (5, {"pad_to_multiple_of": 16}),
        (12, {}),
        (12, {"padding_free": True}),
        (3, {"padding_free": True, "pad_to_multiple_of": 8}),
        (4, {"return_position_ids": True}),
    ],
)
def test_order_batches_padding_and_packing_do_not_matter(tmp_path, parent, size, collator):
    rows = conversations()
    write(tmp_path / "cache", parent, rows, shard_bytes=600)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) > 1
    teacher = CachedTeacher(tmp_path / "cache")
    shuffled = [rows[number] for number in torch.randperm(12, generator=torch.Generator().manual_seed(1))]
    for start, (inputs, counts_BT) in zip(range(0, 12, size), batches(shuffled, size, **collator), strict=True):
        check(teacher.targets(inputs, counts_BT), parent, shuffled[start : start + size])


def test_packed_rows_can_be_written_too(tmp_path, parent):
    rows = conversations()
    packed = [{"input_ids": sum((row["input_ids"] for row in rows[start : start + 3]), []),
               "labels": sum((row["labels"] for row in rows[start : start + 3]), []),
               "seq_lengths": [len(row["input_ids"]) for row in rows[start : start + 3]]}
              for start in range(0, 12, 3)]  # fmt: skip
    with CacheWriter(tmp_path / "cache", LocalTeacher(parent), identity(parent)) as writer:
        for inputs, counts_BT in batches(packed, 2, padding_free=True):
            writer.add(inputs, counts_BT)
        assert writer.finish()["sequences"] == 12
    for inputs, counts_BT in batches(rows, 12):
        check(CachedTeacher(tmp_path / "cache").targets(inputs, counts_BT), parent, rows)


def test_a_soft_cap_is_part_of_the_teacher(tmp_path):
    torch.manual_seed(0)
    hidden_NE, head_VE = torch.randn(5, 16), torch.randn(families.VOCABULARY, 16)

    class Capped(Teacher):
        window, vocabulary = 64, families.VOCABULARY

        def targets(self, inputs, counts_BT):
            return HiddenTargets(hidden_NE, head_VE, softcap=3.0)

    inputs, counts_BT = {"input_ids": torch.arange(4, 9)[None]}, torch.ones(1, 5, dtype=torch.bool)
    writer = CacheWriter(tmp_path / "cache", Capped(), CacheIdentity("", "", "", K, families.VOCABULARY, 64))
    writer.add(inputs, counts_BT)
    writer.finish()
    top = (3 * torch.tanh(hidden_NE.double() @ head_VE.double().T / 3)).log_softmax(-1).topk(K)
    read = CachedTeacher(tmp_path / "cache").targets(inputs, counts_BT).log_probs_NK
    torch.testing.assert_close(read.double(), top.values, rtol=HALF, atol=2e-3)


def test_nothing_that_counts_gives_nothing(tmp_path, parent):
    rows = conversations(4)
    write(tmp_path / "cache", parent, rows)
    ((inputs, counts_BT),) = batches(rows, 4)
    targets = CachedTeacher(tmp_path / "cache").targets(inputs, torch.zeros_like(counts_BT))
    assert targets.ids_NK.shape == targets.log_probs_NK.shape == (0, K)


def test_a_part_of_what_is_stored_can_be_asked_for(tmp_path, parent):
    """As `teacher_window` does, and a narrower loss mask."""
    rows = conversations(4)
    write(tmp_path / "cache", parent, rows)
    ((inputs, counts_BT),) = batches(rows, 4)
    teacher = CachedTeacher(tmp_path / "cache")
    whole, kept_BT = teacher.targets(inputs, counts_BT), counts_BT.clone()
    kept_BT[:, 6:] = False
    part = teacher.targets(inputs, kept_BT)
    assert 0 < len(part.ids_NK) < len(whole.ids_NK)
    torch.testing.assert_close(part.log_probs_NK, whole.log_probs_NK[kept_BT[counts_BT]], rtol=0, atol=0)


def test_another_loss_mask_is_refused_until_it_is_added(tmp_path, parent):
    rows = conversations(6)
    narrow = [dict(row) for row in rows]
    rows[2] = {"input_ids": rows[2]["input_ids"], "labels": rows[2]["input_ids"]}
    write(tmp_path / "cache", parent, narrow)
    ((inputs, counts_BT),) = batches(rows, 6)
    with pytest.raises(ValueError, match="not all positions that count here.*assistant_only_loss"):
        CachedTeacher(tmp_path / "cache").targets(inputs, counts_BT)
    write(tmp_path / "cache", parent, rows)
    teacher = CachedTeacher(tmp_path / "cache")
    assert len(teacher) == 7
    for data in (rows, narrow):
        ((inputs, counts_BT),) = batches(data, 6)
        check(teacher.targets(inputs, counts_BT), parent, data)


def test_what_is_there_is_not_asked_again(tmp_path, parent):
    rows = conversations(8)
    write(tmp_path / "cache", parent, rows[:5])
    counting = Counting(parent)
    with CacheWriter(tmp_path / "cache", counting, identity(parent)) as writer:
        added = [writer.add(*batch) for batch in batches([*rows, rows[7]], 3, padding_free=True)]
        assert writer.finish()["sequences"] == 8
    assert added[0] == 0
    assert counting.asked == sum(added) + sum(label != -100 for label in rows[7]["labels"][1:])  # twice in one batch


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("moves", range(12))
def test_a_killed_writer_goes_on(tmp_path, parent, monkeypatch, moves):
    """Killed at any of its moves of a file to its place: nothing half-written counts, whole shards are kept."""
    rows, real, left = conversations(10), cache_format.os.replace, [moves]

    def replace(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(source, target)

    monkeypatch.setattr(cache_format.os, "replace", replace)
    try:  # no `with`: a killed process tidies nothing up
        writer = CacheWriter(tmp_path / "cache", LocalTeacher(parent), identity(parent), shard_bytes=600)
        for inputs, counts_BT in batches(rows, 2):
            writer.add(inputs, counts_BT)
        writer.finish()
    except Killed:
        with pytest.raises((FileNotFoundError, ValueError), match="no cache|not finished"):
            CachedTeacher(tmp_path / "cache")
    monkeypatch.undo()
    counting = Counting(parent)
    with CacheWriter(tmp_path / "cache", counting, identity(parent), shard_bytes=600) as writer:
        for inputs, counts_BT in batches(rows, 2):
            writer.add(inputs, counts_BT)
        index = writer.finish()
    assert index["sequences"] == 10
    shards_kept = max(0, moves - 1) // 2  # the state, then a shard and the state, again and again
    total = sum(sum(label != -100 for label in row["labels"][1:]) for row in rows)
    assert index["tokens"] == total
    assert (counting.asked < total) == (shards_kept > 0)
    for inputs, counts_BT in batches(rows, 10):
        check(CachedTeacher(tmp_path / "cache", verify=True).targets(inputs, counts_BT), parent, rows)
    assert not list((tmp_path / "cache").glob("writing-*"))


def test_a_stopped_writer_keeps_what_it_has(tmp_path, parent):
    rows = conversations(4)
    with pytest.raises(SystemExit):
        with CacheWriter(tmp_path / "cache", LocalTeacher(parent), identity(parent)) as writer:
            writer.add(*next(batches(rows, 2)))
            raise SystemExit(75)
    counting = Counting(parent)
    with CacheWriter(tmp_path / "cache", counting, identity(parent)) as writer:
        assert [writer.add(*batch) > 0 for batch in batches(rows, 2)] == [False, True]


def test_several_processes_write_one_cache(tmp_path, parent):
    rows = conversations(9)
    writers = [CacheWriter(tmp_path / "cache", LocalTeacher(parent), identity(parent), process=n) for n in (0, 1)]
    for number, batch in enumerate(batches(rows, 2)):
        writers[number % 2].add(*batch)
    writers[1].save()
    index = writers[0].finish()
    assert [shard["file"][:7] for shard in index["shards"]] == ["shard-0", "shard-1"]
    for inputs, counts_BT in batches(rows, 9):
        check(CachedTeacher(tmp_path / "cache").targets(inputs, counts_BT), parent, rows)


def test_images_belong_to_their_rows(tmp_path):
    model = families.build("mistral3", seed=3, dtype=torch.float32)
    torch.manual_seed(0)
    # 8 pixels a token and side: 2, 3 and 4 tokens
    images = [torch.randn(3, 8, 16), torch.randn(3, 24, 8), torch.randn(3, 16, 16)]

    def batch(rows):
        """Rows of (ids, numbers of images); images are padded to the largest of the batch."""
        used = [images[number] for _, numbers in rows for number in numbers]
        height, width = (max([image.shape[side] for image in used], default=0) for side in (1, 2))
        inputs = {
            "input_ids": pad_sequence([torch.tensor(ids) for ids, _ in rows], batch_first=True),
            "attention_mask": pad_sequence([torch.ones(len(ids)).long() for ids, _ in rows], batch_first=True),
        }
        if used:
            padded = [functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in used]
            inputs |= {
                "pixel_values": torch.stack(padded),
                "image_sizes": torch.tensor([image.shape[1:] for image in used]),
            }
        counts_BT = inputs["attention_mask"] == 1
        return inputs, counts_BT

    one, two, plain = ([5, 3, 3, 6, 7], [0]), ([5, 3, 3, 3, 8, 3, 3, 3, 3, 9], [1, 2]), ([5, 6, 7, 8, 9], [])
    of = identity(model)
    assert (of.image_token_id, of.image_token_pixels) == (3, 8)
    writer = CacheWriter(tmp_path / "cache", LocalTeacher(model), of)
    for rows in ([one, plain], [two]):
        writer.add(*batch(rows))
    writer.finish()
    teacher = CachedTeacher(tmp_path / "cache")
    for rows in ([two, one, plain], [one], [plain], [two]):
        inputs, counts_BT = batch(rows)
        with torch.no_grad():
            logits = copy.deepcopy(model)(**inputs, use_cache=False).logits[counts_BT]
        values = logits.double().log_softmax(-1).topk(K).values
        torch.testing.assert_close(
            teacher.targets(inputs, counts_BT).log_probs_NK.double(), values, rtol=1e-3, atol=5e-3
        )
    with pytest.raises(ValueError, match="not in the cache"):
        teacher.targets(*batch([([5, 3, 3, 6, 7], [0]), ([5, 3, 3, 3, 3, 8, 3, 3, 3, 9], [2, 1])]))
    changed, counts_BT = batch([one])
    changed["pixel_values"][0, 0, 0, 0] += 0.5
    with pytest.raises(ValueError, match="not in the cache"):
        teacher.targets(changed, counts_BT)
    inputs, counts_BT = batch([one])
    with pytest.raises(ValueError, match="image tokens do not fit"):
        teacher.targets({**inputs, "input_ids": torch.tensor([[5, 3, 6, 7, 8]])}, counts_BT)
    packed, counts_BT = batch([(one[0] + two[0] + plain[0], [0, 1, 2])])
    packed["position_ids"] = torch.cat([torch.arange(len(ids)) for ids, _ in (one, two, plain)])[None]
    apart = [teacher.targets(*batch([row])).log_probs_NK for row in (one, two, plain)]
    torch.testing.assert_close(teacher.targets(packed, counts_BT).log_probs_NK, torch.cat(apart), rtol=0, atol=0)
    inputs, counts_BT = batch([one])
    with pytest.raises(ValueError, match="with image_sizes"):
        teacher.targets({name: inputs[name] for name in inputs if name != "image_sizes"}, counts_BT)
