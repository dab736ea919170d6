"""The gate on the contamination report: it must be about the text itself that the stages read, not about its name."""

import json
import shutil

import pytest

from hf_cascade import manifest
from hf_cascade.cli import main
from hf_cascade.publish.gate import decide
from tests.publish.gate_lines import TINY, change, failed, only

NAME = "contamination is reported"
SUITE = ("--suite", "tiny")


@pytest.fixture
def trained(folder, tmp_path, monkeypatch):
    """The folder, with a manifest that recorded which text its stage read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "what the model was trained on"}) + "\n")
    told = manifest.read(folder)
    part = {"path": "json", "data_files": "text.jsonl", "split": "train"}
    told = {name: told[name] for name in ("stage", "run", "inputs", "metrics", "output")}
    manifest.write(folder, config={"datasets": [part]}, **told)
    (folder / "contamination.json").unlink()
    return folder


def report(folder, *more: str) -> None:
    assert main(["contamination", "--model", str(folder), *SUITE, *more]) == 0


def test_a_report_on_another_text_of_that_name(trained, tmp_path, capsys):
    only(trained, NAME, "no contamination.json")
    report(trained)
    assert not failed(trained, TINY) and "warning" not in capsys.readouterr().err
    shutil.copy(tmp_path / "text.jsonl", tmp_path / "kept.jsonl")
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "something else"}) + "\n")
    assert not failed(trained, TINY)  # the report was made before, on the text that was read
    report(trained)
    assert "text.jsonl is not what stage 3b read" in capsys.readouterr().err
    only(trained, NAME, "of text.jsonl it is about another content than the stages read", "hf-cascade contamination")
    report(trained, "--train", "kept.jsonl")
    assert not failed(trained, TINY)


def test_a_report_that_does_not_say_which_content(trained):
    report(trained)
    told = json.loads((trained / "contamination.json").read_text())
    del told["text_sha256"]
    (trained / "contamination.json").write_text(json.dumps(told))
    only(trained, NAME, "contamination.json has no hashes of the text", "run the command again", "hf-cascade contamin")
    report(trained)
    assert not failed(trained, TINY)


def figure(folder) -> str:
    (line,) = [line for line in decide(folder, TINY).lines if line.name == NAME]
    assert line.passed
    return line.figure


def test_files_without_a_recorded_hash_are_told(trained):
    change(trained, "cascade.json", text_sha256={})
    report(trained)
    assert figure(trained).endswith("; by name alone, as no stage recorded hashes: text.jsonl, train")


@pytest.mark.parametrize(
    ("part", "label"),
    [
        ({"path": "json", "data_dir": "corpus", "split": "train"}, "corpus, train"),
        ({"path": "corpus", "data_files": "a.jsonl", "split": "train"}, "corpus, a.jsonl, train"),
    ],
)
def test_text_in_a_folder_is_bound_to_its_content(trained, tmp_path, part, label):
    """Of each such source alone, whatever hashes other files have."""
    (tmp_path / "corpus").mkdir()
    file = tmp_path / "corpus" / "a.jsonl"
    file.write_text(json.dumps({"text": "in a folder"}) + "\n")
    told = manifest.read(trained)
    parts = [*told["config"]["datasets"], part]
    change(trained, "cascade.json", config={"datasets": parts})
    report(trained)
    assert figure(trained).endswith(f"; by name alone, as no stage recorded hashes: {label}")
    told = {name: told[name] for name in ("stage", "run", "inputs", "metrics", "output")}
    manifest.write(trained, config={"datasets": parts}, **told)
    report(trained)
    assert "by name alone" not in figure(trained)
    file.write_text(json.dumps({"text": "something else"}) + "\n")
    report(trained)
    only(trained, NAME, "of corpus/a.jsonl it is about another content than the stages read")


def test_another_revision_of_a_data_set_is_another_text(folder):
    told = manifest.read(folder)
    told["config"]["datasets"] = [{"path": "org/set", "split": "train", "revision": "b" * 40}]
    change(folder, "cascade.json", config=told["config"])
    change(folder, "contamination.json", text=["org/set, train"])
    only(folder, NAME, "not about org/set, train, revision bbbb")
    change(folder, "contamination.json", text=[f"org/set, train, revision {'b' * 40}"])
    assert not failed(folder, TINY)
