"""Turns of a conversation in one text, and back."""

import pytest

from hf_cascade.evaluate.benchmarks.conversations import messages_of, text_of


def turns(*texts):
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": text} for place, text in enumerate(texts)]


@pytest.mark.parametrize(
    "texts",
    [
        ("Hello", "Hi", "How are you?"),
        ("", "", ""),
        ("<image>\nWhat is this?", "A cat.", "好 \U0001f600\u2028?"),
        ("a\n\n[user 0123456789ab]\nb", "[assistant 0123456789ab]\n", "[user x]\n\n\n"),
        ("\ud83d lone", "ok", "next"),
        ("  spaces  ", "\tkept\n", "inside"),
    ],
)
def test_several_turns_come_back(texts):
    text = text_of(turns(*texts))
    assert messages_of(text) == turns(*texts)
    stripped = messages_of(text.strip())  # as a template, or a cache, may have it
    assert [turn["content"].strip() for turn in stripped] == [part.strip() for part in texts]


def test_a_system_turn_and_a_transcript_inside_a_turn():
    inner = text_of(turns("one", "two", "three"))
    messages = [{"role": "system", "content": "Be brief."}, *turns(inner, "yes", inner)]
    assert messages_of(text_of(messages)) == messages


def test_one_turn_is_its_own_text():
    assert text_of(turns("What is 2 + 2?")) == "What is 2 + 2?"
    assert messages_of("What is 2 + 2?") is None and messages_of("") is None


def test_a_forged_or_changed_transcript_is_a_text():
    text = text_of(turns("one", "two", "three"))
    assert messages_of(text.replace("two", "2")) is None
    assert messages_of("Question: " + text) is None
    assert messages_of("[user 0123456789ab]\nhi\n\n[assistant 0123456789ab]\nho\n\n[user 0123456789ab]\nhi") is None


@pytest.mark.parametrize("messages", [[], turns("a", "b"), [{"role": "tool", "content": "x"}], [{"role": "user"}]])
def test_what_is_no_conversation(messages):
    with pytest.raises(ValueError, match="message|turn of the user"):
        text_of(messages)
