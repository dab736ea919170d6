"""distill/chains.py: every notation is read, its faults are named, and the student's template writes the thinking."""

import pytest
from datasets import Dataset, Image, List

from hf_cascade.data.chat import prepare_chat
from hf_cascade.distill.chains import Notation, own_notation, read_turns, write_chains
from hf_cascade.loading import load_tokenizer
from tests.data import tiny

USER = {"role": "user", "content": "What is 2 + 3?"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL = {"role": "tool", "name": "add", "content": "5"}
THINKING = {"type": "thinking", "thinking": "I add."}
ANSWER = {"type": "text", "text": "It is 5."}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.WHERE %}<think>\n{{ m.WHERE }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
)
DROPS = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}"
    "{% if b.type == 'thinking' %}[THINK]{{ b.thinking }}[/THINK]{% else %}{{ b.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def assistant(content, **keys) -> dict:
    return {"role": "assistant", "content": content, **keys}


NOTATIONS = {
    "reasoning_content": assistant("It is 5.", reasoning_content="I add."),
    "thinking": assistant("It is 5.", thinking="I add."),
    "reasoning": assistant("It is 5.", reasoning="I add."),
    "parts": assistant([THINKING, ANSWER]),
    "reasoning parts": assistant([{"type": "reasoning", "reasoning": "I add."}, ANSWER]),
    "nested parts": assistant([{**THINKING, "thinking": [{"type": "text", "text": "I add."}]}, ANSWER]),
    "[THINK]": assistant("[THINK]I add.[/THINK]It is 5."),
    "<think>": assistant("<think>\nI add.\n</think>\n\nIt is 5."),
    "<think> in a part": assistant([{"type": "text", "text": "<think>I add.</think>It is 5."}]),
}


@pytest.fixture(scope="module")
def mistral():
    kit = load_tokenizer("recipes/tiny/parent")
    prepare_chat(kit, "mistral")
    return kit


def dataset(*rows: dict) -> Dataset:
    return Dataset.from_list(list(rows), on_mixed_types="use_json")


def kit_with(template: str):
    kit = load_tokenizer("recipes/tiny/parent")
    kit.chat_template = template
    return kit


# --- reading


@pytest.mark.parametrize("name", NOTATIONS)
def test_every_notation_is_read(name):
    for row in ({"messages": [USER, NOTATIONS[name]]}, {"prompt": [USER], "completion": [NOTATIONS[name]]}):
        (turn,) = read_turns(row)
        assert (turn.thinking.strip(), turn.answer.strip(), turn.fault) == ("I add.", "It is 5.", None)
        assert turn.prompt == [USER] and turn.completion == [NOTATIONS[name]]


OTHERWISE = "thinking is empty, not first, or more than one block"


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (assistant("It is 5."), "no thinking"),
        (assistant(None), "no thinking"),
        (assistant("It is 5.", reasoning_content=None), "no thinking"),
        (assistant("[THINK]I add. It is 5."), "thinking is not closed"),
        (assistant("<think>I add. It is 5."), "thinking is not closed"),
        (assistant("I add.</think>It is 5."), OTHERWISE),  # not opened
        (assistant("[THINK][/THINK]It is 5."), OTHERWISE),
        (assistant("It is 5.", reasoning_content=" \n"), OTHERWISE),
        (assistant("Well. <think>I add.</think>It is 5."), OTHERWISE),
        (assistant("[THINK]I[/THINK][THINK]add.[/THINK]It is 5."), OTHERWISE),
        (assistant("<think>I add.</think>It is 5.", reasoning_content="I add."), OTHERWISE),
        (assistant([ANSWER, THINKING]), OTHERWISE),
        (assistant("", reasoning_content="I add."), "no answer"),
        (assistant("[THINK]I add.[/THINK] \n"), "no answer"),
        (assistant([THINKING]), "no answer"),
        (assistant("", reasoning_content="I add.", tool_calls=[CALL]), None),
        (assistant("", tool_calls=[CALL]), "no thinking"),
    ],
)
def test_faults(message, fault):
    (turn,) = read_turns({"messages": [USER, message]})
    assert turn.fault == fault
    written = message["content"] if isinstance(message["content"], str) else ""
    if fault == "thinking is not closed":  # nothing of it is lost
        assert turn.thinking == written and turn.answer == ""


