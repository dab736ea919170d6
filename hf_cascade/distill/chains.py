"""Chains of thought in SFT rows: read in any notation, and written in the one that the student's template writes.

The notations are those of `completions.py`: Mistral's and Qwen's tags in text, keys of a message, parts of its content.
A template writes foreign tags as plain letters, and drops or refuses parts that it does not know.
"""

import re
from dataclasses import dataclass

from accelerate import PartialState
from datasets import Dataset, Features, Json, List
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hf_cascade.completions import THINKING_KEYS, THINKING_PARTS, THINKING_TAGS
from hf_cascade.rewards.answers import opening_tag
from hf_cascade.rewards.form import thinking_and_answer

COLUMNS = (("messages",), ("prompt", "completion"))
KEY = THINKING_KEYS[0]
PROBE = "probe-of-thinking"


@dataclass(frozen=True)
class Turn:
    """
    What an assistant writes in one turn.

    Attributes:
        prompt (`str` or `list[dict]`): what stands before it.
        completion (`str` or `list[dict]`): the turn itself, text or one message.
        thinking (`str`): its thinking; everything in it where the thinking has no form.
        answer (`str`): what follows the thinking.
        fault (`str`, *optional*): what is wrong with its form.
    """

    prompt: str | list[dict]
    completion: str | list[dict]
    thinking: str
    answer: str
    fault: str | None


def read_turns(row: dict, number: int = 0, eos_token: str | None = None) -> list[Turn]:
    """
    The assistant's turns in a row: of `messages` all, of `prompt` and `completion` those of the completion.

    The last turn must think: one block, first, closed, not empty. An earlier one may be without (templates leave it
    out), but a block that it has must have the form. Each must have an answer or call a tool.

    Args:
        row (`dict`): `messages`, or `prompt` and `completion`, both text or both messages.
        number (`int`, *optional*, defaults to 0): the row's, for errors.
        eos_token (`str`, *optional*): is no answer at the end of text.

    Raises:
        ValueError: other columns or types.
    """
    history, said = ([], row["messages"]) if "messages" in row else (row.get("prompt"), row.get("completion"))
    if isinstance(history, str) and isinstance(said, str):
        return [_turn(history, said.removesuffix(eos_token or ""), True)]
    for messages in (history, said):
        if not isinstance(messages, list) or not all(isinstance(entry, dict) for entry in messages):
            raise ValueError(
                f"row {number} has {messages!r:.100}: give `messages`, or `prompt` and `completion`, both text or both "
                "lists of messages"
            )
    places = [place for place, entry in enumerate(said) if entry.get("role") == "assistant"]
    try:
        return [_turn([*history, *said[:place]], [said[place]], place == places[-1]) for place in places]
    except (TypeError, AttributeError) as error:  # a key or part whose value is no text
        raise ValueError(f"row {number}: thinking and content must be text or lists of parts ({error})") from error


def _turn(prompt: str | list[dict], completion: str | list[dict], is_last: bool) -> Turn:
    parts = thinking_and_answer(completion, prompt)
    message = {"content": completion} if isinstance(completion, str) else completion[0]
    calls = bool(message.get("tool_calls"))
    if parts is not None:
        thinking, answer = parts
        return Turn(prompt, completion, thinking, answer, None if answer.strip() or calls else "no answer")
    written, marked = _written(message)
    if marked or any(tag in written for pair in THINKING_TAGS for tag in pair):
        open_ = any(written.count(begin) > written.count(end) for begin, end in THINKING_TAGS)
        fault = "thinking is not closed" if open_ else "thinking is empty, not first, or more than one block"
        return Turn(prompt, completion, written, "", fault)
    fault = "no thinking" if is_last else None if written.strip() or calls else "no answer"
    return Turn(prompt, completion, "", written, fault)


def _written(message: dict) -> tuple[str, bool]:
    """All text of a message, and whether keys or parts mark some as thinking."""
    texts = [message[key] for key in THINKING_KEYS if message.get(key)]
    marked, content = bool(texts), message.get("content") or ""
    for part in [{"text": content}] if isinstance(content, str) else content:
        value = next((part[key] for key in ("text", *THINKING_PARTS) if part.get(key)), "")
        texts.append(value if isinstance(value, str) else "".join(inner.get("text", "") for inner in value))
        marked |= part.get("type") in THINKING_PARTS
    return "\n".join(texts), marked


@dataclass(frozen=True)
class Notation:
    """
    How a chat template wants thinking.

    Attributes:
        name (`str`, *optional*): `reasoning_content`, a key of the message (transformers makes other keys of it), or
            the type of a part of its content. `None`: it knows none.
        tags (`tuple[str, str]`, *optional*): what it writes around thinking, where that is known here.
    """

    name: str | None = None
    tags: tuple[str, str] | None = None


