"""Hashes of tokenizer, chat template, processor and generation config: what changes answers counts, no more."""

import json
import shutil

import pytest
from transformers import AutoTokenizer, GenerationConfig

from hf_cascade import companions
from hf_cascade.companions import differences, digests
from hf_cascade.data.image_text import load_processor
from hf_cascade.evaluate.backends.opening import open_backend
from tests.data import tiny
from tests.publish.finished import model_folder

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    kit = tiny.tokenizer()
    kit.chat_template = TEMPLATE
    kit.save_pretrained(place)
    GenerationConfig(eos_token_id=2, temperature=0.7, do_sample=True).save_pretrained(place)
    return place


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_there(folder, tmp_path):
    found = digests(folder)
    assert list(found) == list(companions.PARTS) and found["processor"] is None
    assert all(len(found[part]["files"]) == 64 for part in ("tokenizer", "chat template", "generation config"))
    assert found["tokenizer"]["opened"] and found["generation config"]["opened"]
    (tmp_path / "empty").mkdir()
    assert set(digests(tmp_path / "empty").values()) == {None}


def test_each_change_is_named(folder):
    before = digests(folder)
    changes = [
        ("tokenizer", "tokenizer_config.json", lambda path: change(path, padding_side="left")),
        ("tokenizer", "tokenizer.json", lambda path: change(path, normalizer={"type": "Lowercase"})),
        ("generation config", "generation_config.json", lambda path: change(path, repetition_penalty=1.1)),
        ("chat template", "chat_template.jinja", lambda path: path.write_text(TEMPLATE + "!")),
    ]
    for part, name, make in changes:
        content = (folder / name).read_bytes()
        make(folder / name)
        assert differences(before, digests(folder)) == [f"{part} changed"]
        (folder / name).write_bytes(content)
    assert differences(before, digests(folder)) == []
    (folder / "generation_config.json").unlink()
    assert differences(before, digests(folder)) == ["generation config taken away"]
    assert differences(digests(folder), before) == ["generation config added"]


def test_how_files_are_written_does_not_count(folder):
    before = digests(folder)
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(content.items())), indent=7, ensure_ascii=True))
    change(folder / "tokenizer_config.json", name_or_path="/somewhere", local_files_only=True)
    change(folder / "generation_config.json", transformers_version="4.0", top_k=None)
    (folder / "chat_template.jinja").write_bytes(TEMPLATE.replace("\n", "\r\n").encode() + b"\n")
    now = digests(folder)
    assert {part: one and one["files"] for part, one in now.items()} == {
        part: one and one["files"] for part, one in before.items()
    }


def test_a_part_that_is_only_saved_anew_is_the_same(folder, tmp_path):
    """Of a folder as transformers 4 wrote it: special tokens and the template in files of their own or in configs."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {key: config[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    change(folder / "tokenizer_config.json", chat_template=TEMPLATE, tokenizer_class="PreTrainedTokenizerFast")
    (folder / "chat_template.jinja").unlink()
    before, again = digests(folder), tmp_path / "again"
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(again)
    GenerationConfig.from_pretrained(folder).save_pretrained(again)
    now = digests(again)
    assert now["tokenizer"]["files"] != before["tokenizer"]["files"]
    assert differences(before, now) == []
    change(again / "tokenizer_config.json", bos_token="</s>")
    assert differences(before, digests(again)) == ["tokenizer changed"]


def test_a_processor(tmp_path):
    tiny.processor().save_pretrained(tmp_path / "a")
    before = digests(tmp_path / "a")
    load_processor(str(tmp_path / "a")).save_pretrained(tmp_path / "b")
    assert before["processor"] and differences(before, digests(tmp_path / "b")) == []
    tiny.processor(longest_edge=24).save_pretrained(tmp_path / "c")
    assert differences(before, digests(tmp_path / "c")) == ["processor changed"]


def test_templates_by_name(folder):
    before = digests(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    assert differences(before, digests(folder)) == ["chat template changed"]
    assert companions.templates(folder) == {"default": TEMPLATE.removesuffix("\n"), "tools": "{{ tools }}"}


def test_a_file_that_is_no_json_is_named(folder):
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match="generation_config.json is not JSON"):
        digests(folder)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match="is no JSON object"):
        digests(folder)


def test_kept_samples_are_of_one_generation_config(tmp_path):
    """A resumed evaluation must not mix responses of two."""
    folder = model_folder(tmp_path / "m")
    before = open_backend(str(folder)).identity
    assert open_backend(str(folder)).identity == before
    change(folder / "generation_config.json", repetition_penalty=1.3)
    assert open_backend(str(folder)).identity != before


def test_templates_of_older_folders(folder):
    """transformers 4 kept several in the tokenizer's config, or one in a file of its own, as JSON."""
    (folder / "chat_template.jinja").unlink()
    given = [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]
    change(folder / "tokenizer_config.json", chat_template=given)
    assert companions.templates(folder) == {"default": "d", "rag": "r"}
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "of the processor"}))
    assert companions.templates(folder) == {"default": "d", "rag": "r"}  # AutoTokenizer does not read that file
    change(folder / "tokenizer_config.json", chat_template=None)
    assert companions.templates(folder) == {"default": "of the processor"}


