"""What a file is by its content, whatever its name says: pickles, JSON that asks for code, text that holds tokens."""

import json
import pickletools
from fnmatch import fnmatchcase
from pathlib import Path

from hf_cascade import secrets

# Keys that make a library run code that a checkpoint brings.
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
BINARY = (".model", ".spm")  # SentencePiece: a protocol buffer whose first field is its first piece
_VERSIONED = "*.model.v*"  # the same, as Mistral names its own: tokenizer.model.v3
_PROTOBUF = b"\x0a"
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive", b"\x7fELF": "a program"}
_CALLS = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4"}


def faults(path: Path, name: str) -> list[str]:
    """
    Why a file must not be published, a line each that names it; tokens are told by line and kind.

    Args:
        path (`Path`): a regular file.
        name (`str`): its path in the repository.
    """
    content = path.read_bytes()
    if not content:
        return [f"{name} is empty: save it again, or delete it"]
    if is_pickle(content):
        return [f"{name} is a pickle, which runs code when it is opened: delete it"]
    if kind := next((kind for magic, kind in _ARCHIVES.items() if content.startswith(magic)), None):
        return [f"{name} is {kind}: delete it"]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is None or "\0" in text:
        binary = is_sentencepiece(path.name)
        if binary and content.startswith(_PROTOBUF):
            return []
        return [f"{name} is no text in UTF-8{' and no SentencePiece model' * binary}: save it again"]
    lines = [_token(f"{name}, line {line}", kind) for line, kind in secrets.findings(text)]
    return lines + (_json_faults(text, name) if path.suffix == ".json" else [])


def is_sentencepiece(name: str) -> bool:
    """Whether a file is a SentencePiece model by its name."""
    return Path(name).suffix in BINARY or fnmatchcase(name, _VERSIONED)


def is_pickle(content: bytes) -> bool:
    """Whether bytes are a pickle, of any protocol; of the text protocols 0 and 1, one that calls something."""
    if content[:1] == b"\x80" and content[1:2] and content[1] <= 5:
        return True
    seen = set()
    try:
        for opcode, _, _ in pickletools.genops(content):
            seen.add(opcode.name)
    except (ValueError, OverflowError):  # other text fails at its first letters
        return False
    return bool(seen & _CALLS)


def _token(where: str, kind: str) -> str:
    return f"{where}: looks like a token ({kind}): take it out, and make it invalid where it came from"


def _json_faults(text: str, name: str) -> list[str]:
    """Of a JSON file: no JSON, keys that ask for code, and tokens that only its parsed form shows."""
    lines: dict[str, None] = {}

    def look(pairs: list[tuple]) -> dict:
        for key, value in pairs:  # all of them: of two equal keys, readers take one or the other
            asks = value is True or (isinstance(value, str | list | dict) and bool(value))
            if key in CODE_KEYS and asks:  # a vocabulary may have the word, with its number
                lines[f"{name} has the key {key}: code from a checkpoint is not published; take it out"] = None
            if secrets.is_name(key) and isinstance(value, str) and value and not value.startswith("<"):
                lines[f"{name} has the key {key} with a value: take it out, and make the token invalid"] = None
        return dict(pairs)

    try:
        parsed = json.loads(text, object_pairs_hook=look)
    except RecursionError:
        return [f"{name} is nested too deep to read"]
    except ValueError as error:
        return [f"{name} is not JSON ({str(error)[:80]}): save it again"]
    if "\\u" in text or "\\/" in text:  # letters written as numbers
        known = secrets.find(text)
        plain = secrets.find(json.dumps(parsed, ensure_ascii=False))
        lines |= dict.fromkeys(_token(name, kind) for kind in plain if kind not in known)
    return list(lines)