def own_notation(kit: PreTrainedTokenizerBase | ProcessorMixin) -> Notation:
    """What the chat template of a tokenizer or processor makes of thinking, found by asking it."""
    if kit.chat_template is None:
        return Notation()
    asked = {KEY: {KEY: PROBE, "content": "A"}}
    asked |= {
        kind: {"content": [{"type": kind, kind: PROBE}, {"type": "text", "text": "A"}]} for kind in THINKING_PARTS
    }
    for name, message in asked.items():
        try:
            text = _render(kit, [{"role": "user", "content": "Q"}, {"role": "assistant", **message}])
        except (TemplateError, TypeError):  # it wants no such content
            continue
        before, found, _ = text.partition(PROBE)
        if found and not before.endswith(("'", '"')):  # quoted: a list printed as it is
            return Notation(name, next((pair for pair in THINKING_TAGS if before.rstrip().endswith(pair[0])), None))
    return Notation()


def write_chains(rows: Dataset, kit: PreTrainedTokenizerBase | ProcessorMixin, num_proc: int | None = None) -> Dataset:
    """
    Rows whose thinking the student's template writes with its own markers; other columns and other messages stay.

    In text without messages the tags become the template's. Line breaks around tags belong to the notation and go.
    Thinking without the form stays as it is.

    Args:
        rows (`Dataset`): `messages`, or `prompt` and `completion`.
        kit (`PreTrainedTokenizerBase` or `ProcessorMixin`): the student's, with its chat template.
        num_proc (`int`, *optional*): processes.

    Raises:
        ValueError: the template leaves thinking out.
    """
    notation = own_notation(kit)
    columns = check_columns(rows)
    if isinstance(rows[0][columns[0]], str):
        with PartialState().main_process_first():
            return rows.map(lambda row: _write_text(row, notation), num_proc=num_proc)
    features = Features({**rows.features, **{column: List(Json()) for column in columns}})  # keys differ

    def write(row: dict) -> dict:
        return {column: [_write(entry, notation) for entry in row[column]] for column in columns}

    with PartialState().main_process_first():
        rows = rows.map(write, features=features, num_proc=num_proc)
    _check_written(rows, kit, every=notation.name is None)
    return rows


def check_columns(rows: Dataset) -> tuple[str, ...]:
    """The columns in which rows have chains of thought; raises `ValueError` where there are none."""
    found = next((kind for kind in COLUMNS if set(kind) <= set(rows.column_names)), None)
    if found is None:
        raise ValueError(
            f"the rows have the columns {sorted(rows.column_names)}: chains of thought stand in `messages`, or in "
            "`prompt` and `completion`"
        )
    return found


def _write(message: dict, notation: Notation) -> dict:
    """A message in a template's notation; one without the form, or where the template has none, as it is."""
    parts = thinking_and_answer([message]) if message.get("role") == "assistant" and notation.name else None
    if parts is None:
        return message
    thinking, answer = parts
    content = message.get("content")
    if not any(message.get(key) for key in THINKING_KEYS) and not _is_parted(content):  # tags in text
        thinking, answer = thinking.strip("\n"), answer.strip("\n")
    message = {key: value for key, value in message.items() if key not in THINKING_KEYS}
    others = [] if isinstance(content, str | None) else [part for part in content if part.get("type") != "text"]
    others = [part for part in others if part.get("type") not in THINKING_PARTS]
    texts = [{"type": "text", "text": answer}] if answer else []
    if notation.name != KEY:
        return message | {"content": [{"type": notation.name, notation.name: thinking}, *texts, *others]}
    return message | {KEY: thinking, "content": [*texts, *others] if others else answer}


def _is_parted(content: str | list[dict] | None) -> bool:
    return isinstance(content, list) and any(part.get("type") in THINKING_PARTS for part in content)


def _write_text(row: dict, notation: Notation) -> dict:
    """The same of a row of text."""
    parts = thinking_and_answer(row["completion"], row["prompt"])
    if parts is None or notation.tags is None:
        return {}
    begin, end = notation.tags
    thinking, answer = (part.strip("\n") for part in parts)
    opened = opening_tag(row["prompt"])
    if not opened:
        return {"completion": begin + thinking + end + answer}
    return {"prompt": row["prompt"].rstrip().removesuffix(opened) + begin, "completion": thinking + end + answer}


def _check_written(rows: Dataset, kit, every: bool) -> None:
    """The first row that thinks, or `every` one, must do so in what the template writes, too, and not in quotes."""
    for row in rows if every else rows.select(range(min(100, len(rows)))):
        turn = next(reversed(read_turns(row)), None)
        if turn is not None and turn.thinking and turn.fault is None:
            text = _render(kit, [*turn.prompt, *turn.completion])
            if not re.search(rf"(?<!['\"]){re.escape(turn.thinking.strip())}", text):
                name = getattr(kit, "tokenizer", kit).name_or_path or "the model"
                raise ValueError(
                    f"the chat template of {name} leaves thinking out, so that nothing could be learnt of it: set "
                    "chat_template_path to mistral (shipped), or to a .jinja file that writes it"
                )
            if not every:
                return


def _render(kit, messages: list[dict]) -> str:
    tokenizer = getattr(kit, "tokenizer", kit)
    return tokenizer.apply_chat_template(messages, chat_template=kit.chat_template, tokenize=False)
