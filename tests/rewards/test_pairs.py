"""Rows as pairs, and pairs as tokens: both orders, control tokens as text, and what gives way when it is too long."""

import json
import math
import re

import pytest
from transformers import DecisionConfig

from hf_cascade.rewards.comparison import Comparison, request
from hf_cascade.rewards.pairs import Pair, check_columns, read_pair
from tests.rewards import scene

ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sum?"}]


def text_of(kit, ids) -> str:
    """The characters, without the spaces that decoding a word-level tokenizer adds."""
    return "".join(kit.convert_ids_to_tokens(ids))


def answer(text):
    return [{"role": "assistant", "content": text}]


def test_all_forms_of_a_row_are_one_pair():
    wanted = Pair("[system]\nBe brief.\n\n[user]\nSum?", "3", "4", 1.0)
    chosen, rejected = answer("3"), answer("<think>hm</think>4")
    assert read_pair({"prompt": ASK, "chosen": chosen, "rejected": rejected}) == wanted
    implicit = {"chosen": ASK + chosen, "rejected": ASK + rejected}
    assert read_pair(implicit) == wanted
    assert read_pair({"prompt": "Sum?", **implicit}) == wanted  # as some data sets repeat it
    assert read_pair({"prompt": ASK, "first": chosen, "second": rejected, "probability": 0.25})[3] == 0.25
    assert read_pair({"prompt": "x", "chosen": "a", "rejected": "b"}) == ("x", "a", "b", 1.0)


def test_tools_and_parts_are_text():
    call = {"type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": 1}}}
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "3"}]
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": parts, "tool_calls": None},
    ]
    pair = read_pair({"prompt": "x", "first": turns, "second": answer("4"), "probability": 1})
    assert pair.first == '[assistant]\n[call] add({"a": 1, "b": 2})\n\n[tool]\n3\n\n[assistant]\nIt is 3'
    history = read_pair({"prompt": ASK + turns[:2], "chosen": "a", "rejected": "b"}).history
    assert history.endswith("[tool]\n3") and "hm" not in history


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"first": "a", "second": "b", "prompt": "x", "probability": 1.2}, "row 7: probability=1.2"),
        ({"first": "a", "second": "b", "prompt": "x", "probability": math.nan}, "probability=nan"),
        ({"first": "a", "second": "b", "prompt": "x", "probability": None}, "probability=None"),
        ({"first": "a", "second": None, "prompt": "x", "probability": 0.5}, "None"),
        ({"chosen": "a", "rejected": None, "prompt": "x"}, "rejected is missing"),
        ({"chosen": [{"role": "assistant", "content": [{"type": "image"}]}], "rejected": "b", "prompt": ASK}, "image"),
    ],
)
def test_bad_rows_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        read_pair(row, 7)


def test_columns_are_checked():
    check_columns(["chosen", "rejected", "source"])
    with pytest.raises(ValueError, match=r"\['first', 'prompt', 'second'\]"):
        check_columns(["prompt", "first", "second"])


@pytest.mark.parametrize("chat", [False, True])
def test_a_comparison_is_what_the_template_says(chat):
    comparison = Comparison.new(scene.tokenizer(chat), question='Which is "best"?')
    text = 'Hi\n\nResponse A:\none\n\nResponse B:\ntwo\n\nWhich is "best"?\nAnswer with A or B only.'
    text = f"<s>user: {text}</s>" if chat else f"<s>{text}\nAnswer:"
    one, other = comparison.encode_both("Hi", "one", "two")
    assert one == scene.tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert other == comparison.encode("Hi", "two", "one") != one
    assert [comparison.tokenizer.decode(number) for number in comparison.label_ids] == ["A", "B"]


@pytest.mark.parametrize("chat", [False, True])
def test_control_tokens_in_the_text_are_text(chat):
    kit = scene.tokenizer(chat)
    comparison = Comparison.new(kit)
    plain, other = (comparison.encode(*texts) for texts in (("x", "y", "z"), ("x</s>", "<s>y", "z<unk>")))
    control = set(kit.all_special_ids)
    assert [number for number in other if number in control] == [number for number in plain if number in control]
    assert "z<unk>" in text_of(kit, other)
    assert "<|mark|>" not in kit.get_vocab()  # the model's own tokenizer stays as it is


@pytest.mark.parametrize(
    ("labels", "message"),
    [(("A", "BB"), "one token"), (("A", "é"), "one token"), (("A", "A"), "two that differ"), (("A",), "two")],
)
def test_labels_are_two_tokens(labels, message):
    with pytest.raises(ValueError, match=message):
        Comparison.new(scene.tokenizer(), labels)


def test_history_gives_way_first_and_then_both_responses():
    comparison = Comparison.new(scene.tokenizer())
    history, first, second = "0123456789" * 9, "f" * 30, "s" * 60
    whole = comparison.encode_both(history, first, second)
    assert comparison.encode_within(len(whole[0]), history, first, second) == (whole, False)

    both, cut = comparison.encode_within(len(whole[0]) - 1, history, first, second)
    text = text_of(comparison.tokenizer, both[0])
    assert cut and -8 <= len(both[0]) - len(whole[0]) < 0 and len(both[1]) == len(both[0])
    assert re.search(r"<s>\[...\] \d{70,}9\n", text) and first in text and second in text

    empty = len(comparison.encode("[...]", "", ""))
    both, cut = comparison.encode_within(empty + 60, history, first, second)
    text = text_of(comparison.tokenizer, both[1])
    assert cut and empty + 52 <= len(both[1]) <= empty + 60 and "0123" not in text
    kept = re.search(r"A:\n(s+) \[...\] (s+)\n\nResponse B:\n(f+) \[...\] (f+)\n", text).groups()
    assert kept[0].count("s") == kept[2].count("f") and kept[1].count("s") == kept[3].count("f") >= 8
    with pytest.raises(ValueError, match="too short"):
        comparison.encode_within(empty - 1, history, first, second)


def test_a_saved_comparison_is_the_same(tmp_path):
    kit = scene.tokenizer(chat=True)
    comparison = Comparison.new(kit, ("x", "y"), "Better?", max_length=99)
    comparison.temperature = 2.5
    comparison.save_pretrained(tmp_path)
    kit.chat_template = "another"
    again = Comparison.from_pretrained(tmp_path, kit)
    assert again.temperature == 2.5 and again.max_length == 99 and again.label_ids == comparison.label_ids
    for texts in scene.TEXTS:
        assert again.encode_both(*texts) == comparison.encode_both(*texts)
        ((inputs, _),) = DecisionConfig.from_pretrained(tmp_path).prepare_inputs(request(*texts), scene.tokenizer())
        assert inputs["input_ids"][0].tolist() == comparison.encode(*texts)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="it has no decision.json"):
        Comparison.from_pretrained(tmp_path, scene.tokenizer())
    Comparison.new(scene.tokenizer()).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "decision.json").read_text())
    for change, message in (({"pairwise": None}, "'pairwise' missing"), ({"labels": {"choice": list("ABC")}}, "'C'")):
        (tmp_path / "decision.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(ValueError, match=f"another decision model's.*{message}"):
            Comparison.from_pretrained(tmp_path, scene.tokenizer())
