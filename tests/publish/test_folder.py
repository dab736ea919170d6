"""What of a folder is uploaded, and the folders that are refused: hostile files, torn weights, tokens, paths."""

import hashlib
import json
import os
import pickle
import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_cascade import file_contents
from hf_cascade.loading import load_model
from hf_cascade.publish import tensors
from hf_cascade.publish.folder import ORIGINAL, Unsafe, left_out, refusals, uploads
from tests.publish import finished

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz12345678"  # in two parts, so that no scanner stops the file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {shards: finished.model_folder(tmp_path_factory.mktemp("made") / "3b", shards) for shards in (False, True)}


@pytest.fixture
def folder(made, tmp_path):
    finished.record(shutil.copytree(made[False], tmp_path / "3b"))
    return tmp_path / "3b"


@pytest.fixture
def sharded(made, tmp_path):
    return shutil.copytree(made[True], tmp_path / "sharded")


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_sent_is_a_whole_model(folder, tmp_path):
    (folder / "log.json").write_text("[]")
    (folder / "README.md").write_text("TRL's")
    (folder / "notes.txt").write_text(TOKEN)
    (folder / "tokenizer.exe").write_bytes(b"MZ")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(pickle.dumps(1))
    (folder / ".gitattributes").write_text("*")
    sent = uploads(folder)
    names = ["config.json", "model.safetensors", "cascade.json", "chat_template.jinja", "evals.json"]
    names += ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert [file.path_in_repo for file in sent] == names
    assert left_out(folder) == [
        ".gitattributes",
        "README.md",
        "checkpoint-5/",
        "log.json",
        "notes.txt",
        "tokenizer.exe",
    ]
    there = tmp_path / "there"
    there.mkdir()
    for file in sent:
        content = file.path.read_bytes() if file.content is None else file.content
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        (there / file.path_in_repo).write_bytes(content)
    assert load_model(str(there)).num_parameters() == load_model(str(folder)).num_parameters()
    assert AutoTokenizer.from_pretrained(there)("ab").input_ids
    assert uploads(folder) == sent


