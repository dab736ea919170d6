"""Hashes of the text that a stage read: every local file that its settings name, however they name it."""

import hashlib
import os

import pytest
from datasets import load_dataset
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from hf_cascade import manifest
from hf_cascade.data.contents import BUILDERS, has_no_hash, sha256_of_text


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_all_ways_to_name_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        (tmp_path / f"part{number}.jsonl").write_text(f"{number}\n")
    (tmp_path / "folder" / "in").mkdir(parents=True)
    (tmp_path / "folder" / "in" / "a.txt").write_text("a")
    config = {
        "datasets": [
            {"path": "json", "data_files": "part0.jsonl"},
            {"path": "json", "data_files": ["part1.jsonl", "part[23].jsonl"]},
            {"path": "json", "data_files": {"train": ["part4.jsonl"], "test": "https://example.org/x.jsonl"}},
            {"path": "folder"},
            {"path": "org/name", "revision": "abc"},
        ],
        "calibration": "part5.jsonl",
        "prompts": "org/prompts",
        "seed": 3,
    }
    found = sha256_of_text(config)
    expected = {f"part{number}.jsonl": sha256(f"{number}\n") for number in range(6)}
    assert found == {**expected, "folder/in/a.txt": sha256("a")}
    assert sha256_of_text({}) == {}


def test_a_manifest_has_them(tmp_path):
    (tmp_path / "text.jsonl").write_text("{}")
    config = {"datasets": [{"path": "json", "data_files": str(tmp_path / "text.jsonl")}]}
    told = manifest.write(tmp_path, stage="a", run="sft", config=config, inputs={}, metrics={})
    assert told["text_sha256"] == {str(tmp_path / "text.jsonl"): sha256("{}")}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"path": "json", "data_dir": "corpus"}, ["corpus/a.jsonl", "corpus/in/b.jsonl"]),
        ({"path": "json", "data_dir": "corpus", "data_files": "in/*.jsonl"}, ["corpus/in/b.jsonl"]),
        ({"path": "corpus", "data_files": "a.jsonl"}, ["corpus/a.jsonl"]),
        (
            {"path": "corpus", "data_files": {"train": ["in/b.jsonl", "*.jsonl"]}},
            ["corpus/a.jsonl", "corpus/in/b.jsonl"],
        ),
        ({"path": "corpus", "data_files": "**/*.jsonl"}, ["corpus/a.jsonl", "corpus/in/b.jsonl"]),
        ({"path": "corpus", "data_dir": "in"}, ["corpus/in/b.jsonl"]),
        ({"path": "corpus", "data_dir": "in", "data_files": "b.jsonl"}, ["corpus/in/b.jsonl"]),
        ({"path": "./corpus"}, ["corpus/a.jsonl", "corpus/in/b.jsonl"]),
        ({"path": "json", "data_files": "a.jsonl"}, ["a.jsonl"]),
    ],
)
def test_the_files_are_those_that_datasets_reads(part, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "corpus/a.jsonl", "corpus/in/b.jsonl", "corpus/.cache/c.jsonl"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n')
    recorded = sha256_of_text({"datasets": [part]})
    assert recorded == {name: sha256((tmp_path / name).read_text()) for name in expected}
    rows = load_dataset(**part, split="train", streaming=True)
    assert sorted({row["text"] for row in rows}) == expected
    assert has_no_hash(part, {}) and has_no_hash(part, {"other.jsonl": ""}) and not has_no_hash(part, recorded)


@pytest.mark.parametrize(
    "part",
    [{"path": "org/set", "data_files": "a.jsonl"}, {"path": "json", "data_files": "https://example.org/a.jsonl"}],
)
def test_what_is_not_on_this_machine_has_no_hash_and_lacks_none(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}")
    assert sha256_of_text({"datasets": [part]}) == {} and not has_no_hash(part, {})


def test_all_builders_are_known():
    assert set(_PACKAGED_DATASETS_MODULES) <= set(BUILDERS)
