"""manifest.py: what cascade.json holds, that it is whole or absent, and how it names a model's ancestors."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

import hf_cascade
from hf_cascade import manifest


@pytest.fixture(autouse=True)
def not_under_a_runner(monkeypatch):
    monkeypatch.delenv(manifest.STAGE_VARIABLE, raising=False)


def write(folder: Path, stage: str = "14b-pruned", **changes) -> dict:
    folder.mkdir(exist_ok=True)
    given = {"run": "prune", "config": {"intermediate_size": 256}, "inputs": {"model": "org/parent"}, "metrics": {}}
    return manifest.write(folder, stage=stage, **(given | changes))


def test_round_trip(tmp_path):
    data = {"cursor": {"document": 3, "token": 17}, "tokens": 1024, "ledger": []}
    written = write(tmp_path, metrics={"seconds": 1.5, "path": Path("plot.png")}, data=data, output={"bytes": 8})
    read = manifest.read(tmp_path)
    assert read == written | {"metrics": {"seconds": 1.5, "path": "plot.png"}}
    assert (read["schema"], read["stage"], read["run"]) == (1, "14b-pruned", "prune")
    assert read["data"] == data and read["output"] == {"bytes": 8}
    assert read["versions"]["hf_cascade"] == hf_cascade.__version__
    assert {"python", "torch", "transformers", "trl", "datasets"} <= read["versions"].keys()
    assert read["created"].endswith("+00:00")


def test_finished_means_written(tmp_path):
    assert not manifest.is_finished(tmp_path)
    assert not manifest.is_finished(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="has not finished"):
        manifest.read(tmp_path)
    write(tmp_path)
    assert manifest.is_finished(tmp_path)


def test_a_crash_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def crash(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_json_cannot_hold_before_it_writes(tmp_path):
    with pytest.raises(TypeError, match=r"object.*does not fit cascade\.json"):
        write(tmp_path, metrics={"model": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{torn", "[]", '{"schema": 99}'])
def test_refuses_a_file_it_does_not_know(tmp_path, text):
    (tmp_path / manifest.FILE).write_text(text)
    with pytest.raises(ValueError, match=r"cascade\.json"):
        manifest.read(tmp_path)


def test_the_runner_names_the_stage(tmp_path, monkeypatch):
    stage = {"name": "8b-short", "run": "distill", "fingerprint": "f" * 64}
    monkeypatch.setenv(manifest.STAGE_VARIABLE, json.dumps(stage))
    written = write(tmp_path, stage="folder", run="distill")
    assert (written["stage"], written["fingerprint"]) == ("8b-short", "f" * 64)


def test_lineage_is_the_chain_of_model_inputs(tmp_path):
    parent, pruned, short, report = (tmp_path / name for name in ("parent", "pruned", "short", "report"))
    assert write(parent, "parent", run="pretrain", inputs={})["lineage"] == []
    write(pruned, "pruned", inputs={"model": str(parent)})
    inputs = {"teacher_model_name_or_path": str(parent), "model_name_or_path": str(pruned)}
    write(short, "short", run="distill", inputs=inputs)
    record = write(report, "report", run="evaluate", inputs={"model": [str(short), str(parent)]})
    assert [ancestor["stage"] for ancestor in record["lineage"]] == ["parent", "pruned", "short"]
    assert [ancestor["run"] for ancestor in record["lineage"]] == ["pretrain", "prune", "distill"]
    assert record["lineage"][1]["folder"] == "pruned"
    expected = hashlib.sha256((pruned / manifest.FILE).read_bytes()).hexdigest()
    assert record["lineage"][1]["manifest_sha256"] == expected


def test_config_hash_ignores_where_a_run_lies_but_nothing_else(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place / "pruned").mkdir(parents=True)
    here, there = ({"model": str(tmp_path / place / "pruned")} for place in ("here", "there"))
    same = manifest.config_sha256("prune", {"a": 1, "b": 2}, here)
    assert same == manifest.config_sha256("prune", {"b": 2, "a": 1}, there)
    assert same != manifest.config_sha256("prune", {"a": 1, "b": 3}, here)
    assert same != manifest.config_sha256("distill", {"a": 1, "b": 2}, here)
    assert same != manifest.config_sha256("prune", {"a": 1, "b": 2}, {"model": "org/pruned"})


def test_git_sha_is_this_projects(tmp_path, monkeypatch):
    root = Path(hf_cascade.__file__).parents[1]
    monkeypatch.chdir(tmp_path)  # not the working directory's
    sha = manifest._git_sha()
    if (root / ".git").exists():
        answer = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
        assert sha == answer.stdout.strip()
    else:
        assert sha is None


def test_describe_reads_the_language_models_dimensions(tmp_path):
    text = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text, "tie_word_embeddings": True}))
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    (tmp_path / "tokenizer.json").write_bytes(b"123")
    output = manifest.describe(tmp_path, num_parameters=42)
    assert (output["num_parameters"], output["bytes"], output["num_hidden_layers"]) == (42, 8, 2)
    assert output["tie_word_embeddings"] is True
