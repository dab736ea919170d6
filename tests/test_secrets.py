"""Tokens in text, and paths of the user's machine. Tokens here are put together, so that no scanner stops the file."""

import pytest

from hf_cascade import assets, secrets
from hf_cascade.publish.paths import without_paths, without_paths_in

TOKENS = {
    "Hugging Face token": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz12345678",
    "API key that begins with sk-": "sk-" + "proj-a1b2c3d4e5f6g7h8i9j0",
    "GitHub token": "ghp_" + "a1" * 18,
    "GitLab token": "glpat-" + "a1b2" * 5,
    "AWS access key": "AKIA" + "ABCDEFGH12345678",
    "Google API key": "AIza" + "a1B2c" * 7,
    "Slack token": "xoxb-" + "123456789012-abcdef",
    "private key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "JSON web token": "eyJ" + "a" * 12 + ".eyJ" + "b" * 12 + "." + "c" * 12,
}


@pytest.mark.parametrize(("kind", "token"), TOKENS.items())
@pytest.mark.parametrize("around", ["{}", '{{"a": "{}"}}', "export X={}\n", "see ({}), please", "one\ntwo {} two"])
def test_tokens_are_found_told_by_kind_and_scrubbed(kind, token, around):
    text = around.format(token)
    assert kind in secrets.find(text)
    assert all(token not in found for found in secrets.find(text))
    assert secrets.findings(text)[0][0] == text[: text.index(token)].count("\n") + 1
    assert token not in secrets.scrub(text)
    assert secrets.scrub(text).startswith(around.partition("{}")[0].replace("{{", "{")[:4])


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("hub_token: abcdefgh12", "abcdefgh12"),
        ('"hub_token": "abcdefgh12"', "abcdefgh12"),
        ("WANDB_API_KEY=0123456789abcdef", "0123456789abcdef"),
        ("https://ann:topsecret@host.example/v1", "topsecret"),
        ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz"),
        ("password = 'correcthorse'", "correcthorse"),
    ],
)
def test_what_stands_beside_a_tokens_name(text, secret):
    assert secrets.find(text)
    assert secret not in secrets.scrub(text)
    assert secrets.scrub(text) != text


@pytest.mark.parametrize(
    "text",
    [
        "hf_cascade/evaluate/suite/command_part.py",
        "hf_hub_download",
        "task-level-evaluation-with-many-words-1",
        '"password": 123456, "api_key": 99',
        '"hub_token": null',
        '"hub_token": "<HUB_TOKEN>"',
        "judge_api_key_variable: OPENAI_API_KEY",
        "api_key=$OPENAI_API_KEY",
        "https://huggingface.co/org/name",
        "sha256 " + "a1b2c3d4" * 8,
        "a" * 5000,
        "",
    ],
)
def test_what_is_no_token(text):
    assert secrets.find(text) == []
    assert secrets.scrub(text) == text


def test_the_value_of_a_variable_is_found_whatever_it_looks_like(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my.own-token1")
    assert secrets.find("a my.own-token1 b") == ["value of HF_TOKEN"]
    assert secrets.scrub("a my.own-token1 b") == "a [value of HF_TOKEN] b"
    monkeypatch.setenv("HF_TOKEN", "not-needed")
    assert secrets.find("this is not-needed") == []


def test_shipped_text_holds_none(monkeypatch):
    """Vocabularies, templates, records: nothing that looks like a token to us."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    files = [*assets.find("recipes").rglob("*.json"), *assets.find("recipes").rglob("*.yaml")]
    files += [*assets.find("evals").rglob("*.yaml"), *(assets.root() / "hf_cascade").rglob("*.jinja")]
    assert len(files) > 50
    for file in files:
        assert secrets.find(file.read_text(encoding="utf-8")) == [], file


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("/home/ann/runs/x", "x"),
        ("/home/ann/my runs/x", "x"),
        ("/home/ann", "home"),
        ("/home/ann/", "home"),
        ("~/runs/14b/", "14b"),
        ("/tmp/tmpab12/text.jsonl.gz", "text.jsonl.gz"),
        ("file:///srv/data/x.jsonl", "x.jsonl"),
        ("C:\\Users\\ann\\runs\\x", "x"),
        ("/opt/x/rows: no such file, looked at /srv/y/z", "z"),
        ("HFC_EVAL_DATA=/mnt/a/rows: not there", "HFC_EVAL_DATA=rows: not there"),
        ("read ~ann/x/y.txt, document 3", "read y.txt, document 3"),
        ("http://127.0.0.1:8000/v1", "http://private/v1"),
        ("http://judge:8000/v1", "http://private/v1"),
        ("https://node7.cluster.internal/v1", "https://private/v1"),
    ],
)
def test_paths_become_names(text, plain):
    assert without_paths(text) == plain
    assert without_paths_in({text: [text, 1, None]}) == {plain: [plain, 1, None]}


@pytest.mark.parametrize(
    "text",
    [
        "runs/x/14b",
        "../runs/x",
        "cais/mmlu/test",
        "https://api.openai.com/v1",
        "https://huggingface.co/org/name/resolve/main/config.json",
        "a/b and 1/2 km/h",
        "</s>",
        "[/INST] [/THINK]",
        "/no_think",
        "about ~5% of it",
        "",
    ],
)
def test_other_text_stays(text):
    assert without_paths(text) == text
