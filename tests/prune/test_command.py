"""`hf-cascade prune` on folders and files: what it leaves, and that bad input leaves nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_cascade import manifest
from hf_cascade.cli import main as hf_cascade
from tests.prune.families import VOCABULARY, build, save_tokenizer

SHAPE = ["--num_hidden_layers", "3", "--hidden_size", "36", "--intermediate_size", "56"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A Qwen3 folder with tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("models") / "parent"
    build("qwen3", dtype=torch.float32).save_pretrained(folder)
    save_tokenizer(folder, chat_template="{{ messages[0]['content'] }}")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """JSON lines of random words: 60 documents of 40."""
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    words = torch.randint(3, VOCABULARY, (60, 40), generator=torch.Generator().manual_seed(0)).tolist()
    file.write_text("".join(json.dumps({"text": " ".join(f"w{w}" for w in row)}) + "\n" for row in words))
    return file


def prune(*arguments) -> int:
    return hf_cascade(["prune", *map(str, arguments)])


def test_a_folder_that_opens_with_everything_the_parent_had(parent, text, tmp_path, capsys):
    child = tmp_path / "child"
    flags = ["--calibration", text, "--calibration_length", 32, "--calibration_samples", 40]
    assert prune("--model", parent, "--output_dir", child, *SHAPE, *flags) == 0
    model = AutoModelForCausalLM.from_pretrained(child)
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.intermediate_size) == (3, 36, 56)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (child / name).read_bytes() == (parent / name).read_bytes(), name
    record = manifest.read(child)
    assert record["run"] == "prune" and record["output"]["num_parameters"] == model.num_parameters()
    assert record["config"]["calibration_samples"] == 40 and record["inputs"] == {"model": str(parent)}
    report = json.loads((child / "prune_report.json").read_text())
    assert len(report["kept_layers"]) == 3 and report["calibration_tokens"] == 40 * 32
    assert list(tmp_path.iterdir()) == [child], "a draft was left behind"
    assert "parameters from" in capsys.readouterr().out

    assert prune("--model", parent, "--output_dir", child, *SHAPE, *flags) == 2
    assert "is not empty" in capsys.readouterr().err


def test_defaults_fit_small_models_and_short_text(parent, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("w5 w6 w7 w8 w9 w10 " * 20)
    assert prune("--model", parent, "--output_dir", tmp_path / "child", *SHAPE, "--calibration", text) == 0
    assert "121 tokens of calibration text are few" in capsys.readouterr().err


def test_own_shape_needs_no_text(parent, tmp_path):
    assert prune("--model", parent, "--output_dir", tmp_path / "child") == 0
    ours, theirs = load_file(tmp_path / "child/model.safetensors"), load_file(parent / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_config_file_gives_the_same_child(parent, text, tmp_path):
    settings = tmp_path / "prune.yaml"
    settings.write_text(f"calibration: {text}\ncalibration_length: 32\nnum_hidden_layers: 2\nmethod: paper\n")
    assert prune("--config", settings, "--model", parent, "--output_dir", tmp_path / "one") == 0
    flags = ["--calibration", text, "--calibration_length", 32, "--num_hidden_layers", 2, "--method", "paper"]
    assert prune("--model", parent, "--output_dir", tmp_path / "two", *flags) == 0
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--hidden_size", 36], "give --calibration FILE_OR_DATASET"),
        (["--hidden_size", 36, "--calibration", "./missing.jsonl"], "missing.jsonl does not exist"),
        (["--hidden_size", 36, "--calibration", "missing.jsonl"], "missing.jsonl is no file"),
        (["--hidden_size", 36, "--calibration", "TEXT", "--calibration_field", "body"], "has no column 'body'"),
        (["--hidden_size", 36, "--calibration", "TEXT", "--calibration_length", 999], "allowed is 2 to 256"),
        (["--hidden_size", 99, "--calibration", "TEXT"], "hidden_size=99: allowed is 1 to 48"),
        (["--num_hidden_layers", 9, "--calibration", "TEXT"], "num_hidden_layers=9: allowed is 1 to 4"),
        (["--model", "./nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(parent, text, tmp_path, capsys, flags, complaint):
    flags = [text if flag == "TEXT" else flag for flag in flags]
    assert prune("--model", parent, "--output_dir", tmp_path / "child", *flags) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-cascade: error:")]
    assert len(said) == 1 and complaint in said[0], said
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_lacks_weights_is_refused(parent, text, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in parent.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert prune("--model", broken, "--output_dir", tmp_path / "child", *SHAPE, "--calibration", text) == 2
    assert "lacks 1 weights, model.layers.1.mlp.up_proj.weight among them" in capsys.readouterr().err
    assert not (tmp_path / "child").exists()
