"""TRL's `datasets:` block, unchanged: every field of it, from YAML, against `datasets` itself."""

import dataclasses
import json
import subprocess
import sys

import pytest
from datasets import Dataset, IterableDataset, load_dataset
from trl import DatasetMixtureConfig, TrlParser, get_dataset
from trl.scripts.utils import DatasetConfig

from hf_cascade.data.documents import Documents, load_mixture
from hf_cascade.data.ledger import text_sha256
from hf_cascade.data.packing import PackedText
from hf_cascade.evaluate.preference_samples import load_rows
from tests.data import tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with jsonl, parquet and text files, and a dataset folder with two splits."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "set").mkdir()
    (folder / "many").mkdir()
    for number, name in enumerate(
        ("a.jsonl", "b.jsonl", "set/train.jsonl", "set/test.jsonl", "many/0.jsonl", "many/1.jsonl")
    ):
        rows = tiny.texts(10, seed=number, longest=20)
        Dataset.from_dict({"text": rows, "other": list(range(10))}).to_json(folder / name)
    Dataset.from_dict({"text": tiny.texts(10, seed=9), "other": [0] * 10}).to_parquet(folder / "c.parquet")
    (folder / "d.txt").write_text("one line\nanother\n")
    return folder


def texts(dataset) -> list[str]:
    return [row["text"] for row in dataset]


def of(files, name: str) -> list[str]:
    return texts(load_dataset("json", data_files=str(files / name), split="train"))


def parsed(files, tmp_path, block: str) -> DatasetMixtureConfig:
    """A mixture as the scripts read it from YAML; FILES stands for the folder."""
    (tmp_path / "stage.yaml").write_text(block.replace("FILES", str(files)))
    (mixture,) = TrlParser((DatasetMixtureConfig,)).parse_args_and_config(["--config", str(tmp_path / "stage.yaml")])
    return mixture