def test_turns():
    earlier = assistant("Hello.")
    calls = assistant("", reasoning_content="I ask.", tool_calls=[CALL])
    last = NOTATIONS["[THINK]"]
    row = [USER, earlier, USER, calls, TOOL, last]
    turns = read_turns({"messages": row})
    assert [turn.fault for turn in turns] == [None, None, None]  # an earlier one may be without thinking
    assert [turn.prompt for turn in turns] == [row[:1], row[:3], row[:5]]
    assert [turn.thinking for turn in turns] == ["", "I ask.", "I add."]
    turns = read_turns({"prompt": row[:3], "completion": row[3:]})  # what the prompt holds is not taught
    assert [turn.prompt for turn in turns] == [row[:3], row[:5]]
    turns = read_turns({"messages": [USER, assistant("[THINK]open"), USER, last]})
    assert [turn.fault for turn in turns] == ["thinking is not closed", None]
    assert [turn.fault for turn in read_turns({"messages": [USER, assistant(""), USER, last]})] == ["no answer", None]
    assert read_turns({"messages": [USER]}) == []


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("Q", "[THINK]a[/THINK]b</s>", ("a", "b", None)),
        ("Q<think>\n", "a</think>b", ("a", "b", None)),
        ("Q", "[THINK]a[/THINK]</s>", ("a", "", "no answer")),
        ("Q", "b</s>", ("", "b", "no thinking")),
        ("Q", "[THINK]a", ("[THINK]a", "", "thinking is not closed")),
    ],
)
def test_text(prompt, completion, expected):
    (turn,) = read_turns({"prompt": prompt, "completion": completion}, eos_token="</s>")
    assert (turn.thinking, turn.answer, turn.fault) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": "text"},
        {"messages": None},
        {"messages": ["text"]},
        {"prompt": "Q", "completion": [assistant("a")]},
        {"prompt": [USER], "completion": "a"},
        {"prompt": "Q"},
        {"messages": [USER, assistant("a", reasoning_content=["I add."])]},
        {"messages": [USER, assistant(5)]},
    ],
)
def test_rows_of_other_types_are_refused(row):
    with pytest.raises(ValueError, match="^row 7"):
        read_turns(row, 7)


# --- writing


def test_what_templates_write(mistral):
    assert own_notation(mistral) == Notation("reasoning_content", ("[THINK]", "[/THINK]"))
    for key in ("reasoning_content", "thinking", "reasoning"):  # transformers knows the first and fills in the others
        found = own_notation(kit_with(CHATML.replace("WHERE", key)))
        assert found == (Notation() if key == "reasoning" else Notation("reasoning_content", ("<think>", "</think>")))
    assert own_notation(kit_with(PARTS)) == Notation("thinking", ("[THINK]", "[/THINK]"))
    for template in (DROPS, "{{ messages[-1].content }}", "{{ messages | tojson }}", None):
        assert own_notation(kit_with(template)) == Notation()
    printed = "{% for m in messages %}{{ m.content }}{% endfor %}"  # a list as Python writes it
    assert own_notation(kit_with(printed)) == Notation()


@pytest.mark.parametrize("columns", ["messages", "prompt and completion"])
@pytest.mark.parametrize("name", NOTATIONS)
def test_thinking_is_written_with_the_students_markers(mistral, name, columns):
    """The reference is what the template makes of its own notation."""
    wanted = mistral.apply_chat_template([USER, NOTATIONS["reasoning_content"]], tokenize=False)
    assert wanted.endswith("[THINK]I add.[/THINK]It is 5.</s>")
    row = {"messages": [USER, NOTATIONS[name]]}
    if columns != "messages":
        row = {"prompt": [USER], "completion": [NOTATIONS[name]]}
    features = dataset({"other": 3}).features
    written = write_chains(dataset({**row, "other": 3}), mistral)
    messages = written[0].get("messages") or written[0]["prompt"] + written[0]["completion"]
    assert mistral.apply_chat_template(messages, tokenize=False) == wanted
    assert written[0]["other"] == 3 and written.features["other"] == features["other"]
    qwen, parts = kit_with(CHATML.replace("WHERE", "reasoning_content")), kit_with(PARTS)
    for kit, text in ((qwen, "<think>\nI add.\n</think>\n\nIt is 5."), (parts, "[THINK]I add.[/THINK]It is 5.")):
        written = write_chains(dataset(row), kit)[0]
        messages = written.get("messages") or written["prompt"] + written["completion"]
        assert text in kit.apply_chat_template(messages, tokenize=False)


