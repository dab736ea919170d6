"""The ledger: stages that continue each other's text, and everything else refused; the identity of a text."""

import os
from pathlib import Path

import pytest
from trl import DatasetMixtureConfig
from trl.scripts.utils import DatasetConfig

from hf_cascade import manifest
from hf_cascade.data.documents import Documents, load_mixture
from hf_cascade.data.ledger import Ledger, text_sha256
from hf_cascade.data.packing import PackedText
from tests.data import tiny


def write_text(path: Path, count: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"text": "{text}", "other": 1}}\n' for text in tiny.texts(count)))
    return path


def identity(files, seed: int = 0, kit=None, length: int = 16, **kwargs) -> str:
    """Hash of the text in `files`."""
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path="json", data_files=files, **kwargs)])
    documents = Documents(load_mixture(mixture), seed=seed)
    return text_sha256(PackedText(documents, kit or tiny.tokenizer(), length), mixture.datasets)


def stage(folder: Path, data) -> str:
    folder.mkdir()
    manifest.write(folder, stage=folder.name, run="distill", config={}, inputs={}, metrics={}, data=data)
    return str(folder)


def test_stages_continue_each_other(tmp_path):
    first = Ledger.after(None, "text")
    assert first.end == (0, 0)
    data = first.close("short", {"cursor": [3, 5], "tokens": 160})
    second = Ledger.after(stage(tmp_path / "short", data), "text")
    assert second.end == (3, 5)
    data = second.close("long", {"cursor": [7, 0], "tokens": 64})
    assert data["cursor"] == {"document": 7, "token": 0} and data["tokens"] == 64
    assert [(entry["stage"], entry["start"], entry["end"], entry["tokens"]) for entry in data["ledger"]] == [
        ("short", [0, 0], [3, 5], 160),
        ("long", [3, 5], [7, 0], 64),
    ]
    assert Ledger.after(stage(tmp_path / "long", data), "text").end == (7, 0)


def test_an_entry_keeps_what_else_was_counted(tmp_path):
    counted = {"tokens": 160, "skipped": [2, 31], "lengths": {"longest": 16}}
    data = Ledger("text").close("long", {"cursor": [3, 5], **counted})
    assert data["ledger"] == [{"stage": "long", "start": [0, 0], "end": [3, 5], **counted}]
    after = Ledger.after(stage(tmp_path / "long", data), "text").close("next", {"cursor": [9, 0], "tokens": 16})
    assert after["ledger"][0] == data["ledger"][0] and after["ledger"][1]["tokens"] == 16


def test_documents_that_are_passed_over_do_not_change_the_texts_identity(tmp_path):
    """Stages of one cascade differ in it: the long one passes over short documents, the others read all."""
    mixture = DatasetMixtureConfig(
        datasets=[DatasetConfig(path="json", data_files=str(write_text(tmp_path / "a.jsonl")))]
    )
    documents, kit = Documents(load_mixture(mixture)), tiny.tokenizer()
    streams = [PackedText(documents, kit, 16, min_document_tokens=least) for least in (0, 12)]
    assert len({text_sha256(stream, mixture.datasets) for stream in streams}) == 1


def test_ledger_refuses_other_text_no_text_and_no_stage(tmp_path):
    folder = stage(tmp_path / "short", Ledger("text").close("short", {"cursor": [3, 5], "tokens": 160}))
    with pytest.raises(ValueError, match="read other text.*document_seed"):
        Ledger.after(folder, "another text")
    with pytest.raises(ValueError, match="read no text"):
        Ledger.after(stage(tmp_path / "pruned", None), "text")
    with pytest.raises(FileNotFoundError, match="has not finished"):
        Ledger.after(str(tmp_path / "nowhere"), "text")


def test_identity_depends_on_what_numbers_the_tokens(tmp_path):
    file = str(write_text(tmp_path / "a.jsonl"))
    same = identity(file)
    assert same == identity(file) == identity(file, length=64), "the window is no part of it: stages differ in it"
    others = [
        identity(file, seed=1),
        identity(file, kit=tiny.tokenizer("abcdefghijklmnopqrstuvwxyz .")),
        identity(file, columns=["text"]),
        identity(str(write_text(tmp_path / "b.jsonl"))),
        identity([file, str(tmp_path / "b.jsonl")]),
        identity(str(write_text(tmp_path / "longer" / "a.jsonl", count=6))),  # text was added: another order
    ]
    assert len({same, *others}) == 1 + len(others)


@pytest.mark.parametrize("shape", [lambda path: path, lambda path: [path], lambda path: {"train": path}])
def test_identity_does_not_depend_on_the_folder(tmp_path, monkeypatch, shape):
    write_text(tmp_path / "one" / "a.jsonl")
    write_text(tmp_path / "two" / "deep" / "a.jsonl")
    hashes = {identity(shape(str(tmp_path / "one" / "a.jsonl"))), identity(shape(str(tmp_path / "two/deep/a.jsonl")))}
    monkeypatch.chdir(tmp_path)
    hashes.add(identity(shape("one/a.jsonl")))
    monkeypatch.chdir(tmp_path / "two")
    hashes.add(identity(shape("deep/a.jsonl")))
    hashes.add(identity(shape(os.path.join("..", "one", "a.jsonl"))))
    assert len(hashes) == 1


def test_identity_of_a_dataset_without_files(tmp_path):
    write_text(tmp_path / "set" / "train.jsonl")
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path=str(tmp_path / "set"))])
    stream = PackedText(Documents(load_mixture(mixture)), tiny.tokenizer(), 16)
    assert len(text_sha256(stream, mixture.datasets)) == 64


def test_shipped_text_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = "recipes/tiny/data/openstax.jsonl.gz"
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path="json", data_files=[file], columns=["text"])])
    assert load_mixture(mixture).column_names == ["text"]


def test_no_text_and_missing_files_are_named():
    with pytest.raises(ValueError, match="no text is named"):
        load_mixture(DatasetMixtureConfig(datasets=[]))
    with pytest.raises(FileNotFoundError, match="nothing.jsonl"):
        load_mixture(DatasetMixtureConfig(datasets=[DatasetConfig(path="json", data_files="nothing.jsonl")]))