BLOCKS = {
    "data_files": ("[{path: json, data_files: FILES/a.jsonl}]", ["a.jsonl"]),
    "list of files": ("[{path: json, data_files: [FILES/b.jsonl, FILES/a.jsonl]}]", ["b.jsonl", "a.jsonl"]),
    "pattern": ("[{path: json, data_files: FILES/many/*.jsonl}]", ["many/0.jsonl", "many/1.jsonl"]),
    "dict of files": (
        "[{path: json, data_files: {train: FILES/a.jsonl, validation: FILES/b.jsonl}, split: validation}]",
        ["b.jsonl"],
    ),
    "data_dir": ("[{path: json, data_dir: FILES/many}]", ["many/0.jsonl", "many/1.jsonl"]),
    "folder": ("[{path: FILES/set}]", ["set/train.jsonl"]),
    "split": ("[{path: FILES/set, split: test}]", ["set/test.jsonl"]),
    "splits": ("[{path: FILES/set, split: train+test}]", ["set/train.jsonl", "set/test.jsonl"]),
    "name": ("[{path: FILES/set, name: default}]", ["set/train.jsonl"]),
    "mixture": (
        "[{path: FILES/set, columns: [text]}, {path: json, data_files: FILES/a.jsonl, columns: [text]}]",
        ["set/train.jsonl", "a.jsonl"],
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_each_field_of_the_block(files, tmp_path, name, streaming):
    block, expected = BLOCKS[name]
    mixture = parsed(files, tmp_path, f"datasets: {block}\nstreaming: {str(streaming).lower()}\n")
    rows = load_mixture(mixture)
    assert isinstance(rows, IterableDataset if streaming else Dataset)
    assert texts(rows) == [text for file in expected for text in of(files, file)]
    assert load_mixture(mixture, "test") is None
    stream = PackedText(Documents(rows), tiny.tokenizer(), 16)
    assert len(text_sha256(stream, mixture.datasets)) == 64 and len(next(stream.rows())["input_ids"]) == 16


def test_no_field_of_the_block_is_untested():
    tested = {"path", "name", "data_dir", "data_files", "split", "columns", "fraction"}
    assert {field.name for field in dataclasses.fields(DatasetConfig)} == tested
    assert {f.name for f in dataclasses.fields(DatasetMixtureConfig)} == {"datasets", "streaming", "test_split_size"}


def test_fractions_and_slices(files, tmp_path):
    block = "datasets: [{path: json, data_files: FILES/a.jsonl, split: 'train[:50%]'}]"
    assert texts(load_mixture(parsed(files, tmp_path, block))) == of(files, "a.jsonl")[:5]
    block = """datasets:
    - {path: json, data_files: FILES/a.jsonl, fraction: 0.75}
    - {path: json, data_files: FILES/b.jsonl, fraction: 0.25}
    """
    mixed = texts(load_mixture(parsed(files, tmp_path, block)))
    assert (
        mixed
        == [*of(files, "a.jsonl"), *of(files, "b.jsonl")[:3]]
        == texts(get_dataset(parsed(files, tmp_path, block))["train"])
    )
    with pytest.raises(ValueError, match="fraction.*not supported with streaming"):
        load_mixture(parsed(files, tmp_path, block + "\nstreaming: true"))


def test_other_builders_and_columns(files, tmp_path):
    parquet = load_mixture(
        parsed(files, tmp_path, "datasets: [{path: parquet, data_files: FILES/c.parquet, columns: [text]}]")
    )
    assert texts(parquet) == tiny.texts(10, seed=9) and parquet.column_names == ["text"]
    lines = load_mixture(parsed(files, tmp_path, "datasets: [{path: text, data_files: FILES/d.txt}]"))
    assert texts(lines) == ["one line", "another"]


SPLIT = "datasets: [{path: json, data_files: [FILES/a.jsonl, FILES/b.jsonl]}]\ntest_split_size: 0.25\n"


def test_split_off_rows_are_the_same_in_every_process(files, tmp_path):
    mixture = parsed(files, tmp_path, SPLIT)
    train, test = (texts(load_mixture(mixture, part)) for part in ("train", "test"))
    assert (len(train), len(test)) == (15, 5)
    assert sorted(train + test) == sorted(of(files, "a.jsonl") + of(files, "b.jsonl"))
    code = (
        "import json, sys; from trl import DatasetMixtureConfig; from hf_cascade.data.documents import load_mixture;"
        "m = DatasetMixtureConfig(datasets=[{'path': 'json', 'data_files': sys.argv[1:]}], test_split_size=0.25);"
        "print(json.dumps([[row['text'] for row in load_mixture(m, part)] for part in ('train', 'test')]))"
    )
    command = [sys.executable, "-c", code, str(files / "a.jsonl"), str(files / "b.jsonl")]
    said = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
    assert json.loads(said.splitlines()[-1]) == [train, test]


def test_the_rows_split_off_are_part_of_the_texts_identity(files, tmp_path):
    hashes = set()
    for size in ("", "test_split_size: 0.25", "test_split_size: 0.5"):
        mixture = parsed(files, tmp_path, SPLIT.splitlines()[0] + "\n" + size)
        stream = PackedText(Documents(load_mixture(mixture)), tiny.tokenizer(), 16)
        hashes.add(text_sha256(stream, mixture.datasets))
    assert len(hashes) == 3


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    """`datasets` raises errors that are no `ValueError`: scripts would show a traceback."""
    bad = {
        "torn.jsonl": '{"text": "a"}\n{"text": "b',
        "no.jsonl": "a word",
        "no.parquet": "a word",
    }
    for name, content in bad.items():
        (tmp_path / name).write_text(content)
        kind = "parquet" if name.endswith(".parquet") else "json"
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*\): see that"):
            load_mixture(parsed(tmp_path, tmp_path, f"datasets: [{{path: {kind}, data_files: FILES/{name}}}]"))
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*\): see that"):
            load_rows(str(tmp_path / name))


def test_a_stream_cannot_be_split(files, tmp_path):
    with pytest.raises(ValueError, match="test_split_size=0.25: a streamed dataset cannot be split"):
        load_mixture(parsed(files, tmp_path, SPLIT + "streaming: true"))
