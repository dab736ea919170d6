"""Lengths: counts against counting one by one, sums over parts and processes, the report of a stage's file."""

import json
import random
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.scripts.utils import DatasetConfig

from hf_cascade import manifest
from hf_cascade.context import extend_context
from hf_cascade.data import report
from hf_cascade.data.ledger import Ledger, text_sha256
from hf_cascade.data.lengths import LengthCounter, of_rows, sequence_lengths, short_text_warning, tally
from hf_cascade.data.packing import PackedCollator, PackedText, document_tokens
from tests.data import tiny
from tests.distill import setting
from tests.distill.test_resume import Stop


def counted(lengths: list[int], window: int | None = None) -> LengthCounter:
    counter = LengthCounter(window)
    counter.add(lengths)
    return counter


def one_by_one(lengths: list[int], window: int | None) -> dict:
    """The same counts, from the definition."""
    bins = sorted({2 ** (length.bit_length() - 1) for length in lengths})
    inside = {least: [length for length in lengths if least <= length < 2 * least] for least in bins}
    return {
        "window": window,
        "sequences": {str(least): len(found) for least, found in inside.items()},
        "tokens": {str(least): sum(found) for least, found in inside.items()},
        "beyond": 0 if window is None else sum(position >= window for n in lengths for position in range(n)),
        "longest": max(lengths),
    }


@pytest.mark.parametrize("window", [None, 1, 16, 23, 5000])
def test_counts_are_those_of_counting_one_by_one(window):
    draw = random.Random(0)
    lengths = [1, 2, 3, 4, 7, 8, 9, 1023, 1024, 1025, *(draw.randrange(1, 3000) for _ in range(200))]
    counter = counted(lengths, window)
    assert counter.as_dict() == one_by_one(lengths, window)
    assert (counter.count, counter.total_tokens) == (len(lengths), sum(lengths))
    assert counter.share_beyond == counter.beyond / sum(lengths)


@pytest.mark.parametrize("power", [1, 10, 24, 31, 39])
def test_powers_of_two_are_exact(power):
    assert counted([2**power - 1, 2**power]).sequences == {str(2 ** (power - 1)): 1, str(2**power): 1}


def test_parts_add_up_in_any_order_and_through_json():
    lengths = [5, 900, 17, 64, 3, 2, 70000]
    whole = counted(lengths, 16)
    for cut in range(len(lengths)):
        parts = counted(lengths[:cut], 16), counted(lengths[cut:], 16)
        for first, second in (parts, parts[::-1]):
            again = LengthCounter(**json.loads(json.dumps(first.as_dict())))
            again.merge(second)
            assert json.dumps(again.as_dict()) == json.dumps(whole.as_dict())
    sums = tally(torch.tensor(lengths[:3]), 16) + tally(torch.tensor(lengths[3:]), 16)  # as processes add them
    summed = LengthCounter(16)
    summed.add_tally(sums.tolist(), max(lengths))
    assert summed == whole
    with pytest.raises(ValueError, match="beyond 16 and beyond 8"):
        whole.merge(counted([3], 8))


@pytest.mark.parametrize("padding_free", [False, True])
def test_lengths_of_a_batch_are_those_of_its_rows(padding_free):
    rows = list(tiny.packed(24, longest=14).rows(6))
    batch = PackedCollator(padding_free)(rows)
    expected = [length for row in rows for length in row["seq_lengths"]]
    assert len(expected) > 12 and sequence_lengths(batch["position_ids"]).tolist() == expected
    assert of_rows(rows, 4) == counted(expected, 4)


def test_nothing_counted():
    counter = counted([])
    assert counter == LengthCounter() and counter.share_beyond == 0 and "0 tokens" in counter.table("rows")


def test_table_names_every_bin_and_the_share_beyond():
    lines = counted([3, 1000, 1500], 512).table("documents").splitlines()
    assert lines[0] == "documents: 3, 2,503 tokens, mean 834, longest 1,500"
    cells = [line.split() for line in lines[2:]]
    assert cells == [
        ["2", "to", "3", "1", "3", "0.1%"],
        ["512", "to", "1,023", "1", "1,000", "40.0%"],
        ["1,024", "to", "2,047", "1", "1,500", "59.9%"],
        ["position", ">=", "512", "1,476", "59.0%"],
    ]


