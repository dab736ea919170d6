"""Hashes of the text that a stage read: every local file that its settings name, however they name it."""

import hashlib

from hf_cascade import manifest
from hf_cascade.data.contents import sha256_of_text


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
