"""Tokens and keys in text: found by their shape or by the name beside them, and taken out; never shown."""

import os
import re

# What a configuration calls a token; the last word, so that `judge_api_key_variable`, which names a variable, is none.
NAMES = ("hub_token", "hf_token", "api_key", "api_token", "access_token", "auth_token", "password", "passwd")
NAMES += ("secret_access_key", "secret_key", "client_secret")
# `name: value` and `name=value`; not a number, which a vocabulary has, nor <HUB_TOKEN>, $TOKEN, {token} or true.
_VALUE = r"(?!\d+[\s,}\]]|true\b|false\b|null\b|none\b|str\b)[^\s\"'<>$(){}\[\],;]{8,}"
# Kind to words, one of which is in every such token, in small letters (they are found much faster than patterns), and
# pattern. Most services give their tokens a prefix so that scanners find them. A group `secret` is the token.
_SHAPES = {
    "Hugging Face token": (("hf_", "api_org_"), r"\b(?:hf_(?:oauth_|test_)?[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,})"),
    "API key that begins with sk-": (("sk-",), r"(?<![A-Za-z0-9])sk-(?=[\w-]{0,200}\d)[\w-]{20,}"),
    "GitHub token": (
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})",
    ),
    "GitLab token": (("glpat-",), r"\bglpat-[\w-]{20,}"),
    "AWS access key": (("akia", "asia"), r"(?<![A-Za-z0-9/+])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9/+])"),
    "Google API key": (("aiza",), r"\bAIza[\w-]{35}"),
    "Slack token": (("xox",), r"\bxox[abeoprs]-[\w-]{10,}"),
    "PyPI token": (("pypi-age",), r"\bpypi-AgE[\w-]{50,}"),
    "JSON web token": (("eyj",), r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    "private key": (("private key-----",), r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "password in a URL": (("://",), r"://[^\s/:@\"']+:(?P<secret>[^\s/@\"']+)@"),
    "bearer token": (("bearer",), r"(?i:bearer)\s+(?P<secret>[\w.~+/-]{20,}=*)"),
    "value of a token's name": (NAMES, rf"(?i:(?:{'|'.join(NAMES)})[\"']?\s*[:=]\s*[\"']?(?P<secret>{_VALUE}))"),
}
_PATTERNS = {kind: (words, re.compile(shape)) for kind, (words, shape) in _SHAPES.items()}
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "GITHUB_TOKEN")
# A variable's value that is looked for; shorter words, and words alone such as `not-needed`, are no keys. Ours.
_KEY = re.compile(r"(?=.*\d).{8,}|.{20,}")


def find(text: str) -> list[str]:
    """The kinds of tokens in a text, each once. The tokens themselves are in no message."""
    return list(dict.fromkeys(kind for _, kind in findings(text)))


def findings(text: str) -> list[tuple[int, str]]:
    """(line, counted from 1; kind) of every token in a text, in order."""
    found = {(text.count("\n", 0, start) + 1, kind) for start, _, kind in _spans(text)}
    return sorted(found)


def scrub(text: str) -> str:
    """The text with every token replaced by its kind in brackets, for logs and error messages."""
    parts, done = [], 0
    for start, end, kind in sorted(_spans(text)):
        if end <= done:
            continue
        if start >= done:
            parts += [text[done:start], f"[{kind}]"]
        done = end
    return "".join([*parts, text[done:]])


def is_name(key: str) -> bool:
    """Whether a key of a configuration holds a token."""
    return key.lower().endswith(NAMES)


def _spans(text: str) -> list[tuple[int, int, str]]:
    """Start, end and kind of every token; they may overlap."""
    spans, small = [], text.lower()
    for kind, (words, pattern) in _PATTERNS.items():
        if not any(word in small for word in words):
            continue
        group = "secret" if "secret" in pattern.groupindex else 0
        spans += [(*match.span(group), kind) for match in pattern.finditer(text)]
    for variable in VARIABLES:
        value = os.environ.get(variable, "").strip()
        if _KEY.fullmatch(value):
            spans += [
                (match.start(), match.end(), f"value of {variable}") for match in re.finditer(re.escape(value), text)
            ]
    return spans
