"""Kept answers: nothing is lost but a torn line, processes do not disturb each other, keys tell requests apart."""

import json

import pytest

from hf_cascade import manifest
from hf_cascade.evaluate.suite.store import Store, key_of

from ..data import tiny


def records(*keys, **more) -> list[dict]:
    return [{"key": key, "kind": "generate_until", "response": f"text\n\u2028 {key} \ud83d", **more} for key in keys]


def test_what_was_added_is_there_again_without_close(tmp_path):
    store = Store(tmp_path, "t")
    for record in records("a", "b"):
        store.add(record)
    again = Store(tmp_path, "t")
    assert [again.get(key) for key in "abc"] == [*records("a", "b"), None]
    assert Store(tmp_path, "u").get("a") is None


@pytest.mark.parametrize("lost", [1, 2, 9, 20])
def test_a_torn_line_is_lost_alone_and_hurts_none_after_it(tmp_path, lost):
    store = Store(tmp_path, "t")
    for record in records("a", "b"):
        store.add({**record, "end": "é漢"})
    store.close()
    (path,) = store.folder.iterdir()
    path.write_bytes(path.read_bytes()[: -lost - 2])  # 4 and more: within the last letter
    again = Store(tmp_path, "t")
    assert again.get("a") and again.get("b") is None and again.damaged == 1
    again.add(records("c")[0])
    third = Store(tmp_path, "t")
    assert third.get("a") and third.get("c") and third.damaged == 1


@pytest.mark.parametrize("line", ["null", "[]", "3", "{}", '{"key": ', "\x00\x00"])
def test_lines_that_are_no_records_are_counted(tmp_path, line):
    store = Store(tmp_path, "t")
    store.path.write_text(line + "\n" + json.dumps({"key": "a"}) + "\n")
    again = Store(tmp_path, "t")
    assert again.get("a") and again.damaged == 1


def test_files_of_all_processes_become_one(tmp_path):
    stores = [Store(tmp_path, "t", rank) for rank in range(3)]
    for store, key in zip(stores, "abc", strict=True):
        store.add(records(key)[0])
        store.close()
    stores[0].merge(records("b", correct=1.0) + records("a"))
    assert [path.name for path in stores[0].folder.iterdir()] == ["t.jsonl"]
    lines = [json.loads(line) for line in stores[0].path.read_text(errors="surrogatepass").split("\n") if line]
    assert [line["key"] for line in lines] == ["b", "a", "c"] and lines[0]["correct"] == 1.0
    assert Store(tmp_path, "t", 5).get("c")


def test_keys_tell_requests_apart():
    images = [tiny.image(8, 8, seed) for seed in (0, 0, 1)]
    keys = [key_of("m", "text", {"visual": [image]}, 0) for image in images]
    assert keys[0] == keys[1] != keys[2]
    assert key_of("m", {"a": 1, "b": 2}) == key_of("m", {"b": 2, "a": 1})
    assert len({key_of("m", "ab", ""), key_of("m", "a", "b"), key_of("m", "ab", "", 1), key_of("n", "ab", "")}) == 4
    with pytest.raises(TypeError, match="object in a request"):
        key_of(object())


def test_weights_hash_is_of_weights_and_config(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model-1.safetensors").write_bytes(b"one")
        (folder / "model-2.safetensors").write_bytes(b"two")
        (folder / "config.json").write_text("{}")
    first, second = tmp_path / "a", tmp_path / "b"
    found = manifest.weights_sha256(first)
    assert found == manifest.weights_sha256(second) and len(found) == 64
    (second / "README.md").write_text("x")
    assert manifest.weights_sha256(second) == found
    for name, data in (("model-2.safetensors", b"twO"), ("config.json", b"{ }")):
        (second / name).write_bytes(data)
        assert manifest.weights_sha256(second) != found
        (second / name).write_bytes((first / name).read_bytes())
    (second / "model-1.safetensors").rename(second / "model-3.safetensors")
    assert manifest.weights_sha256(second) != found
    with pytest.raises(FileNotFoundError, match="no .*safetensors"):
        manifest.weights_sha256(tmp_path)
