"""FP8 twins that are not made: bad models, texts and folders, and that nothing is left after a failure."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_cascade.publish import fp8
from tests.publish.test_fp8 import PARENT, make_source, words


@pytest.mark.parametrize("moment", ["write_files", "copy_companions", "divergences"])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, moment):
    source = make_source(tmp_path / "source", "ministral3")

    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(fp8, moment, fail)
    with pytest.raises(OSError, match="No space"):
        fp8.convert(source, tmp_path / "twin", words(16))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    monkeypatch.undo()
    (tmp_path / ".twin.partial").mkdir()  # of a killed one
    (tmp_path / ".twin.partial" / "model-00009.safetensors").write_text("torn")
    fp8.convert(source, tmp_path / "twin", words(16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "twin"]
    assert not (tmp_path / "twin" / "model-00009.safetensors").exists()


def _empty(folder):
    for file in folder.iterdir():
        file.unlink()


def _says_quantised(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))


def _is_quantised(folder):
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _broken(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


BAD = {
    "no model": (_empty, "is no model folder"),
    "quantised": (_says_quantised, "quantised already .fp8."),
    "quantised tensors": (_is_quantised, "stored as F8_E4M3.*quantised already"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds neither"),
    "torn": (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99), "is damaged"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    "broken": (_broken, "NaN or infinite"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_models_are_refused_and_nothing_is_written(tmp_path, kind):
    spoil, message = BAD[kind]
    spoil(make_source(tmp_path / "source", "ministral3"))
    with pytest.raises(ValueError, match=message):
        fp8.convert(tmp_path / "source", tmp_path / "twin", words(16))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_full_folders_and_empty_texts_are_refused(tmp_path):
    source = make_source(tmp_path / "source", "ministral3")
    for target in (source, PARENT):
        with pytest.raises(ValueError, match="is not empty"):
            fp8.convert(source, target, words(16))
    with pytest.raises(ValueError, match="is a file"):
        fp8.convert(source, source / "config.json", words(16))
    for texts, message in (([], "empty"), (["w3 w4"], "a single window")):
        with pytest.raises(ValueError, match=message):
            fp8.convert(source, tmp_path / "twin", texts)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_dimensions_that_fp8_products_refuse_are_named(tmp_path, capsys):
    source = make_source(tmp_path / "source", "ministral3", intermediate_size=72)
    fp8.convert(source, tmp_path / "twin", words(16), samples=2)
    assert "12 layers have dimensions that are no multiple of 16" in capsys.readouterr().err


def test_the_source_is_never_changed(tmp_path):
    source = make_source(tmp_path / "source", "ministral3")
    shutil.copytree(source, tmp_path / "before")
    fp8.convert(source, tmp_path / "twin", words(16), samples=2)
    for file in source.iterdir():
        assert file.read_bytes() == (tmp_path / "before" / file.name).read_bytes()