def test_warning_where_little_lies_beyond_the_window():
    assert short_text_warning(counted([900])) is None, "no window was extended"
    assert short_text_warning(counted([], 512)) is None
    assert short_text_warning(counted([80, 120], 100)) is None, "20 of 200 tokens"
    message = short_text_warning(counted([90, 110], 100))
    assert "only 5.0% of the first 200 tokens" in message and "min_document_tokens" in message and "110" in message


# --- documents that are passed over


def test_short_documents_are_passed_over_and_counted():
    whole, kit = tiny.packed(), tiny.tokenizer()
    documents = [document_tokens(kit, text) for _, text in whole.documents.read()]
    long = [ids for ids in documents if len(ids) >= 30]
    assert 5 < len(long) < 35
    rows = list(PackedText(whole.documents, kit, 16, min_document_tokens=30).rows_to_the_end())
    flat = [token for row in rows for token in row["input_ids"]]
    assert flat == [token for ids in long for token in ids][: len(flat)] and len(flat) > 16 * 40
    for number, row in enumerate(rows, 1):
        document, token = row["cursor"]
        passed = [ids for ids in documents[:document] if len(ids) < 30]
        skipped = [sum(r["skipped"][place] for r in rows[:number]) for place in (0, 1)]
        if token == 0:  # short ones after the last long one are the next row's
            while passed and len(documents[document - 1]) < 30:
                document, passed = document - 1, passed[:-1]
        assert skipped == [len(passed), sum(map(len, passed))]
        assert sum(map(len, documents[:document])) + token == number * 16 + skipped[1], "trained, passed over, no more"


def test_restart_at_every_row_with_documents_passed_over():
    documents, kit = tiny.documents(), tiny.tokenizer()
    whole = list(PackedText(documents, kit, 16, min_document_tokens=30).rows_to_the_end())
    for number, row in enumerate(whole):
        rest = PackedText(documents, kit, 16, tuple(row["cursor"]), min_document_tokens=30)
        assert list(rest.rows_to_the_end()) == whole[number + 1 :], f"after row {number}"


def test_a_stage_passes_over_the_rest_of_a_short_document_that_was_begun():
    kit = tiny.tokenizer()
    documents = tiny.documents()
    lengths = [len(document_tokens(kit, text)) for _, text in documents.read()]
    first = next(n for n, length in enumerate(lengths) if 10 < length < 30)
    row = next(PackedText(documents, kit, 16, (first, 4), min_document_tokens=30).rows())
    short = [length for length in lengths[first : row["cursor"][0]] if length < 30]
    assert row["skipped"] == [len(short), sum(short) - 4]


def test_all_documents_too_short_is_an_error():
    stream = PackedText(tiny.documents(), tiny.tokenizer(), 16, min_document_tokens=1000)
    with pytest.raises(ValueError, match="ended 0 tokens after document 0.*lower .*`min_document_tokens`"):
        next(stream.rows())


# --- what a trainer counts


@pytest.mark.parametrize("stop", [None, 2])
def test_trainer_and_ledger_count_what_was_trained_on(tmp_path, stop):
    """With a window that was extended, and after a stop too: nothing is counted twice."""
    config = extend_context(setting.student("ministral3").config, 24, 16)
    stream = {"max_length": 24, "min_document_tokens": 12}
    documents = tiny.documents()
    rows = list(PackedText(documents, tiny.tokenizer(), **stream).rows(8))
    for resume in (False,) if stop is None else (False, True):
        model = AutoModelForCausalLM.from_config(config)
        trainer = setting.sft(
            tmp_path, model, PackedText(documents, tiny.tokenizer(), **stream), max_length=24, max_steps=4
        )
        if stop is not None and not resume:
            trainer.add_callback(Stop(stop))
        trainer.train(resume_from_checkpoint=resume)
    expected = of_rows(rows, window=16)
    skipped = [sum(row["skipped"][place] for row in rows) for place in (0, 1)]
    assert expected.beyond > 0 and skipped[0] > 0
    assert trainer.data_state == {
        "cursor": rows[-1]["cursor"],
        "tokens": 8 * 24,
        "skipped": skipped,
        "lengths": expected.as_dict(),
    }
    entry = Ledger("text").close("long", trainer.data_state)["ledger"][0]
    assert entry["lengths"] == json.loads(json.dumps(expected.as_dict())) and entry["skipped"] == skipped
    kit = tiny.tokenizer()
    document, token = rows[-1]["cursor"]
    read = [len(document_tokens(kit, text)) for _, text in documents.read()][:document]
    assert sum(read) + token == entry["tokens"] + entry["skipped"][1], "every token is trained on or passed over"


