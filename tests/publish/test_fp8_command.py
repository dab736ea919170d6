"""`hf-cascade fp8` from its flags: text, conversations, and refusals in one line."""

import gzip
import json
import runpy
import sys

import pytest
from transformers import AutoTokenizer

from hf_cascade import manifest
from hf_cascade.publish import fp8_command
from tests.publish.test_fp8 import make_source, words

TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ m['content'] }}{% endfor %} {{ eos_token }}"


@pytest.fixture
def source(tmp_path):
    """A model folder with a chat template."""
    folder = make_source(tmp_path / "source", "ministral3")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write_rows(path, rows):
    """JSON lines, compressed."""
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    return str(path)


def run(source, target, *flags) -> int:
    """The command in this process."""
    return fp8_command.main(["--model", str(source), "--output_dir", str(target), "--device", "cpu", *flags])


def test_text_in_twin_out(tmp_path, source, capsys):
    text = write_rows(tmp_path / "text.jsonl.gz", [{"text": document} for document in words(24)])
    assert run(source, tmp_path / "twin", "--calibration", text, "--calibration_samples", "4") == 0
    said = capsys.readouterr().out
    assert "28 layers in FP8" in said and said.count("top-1 agreement") == 2
    record = manifest.read(tmp_path / "twin")
    assert record["config"]["calibration_samples"] == 4 and record["config"]["calibration"] == text
    assert run(source, tmp_path / "twin", "--calibration", text) == 0
    assert "already finished" in capsys.readouterr().err


def test_conversations_are_rendered_with_the_models_template(tmp_path, source):
    message = {"role": "user", "content": "w5 w6"}
    answer = {"role": "assistant", "content": "w7"}
    rows = [{"messages": [message, answer], "prompt": [message], "completion": [answer], "text": "w3"}] * 4
    file = write_rows(tmp_path / "chats.jsonl.gz", rows)
    tokenizer = AutoTokenizer.from_pretrained(source)
    found = []
    for fields in (["messages"], ["prompt", "completion"], ["text"]):
        arguments = fp8_command.Fp8Arguments(str(source), "twin", file, calibration_field=fields)
        found.append(fp8_command.documents(file, arguments, tokenizer))
    assert found[0] == found[1] == [" w5 w6 w7 </s>"] * 4
    assert found[2] == ["w3"] * 4
    assert run(source, tmp_path / "twin", "--calibration", file, "--calibration_field", "prompt", "completion") == 0


def test_what_cannot_be_rendered_is_refused(tmp_path, source):
    message = [{"role": "user", "content": "w5"}]
    file = write_rows(tmp_path / "rows.jsonl.gz", [{"messages": message, "text": "w3", "number": 3}] * 4)
    target = tmp_path / "twin"
    for fields, reason in ((["number"], "nor columns of messages"), (["messages", "text"], "nor columns of messages")):
        with pytest.raises(ValueError, match=reason):
            run(source, target, "--calibration", file, "--calibration_field", *fields)
    (source / "chat_template.jinja").write_text("{{ raise_exception('roles') }}")
    with pytest.raises(ValueError, match="refuses a conversation: roles"):
        run(source, target, "--calibration", file, "--calibration_field", "messages")
    (source / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        run(source, target, "--calibration", file, "--calibration_field", "messages")
    with pytest.raises(ValueError, match="device=cuda:7"):
        fp8_command.main(["--model", str(source), "--output_dir", "x", "--calibration", file, "--device", "cuda:7"])
    assert not target.exists()


def test_the_module_runs_and_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, capsys):
    flags = ["--model", str(tmp_path), "--output_dir", str(tmp_path / "twin"), "--calibration", "x.txt"]
    monkeypatch.setattr(sys, "argv", ["fp8", *flags])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(fp8_command.__file__, run_name="__main__")
    assert end.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said == f"hf-cascade: error: model={tmp_path} is no model folder: it has no config.json"
