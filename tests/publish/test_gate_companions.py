"""The gate on what was measured beside the weights: tokenizer, chat template, processor, generation config."""

import json

import pytest
from transformers import AutoTokenizer

from hf_cascade import companions
from hf_cascade.publish.talking import Chat, chat_of
from tests.publish.gate_lines import TINY, change, failed, only

NAME = "tokenizer and templates as measured"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("chat_template.jinja", "{{ messages[-1].content }}\n", "chat template changed"),
        ("chat_template.jinja", None, "chat template taken away"),
        ("generation_config.json", '{"repetition_penalty": 1.3}', "generation config changed"),
        ("generation_config.json", None, "generation config taken away"),
        ("preprocessor_config.json", '{"size": 3}', "processor added"),
    ],
)
def test_a_change_after_the_evaluation_closes_the_gate(folder, name, content, words):
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    line = only(folder, NAME, f"since the evaluation: {words}", "undo that, or hf-cascade evaluate --model")
    assert not line.final


def test_a_change_of_the_tokenizer(folder):
    change(folder, "tokenizer.json", post_processor=None)
    only(folder, NAME, "since the evaluation: tokenizer changed")


def test_a_tokenizer_that_does_not_parse(folder):
    change(folder, "tokenizer.json", model={"type": "none of theirs"})
    only(folder, NAME, "since the evaluation: tokenizer changed")


def test_json_too_deep_to_read(folder):
    (folder / "generation_config.json").write_text('{"a":' * 100_000 + "0" + "}" * 100_000)
    assert "generation_config.json is not JSON" in failed(folder, TINY)[NAME].figure


def test_a_template_in_the_tokenizers_config(folder):
    """A processor's template of older folders must not hide it."""
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text('{"chat_template": "{{ of_the_processor }}"}')
    change(folder, "tokenizer_config.json", chat_template="{{ tools }} [THINK] [/THINK]")
    change(folder, "evals.json", companions=companions.digests(folder))
    assert NAME not in failed(folder, TINY)
    assert chat_of(folder) == Chat(("[THINK]", "[/THINK]"), True)
    change(folder, "tokenizer_config.json", chat_template="{{ another }}")
    assert failed(folder, TINY)[NAME].figure == "since the evaluation: chat template changed"


def test_a_tokenizer_that_was_only_saved_again(folder):
    written = (folder / "tokenizer_config.json").read_bytes()
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(folder)
    change(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert (folder / "tokenizer_config.json").read_bytes() != written
    assert not failed(folder, TINY)


def test_an_evaluation_of_a_version_that_did_not_record_it(folder):
    evals = json.loads((folder / "evals.json").read_text())
    del evals["companions"]
    (folder / "evals.json").write_text(json.dumps(evals))
    only(folder, NAME, "evals.json does not say with which it was measured", "hf-cascade evaluate --model")
    change(folder, "evals.json", companions={"tokenizer": "edited"})
    lines = failed(folder, TINY)
    assert list(lines) == ["evaluation can be read"]