def test_a_model_whose_window_was_never_extended_counts_none_beyond(tmp_path):
    trainer = setting.sft(tmp_path, max_steps=1)
    trainer.train()
    assert trainer.data_state["lengths"] == of_rows(tiny.packed().rows(2)).as_dict()
    assert trainer.data_state["skipped"] == [0, 0]


# --- the report of a stage's file


@pytest.fixture
def stage(tmp_path):
    """A folder with a stage's file, its text and a tokenizer."""
    rows = "".join(json.dumps({"text": text}) + "\n" for text in tiny.texts())
    (tmp_path / "text.jsonl").write_text(rows)
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "long.yaml").write_text(
        f"datasets: [{{path: json, data_files: {tmp_path / 'text.jsonl'}}}]\n"
        "max_length: 32\ncontext_length: 32\noriginal_context_length: 16\nbf16: true\n"
    )
    return tmp_path


def run(stage, *flags: str) -> int:
    return report.main(["--config", str(stage / "long.yaml"), "--model_name_or_path", str(stage / "model"), *flags])


def test_report_of_a_stages_file(stage, capsys):
    assert run(stage, "--rows", "10") == 0
    said = capsys.readouterr().out
    rows = list(tiny.packed(32).rows(10))
    document, token = rows[-1]["cursor"]
    kit = tiny.tokenizer()
    documents = [len(document_tokens(kit, text)) for _, text in tiny.documents().read()][: document + (token > 0)]
    assert counted(documents, 16).table("documents") in said
    assert of_rows(rows, 16).table("as packed in 10 rows of 32: sequences") in said
    assert "passed over" not in said and "warning" not in said


def test_report_of_short_documents(stage, capsys):
    run(stage, "--original_context_length", "30", "--min_document_tokens", "8")
    said = capsys.readouterr().out
    assert "passed over, of fewer than 8 tokens: " in said and "warning: only" in said
    assert "position >= 30" in said


def test_report_begins_where_the_stage_does(stage, capsys):
    run(stage, "--rows", "5")
    first = capsys.readouterr().out
    source = DatasetConfig(path="json", data_files=str(stage / "text.jsonl"))
    identity = text_sha256(tiny.packed(), [source])
    rows = list(tiny.packed(32).rows(10))
    (stage / "before").mkdir()
    data = Ledger(identity).close("before", {"cursor": rows[4]["cursor"], "tokens": 160})
    manifest.write(stage / "before", stage="before", run="distill", config={}, inputs={}, metrics={}, data=data)
    run(stage, "--rows", "5", "--data_after", str(stage / "before"))
    second = capsys.readouterr().out
    assert of_rows(rows[5:], 16).table("as packed in 5 rows of 32: sequences") in second and first != second


def test_report_of_text_with_images():
    stream = tiny.packed_images()
    rows = list(islice(stream.rows_to_the_end(), 10))
    document, token = rows[-1]["cursor"]
    read = list(islice(stream.documents.read(), document + (token > 0)))
    documents = [len(stream.tokens(number, *content)[0]) for number, content in read]
    said = report.report(stream, 10, 8)
    assert any(row["images"] for row in rows)
    assert counted(documents, 8).table("documents") in said
    assert of_rows(rows, 8).table("as packed in 10 rows of 16: sequences") in said


def test_report_of_text_that_ends_and_of_text_that_fills_no_row(stage, capsys):
    run(stage, "--rows", "100000")
    assert f"as packed in {len(list(tiny.packed(32).rows_to_the_end()))} rows" in capsys.readouterr().out
    with pytest.raises(ValueError, match="does not fill one row of 100000 tokens"):
        run(stage, "--max_length", "100000")


def test_report_refuses_bad_input(stage):
    with pytest.raises(ValueError, match="rows=0"):
        run(stage, "--rows", "0")
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        report.main(["--config", "nothing.yaml"])
    with pytest.raises(ValueError, match="give --model_name_or_path"):
        report.main(["--config", str(stage / "long.yaml")])
    (stage / "long.yaml").write_text("- a list\n")
    with pytest.raises(ValueError, match="holds no settings of a stage"):
        run(stage)
