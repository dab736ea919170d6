"""What cannot be pruned says so in one line, with exit status 2, and leaves neither folder nor draft."""

import errno
import json
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    Mistral3Config,
    MixtralConfig,
    PixtralVisionConfig,
    Qwen3MoeConfig,
)

from hf_cascade.cli import main as hf_cascade
from hf_cascade.prune import command, draft, scratch, state
from hf_cascade.prune.checkpoint import INDEX, SINGLE
from hf_cascade.prune.shards import ShardWriter
from tests.prune.families import SHAPE, VOCABULARY, build, save_tokenizer

TARGET = ["--num_hidden_layers", "3", "--hidden_size", "36", "--intermediate_size", "56"]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No plots, which would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.pruning_plots, "pruning", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A Qwen3 folder of one file, and one of several shards."""
    place = tmp_path_factory.mktemp("models")
    model = build("qwen3", dtype=torch.float32)
    for name, size in (("single", "5GB"), ("shards", "100KB")):
        model.save_pretrained(place / name, max_shard_size=size)
        save_tokenizer(place / name)
    return place


@pytest.fixture
def single(saved, tmp_path):
    """A copy to break, in one file."""
    return shutil.copytree(saved / "single", tmp_path / "parent")


@pytest.fixture
def shards(saved, tmp_path):
    """A copy to break, in several."""
    return shutil.copytree(saved / "shards", tmp_path / "parent")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of random words: 60 windows of 32."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    numbers = torch.randint(3, VOCABULARY, (60 * 32,), generator=torch.Generator().manual_seed(0)).tolist()
    file.write_text(" ".join(f"w{number}" for number in numbers))
    return file


@pytest.fixture
def run(text, tmp_path, capsys):
    """The command on a parent, its child in a folder of its own; gives exit status and what stderr's last line says."""
    (tmp_path / "out").mkdir()

    def prune(parent, *flags) -> tuple[int, str]:
        given = {"--model": parent, "--output_dir": tmp_path / "out" / "child", "--calibration": text}
        given |= {"--calibration_length": 32, "--calibration_samples": 40}
        for name, value in zip(flags[::2], flags[1::2], strict=True):
            given[name] = value
        capsys.readouterr()
        status = hf_cascade(["prune", *(str(part) for pair in given.items() for part in pair if part is not None)])
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("hf-cascade: error: ")]
        assert len(errors) == (status != 0) and (status == 0 or errors[0] == lines[-1]), lines
        return status, (errors or [""])[0]

    return prune


@pytest.fixture
def refused(run, tmp_path):
    """As `run`, for what must be refused and leave nothing; gives what it said."""

    def prune(parent, *flags) -> str:
        before = sorted(tmp_path.rglob("*"))
        status, said = run(parent, *(flags or TARGET))
        assert status == 2
        assert sorted(tmp_path.rglob("*")) == before
        return said

    return prune


def change_weights(file, change) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def change_config(folder, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Files of a checkpoint


def test_a_missing_shard(shards, refused):
    names = sorted(file.name for file in shards.glob("*.safetensors"))
    assert len(names) > 2
    (shards / names[1]).unlink()
    said = refused(shards)
    assert f"lacks 1 of its {len(names)} shards, {names[1]} among them: download the checkpoint again" in said


@pytest.mark.parametrize("kept", [0, 4, 100, 50_000])
def test_a_truncated_shard(shards, refused, kept):
    """As an interrupted download leaves it: nothing, a part of the header, a part of the weights."""
    file = sorted(shards.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:kept])
    assert f"{file} is damaged: " in refused(shards)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": {}}}', "\udcff"],
)
def test_an_index_that_is_none(shards, refused, content):
    (shards / INDEX).write_bytes(content.encode(errors="surrogateescape"))
    assert f"{shards / INDEX} is no index of shards" in refused(shards)


def test_a_weight_that_no_shard_holds(shards, refused):
    index = json.loads((shards / INDEX).read_text())
    change_weights(shards / index["weight_map"][UP], lambda weights: weights.pop(UP))
    assert f"lacks 1 weights, {UP} among them: the checkpoint is not whole" in refused(shards)


def test_a_head_that_is_missing_from_an_untied_model(single, refused):
    change_weights(single / SINGLE, lambda weights: weights.pop("lm_head.weight"))
    assert "lacks 1 weights, lm_head.weight among them" in refused(single)


def test_a_weight_of_another_shape(shards, refused):
    index = json.loads((shards / INDEX).read_text())
    change_weights(shards / index["weight_map"][UP], lambda weights: weights.update({UP: torch.zeros(48, 80)}))
    assert f"does not fit its config: {UP} is [48, 80] in the checkpoint and [80, 48] by the config" in refused(shards)


