"""Chat templates: Mistral's with tools and thinking, and what makes a tokenizer ready to train on conversations.

A chat template writes messages as text. A response template (transformers' `parse_response`) reads a generated message
back: `content`, `reasoning_content`, `tool_calls`. Both are saved with the tokenizer.
"""

import re
from pathlib import Path

from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl import SFTConfig
from trl.chat_template_utils import add_response_schema, get_training_chat_template, has_generation_markers
from trl.data_utils import is_conversational, maybe_convert_to_chatml

from hf_cascade.data.image_documents import image_column
from hf_cascade.loading import load_tokenizer

SHIPPED = {path.stem: path for path in (Path(__file__).parent / "templates").glob("*.jinja")}
SUFFIXES = (".jinja", ".j2")  # of the files TRL's `chat_template_path` takes
STRING = r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
SCALAR = STRING + r"|-?(?:0|[1-9][0-9]{0,299}+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]{1,3}+)?+|true|false|null"
DEPTH = 5  # ours: levels of lists and objects in a call's arguments; each doubles the pattern


def json_object(depth: int) -> str:
    """
    A pattern for JSON objects of at most `depth` levels.

    Not recursive: `regex` would need 32 KB for each value, and a response that loops has tens of thousands. Numbers
    have at most 300 digits, since Python refuses to read thousands (ours).
    """
    value = SCALAR
    for _ in range(depth):
        item = rf"\s*+(?:{value})\s*+"
        pair = rf"\s*+{STRING}\s*+:{item}"
        found = rf"\{{(?:{pair}(?:,(?=\s*+\")|(?=\}})))*+\s*+\}}"
        value = rf"{SCALAR}|{found}|\[(?:{item}(?:,(?!\s*+\])|(?=\])))*+\s*+\]"
    return found


def mistral_response_template(eos_token: str) -> dict:
    """
    How `parse_response` reads what `templates/mistral.jinja` lets an assistant write.

    Whitespace is kept, so that the parsed message renders to the same tokens. What follows `eos_token` is dropped.

    Args:
        eos_token (`str`): ends a turn.

    Returns:
        `dict`: for a tokenizer's `response_template`.
    """
    end = rf"{re.escape(eos_token)}[\s\S]*"
    text = {"content": "text", "content_args": {"strip": False}, "repeats": True, "join": ""}
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": ["[/INST]", "[/TOOL_RESULTS]", "[/SYSTEM_PROMPT]", "[/AVAILABLE_TOOLS]"],
        "fields": {
            "reasoning_content": {"open": "[THINK]", "close_pattern": rf"\[/THINK\]|{end}", **text},
            "tool_calls": {
                "open_pattern": r"\[TOOL_CALLS\](?P<name>[\w.-]+)\[ARGS\]"  # only where the arguments are whole
                + rf"(?=\s*+{json_object(DEPTH)}\s*+(?:\[TOOL_CALLS\]|{re.escape(eos_token)}|\Z))",
                "close_pattern": rf"(?=\[TOOL_CALLS\])|{end}",
                "content": "json",
                "content_args": {"allow_non_json": True},  # a stream may go on after a whole call
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {"close_pattern": end, **text},
        },
    }


def prepare_chat(
    kit: PreTrainedTokenizerBase | ProcessorMixin, template: str | None = None, assistant_only_loss: bool = False
) -> None:
    """
    Give a tokenizer, or a processor and its tokenizer, a chat template and a response template, in place.

    Args:
        kit (`PreTrainedTokenizerBase` or `ProcessorMixin`): of the model.
        template (`str`, *optional*): `"mistral"`, which is shipped, or a `.jinja` file. Without one the model's own
            chat template stays. It gets a response template if it has none and TRL knows it, or its tool calls are
            written as Mistral's.
        assistant_only_loss (`bool`, *optional*, defaults to `False`): whether the template must say which tokens are
            the assistant's. Where TRL has a training template for the model's own, TRL uses it in training.

    Raises:
        ValueError: no such template, or none at all; a template that does not say which tokens are the assistant's.
    """
    tokenizer = _tokenizer(kit)
    name = template or tokenizer.name_or_path or "the model"
    if template is not None:
        kit.chat_template = tokenizer.chat_template = _read(template)
        tokenizer.response_template = None  # the former template's
    elif kit.chat_template is None:
        raise ValueError(
            f"the tokenizer of {name} has no chat template, and conversations need one: "
            f"set chat_template_path to {', '.join(SHIPPED)} (shipped) or to a .jinja file"
        )
    if tokenizer.response_template is None:
        _add_response_template(kit, tokenizer)
    if assistant_only_loss and not _says_whose(kit, tokenizer):
        raise ValueError(
            f"assistant_only_loss: the chat template of {name} does not say which tokens are the "
            "assistant's: they stand between {% generation %} and {% endgeneration %}, which it lacks. Set "
            f"chat_template_path to {', '.join(SHIPPED)} (shipped), or to a .jinja file with these markers"
        )


