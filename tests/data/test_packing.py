"""Packing: every token once and in order wherever reading goes on, and documents that do not see each other."""

from itertools import islice

import pytest
import torch
from datasets import Dataset

from hf_cascade.data.documents import Documents
from hf_cascade.data.packing import PackedCollator, PackedText, blocks, document_tokens
from tests.data import tiny
from tests.prune import families


def read(stream: PackedText, count: int | None = None) -> list[dict]:
    """`count` rows, or all full ones."""
    rows = []
    try:
        rows.extend(stream.rows(count))
    except ValueError:
        if count is not None:
            raise
    return rows


def flat(rows: list[dict]) -> list[int]:
    return [token for row in rows for token in row["input_ids"]]


def test_every_token_once_and_in_order():
    stream = tiny.packed()
    rows, expected = read(stream), tiny.all_tokens(stream.documents)
    assert flat(rows) == expected[: len(expected) // 16 * 16] and len(rows) > 50
    assert all(sum(row["seq_lengths"]) == len(row["input_ids"]) == 16 for row in rows)
    assert all(min(row["seq_lengths"]) > 0 for row in rows)


def test_a_document_ends_with_eos_and_starts_as_the_tokenizer_says():
    kit = tiny.tokenizer()
    assert document_tokens(kit, "ab") == [1, 4, 5, 2]
    assert document_tokens(kit, "ab</s>") == [1, 4, 5, 2], "an EOS that is there already is not doubled"
    assert document_tokens(kit, "") == [1, 2]


def test_restart_at_every_row():
    whole = read(tiny.packed())
    for number, row in enumerate(whole):
        rest = read(tiny.packed(start=tuple(row["cursor"])))
        assert rest == whole[number + 1 :], f"after row {number}"


@pytest.mark.parametrize("second", [2, 7, 16, 64])
def test_a_later_stage_with_another_window_goes_on_exactly(second):
    stream = tiny.packed()
    expected = tiny.all_tokens(stream.documents)
    for count in range(1, len(read(stream))):
        cursor = read(stream, count)[-1]["cursor"]
        rest = flat(read(tiny.packed(second, tuple(cursor))))
        assert rest == expected[count * 16 :][: len(rest)]
        assert len(expected) - count * 16 - len(rest) < second


def test_passes_read_everything_again_in_another_order():
    once, twice = tiny.documents(), tiny.documents(passes=2)
    numbers = [number for number, _ in twice.read()]
    first, second = [text for _, text in twice.read()][:40], [text for _, text in twice.read()][40:]
    assert numbers == list(range(80))
    assert first == [text for _, text in once.read()]
    assert sorted(first) == sorted(second) and first != second
    assert [text for _, text in twice.read(57)] == second[17:]
    stream = PackedText(twice, tiny.tokenizer(), 16)
    rows = read(stream)
    for number in (len(rows) // 2 - 1, len(rows) // 2, len(rows) - 2):
        assert read(PackedText(twice, tiny.tokenizer(), 16, tuple(rows[number]["cursor"]))) == rows[number + 1 :]


def test_seed_changes_the_order_only():
    orders = [[text for _, text in tiny.documents(seed=0, **kwargs).read()] for kwargs in ({}, {})]
    data = Dataset.from_dict({"text": tiny.texts()})
    zero, one = ([text for _, text in Documents(data, seed=seed).read()] for seed in (0, 1))
    assert orders[0] == orders[1] == zero != one and sorted(zero) == sorted(one)


def test_streaming_reads_in_order_and_restarts():
    data = Dataset.from_dict({"text": tiny.texts()}).to_iterable_dataset()
    stream = PackedText(Documents(data), tiny.tokenizer(), 16)
    whole = read(stream)
    kit = tiny.tokenizer()
    assert flat(whole) == [t for text in tiny.texts() for t in document_tokens(kit, text)][: len(whole) * 16]
    for number in range(0, len(whole), 7):
        assert read(PackedText(Documents(data), kit, 16, tuple(whole[number]["cursor"]))) == whole[number + 1 :]


def test_end_of_text_is_an_error_that_says_what_to_do():
    stream = tiny.packed()
    available = len(read(stream))
    with pytest.raises(ValueError, match=rf"ended {available * 16} tokens after document 0.*add text.*passes"):
        read(stream, available + 1)
    with pytest.raises(ValueError, match="ended 0 tokens after document 40"):
        read(tiny.packed(start=(40, 0)), 1)
    with pytest.raises(ValueError, match="ended"):
        list(stream.dataset())


def test_text_that_just_suffices_is_enough_for_a_reader_that_looks_ahead():
    stream = tiny.packed()
    available = len(read(stream))
    rows = iter(stream.dataset(available))
    assert len(list(islice(rows, available))) == available
    assert next(rows, None) is None


def test_held_out_text_is_read_to_its_last_full_row():
    assert list(tiny.packed().held_out()) == read(tiny.packed())
    assert len(tiny.packed(start=(40, 0)).held_out()) == 0


def test_dataset_gives_the_rows_again_and_again():
    stream = tiny.packed()
    for _ in range(2):
        assert list(stream.dataset(5)) == read(stream, 5)


@pytest.mark.parametrize("length", [None, 0, 1])
def test_window_needs_two_tokens(length):
    with pytest.raises(ValueError, match=f"max_length={length}"):
        tiny.packed(length)


def test_documents_refuse_what_they_cannot_read():
    data = Dataset.from_dict({"body": ["a"]})
    with pytest.raises(ValueError, match="'text' is not in the dataset, which has .'body'"):
        Documents(data)
    with pytest.raises(ValueError, match="passes=0"):
        Documents(data, "body", passes=0)
    with pytest.raises(ValueError, match="passes=2"):
        Documents(data.to_iterable_dataset(), "body", passes=2)
    with pytest.raises(ValueError, match="document 1 has None in the column 'text'"):
        list(Documents(Dataset.from_dict({"text": ["a", None]}).to_iterable_dataset()).read())


def test_blocks_for_calibration():
    kit, texts = tiny.tokenizer(), tiny.texts()
    expected = [token for text in texts for token in document_tokens(kit, text)]
    assert blocks(kit, texts, 10, 7).flatten().tolist() == expected[:70]
    assert blocks(kit, texts, 10, 10**6).shape == (len(expected) // 10, 10)
    with pytest.raises(ValueError, match="2 tokens and one window needs 10"):
        blocks(kit, [""], 10, 1)


# --- batches: rows as a model sees them


def batch(count: int = 6, padding_free: bool = False) -> tuple[dict, list[dict]]:
    rows = read(tiny.packed(24, longest=14), count)
    assert max(len(row["seq_lengths"]) for row in rows) > 3
    return PackedCollator(padding_free)(rows), rows


def pieces(rows: list[dict]):
    """Row number, first and last position of every document's piece."""
    for number, row in enumerate(rows):
        start = 0
        for length in row["seq_lengths"]:
            yield number, start, start + length
            start += length


def test_batch_labels_and_positions():
    out, rows = batch()
    assert out["cursor"].tolist() == rows[-1]["cursor"]
    assert out["input_ids"].shape == out["labels"].shape == out["position_ids"].shape == (6, 24)
    assert "attention_mask" not in out, "with one, transformers would not look for documents"
    for row, start, end in pieces(rows):
        assert out["position_ids"][row, start:end].tolist() == list(range(end - start))
        assert out["labels"][row, start] == -100
        assert torch.equal(out["labels"][row, start + 1 : end], out["input_ids"][row, start + 1 : end])


def test_padding_free_is_the_same_content_in_one_row():
    plain, _ = batch()
    free, _ = batch(padding_free=True)
    for name in ("input_ids", "labels", "position_ids"):
        assert free[name].shape == (1, 144) and torch.equal(free[name].flatten(), plain[name].flatten())
    assert torch.equal(free["cursor"], plain["cursor"])


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "ministral3", "qwen3_sliding"])
def test_documents_do_not_see_each_other(family, attention, padding_free):
    model = families.build(family)
    model.set_attn_implementation(attention)
    out, rows = batch(padding_free=padding_free)
    inputs = {name: out[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state.reshape(6, 24, -1)
        ids = out["input_ids"].reshape(6, 24)
        for row, start, end in pieces(rows):
            alone = model.base_model(input_ids=ids[row : row + 1, start:end], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(hidden[row, start:end], alone, rtol=0, atol=1e-5)  # eager: fp32 softmax


@pytest.mark.parametrize("spoiled", ["use_cache", "attention_mask", "position_ids"])
def test_what_would_let_them_see_each_other(spoiled):
    """The conditions `hidden_states` and the collator keep: if transformers drops one, the test above is blind."""
    model = families.build("llama")
    out, _ = batch()
    inputs = {name: out[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        apart = model.base_model(**inputs, use_cache=False).last_hidden_state
        changed = {
            "use_cache": {**inputs, "use_cache": True},
            "attention_mask": {**inputs, "use_cache": False, "attention_mask": torch.ones_like(out["input_ids"])},
            "position_ids": {"input_ids": out["input_ids"], "use_cache": False},
        }[spoiled]
        mixed = model.base_model(**changed).last_hidden_state
    assert (apart - mixed).abs().max() > 1e-3