def test_weights_without_a_place(single, refused):
    extra = {
        "model.layers.4.mlp.up_proj.weight": torch.zeros(80, 48),
        "model.layers.0.self_attn.q_proj.bias": torch.zeros(48),
    }
    change_weights(single / SINGLE, lambda weights: weights.update(extra))
    said = refused(single)
    assert "holds 2 weights that its config has no place for, model.layers.0.self_attn.q_proj.bias among them" in said
    assert "config.json and the weights are not of one model" in said


@pytest.mark.parametrize(("dtype", "code"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_quantised_weights(single, refused, dtype, code):
    change_weights(single / SINGLE, lambda weights: weights.update({UP: weights[UP].to(dtype)}))
    said = refused(single)
    assert f"{UP} in {single / SINGLE} is stored as {code}" in said
    assert "quantised weights cannot be pruned; use the model's 16-bit or 32-bit checkpoint" in said


def test_a_config_that_says_quantised(single, refused):
    change_config(single, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert "quantised weights cannot be pruned" in refused(single)


@pytest.mark.parametrize(("file", "hint"), [("pytorch_model.bin", True), ("model.gguf", True), ("other.txt", False)])
def test_weights_of_another_format(single, refused, file, hint):
    (single / SINGLE).rename(single / file)
    said = refused(single)
    assert f"{single} holds neither {SINGLE} nor {INDEX}" in said
    assert (f"{file} is of another format: save it again with save_pretrained" in said) == hint


@pytest.mark.parametrize(
    "flags", [TARGET, ["--intermediate_size", "56"], ["--num_hidden_layers", "3", "--method", "paper"]]
)
@pytest.mark.parametrize(
    "name",
    [UP, "model.layers.3.input_layernorm.weight", "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"],
)
def test_weights_that_are_no_numbers(single, refused, name, flags):
    bad = float("inf" if flags == TARGET else "nan")
    change_weights(single / SINGLE, lambda weights: weights[name].view(-1)[5:6].fill_(bad))
    assert f"{name} holds NaN or infinite values: the parent's weights are broken" in refused(single, *flags)


def test_layers_that_overflow(single, refused):
    """Weights that are finite, and what they make is not."""
    change_weights(single / SINGLE, lambda weights: weights["model.layers.2.mlp.down_proj.weight"].fill_(3e38))
    assert "decoder layer 2 gives NaN or infinite values: its weights are broken or overflow" in refused(single)


# Text


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_an_empty_text(single, refused, tmp_path, name):
    file = tmp_path / name
    file.touch()
    assert f"{file} holds no text" in refused(single, *TARGET, "--calibration", file)


@pytest.mark.parametrize(
    ("words", "length", "complaint"),
    [
        ("\n", 2, "the text has 1 tokens and one window needs 2: give more text or shorter windows"),
        ("w5 w6 w7", 32, "the text has 4 tokens and one window needs 32: give more text or shorter windows"),
        ("w5 w6 w7", 1, "calibration_length=1: allowed is 2 to 256, the model's window"),
    ],
)
def test_a_text_that_is_too_short(single, refused, tmp_path, words, length, complaint):
    file = tmp_path / "short.txt"
    file.write_text(words)
    assert complaint in refused(single, *TARGET, "--calibration", file, "--calibration_length", length)


def test_a_tokenizer_of_another_model(single, refused, tmp_path):
    save_tokenizer(single, 2 * VOCABULARY)
    file = tmp_path / "text.txt"
    file.write_text(f"w{VOCABULARY} " * 100)
    said = refused(single, *TARGET, "--calibration", file)
    assert "calibration holds ids outside 0 to 96: was it made by another tokenizer?" in said


def test_no_tokenizer(single, refused):
    for file in single.glob("tokenizer*"):
        file.unlink()
    assert f"{single} has no tokenizer that opens" in refused(single)


# Settings


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--device", "abacus"], "device=abacus: "),
        (["--calibration_samples", 0], "calibration_samples and batch_size must be at least 1"),
        (["--batch_size", 0], "calibration_samples and batch_size must be at least 1"),
        (["--max_shard_size", "large"], "max_shard_size=large: "),
        (["--ridge", 0], "ridge=0.0: it must be above 0"),
        (["--hidden_size", 49, "--num_hidden_layers", 0], "the parent's; hidden_size=49: allowed is 1 to 48"),
    ],
)
def test_settings_that_cannot_be(single, refused, flags, complaint):
    assert complaint in refused(single, *TARGET, *flags)


def test_a_gpu_where_there_is_none(single, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:1"):
        said = refused(single, *TARGET, "--device", name)
        assert f"device={name}: there is no CUDA device here; leave it out, or give cpu" in said


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_place_that_is_taken(single, refused, tmp_path, kind):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("precious")
    target = taken / "mine" if kind == "file" else taken
    assert f"output_dir={target} is not empty: name a folder that is new or empty" in refused(
        single, *TARGET, "--output_dir", target
    )
    assert (taken / "mine").read_text() == "precious"


def test_an_empty_folder_is_no_obstacle(single, run, tmp_path):
    (tmp_path / "out" / "child").mkdir()
    assert run(single, *TARGET) == (0, "")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["child"]


def test_a_llama_wants_a_multiple_of_its_heads(refused, tmp_path):
    build("llama", dtype=torch.float32).save_pretrained(tmp_path / "llama")
    save_tokenizer(tmp_path / "llama")
    said = refused(tmp_path / "llama", "--hidden_size", 40)
    assert (
        "LlamaConfig refuses this shape" in said
        and "(40) is not a multiple of the number of attention heads (3)" in said
    )


# Families

POST_NORM, EXPERTS = "it normalises what a block writes", "it is a mixture of experts"


def small(config_class, **changes):
    return config_class(**{**SHAPE, **changes})


@pytest.mark.parametrize(
    ("config", "name", "reason"),
    [
        (lambda: small(Gemma2Config), "'gemma2'", POST_NORM),
        (lambda: small(Gemma3TextConfig), "'gemma3_text'", POST_NORM),
        (lambda: small(MixtralConfig, num_local_experts=2), "'mixtral'", EXPERTS),
        (lambda: small(Qwen3MoeConfig, num_experts=2), "'qwen3_moe'", EXPERTS),
        (lambda: GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=97), "'gpt2'", None),
        (
            lambda: Mistral3Config(
                text_config=small(Gemma2Config), vision_config=PixtralVisionConfig(hidden_size=16, num_hidden_layers=1)
            ),
            "'mistral3' around 'gemma2'",
            POST_NORM,
        ),
    ],
)
def test_other_families_are_refused_by_name(refused, tmp_path, config, name, reason):
    config().save_pretrained(tmp_path / "other")  # its weights are not looked at
    said = refused(tmp_path / "other", "--hidden_size", 12)
    assert f"models of type {name} cannot be pruned" in said and "supported are llama, mistral, " in said
    assert reason is None or f"({reason}" in said


# Disks


def test_a_disk_without_room(single, refused, run, tmp_path, monkeypatch):
    usage = namedtuple("usage", ("total", "used", "free"))
    with monkeypatch.context() as patch:
        patch.setattr(draft.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 0))
        said = refused(single)
    assert f"{tmp_path / 'out' / 'child'} and the work on it need" in said
    assert "GB and its disk has 0.00 GB free: make room" in said
    assert run(single, *TARGET) == (0, "")