PLACES = ("tokenizer_config.json", "processor_config.json", "chat_template.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """Folder of a processor without templates."""
    place = tmp_path_factory.mktemp("seeing") / "model"
    tiny.processor().save_pretrained(place)
    (place / "chat_template.jinja").unlink()
    return place


@pytest.mark.parametrize("count", range(1, 2 ** len(PLACES)))
def test_each_template_that_transformers_uses_counts(seeing, tmp_path, count):
    """Of tokenizer and processor, whichever files have one: what transformers opens is what is shown and hashed."""
    places = [place for bit, place in enumerate(PLACES) if count >> bit & 1]
    model = shutil.copytree(seeing, tmp_path / "model")

    def put(place: str, text: str) -> tuple:
        path = model / place
        known = json.loads(path.read_text()) if path.suffix == ".json" and path.is_file() else {}
        path.write_text(text if path.suffix == ".jinja" else json.dumps({**known, "chat_template": text}))
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False).chat_template
        return tokenizer, load_processor(str(model)).chat_template or tokenizer

    for place in places:
        opened = put(place, f"of {place}")
    assert companions.templates(model) == {"default": opened[0] or opened[1]}
    before = digests(model)
    for place in places:
        expected = ["chat template changed"] if put(place, "another") != opened else []
        assert differences(before, digests(model)) == expected, place
        put(place, f"of {place}")
    assert differences(before, digests(model)) == []


def test_files_of_jinja_replace_all_of_a_configs_templates(folder):
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template=[{"name": "rag", "template": "r"}])
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("t")
    assert companions.templates(folder) == {"tools": "t"}
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=False).chat_template == {"tools": "t"}


@pytest.mark.parametrize("given", [3, ["a"], [{"name": "default"}], {"default": 3}])
def test_a_template_of_no_known_form_is_named(folder, given):
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template=given)
    with pytest.raises(ValueError, match="tokenizer_config.json: chat_template is none of a text, a list"):
        digests(folder)


def test_a_tokenizer_that_does_not_parse_still_has_a_hash(folder):
    before = digests(folder)
    change(folder / "tokenizer.json", model={"type": "none of theirs"})
    now = digests(folder)
    assert now["tokenizer"]["opened"] is None and differences(before, now) == ["tokenizer changed"]


def test_a_vocabulary_may_be_a_list(folder):
    (folder / "vocab.json").write_text('["a", "b"]')
    before = digests(folder)
    (folder / "vocab.json").write_text('["b", "a"]')
    assert before["tokenizer"]["files"] != digests(folder)["tokenizer"]["files"]


def test_a_fault_of_ours_is_not_taken_for_an_odd_tokenizer(folder, monkeypatch):
    def broken(_):
        raise AssertionError("a bug")

    monkeypatch.setitem(companions._OPENERS, "tokenizer", broken)
    with pytest.raises(AssertionError, match="a bug"):
        digests(folder)
