"""Pruning from disk to disk: the same child as in memory, files as `save_pretrained` writes them, kills, and memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from hf_cascade import PruneConfig
from hf_cascade.anatomy import HEAD, TOWER, is_tied
from hf_cascade.cli import main as hf_cascade
from hf_cascade.loading import load_config, load_model
from hf_cascade.prune import command
from hf_cascade.prune.checkpoint import INDEX, SINGLE, expected_weights
from hf_cascade.prune.draft import SECONDS_VARIABLE
from hf_cascade.prune.model import prune_with_report
from hf_cascade.prune.parent import Parent, skeleton
from hf_cascade.prune.pipeline import prune
from hf_cascade.prune.shards import ShardWriter
from hf_cascade.prune.state import FolderState
from tests.prune.families import VOCABULARY, build, ids, save_tokenizer

TARGET = {"num_hidden_layers": 3, "hidden_size": 36, "intermediate_size": 56}
FLAGS = [part for name, value in TARGET.items() for part in (f"--{name}", str(value))]
FLAGS += ["--calibration_length", "32", "--calibration_samples", "40"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Streams are saved after every layer that is done; no plots, which would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SECONDS_VARIABLE, "0")
        patch.setattr(command.pruning_plots, "pruning", lambda *arguments: None)
        yield


def stored(folder) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every tensor in a folder's files, by its name there; read without safetensors."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        assert header.pop("__metadata__") == {"format": "pt"}
        for name, entry in header.items():
            begin, end = (start + offset for offset in entry["data_offsets"])
            found[name] = (entry["dtype"], entry["shape"], content[begin:end])
    return found


def random_words(count: int, vocabulary: int) -> str:
    numbers = torch.randint(3, vocabulary, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    return " ".join(f"w{number}" for number in numbers)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of random words: 60 windows of 32."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(random_words(60 * 32, VOCABULARY))
    return file


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A Qwen3 folder of several shards with tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "parent"
    build("qwen3", dtype=torch.float32).save_pretrained(folder, max_shard_size="200KB")
    save_tokenizer(folder, VOCABULARY)
    return folder


def run(parent, text, child, *flags) -> int:
    return hf_cascade(["prune", *map(str, ("--model", parent, "--calibration", text, "--output_dir", child, *flags))])


# Memory and disk


def streamed(folder, config: PruneConfig, held_out: int, into, shards: str) -> dict:
    """Prune a folder into another; returns the report."""
    parent = Parent.from_checkpoint(folder, load_config(folder), torch.device("cpu"))

    def make_writer(child):
        writer = ShardWriter(into, child, parent.stored_dtype, shards)
        writer.create()
        return writer

    batches = [*ids(windows=40).split(8), *ids(windows=8, seed=5).split(8)]
    child, report = prune(parent, config, batches, held_out, make_writer)
    child.config.architectures = [type(child).__name__]
    child.config.dtype = parent.stored
    child.config.save_pretrained(into)
    return report


@pytest.mark.parametrize(
    ("dtype", "shards"), [(torch.float32, "5GB"), (torch.float32, "50KB"), (torch.bfloat16, "50KB")]
)
@pytest.mark.parametrize(
    ("family", "tied", "changes"),
    [
        ("llama", False, {}),
        ("llama", False, {"method": "paper"}),
        ("qwen3", False, {"tie_word_embeddings": True}),
        ("gemma", True, {}),
        ("gemma", True, {"tie_word_embeddings": False}),
        ("mistral3", False, {}),
        ("mistral3", True, {"projector": "reinit"}),
    ],
)
def test_a_folder_gives_the_child_that_the_model_in_memory_gives(family, tied, changes, dtype, shards, tmp_path):
    model = build(family, dtype=dtype, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "parent", max_shard_size=shards)
    assert len(list((tmp_path / "parent").glob("*.safetensors"))) == 1 or shards == "50KB"
    config = PruneConfig(**TARGET | changes)
    reference, expected = prune_with_report(model, config, ids(windows=40), held_out=ids(windows=8, seed=5))
    (tmp_path / "child").mkdir()
    report = streamed(tmp_path / "parent", config, 1, tmp_path / "child", shards)
    child = load_model(str(tmp_path / "child"))
    assert type(child) is type(reference) and child.dtype == dtype
    for name, value in reference.state_dict().items():
        assert torch.equal(child.state_dict()[name], value), name
    assert report == expected


@pytest.mark.parametrize("family", ["qwen3", "mistral3"])
def test_the_parents_own_shape_is_copied_byte_for_byte(family, tmp_path):
    build(family, dtype=torch.bfloat16).save_pretrained(tmp_path / "parent", max_shard_size="50KB")
    (tmp_path / "child").mkdir()
    report = streamed(tmp_path / "parent", PruneConfig(), 0, tmp_path / "child", "100KB")
    assert stored(tmp_path / "child") == stored(tmp_path / "parent") and report == {"kept_layers": [0, 1, 2, 3]}


def test_the_tower_is_unchanged_whatever_type_the_rest_gets(text, tmp_path):
    """A bf16 vision-language parent, its child in fp32."""
    parent, child = tmp_path / "parent", tmp_path / "child"
    build("mistral3", dtype=torch.bfloat16).save_pretrained(parent)
    save_tokenizer(parent, VOCABULARY)
    assert run(parent, text, child, *FLAGS, "--dtype", "float32") == 0
    ours, theirs = stored(child), stored(parent)
    tower = {name for name in theirs if "vision_tower" in name}
    assert tower and all(ours[name] == theirs[name] and ours[name][0] == "BF16" for name in tower)
    assert {ours[name][0] for name in ours.keys() - tower} == {"F32"}


# Files


@pytest.mark.parametrize("shards", ["5GB", "200KB", "50KB", "1KB"])
@pytest.mark.parametrize(
    ("family", "tied"),
    [("llama_bias", False), ("qwen3", True), ("gemma", True), ("mistral3", False), ("mistral3", True)],
)
def test_files_are_those_of_save_pretrained(family, tied, shards, tmp_path):
    model = build(family, dtype=torch.float32, tie_word_embeddings=tied)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    model.save_pretrained(theirs, max_shard_size=shards)
    ours.mkdir()
    writer = ShardWriter(ours, skeleton(model.config, type(model)), lambda name: torch.float32, shards)
    assert not writer.is_created()
    writer.create()
    assert writer.is_created()
    weights = model.state_dict()
    for name in reversed(expected_weights(writer.model)):  # any order will do
        writer.write(name, weights[name])
        assert torch.equal(writer.read(name), weights[name]), name
    model.config.save_pretrained(ours)
    weight_files = {file.name for file in theirs.iterdir()} & {SINGLE, INDEX} or {INDEX}
    assert weight_files == ({SINGLE} if shards == "5GB" else {INDEX})
    for file in [*theirs.glob("*.safetensors"), *theirs.glob(INDEX)]:
        assert (ours / file.name).is_file(), file.name
    assert len(list(ours.glob("model*"))) == len(list(theirs.glob("model*")))
    assert stored(ours) == stored(theirs)
    assert writer.bytes == sum(file.stat().st_size for file in ours.glob("*.safetensors"))
    if shards != "5GB":
        indices = [json.loads((folder / INDEX).read_text()) for folder in (ours, theirs)]
        assert indices[0]["weight_map"] == indices[1]["weight_map"]
        assert indices[0]["metadata"]["total_size"] == indices[1]["metadata"]["total_size"]
    opened, info = type(model).from_pretrained(ours, output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(value, weights[name]) for name, value in opened.state_dict().items())


def test_types_may_differ_within_a_file(tmp_path):
    """Every tensor begins at a multiple of its own size, so that it can be mapped."""
    model = build("mistral3", dtype=torch.float32)
    types = {name: torch.bfloat16 if name.startswith(TOWER) else torch.float32 for name in model.state_dict()}
    writer = ShardWriter(tmp_path, skeleton(model.config), types.__getitem__)
    writer.create()
    for name, value in model.state_dict().items():
        writer.write(name, value)
    for name, value in model.state_dict().items():
        assert torch.equal(writer.read(name), value.to(types[name])), name
    content = (tmp_path / SINGLE).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    del header["__metadata__"]
    sizes = {"F32": 4, "BF16": 2}
    assert all((start + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0 for entry in header.values())


def test_a_tied_head_is_not_written(tmp_path):
    model = build("qwen3", dtype=torch.float32, tie_word_embeddings=True)
    assert is_tied(model.config) and HEAD not in expected_weights(skeleton(model.config))


# Kills


@pytest.fixture(scope="module")
def finished(parent, text, tmp_path_factory):
    """Children of uninterrupted runs, by their further flags."""
    known = {}

    def make(*flags, parent=parent, text=text):
        key = (parent, text, *flags)
        if key not in known:
            known[key] = tmp_path_factory.mktemp("whole") / "child"
            assert run(parent, text, known[key], *FLAGS, *flags) == 0
        return known[key]

    return make


def check_same(child, whole) -> None:
    """Same files, same weights and report, no draft."""
    names = [sorted(str(file.relative_to(folder)) for file in folder.rglob("*")) for folder in (child, whole)]
    assert names[0] == names[1]
    assert stored(child) == stored(whole)
    for name in ("config.json", command.REPORT):
        assert json.loads((child / name).read_text()) == json.loads((whole / name).read_text()), name
    assert not draft_of(child).exists()


def draft_of(child):
    return child.with_name(f".{child.name}.partial")


def interrupt(monkeypatch, owner, name: str, calls: int, after: bool = True):
    """Ctrl-C in call number `calls` of a method, or before it; returns what takes the trap away."""
    original, count = getattr(owner, name), 0

    def method(*arguments, **kwargs):
        nonlocal count
        count += 1
        if count == calls and not after:
            raise KeyboardInterrupt
        result = original(*arguments, **kwargs)
        if count == calls:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, method)
    return lambda: monkeypatch.setattr(owner, name, original)


LAYER = (FolderState, "save_streams")


@pytest.mark.parametrize(
    ("where", "calls", "after", "flags"),
    [
        (LAYER, 1, True, []),
        (LAYER, 2, True, []),
        (LAYER, 3, False, []),
        (LAYER, 4, True, []),
        (LAYER, 3, True, ["--method", "paper"]),
        (LAYER, 3, True, ["--tie_word_embeddings", "true", "--max_shard_size", "50KB"]),
        (LAYER, 2, True, ["--num_hidden_layers", "1", "--hidden_size", "48"]),
        ((FolderState, "save_job"), 1, False, []),  # before the decisions
        ((FolderState, "save_job"), 1, True, []),  # between them and the streams
        ((FolderState, "_save"), 2, False, []),
        ((ShardWriter, "create"), 1, True, []),
        ((ShardWriter, "write"), 1, True, []),
        ((ShardWriter, "write"), 20, False, []),
        ((command, "copy_companions"), 1, True, []),  # nothing left but small files
        ((command.manifest, "write"), 1, True, []),
    ],
)
def test_an_interrupted_run_is_taken_up(
    parent, text, finished, tmp_path, monkeypatch, capsys, where, calls, after, flags
):
    whole, child = finished(*flags), tmp_path / "child"
    capsys.readouterr()
    release = interrupt(monkeypatch, *where, calls, after)
    with pytest.raises(KeyboardInterrupt):
        run(parent, text, child, *FLAGS, *flags)
    assert not child.exists() and draft_of(child).is_dir()
    release()
    assert "going on with" not in capsys.readouterr().err
    assert run(parent, text, child, *FLAGS, *flags) == 0
    assert f"going on with {draft_of(child)}" in capsys.readouterr().err
    check_same(child, whole)


def test_layers_that_are_done_are_not_done_again(parent, text, finished, tmp_path, monkeypatch):
    whole, child = finished(), tmp_path / "child"
    release = interrupt(monkeypatch, *LAYER, 3)
    with pytest.raises(KeyboardInterrupt):
        run(parent, text, child, *FLAGS)
    release()
    read, original = [], Parent.layer
    monkeypatch.setattr(Parent, "layer", lambda self, number: read.append(number) or original(self, number))
    assert run(parent, text, child, *FLAGS) == 0
    first = json.loads((whole / command.REPORT).read_text())["kept_layers"]
    # the streams before layer 3 were saved, unless layer 2 was bridging a gap then
    assert read == ([3] if 3 in first else read[-(4 - read[0]) :]) and len(read) < 4
    check_same(child, whole)


@pytest.mark.parametrize(
    "change",
    [["--ridge", "0.1"], ["--calibration_samples", "30"], ["--dtype", "bfloat16"], ["--max_shard_size", "50KB"], None],
)
def test_a_draft_of_something_else_is_started_over(parent, text, finished, tmp_path, monkeypatch, capsys, change):
    """Other settings, or (`None`) other weights."""
    parent, child = shutil.copytree(parent, tmp_path / "parent"), tmp_path / "child"
    release = interrupt(monkeypatch, *LAYER, 2)
    with pytest.raises(KeyboardInterrupt):
        run(parent, text, child, *FLAGS)
    release()
    if change is None:
        build("qwen3", seed=3, dtype=torch.float32).save_pretrained(parent, max_shard_size="200KB")
    whole = finished(*change or (), parent=parent)
    assert run(parent, text, child, *FLAGS, *change or ()) == 0
    assert "going on with" not in capsys.readouterr().err
    check_same(child, whole)


def test_a_draft_whose_weights_are_gone_is_started_over(parent, text, finished, tmp_path, monkeypatch):
    """Decisions without the files that they were written with would make a child of zeros."""
    whole, child = finished(), tmp_path / "child"
    release = interrupt(monkeypatch, *LAYER, 2)
    with pytest.raises(KeyboardInterrupt):
        run(parent, text, child, *FLAGS)
    release()
    os.truncate(draft_of(child) / SINGLE, 1000)
    assert run(parent, text, child, *FLAGS) == 0
    check_same(child, whole)


def test_a_killed_process_is_taken_up(finished, tmp_path, capsys):
    """SIGKILL, which no process can prepare for."""
    parent, text, child = tmp_path / "parent", tmp_path / "text.txt", tmp_path / "child"
    flags = ["--calibration_length", "64", "--calibration_samples", "80", "--num_hidden_layers", "7"]
    build("qwen3", dtype=torch.float32, num_hidden_layers=8).save_pretrained(parent)
    save_tokenizer(parent, VOCABULARY)
    text.write_text(random_words(100 * 64, VOCABULARY))
    arguments = ["--model", parent, "--calibration", text, "--output_dir", child, *FLAGS, *flags]
    streams = draft_of(child) / "streams.safetensors"
    with subprocess.Popen(
        [sys.executable, "-m", "hf_cascade.cli", "prune", *map(str, arguments)], stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not streams.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        said = process.stderr.read()
    assert process.returncode == -signal.SIGKILL, said
    assert streams.exists() and not child.exists()
    assert run(parent, text, child, *FLAGS, *flags) == 0
    assert "going on with" in capsys.readouterr().err
    check_same(child, finished(*flags, parent=parent, text=text))