def _tokenizer(kit) -> PreTrainedTokenizerBase:
    return getattr(kit, "tokenizer", kit)


def _read(template: str) -> str:
    path = SHIPPED.get(template, Path(template))
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise ValueError(f"chat template {template}: allowed are {', '.join(SHIPPED)} (shipped), or a .jinja file")
    return path.read_text(encoding="utf-8")


def _add_response_template(kit, tokenizer) -> None:
    template = kit.chat_template
    if isinstance(template, str) and "[TOOL_CALLS]" in template and "[ARGS]" in template:
        tokenizer.response_template = mistral_response_template(tokenizer.eos_token)
        return
    try:
        add_response_schema(kit)
    except ValueError:  # a template TRL does not know: its messages are not parsed, which training needs nowhere
        tokenizer.response_template = None


def _says_whose(kit, tokenizer) -> bool:
    if has_generation_markers(kit.chat_template):
        return True
    try:  # not the processor: Pixtral's returns tensors, which TRL fails on
        return kit.chat_template == tokenizer.chat_template and get_training_chat_template(tokenizer) is not None
    except ValueError:  # TRL has none
        return False


def follow_chat_settings(kit, rows: Dataset | IterableDataset, args: SFTConfig) -> None:
    """
    Prepare `kit` as the settings of an SFT stage say, where `rows` are conversations, and write the first of them.

    A folder or Hub id in `chat_template_path` is left to TRL, which takes over its tokens as well.

    Args:
        kit (`PreTrainedTokenizerBase` or `ProcessorMixin`): changed in place.
        rows (`Dataset` or `IterableDataset`): as `data/conversations.load_conversations` gives them.
        args (`SFTConfig`): `chat_template_path` is unset once it has been followed.

    Raises:
        ValueError: as [`prepare_chat`]; the template does not take the first row; rows with images and tools.
    """
    example = maybe_convert_to_chatml(dict(next(iter(rows))))
    path = args.chat_template_path
    if path is not None and path not in SHIPPED and not path.endswith(SUFFIXES):
        return
    if path is not None or is_conversational(example):
        prepare_chat(kit, path, args.assistant_only_loss and is_conversational(example))
        args.chat_template_path = None
    if not is_conversational(example):
        return
    if image_column(rows) is not None:
        if "tools" in example:
            raise ValueError(
                "the rows have images and tools: TRL's collator for images writes no tools. Describe the tools in a "
                "system message and leave the column out (`columns: [messages, images]` in `datasets:`)"
            )
        return
    try:
        kit.apply_chat_template(example.get("messages") or [*example["prompt"], *example["completion"]], tokenize=False)
    except TemplateError as error:
        raise ValueError(f"the chat template does not take the first row: {error}") from error


def holds_chat(folder: str | Path, kit: PreTrainedTokenizerBase | ProcessorMixin) -> bool:
    """Whether the tokenizer saved in `folder` has the chat template and response template of `kit`."""
    saved = load_tokenizer(str(folder))
    ours, theirs = ((one.chat_template, _tokenizer(one).response_template) for one in (kit, saved))
    return ours == theirs


def ragged_prompts(processor: ProcessorMixin) -> None:
    """
    Let a processor return prompts of unequal length as lists, in place; it is saved as before.

    Pixtral's makes tensors whatever its caller wants, on which TRL's generation and its checks of chat templates fail.
    """
    kept = {name: value for name, value in processor.text_kwargs.items() if name != "return_tensors"}
    processor.text_kwargs = kept