def test_shards_and_further_templates_are_sent(sharded):
    (sharded / "additional_chat_templates").mkdir()
    (sharded / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    (sharded / "additional_chat_templates" / "run.sh").write_text("echo")
    names = [file.path_in_repo for file in uploads(sharded)]
    assert len([name for name in names if name.endswith(".safetensors")]) > 2
    assert "model.safetensors.index.json" in names and "additional_chat_templates/rag.jinja" in names
    assert "additional_chat_templates/run.sh" in left_out(sharded)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/hf_cascade_was_here",)


HOSTILE = {
    "a pickle by name": ("pytorch_model.bin", b"\x80\x04N.", "a pickle"),
    "TRL's arguments": ("training_args.bin", b"PK\x03\x04", "training_args.bin: a pickle, which runs code"),
    "a pickle by content": ("tokenizer_config.json", pickle.dumps(Evil()), "tokenizer_config.json is a pickle"),
    "a pickle of protocol 0": ("chat_template.jinja", pickle.dumps(Evil(), protocol=0), "is a pickle"),
    "a pickle of protocol 1": ("merges.txt", pickle.dumps(Evil(), protocol=1), "is a pickle"),
    "a torch file": ("vocab.txt", b"PK\x03\x04 archive", "is a zip archive"),
    "a tokenizer.bin": ("tokenizer.bin", b"MZ", "a pickle"),
    "code": ("modeling_x.py", b"print(1)", "code: a model folder holds none"),
    "a hidden file": (".env", b"A=1", ".env: a hidden file"),
    "an unfinished write": (".evals.json.partial", b"{", "a hidden file"),
    "an empty file": ("merges.txt", b"", "merges.txt is empty"),
    "no JSON": ("tokenizer_config.json", b"{", "is not JSON"),
    "deep JSON": ("tokenizer_config.json", b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    "no text": ("chat_template.jinja", b"\xff\xfe\x00", "no text in UTF-8"),
    "zero bytes": ("vocab.txt", b"a\0b", "no text in UTF-8"),
    "no SentencePiece model": ("tokenizer.model", b"\x00\x01\xff", "no SentencePiece model"),
    "a second set of weights": ("adapter_model.safetensors", b"\0" * 8, "which are the weights?"),
    "a token in a template": ("chat_template.jinja", f"one\ntwo {TOKEN}".encode(), "chat_template.jinja, line 2"),
    "a token in escapes": ("vocab.json", ('{"a": "\\u0068' + TOKEN[1:] + '"}').encode(), "looks like a token"),
    "a key of code": ("tokenizer_config.json", b'{"a": [{"auto_map": {"x": "y.z"}}]}', "has the key auto_map"),
    "the same key twice": ("processor_config.json", b'{"auto_map": {"a": "b"}, "auto_map": null}', "the key auto_map"),
    "trust": ("generation_config.json", b'{"trust_remote_code": true}', "has the key trust_remote_code"),
    "a token by its key": ("generation_config.json", b'{"hub_token": "short"}', "the key hub_token with a value"),
    "a path": ("tokenizer_config.json", b'{"name_or_path": "/home/ann/parent"}', "name_or_path is a path of this"),
    "a list": ("config.json", b"[]", "no JSON object"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(folder, case):
    name, content, words = HOSTILE[case]
    (folder / name).write_bytes(content)
    found = refusals(folder)
    assert any(words in line for line in found), found
    assert all(name in line for line in found[:1]) and not any(TOKEN in line for line in found)
    with pytest.raises(Unsafe) as caught:
        uploads(folder)
    assert words in str(caught.value) and TOKEN not in str(caught.value)


def test_a_clean_folder_is_not_refused(folder, sharded):
    assert refusals(folder) == [] and refusals(sharded) == []
    vocabulary = {"auto_map": 5, "trust_remote_code": 6, "hub_token": 7, "password": 12345678}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))  # words, with their numbers
    change(folder / "generation_config.json", trust_remote_code=False, hub_token=None)
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    assert refusals(folder) == []


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v3", "source.spm"])
def test_sentencepiece_files(folder, tmp_path, name):
    (tmp_path / name).write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x80\xff\x18\x02")
    assert file_contents.faults(tmp_path / name, name) == []
    shutil.copy(tmp_path / name, folder / name)
    assert name in [file.path_in_repo for file in uploads(folder)] and refusals(folder) == []
    (tmp_path / name).write_bytes(b"\x00\x01\xff")
    assert "and no SentencePiece model" in file_contents.faults(tmp_path / name, name)[0]


def test_links(folder, tmp_path):
    inside = folder / "checkpoint-5"
    inside.mkdir()
    shutil.move(folder / "tokenizer.json", inside / "tokenizer.json")
    (folder / "tokenizer.json").symlink_to("checkpoint-5/tokenizer.json")
    assert refusals(folder) == []
    (tmp_path / "secret.json").write_text("{}")
    for name, target in {
        "vocab.json": tmp_path / "secret.json",
        "added_tokens.json": tmp_path / "nothing",
        "checkpoint-6": tmp_path,
        "loop.json": folder / "loop.json",
    }.items():
        (folder / name).symlink_to(target)
        assert any(line.startswith(name) and "a link out of the folder" in line for line in refusals(folder)), name
        (folder / name).unlink()
    assert refusals(folder) == []


def test_a_snapshot_of_the_hubs_cache_is_refused_and_its_copy_is_not(made, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir(), snapshot.mkdir(parents=True)
    for file in made[False].iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert any("cp -rL" in line for line in refusals(snapshot))
    assert refusals(shutil.copytree(snapshot, tmp_path / "copy")) == []


def test_a_pipe_is_refused_and_not_read(folder):
    os.mkfifo(folder / "vocab.json")
    assert any("a device or pipe" in line for line in refusals(folder))


def test_no_folder_and_no_model(tmp_path):
    assert "is no folder" in refusals(tmp_path / "none")[0]
    assert left_out(tmp_path / "none") == []
    assert any("config.json is missing" in line for line in refusals(tmp_path))
    assert any("no *.safetensors" in line for line in refusals(tmp_path))


def test_pickles_are_told_from_text():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert file_contents.is_pickle(pickle.dumps(Evil(), protocol=protocol))
    for text in (
        b"{}",
        b"",
        b"N.",
        b"[PAD]\ncat\ncow\n.",
        b"I love it.",
        b"#version: 0.2\na b",
        b"\x80",
        b"cat\ndog\n",
    ):
        assert not file_contents.is_pickle(text), text


# Weights


def test_weights_cut_off_anywhere_are_torn(folder):
    whole = (folder / "model.safetensors").read_bytes()
    places = [0, 1, 7, 8, 9, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 20)]
    for place in places:
        (folder / "model.safetensors").write_bytes(whole[:place])
        assert any(line.startswith("model.safetensors") for line in refusals(folder)), place
    (folder / "model.safetensors").write_bytes(whole + b"\0")
    assert any("1 bytes follow the last" in line for line in refusals(folder))


def header(entries: dict, size: int) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * size


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 8), None),
        (header({}, 0), "no tensors"),
        (header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8), "does not fill"),
        (header({"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}, 8), "no known tensor"),
        (header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}, 8), "does not fill"),
        (header({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, 4), "does not fill"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, 12), "overlap or leave a gap"),
        (header({"a": 3}, 0), "no known tensor"),
        (header([], 0), "no JSON object"),
        (header({"__metadata__": {"a": 1}}, 0), "no mapping of texts"),
        (header({"__metadata__": {"note": TOKEN}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, 1),
         "its metadata: a Hugging Face token"),
        (b"\xff" * 8 + b"{}", "header would end"),
        (b"\x80\x04" + b"." * 30, "header would end"),
        ((4).to_bytes(8, "little") + b"nope", "not JSON"),
    ],
)  # fmt: skip
def test_headers(folder, content, words):
    (folder / "model.safetensors").write_bytes(content)
    found = refusals(folder)
    assert (found == []) if words is None else any(words in line for line in found), found


