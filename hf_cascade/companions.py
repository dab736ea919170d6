"""
`digests`: hashes of what decides a model's answers beside its weights: tokenizer, chat template, processor, generation.

Each part has two. One is of its files as they are, but for how JSON is written and for keys that change nothing; it is
the same with every version of transformers. The other is of the part as transformers opens it, so that a tokenizer
which was only saved anew, in other files, is known to be the same. Two parts are the same where either is.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from transformers import GenerationConfig
from transformers.utils import logging

TOKENIZER, TEMPLATE = "tokenizer", "chat template"
PROCESSOR, GENERATION = "processor", "generation config"
PARTS = (TOKENIZER, TEMPLATE, PROCESSOR, GENERATION)
_TEMPLATE_KEY, _TEMPLATE_FILE = "chat_template", "chat_template.jinja"
_NAMED_TEMPLATES = "additional_chat_templates"  # transformers keeps templates beside the first one here
_FILES = {
    TOKENIZER: ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "tekken.json"),
    PROCESSOR: ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    GENERATION: ("generation_config.json",),
}
_FILES[TOKENIZER] += ("*.spm", "spiece.model")
# where a file was, who wrote it, and which class it was saved from
_SAYS_NOTHING = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "is_local", "local_files_only")
_SAYS_NOTHING += ("transformers_version", "_from_model_config", "processor_class", _TEMPLATE_KEY)

# an odd part, or one of a library that is not here
_CANNOT_OPEN = (OSError, ValueError, ImportError, TypeError, AttributeError, KeyError)


def digests(folder: str | Path) -> dict[str, dict[str, str | None] | None]:
    """
    Hashes of the parts of a model's folder.

    Returns:
        `dict`: part to `{"files": sha256, "opened": sha256 or None}`; `None` for a part that is not there. `opened` is
        `None` where transformers cannot open the part here, or has no one form of it.

    Raises:
        OSError, ValueError: a file that cannot be read, or is no JSON.
    """
    folder = Path(folder)
    found = {part: _files_sha256(folder, part) for part in (TOKENIZER, PROCESSOR, GENERATION)}
    found[TEMPLATE] = _templates_sha256(folder)
    return {part: found[part] and {"files": found[part], "opened": _opened_sha256(folder, part)} for part in PARTS}


def differences(before: dict, now: dict) -> list[str]:
    """
    How the parts of two folders differ, by their [`digests`]: `chat template changed`, `generation config added`.

    Raises:
        KeyError, TypeError: what is given is none of [`digests`].
    """
    lines = []
    for part in PARTS:
        old, new = before.get(part), now.get(part)
        if old is None or new is None:
            lines += [f"{part} {'taken away' if old else 'added'}"] * (old != new)
        elif old["files"] != new["files"] and (new["opened"] is None or old["opened"] != new["opened"]):
            lines.append(f"{part} changed")
    return lines


def templates(folder: Path) -> dict[str, str]:
    """
    Name to text of the chat templates of a folder: its tokenizer's, and what its processor has beside those.

    Line ends are one letter, and the last is left out, as jinja does.

    Raises:
        OSError, ValueError: a file that cannot be read, is no JSON, or holds no templates under their key.
    """
    return {**_of_processor(folder), **_of_tokenizer(folder)}


def _templates_sha256(folder: Path) -> str | None:
    """Hash of the templates that are used; one more of the processor's, where it does not use the tokenizer's."""
    tokenizer, processor = _of_tokenizer(folder), _of_processor(folder)
    if tokenizer and processor and tokenizer != processor:
        return _sha256({"tokenizer": tokenizer, "processor": processor})
    return _sha256(tokenizer or processor) if tokenizer or processor else None


def _of_tokenizer(folder: Path) -> dict[str, str]:
    """Templates as AutoTokenizer takes them (transformers 5.23): if there are files of jinja, nothing of the config."""
    return _jinja(folder) or _in_json(folder / "tokenizer_config.json")


def _of_processor(folder: Path) -> dict[str, str]:
    """Templates as AutoProcessor takes them (transformers 5.23); without any, the tokenizer's are used."""
    named = _in_json(folder / "processor_config.json") or _in_json(folder / "chat_template.json")
    return named or _jinja(folder)