@pytest.fixture
def whole(single, run, tmp_path):
    """The bytes of an undisturbed run's weights."""
    target = tmp_path / "whole"
    assert run(single, *TARGET, "--output_dir", target) == (0, "")
    return (target / SINGLE).read_bytes()


@pytest.mark.parametrize("number", [1, 3, 25])
def test_a_disk_that_fills_while_weights_are_written(single, run, whole, tmp_path, monkeypatch, number):
    original, calls = ShardWriter.write, []

    def write(self, name, value):
        calls.append(name)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, name, value)

    check_goes_on(single, run, whole, tmp_path, monkeypatch, (ShardWriter, "write", write))


@pytest.mark.parametrize(("module", "number"), [(state, 1), (state, 2), (scratch, 1), (scratch, 4)])
def test_a_disk_that_fills_while_other_things_are_saved(single, run, whole, tmp_path, monkeypatch, module, number):
    """Decisions, streams, what `fisher` needs: safetensors has an error of its own for it."""
    monkeypatch.setenv(draft.SECONDS_VARIABLE, "0")
    original, calls = save_file, []

    def save(tensors, file, **metadata):
        calls.append(file)
        original(tensors, file if len(calls) != number else file / "no" / "folder", **metadata)

    check_goes_on(single, run, whole, tmp_path, monkeypatch, (module, "save_file", save))


def check_goes_on(single, run, whole, tmp_path, monkeypatch, failure) -> None:
    """It fails, in one line; the draft stays, and the same command completes it."""
    child = tmp_path / "out" / "child"
    with monkeypatch.context() as patch:
        patch.setattr(*failure)
        status, said = run(single, *TARGET)
    assert status == 2 and str(child.parent) in said, said
    assert [file.name for file in child.parent.iterdir()] == [".child.partial"]
    assert run(single, *TARGET) == (0, "")
    assert (child / SINGLE).read_bytes() == whole
    assert [file.name for file in child.parent.iterdir()] == ["child"]
