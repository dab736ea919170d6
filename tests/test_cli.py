"""The command line: words, exit statuses, and what it must not import."""

import subprocess
import sys
from pathlib import Path

import pytest

import hf_cascade
from hf_cascade import assets, cli, fields

HEAVY = "{'torch', 'transformers', 'trl', 'datasets', 'lm_eval'}"


def hf_cascade_(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "hf_cascade.cli", *words], capture_output=True, text=True)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["run", "recipes/ministral3", "--dry_run"],
        ["run", "recipes/no/such.yaml"],
        ["plan", "recipes/ministral3", "--machine", "8xh100-80gb"],
    ],
)
def test_planning_and_help_import_nothing_heavy(words):
    code = (
        "import sys; from hf_cascade import cli\n"
        f"try: status = cli.main({words!r})\nexcept SystemExit as end: status = end.code\n"
        f"print('HEAVY', sorted({HEAVY} & set(sys.modules)), status)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.splitlines()[-1] == f"HEAVY [] {2 if 'recipes/no/such.yaml' in words else 0}", said.stderr


def test_version_and_words():
    assert hf_cascade_("--version").stdout.strip() == f"hf-cascade {hf_cascade.__version__}"
    said = hf_cascade_("--help").stdout
    assert [word for word in cli.WORDS if word not in said] == []
    assert {path.stem for path in assets.find("trainers").glob("*.py")} <= set(cli.WORDS)
    assert set(fields.DATACLASSES) <= set(cli.WORDS)


@pytest.mark.parametrize(
    "words",
    [[], ["prun"], ["run"], ["plan"], ["plan", "recipes/tiny", "--gpus", "x"], ["run", "recipes/tiny", "--y"], ["--x"]],
)
def test_a_command_that_is_none_gives_usage(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert "usage: hf-cascade" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, PermissionError])
def test_bad_input_is_one_line(error, monkeypatch, capsys):
    def refuse(word, arguments):
        assert (word, arguments) == ("prune", ["--model", "-x", "--help"])
        raise error("width=-3: allowed is 1 or more")

    monkeypatch.setattr(cli, "_call", refuse)
    monkeypatch.delenv("HF_CASCADE_TRACEBACK", raising=False)
    assert cli.main(["prune", "--model", "-x", "--help"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hf-cascade: error: width=-3: allowed is 1 or more\n")


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(word, arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "_call", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["evaluate"])


def test_trainers_get_their_arguments_unchanged(monkeypatch):
    calls = []
    monkeypatch.setattr(cli.os, "execv", lambda program, words: calls.append((program, words)))
    cli.main(["distill", "--config", "run", "--", "--help", "--version"])
    cli.main(["pretrain", "--output_dir", "a b"])
    (program, words), (_, others) = calls
    assert program == words[0] == sys.executable
    assert Path(words[1]) == assets.find("trainers/distill.py")
    assert words[2:] == ["--config", "run", "--", "--help", "--version"]
    assert others[1:] == [str(assets.find("trainers/pretrain.py")), "--output_dir", "a b"]


@pytest.mark.parametrize(
    "word, flag",
    [
        ("prune", "--intermediate_size"),
        ("evaluate", "--long_max_length"),
        ("difficulty", "--max_pass_rate"),
        ("plan", "--sequence_parallel"),
    ],
)
def test_words_have_their_own_help(word, flag, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([word, "--help"])
    assert end.value.code == 0
    assert flag in capsys.readouterr().out


def test_a_command_says_what_is_wrong_with_its_input(tmp_path, capsys):
    assert cli.main(["prune", "--model", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-cascade: error:")]
    assert str(tmp_path / "none") in line and not (tmp_path / "out").exists()


@pytest.mark.slow  # ten seconds of imports each
@pytest.mark.parametrize("word, flag", [("pretrain", "--model_config"), ("distill", "--teacher_window")])
def test_trainers_have_their_own_help(word, flag):
    said = hf_cascade_(word, "--help")
    assert said.returncode == 0 and flag in said.stdout and "--train_tokens" in said.stdout
