"""Mistral's chat template: what it writes, whose tokens it marks, and that parsing a message gives it back."""

import json
import string

import pytest
import torch
from datasets import Dataset
from tokenizers import decoders
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from trl import SFTConfig
from trl.chat_template_utils import (
    is_chat_template_prefix_preserving,
    is_chat_template_stop_token_trained,
    parse_response,
    qwen3_chat_template,
    supports_tool_calling,
)
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from hf_cascade.data.chat import SHIPPED, follow_chat_settings, json_object, prepare_chat, ragged_prompts
from hf_cascade.data.pixtral import PixtralProcessor
from hf_cascade.loading import load_tokenizer
from tests.data import tiny

MARKERS = [
    f"[{slash}{name}]"
    for name in ("INST", "SYSTEM_PROMPT", "AVAILABLE_TOOLS", "THINK", "TOOL_RESULTS")
    for slash in ("", "/")
] + ["[TOOL_CALLS]", "[ARGS]"]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "days": [1, 2]}}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Oslo?"},
    {"role": "assistant", "reasoning_content": "look it up", "content": "Wait. ", "tool_calls": [CALL, CALL]},
    {"role": "tool", "name": "weather", "content": '{"sky": "grey"}'},
    {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "it is grey"}, {"type": "text", "text": "Grey."}],
    },
    {"role": "user", "content": "And Rome?"},
    {"role": "assistant", "content": "Blue."},
]
ONE_CALL = '[TOOL_CALLS]weather[ARGS]{"city": "Oslo", "days": [1, 2]}'
FIRST = f"[THINK]look it up[/THINK]Wait. {ONE_CALL}{ONE_CALL}</s>"
SECOND = "[THINK]it is grey[/THINK]Grey.</s>"
WRITTEN = (
    f"<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][AVAILABLE_TOOLS]{json.dumps([WEATHER])}[/AVAILABLE_TOOLS]"
    f'[INST]Oslo?[/INST]{FIRST}[TOOL_RESULTS]{{"sky": "grey"}}[/TOOL_RESULTS]{SECOND}[INST]And Rome?[/INST]Blue.</s>'
)