def test_shards_and_their_index(sharded):
    index = sharded / "model.safetensors.index.json"
    told, shards = json.loads(index.read_text()), sorted(sharded.glob("*.safetensors"))
    first = shards[0].read_bytes()

    def faults() -> str:
        return " ".join(tensors.faults(sharded))

    shards[0].unlink()
    assert f"lists {shards[0].name}, which is not there" in faults()
    shards[0].write_bytes(first[:-1])
    assert faults().startswith(f"{shards[0].name}: it ends after")
    shards[0].write_bytes(shards[1].read_bytes())
    assert "tensors are not where it says" in faults() and "is in model-00001" in faults()
    shards[0].write_bytes(first)
    assert faults() == ""
    index.unlink()
    assert "model.safetensors.index.json is missing" in faults()
    for wrong in ("[]", "{", '{"weight_map": 3}', "{}"):
        index.write_text(wrong)
        assert "no JSON object with a `weight_map`" in faults()
    name = next(iter(told["weight_map"]))
    less = {key: file for key, file in told["weight_map"].items() if key != name}
    index.write_text(json.dumps({"weight_map": less}))
    assert f"{name} is in" in faults()
    index.write_text(json.dumps({"weight_map": {**told["weight_map"], name: "../../etc/passwd"}}))
    assert "which is not there" in faults()
    index.write_text(json.dumps(told))
    shutil.copy(shards[0], sharded / "model-00099-of-00099.safetensors")
    assert "model-00099-of-00099.safetensors is not in" in faults()
    shutil.move(sharded / "model-00099-of-00099.safetensors", sharded / "more.safetensors")
    assert "more.safetensors: weights are" in faults()


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(tmp_path, kind, bad, monkeypatch):
    monkeypatch.setattr(tensors, "CHUNK_BYTES", 64)
    values = np.linspace(-60000, 60000, 1000, dtype=kind)
    broken = values.copy()
    broken[777] = bad
    save_file({"good": values, "bad": broken, "count": np.full(3, -1)}, tmp_path / "model.safetensors")
    assert tensors.not_finite(tmp_path / "model.safetensors") == (2003, ["bad"])


def test_numbers_of_every_16_and_8_bit_pattern_are_judged_as_torch_does(tmp_path):
    import torch
    from safetensors.torch import save_file as save

    for kind, bits in (
        (torch.bfloat16, torch.int16),
        (torch.float8_e4m3fn, torch.uint8),
        (torch.float8_e5m2, torch.uint8),
    ):
        info = torch.iinfo(bits)
        values = torch.arange(info.min, info.max + 1).to(bits).view(kind)
        finite = torch.isfinite(values.float())
        save({"good": values[finite].clone()}, tmp_path / "x.safetensors")
        assert tensors.not_finite(tmp_path / "x.safetensors")[1] == []
        for value in values[~finite].view(bits)[:: 7 if len(values) > 256 else 1]:
            save({"bad": value.reshape(1).view(kind)}, tmp_path / "x.safetensors")
            assert tensors.not_finite(tmp_path / "x.safetensors")[1] == ["bad"]


# Paths of the user's machine


def test_paths_in_records_become_names_and_the_folder_stays(folder):
    change(folder / "cascade.json", inputs={"model": "/home/ann/runs/x", "teacher": "org/parent", "prompts": "runs/y"})
    evals = json.loads((folder / "evals.json").read_text())
    (folder / "evals.json").write_text(json.dumps({**evals, "source": "/home/ann/runs/3b"}))
    (folder / "contamination.json").write_text(json.dumps({"text": ["/home/ann/text.jsonl", "a/b.jsonl"]}))
    (folder / "contamination.md").write_text("5 words in 1 documents of /home/ann/text.jsonl, a/b.jsonl.\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    sent = {file.path_in_repo: file for file in uploads(folder)}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert all("ann" not in file.content.decode() for file in sent.values() if file.content is not None)
    manifest = json.loads(sent["cascade.json"].content)
    assert manifest["inputs"] == {"model": "x", "teacher": "org/parent", "prompts": "runs/y"}
    assert manifest[ORIGINAL] == hashlib.sha256(before["cascade.json"]).hexdigest()  # lineages name this one
    assert json.loads(sent["evals.json"].content)["weights_sha256"] == evals["weights_sha256"]
    assert json.loads(sent["contamination.json"].content)["text"] == ["text.jsonl", "a/b.jsonl"]
    assert sent["contamination.md"].content == b"5 words in 1 documents of text.jsonl, a/b.jsonl.\n"
    assert sent["config.json"].path == folder / "config.json" and sent["config.json"].content is None


def test_records_without_paths_are_sent_as_they_are(folder):
    assert all(file.content is None for file in uploads(folder))


def test_what_was_sent_of_a_link_inside_is_the_file(folder):
    (folder / "checkpoint-5").mkdir()
    shutil.move(folder / "model.safetensors", folder / "checkpoint-5" / "model.safetensors")
    (folder / "model.safetensors").symlink_to("checkpoint-5/model.safetensors")
    (weights,) = (file for file in uploads(folder) if file.path_in_repo == "model.safetensors")
    assert weights.size > 10_000 and load_file(weights.path)
    assert AutoModelForCausalLM.from_pretrained(folder)