def test_what_else_a_row_has_stays(mistral):
    calls = assistant("", thinking="I ask.", tool_calls=[CALL])
    image = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Look."}]}
    odd = assistant("[THINK]never closed")
    rows = [[image, calls, TOOL, NOTATIONS["parts"]], [USER, assistant("Hello."), USER, odd]]
    tools = [{"type": "function", "function": {"name": "add"}}]
    data = Dataset.from_list(
        [{"messages": row, "tools": tools, "images": [tiny.image(8, 8)]} for row in rows], on_mixed_types="use_json"
    )
    data = data.cast_column("images", List(Image()))
    written = write_chains(data, mistral)
    plain = {"role": "assistant", "content": "It is 5.", "reasoning_content": "I add."}
    called = {"role": "assistant", "content": "", "reasoning_content": "I ask.", "tool_calls": [CALL]}

    def set_keys(message):
        return {key: value for key, value in message.items() if value is not None}

    assert [set_keys(message) for message in written[0]["messages"]] == [image, called, TOOL, plain]
    assert [set_keys(message) for message in written[1]["messages"]] == [USER, assistant("Hello."), USER, odd]
    assert written[0]["tools"] == tools and written[0]["images"][0].size == (8, 8)


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("Q", "<think>\na\n</think>\n\nb", ("Q", "[THINK]a[/THINK]b")),
        ("Q", "[THINK]a[/THINK]b", ("Q", "[THINK]a[/THINK]b")),
        ("Q<think>\n", "a</think>b", ("Q[THINK]", "a[/THINK]b")),
        ("Q", "<think>a", ("Q", "<think>a")),
        ("Q", "b", ("Q", "b")),
    ],
)
def test_tags_in_text_become_the_students(mistral, prompt, completion, expected):
    written = write_chains(Dataset.from_list([{"prompt": prompt, "completion": completion}]), mistral)[0]
    assert (written["prompt"], written["completion"]) == expected
    written = write_chains(Dataset.from_list([{"prompt": prompt, "completion": completion}]), kit_with(None))[0]
    assert (written["prompt"], written["completion"]) == (prompt, completion)


def test_a_template_that_leaves_thinking_out_is_refused():
    plain = kit_with("{% for m in messages %}{{ m.content }}{% endfor %}")
    rows = Dataset.from_list([{"messages": [USER, NOTATIONS["<think>"]]}])
    assert write_chains(rows, plain)[0]["messages"] == [USER, NOTATIONS["<think>"]]  # it is taught as it stands
    for kit, name in ((plain, "thinking"), (kit_with(DROPS), "<think>")):
        with pytest.raises(ValueError, match="parent leaves thinking out.*set chat_template_path to mistral"):
            write_chains(Dataset.from_list([{"messages": [USER, NOTATIONS[name]]}]), kit)


def test_every_row_is_looked_at_where_a_template_knows_no_thinking():
    """Rows of several sources: one whose tags stand in its text hides none whose thinking is a key or a part."""
    plain = kit_with("{% for m in messages %}{{ m.content }}{% endfor %}")
    for name in ("reasoning_content", "parts"):  # parts are printed as Python writes a list
        rows = dataset(*({"messages": [USER, NOTATIONS[kind]]} for kind in ("<think>", name)))
        with pytest.raises(ValueError, match="leaves thinking out"):
            write_chains(rows, plain)


def test_other_columns_are_refused(mistral):
    with pytest.raises(ValueError, match=r"the columns \['text'\]: chains of thought stand in `messages`, or in"):
        write_chains(Dataset.from_list([{"text": "a"}]), mistral)
