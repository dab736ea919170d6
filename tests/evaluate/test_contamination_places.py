"""Training text is found from any working directory, of shipped models too, and in a run that was moved."""

import json
import shutil

from hf_cascade import manifest
from hf_cascade.evaluate.contamination.sources import of_model


def stage(path, inputs: dict, **config) -> None:
    path.mkdir(parents=True)
    (path / "cascade.json").write_text(json.dumps({"schema": 1, "config": config, "inputs": inputs}))


def test_text_of_a_shipped_parent_and_of_a_run_elsewhere(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "tiny"
    stage(run / "pruned", {"model": "recipes/tiny/parent"}, calibration="calibration.jsonl")
    stage(run / "difficulty", {"model": "runs/tiny/pruned"}, prompts="problems.jsonl")
    stage(run / "stem", {"model_name_or_path": "runs/tiny/pruned", "prompts_from": "runs/tiny/difficulty"})
    moved = shutil.move(run, tmp_path / "elsewhere")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    text, unknown = of_model(str(moved / "stem"))
    shipped = {f"recipes/tiny/data/{name}.jsonl.gz, train" for name in ("openstax", "rust_book", "the_algorithms")}
    assert set(text) == {"calibration.jsonl", "problems.jsonl"} | shipped
    assert unknown == ["parent-short"]  # the shipped parent's first stage, which is not shipped


def test_an_input_of_the_same_run_and_one_of_elsewhere(tmp_path, monkeypatch):
    """A stage of the run has the run's name before its own; another folder of that name has not."""
    for place in ("there/runs/tiny", "here/runs/tiny", "models"):
        stage(tmp_path / place / "teacher", {})
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / "there" / "runs" / "tiny" / "sft"
    assert manifest.beside("runs/tiny/teacher", folder) == tmp_path / "there" / "runs" / "tiny" / "teacher"
    assert manifest.beside(str(tmp_path / "models" / "teacher"), folder) == tmp_path / "models" / "teacher"
    assert manifest.beside("runs/moved/teacher", folder) == tmp_path / "there" / "runs" / "tiny" / "teacher"
    assert manifest.beside("runs/tiny/judge", folder) is None