def _jinja(folder: Path) -> dict[str, str]:
    beside = sorted((folder / _NAMED_TEMPLATES).glob("*.jinja"))
    paths = {"default": folder / _TEMPLATE_FILE} | {path.stem: path for path in beside}
    return {name: _as_read(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def _in_json(path: Path) -> dict[str, str]:
    """Of a JSON file: one text, a list of names and templates, or a dict of them."""
    given = _json(path).get(_TEMPLATE_KEY) if path.is_file() else None
    if given is None:
        return {}
    try:
        if isinstance(given, list):
            given = {one["name"]: one["template"] for one in given}
        named = {"default": given} if isinstance(given, str) else given
        return {name: _as_read(text) for name, text in named.items()}
    except (KeyError, TypeError, AttributeError) as error:
        wanted = "a text, a list of {name, template}, or a dict of name to template"
        raise ValueError(f"{path}: {_TEMPLATE_KEY} is none of {wanted}: save it again") from error


def _as_read(text: str) -> str:
    return text.replace("\r\n", "\n").removesuffix("\n")


def _files_sha256(folder: Path, part: str) -> str | None:
    """Hash of a part's files."""
    paths = sorted({path for pattern in _FILES[part] for path in folder.glob(pattern) if path.is_file()})
    content = {path.name: _content(path) for path in paths}
    return _sha256(content) if content else None


def _content(path: Path):
    """What a file says: of JSON, what it holds but for keys that change nothing; of others, their hash."""
    if path.suffix != ".json" or path.name.startswith("vocab."):  # of a vocabulary, a list too
        return hashlib.sha256(path.read_bytes()).hexdigest()
    content = _json(path)
    if path.name in ("tokenizer.json", "tekken.json"):  # its keys are tokens
        return content
    return {key: value for key, value in content.items() if key not in _SAYS_NOTHING and value is not None}


def _opened_sha256(folder: Path, part: str) -> str | None:
    """Hash of a part as transformers opens it; `None` where it does not, or has no one form of it."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # what a tokenizer lacks is said where it is used
    try:
        content = _OPENERS[part](folder) if part in _OPENERS else None
    except Exception as error:
        if not isinstance(error, _CANNOT_OPEN) and type(error) is not Exception:  # tokenizers' Rust raises that itself,
            raise  # with no class of its own, of a tokenizer.json that it cannot parse
        return None  # the files still have a hash
    finally:
        logging.set_verbosity(level)
    return None if content is None else _sha256(content)


def _tokenizer(folder: Path) -> dict | None:
    from hf_cascade.loading import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    names = ("special_tokens_map", "padding_side", "truncation_side", "model_max_length", "model_input_names")
    names += ("clean_up_tokenization_spaces", "split_special_tokens", "add_bos_token", "add_eos_token")
    return {name: repr(getattr(tokenizer, name, None)) for name in names} | {"core": json.loads(core.to_str())}


def _processor(folder: Path) -> dict:
    from hf_cascade.data.image_text import load_processor

    return {key: value for key, value in load_processor(str(folder)).to_dict().items() if key not in _SAYS_NOTHING}


def _generation(folder: Path) -> dict:
    content = GenerationConfig.from_pretrained(folder).to_diff_dict()
    return {key: value for key, value in content.items() if key not in _SAYS_NOTHING}


_OPENERS: dict[str, Callable[[Path], dict | None]] = {
    TOKENIZER: _tokenizer,
    PROCESSOR: _processor,
    GENERATION: _generation,
}


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): save it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object: save it again")
    return content


def _sha256(content) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
