"""Opening models: whole or not at all, with a sentence that says why; and comparing tokenizers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_cascade.loading import check_same_tokenizer, copy_companions, load_config, load_model, load_tokenizer
from tests.data import tiny
from tests.prune import families


@pytest.fixture
def folder(tmp_path):
    families.build("llama", dtype=torch.float32, num_hidden_layers=2).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", ["llama", "ministral3", "mistral3"])
@pytest.mark.parametrize("tied", [False, True])
def test_loads_what_was_saved(tmp_path, family, tied):
    model = families.build(family, dtype=torch.bfloat16, num_hidden_layers=2, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is type(model) and loaded.dtype == torch.bfloat16
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert load_model(str(tmp_path), dtype="float32").dtype == torch.float32


def test_weights_must_be_all_there(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, model.layers.1.mlp.up_proj.weight among them"):
        load_model(str(folder))


def test_weights_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(ValueError, match=r"model does not fit its config.*mlp"):
        load_model(str(folder))


def test_weights_that_the_config_has_no_place_for(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(ValueError, match=r"holds 9 weights that its config has no place for, model.layers.1"):
        load_model(str(folder))


@pytest.mark.parametrize("damage", ["cut", "gone", "config", "nowhere"])
def test_what_cannot_be_opened(folder, damage):
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "gone":
        weights.unlink()
    elif damage == "config":
        (folder / "config.json").unlink()
    name = str(folder / "nothing") if damage == "nowhere" else str(folder)
    with pytest.raises(ValueError, match="cannot be opened as a model") as error:
        load_model(name)
    assert "\n" not in str(error.value)


def test_config_and_tokenizer(folder, tmp_path):
    assert load_config(str(folder)).model_type == "llama"
    assert load_tokenizer(str(folder)).get_vocab() == tiny.tokenizer().get_vocab()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no tokenizer that opens"):
        load_tokenizer(str(tmp_path / "empty"))
    record = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**record, "model": {"type": "none of theirs"}}))
    with pytest.raises(ValueError, match="has no tokenizer that opens"):  # where tokenizers raises Exception itself
        load_tokenizer(str(folder))
    with pytest.raises(ValueError, match="cannot be opened as a model"):
        load_config(str(tmp_path / "empty"))


def test_companions_are_copied_as_they_are(folder, tmp_path):
    for name in ("chat_template.jinja", "generation_config.json", "added_tokens.json", "tekken.json"):
        (folder / name).write_text(f"{name} of the parent")
    (folder / "tokenizer_pictures").mkdir()
    (folder / "README.md").write_text("not a companion")
    (tmp_path / "out").mkdir()
    copy_companions(str(folder), tmp_path / "out")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert copied.keys() == {
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("generation_config.json", "added_tokens.json", "tekken.json"),
    }
    assert all((folder / name).read_bytes() == content for name, content in copied.items())


def test_tokenizers_are_compared_id_by_id():
    check_same_tokenizer(tiny.tokenizer(), tiny.tokenizer())
    with pytest.raises(
        ValueError, match=r"student and teacher have different tokenizers: 2 tokens differ \('a': 4 and 5"
    ):
        check_same_tokenizer(tiny.tokenizer("abc"), tiny.tokenizer("bac"))
    with pytest.raises(ValueError, match=r"model and parent .*1 tokens differ \('d': None and 7\)"):
        check_same_tokenizer(tiny.tokenizer("abc"), tiny.tokenizer("abcd"), ("model", "parent"))