def letters(special: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of characters; with `special`, the markers are tokens of their own."""
    return whole(tiny.tokenizer(string.printable), special)


def whole(kit: PreTrainedTokenizerFast, special: bool = True) -> PreTrainedTokenizerFast:
    """Let a tokenizer of characters write no spaces between them, and know the markers."""
    kit.backend_tokenizer.decoder = decoders.Fuse()
    if special:
        kit.add_tokens(MARKERS, special_tokens=True)
    return kit


KITS = {
    "recipe": lambda: load_tokenizer("recipes/tiny/tokenizer"),
    "special": letters,
    "plain": lambda: letters(special=False),
}


@pytest.fixture(params=KITS)
def kit(request) -> PreTrainedTokenizerFast:
    kit = KITS[request.param]()
    prepare_chat(kit, "mistral", assistant_only_loss=True)
    return kit


def processor() -> PixtralProcessor:
    """With every marker and every character."""
    kit = whole(tiny.tokenizer(string.printable, images=True))
    made = PixtralProcessor(tiny.processor().image_processor, kit, 4, 2)
    prepare_chat(made, "mistral", assistant_only_loss=True)
    return made


# --- what is written


def test_layout(kit):
    assert kit.apply_chat_template(TALK, tools=[WEATHER], tokenize=False) == WRITTEN


def test_what_trl_asks_of_a_template(kit):
    assert supports_tool_calling(kit)
    assert is_chat_template_prefix_preserving(kit)
    assert is_chat_template_stop_token_trained(kit)


def test_every_turn_is_a_prefix_of_the_next(kit):
    texts = [kit.apply_chat_template(TALK[: n + 1], tools=[WEATHER], tokenize=False) for n in range(len(TALK))]
    assert texts[-1] == WRITTEN and all(WRITTEN.startswith(text) for text in texts)
    ids = [kit.apply_chat_template(TALK[: n + 1], tools=[WEATHER], return_dict=False) for n in range(len(TALK))]
    assert all(ids[-1][: len(one)] == one for one in ids)


def test_generation_prompt_adds_nothing(kit):
    asked = TALK[:2]
    assert kit.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) == kit.apply_chat_template(
        asked, tokenize=False
    )


def test_exactly_the_assistants_tokens_are_marked(kit):
    out = kit.apply_chat_template(TALK, tools=[WEATHER], return_dict=True, return_assistant_tokens_mask=True)
    runs, before = [], 0
    for token, marked in zip(out["input_ids"], out["assistant_masks"], strict=True):
        if marked and not before:
            runs.append([])
        if marked:
            runs[-1].append(token)
        before = marked
    assert [kit.decode(run) for run in runs] == [FIRST, SECOND, "Blue.</s>"]


@pytest.mark.parametrize(
    ("call", "written"),
    [
        ({"function": {"name": "f", "arguments": '{"a":1}'}}, '[TOOL_CALLS]f[ARGS]{"a":1}'),
        ({"function": {"name": "f", "arguments": None}}, "[TOOL_CALLS]f[ARGS]{}"),
        ({"function": {"name": "f", "arguments": ""}}, "[TOOL_CALLS]f[ARGS]{}"),
        ({"name": "f", "arguments": {"a": "é"}}, '[TOOL_CALLS]f[ARGS]{"a": "é"}'),
    ],
)
def test_calls_as_datasets_have_them(call, written):
    kit = letters()
    prepare_chat(kit, "mistral")
    message = {"role": "assistant", "content": None, "reasoning_content": None, "tool_calls": [call]}
    assert kit.apply_chat_template([message], tokenize=False) == f"<s>{written}</s>"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "human", "content": "a"}, "a message is of human; allowed are system"),
        ({"role": "tool", "content": [{"type": "image"}]}, "a message of tool cannot have a part of type image"),
        ({"role": "user", "content": [{"type": "thinking", "thinking": "a"}]}, "user cannot have .* thinking"),
    ],
)
def test_messages_it_does_not_take(message, error):
    kit = letters()
    rows = Dataset.from_list([{"messages": [message]}])
    with pytest.raises(ValueError, match=f"the chat template does not take the first row: .*{error}"):
        follow_chat_settings(kit, rows, SFTConfig(chat_template_path="mistral", bf16=False, report_to="none"))


# --- what is read back


def test_parsed_messages_write_the_same_tokens(kit):
    written = kit.apply_chat_template(TALK, tools=[WEATHER], tokenize=False)
    for n, text in ((2, FIRST), (4, SECOND), (6, "Blue.</s>")):
        prefix = kit.apply_chat_template(TALK[:n], tools=[WEATHER], return_dict=False)
        ids = kit(text, add_special_tokens=False)["input_ids"]
        message = kit.parse_response([*ids, kit.pad_token_id, kit.pad_token_id], prefix=prefix)
        again = kit.apply_chat_template([*TALK[:n], message, *TALK[n + 1 :]], tools=[WEATHER], tokenize=False)
        assert again == written
        if n == 2:
            assert message == {"role": "assistant", **{k: v for k, v in TALK[2].items() if k != "role"}}


BROKEN = [
    '[TOOL_CALLS]weather[ARGS]{"city": "Os',
    '[TOOL_CALLS]weather[ARGS]{"at": {"city": "Oslo"}',
    "[TOOL_CALLS]weather",
    "[TOOL_CALLS]weather[ARGS]",
    "[TOOL_CALLS]weather[ARGS]{city: 1}",
    '[TOOL_CALLS]weather[ARGS]{"a": 1,}',
    '[TOOL_CALLS]weather[ARGS]{"a": [1,]}',
    '[TOOL_CALLS]weather[ARGS]["a"]',
    '[TOOL_CALLS]weather[ARGS]{"a": 1} and so on',
    "[TOOL_CALLS]" * 3,
]


@pytest.mark.parametrize("end", ["", "</s>"])
@pytest.mark.parametrize("text", BROKEN)
def test_broken_calls_stay_text(kit, text, end):
    ids = kit("So: " + text + end, add_special_tokens=False)["input_ids"]
    for message in (kit.parse_response(ids, prefix="[INST]a[/INST]"), parse_response(kit, ids, [])):
        assert message == {"role": "assistant", "content": "So: " + text}


def test_whole_call_before_a_broken_one_is_kept():
    kit = letters()
    prepare_chat(kit, "mistral")
    message = kit.parse_response(ONE_CALL + BROKEN[0], prefix="")
    assert message == {"role": "assistant", "tool_calls": [CALL], "content": BROKEN[0]}


def test_unclosed_thinking_is_no_answer():
    kit = letters()
    prepare_chat(kit, "mistral")
    message = kit.parse_response("[THINK]on and on " + ONE_CALL, prefix="")
    assert message == {"role": "assistant", "reasoning_content": "on and on " + ONE_CALL}


LOOPS = {
    "brackets": ('{"a": ' + "[" * 3000, "]" * 3000 + "}"),
    "objects": ('{"a":' * 3000 + "1", "}" * 3000),
    "digits": ('{"a": ' + "1" * 9000, "}"),
    "items": ('{"a": [' + "1, " * 20_000, "1]}"),
    "pairs": ('{"a": 1' + ', "a": 1' * 20_000, "}"),
    "calls": ('{"a": 1}' + '[TOOL_CALLS]f[ARGS]{"a": 1}' * 1000, ""),
}


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("kind", LOOPS)
def test_loops_neither_raise_nor_take_long(kind, closed):
    kit = letters()
    prepare_chat(kit, "mistral")
    begin, end = LOOPS[kind]
    text = "[TOOL_CALLS]f[ARGS]" + begin + end * closed
    message = kit.parse_response(text, prefix="")  # the test's time limit is the assertion
    whole = kind == "calls" or (closed and kind in ("items", "pairs"))
    assert ("tool_calls" in message) == whole and (whole or message["content"] == text)


@pytest.mark.parametrize(
    "text",
    ["{}", '{ "a" : [ ] , "b":{ } }', r'{"a": "\"\\\u00e9 ]},"}', '{"a": -0.5e-3, "b": [true, false, null, "", 10]}']
    + [json.dumps({"a": [{"b": [{"c": 1}, 2]}]})]
    + ["{", "{a}", '{"a"}', '{"a":}', '{"a": 01}', '{"a": +1}', '{"a": "\n"}', "{,}", '{"a": 1 "b": 2}', '{"a": [1 2]}']
    + ['{"a": "\\x"}', '{"a": 1,, "b": 2}', '{"a": tru}', '{"a": [1}', '{"a": {]}'],
)
def test_pattern_is_json(text):
    import regex

    try:
        valid = isinstance(json.loads(text), dict)
    except ValueError:
        valid = False
    assert bool(regex.fullmatch(json_object(5), text)) == valid


# --- preparing


def test_saved_and_opened_again(tmp_path):
    kit = letters()
    prepare_chat(kit, "mistral")
    kit.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == SHIPPED["mistral"].read_text() == (tmp_path / "chat_template.jinja").read_text()
    assert again.parse_response(FIRST, prefix=WRITTEN[: WRITTEN.index(FIRST)])["tool_calls"] == [CALL, CALL]


def test_own_eos_token():
    kit = letters()
    kit.add_tokens(["<|end|>"], special_tokens=True)
    kit.eos_token = "<|end|>"
    prepare_chat(kit, "mistral")
    assert kit.apply_chat_template(TALK[-2:], tokenize=False) == "<s>[INST]And Rome?[/INST]Blue.<|end|>"
    assert kit.parse_response("Blue.<|end|><pad>", prefix="")["content"] == "Blue."


def test_models_own_template_stays():
    kit = letters()
    kit.chat_template = qwen3_chat_template
    prepare_chat(kit, assistant_only_loss=True)  # TRL has a training template for it
    assert kit.chat_template == qwen3_chat_template
    assert kit.parse_response("<think>\na\n</think>\n\nb<|im_end|>", prefix="")["reasoning_content"] == "a"
    kit.chat_template, kit.response_template = tiny.CHAT, {"fields": {"content": {}}, "start_anchor": "x"}
    before = kit.response_template
    prepare_chat(kit, assistant_only_loss=True)
    assert kit.chat_template == tiny.CHAT and kit.response_template is before


def test_released_templates_calls_are_read():
    kit = letters()
    kit.chat_template = "{{ '[TOOL_CALLS]' + messages[0].name + '[ARGS]' }}"
    prepare_chat(kit)
    assert kit.parse_response(ONE_CALL, prefix="")["tool_calls"] == [CALL]


def test_file(tmp_path):
    (tmp_path / "own.jinja").write_text(tiny.CHAT)
    kit = letters()
    prepare_chat(kit, "mistral")
    prepare_chat(kit, str(tmp_path / "own.jinja"), assistant_only_loss=True)
    assert kit.chat_template == tiny.CHAT and kit.response_template is None


NO_MARKERS = "the chat template of {} does not say which tokens .*{{% generation %}}.*chat_template_path to mistral"


def test_refusals(tmp_path):
    kit = letters()
    with pytest.raises(ValueError, match="has no chat template, .*set chat_template_path to mistral .shipped."):
        prepare_chat(kit)
    for name in ("mistrall", str(tmp_path / "none.jinja"), str(tmp_path)):
        with pytest.raises(ValueError, match="allowed are mistral .shipped., or a .jinja file"):
            prepare_chat(kit, name)
    kit.chat_template, kit.name_or_path = "{{ messages[0].content }}", "some/model"
    prepare_chat(kit)
    with pytest.raises(ValueError, match=NO_MARKERS.format("some/model")):
        prepare_chat(kit, assistant_only_loss=True)
    (tmp_path / "own.jinja").write_text(kit.chat_template)
    with pytest.raises(ValueError, match=NO_MARKERS.format(".*own.jinja")):
        prepare_chat(kit, str(tmp_path / "own.jinja"), assistant_only_loss=True)


def config(**settings) -> SFTConfig:
    return SFTConfig(bf16=False, report_to="none", **settings)


def test_settings_are_followed(tmp_path):
    rows = Dataset.from_list([{"messages": TALK[5:]}])
    args, kit = config(chat_template_path="mistral", assistant_only_loss=True), letters()
    follow_chat_settings(kit, rows, args)
    assert kit.chat_template == SHIPPED["mistral"].read_text() and args.chat_template_path is None
    args, kit = config(chat_template_path=str(tmp_path)), letters()  # TRL takes tokens over too
    follow_chat_settings(kit, rows, args)
    assert kit.chat_template is None and args.chat_template_path == str(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        follow_chat_settings(letters(), rows, config())
    with pytest.raises(ValueError, match="has no chat template"):  # as ShareGPT names them
        rows = Dataset.from_list([{"conversations": [{"from": "user", "value": "a"}]}])
        follow_chat_settings(letters(), rows, config())
    follow_chat_settings(letters(), Dataset.from_list([{"text": "a"}]), config())
    follow_chat_settings(letters(), Dataset.from_list([{"prompt": "a", "completion": "b"}]), config())
    with pytest.raises(ValueError, match="the rows have images and tools.*columns: "):
        rows = Dataset.from_list([{"messages": TALK[5:], "images": [tiny.image(8, 16)], "tools": []}])
        follow_chat_settings(processor(), rows, config())


# --- processors


def test_images():
    kit = processor()
    assert kit.chat_template == kit.tokenizer.chat_template == SHIPPED["mistral"].read_text()
    collate = DataCollatorForVisionLanguageModeling(kit, assistant_only_loss=True)
    talk = [{"role": "user", "content": "what?"}, TALK[4], *TALK[5:]]
    batch = collate([{"messages": talk, "images": [tiny.image(8, 16)]}, {"messages": TALK[5:], "images": []}])
    image = kit.replace_image_token({"image_sizes": batch["image_sizes"]}, 0)
    asked = f"<s>[INST]{image}what?[/INST]"
    for row, prompt, answers in ((0, asked, [SECOND, "Blue.</s>"]), (1, "<s>[INST]And Rome?[/INST]", ["Blue.</s>"])):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        assert kit.tokenizer.decode(ids).startswith(prompt)
        assert kit.tokenizer.decode(ids[labels != -100]) == "".join(answers)
        assert torch.equal(ids[labels != -100], labels[labels != -100])


def test_ragged_prompts(tmp_path):
    kit = processor()
    talks = [TALK[5:6], TALK[1:2]]
    with pytest.raises(ValueError):
        kit.apply_chat_template(talks, tokenize=True, return_dict=True)
    saved = kit.to_dict()
    ragged_prompts(kit)
    assert is_chat_template_prefix_preserving(kit) and supports_tool_calling(kit)
    out = kit.apply_chat_template(talks, tokenize=True, return_dict=True)
    assert [kit.tokenizer.decode(ids) for ids in out["input_ids"]] == [
        "<s>[INST]And Rome?[/INST]",
        "<s>[INST]Oslo?[/INST]",
    ]
    assert kit.to_dict() == saved and PixtralProcessor.text_kwargs == {"return_tensors": "pt"}
    pictures = [[{"role": "user", "content": [{"type": "image", "image": tiny.image(8, 16)}]}], *talks[:1]]
    out = kit.apply_chat_template(pictures, tokenize=True, return_dict=True)
    assert out["pixel_values"].shape[0] == 1 and len(set(map(len, out["input_ids"]))) == 2


def test_own_template_of_a_processor():
    kit = processor()
    kit.chat_template = kit.tokenizer.chat_template = (
        SHIPPED["mistral"].read_text().replace("endgeneration", "endif").replace("generation -", "if 1 -")
    )
    with pytest.raises(ValueError, match="does not say which tokens"):
        prepare_chat(kit, assistant_only_loss=True)
