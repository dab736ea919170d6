"""The command line: words, exit statuses, and what it must not import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_cascade
from hf_cascade import assets, cli, fields, flag_help

HEAVY = "{'torch', 'transformers', 'trl', 'datasets', 'lm_eval'}"


def hf_cascade_(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "hf_cascade.cli", *words], capture_output=True, text=True)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["evaluate", "--help"],
        ["distill", "-h"],
        ["publish", "--modle", "x"],
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
    wrong = {"recipes/no/such.yaml", "--modle"} & set(words)
    assert said.stdout.splitlines()[-1] == f"HEAVY [] {2 if wrong else 0}", said.stderr


def test_version_and_words():
    assert hf_cascade_("--version").stdout.strip() == f"hf-cascade {hf_cascade.__version__}"
    said = hf_cascade_("--help").stdout
    assert [word for word in cli.WORDS if word not in said] == []
    assert {path.stem for path in assets.find("trainers").glob("*.py")} <= set(cli.WORDS)
    assert set(fields.DATACLASSES) | set(fields.COMMANDS) <= set(cli.WORDS)
    assert sorted(word for words in cli.GROUPS.values() for word in words) == sorted(cli.WORDS)
    module = [sys.executable, "-m", "hf_cascade", "--version"]
    assert subprocess.check_output(module, text=True).startswith("hf-cascade ")


def test_without_a_word_it_says_what_there_is(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().err == cli.overview() + "\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prun"], "there is no word 'prun'; did you mean prune?"),
        (["--x"], "there is no word '--x' ("),
        (["prune", "--hiden_size", "5"], "prune has no flag --hiden_size; did you mean --hidden_size?"),
        (["publish", "--modle=x"], "publish has no flag --modle; did you mean --model?"),
        (["distill", "--teacher-windo", "mask", "--xyz"], "distill has no flag --xyz ("),
        (["evaluate", "--model", "child"], "evaluate needs --output_dir ("),
        (["publish", "--model", "x", "--config"], "--config needs a FILE after it"),
        (["fp8"], "fp8 needs --model and --output_dir and --calibration ("),
    ],
)
def test_what_does_not_exist_is_said_in_one_line(words, says, capsys):
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"hf-cascade: error: {says}") and said.err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "x.yaml"],  # the file may hold what is needed
        ["--model", "a", "--output-dir=b", "--suite", "table2"],
        ["--model", "a", "--output_dir", "b", "--final_only"],
        ["--mod", "a", "--output", "b"],  # argparse takes the beginning of a flag
    ],
)
def test_flags_that_exist_pass(words):
    flag_help.check("evaluate", words)
    flag_help.check("distill", ["--no_freeze_vision_tower", "--", "--what", "ever"])
    flag_help.check("grpo", ["--config", "x.yaml", "--judge_template", "--- Grade {prompt}"])  # a value to argparse


@pytest.mark.parametrize(
    "words",
    [["run"], ["plan"], ["plan", "recipes/tiny", "--gpus", "x"], ["run", "recipes/tiny", "--output", "x"]],
)
def test_a_command_that_is_none_gives_usage(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert "usage: hf-cascade" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, PermissionError])
def test_bad_input_is_one_line(error, monkeypatch, capsys):
    def refuse(word, arguments):
        assert (word, arguments) == ("prune", ["--model", "-x", "--output_dir", "y"])
        raise error("width=-3: allowed is 1 or more")

    monkeypatch.setattr(cli, "_call", refuse)
    monkeypatch.delenv("HF_CASCADE_TRACEBACK", raising=False)
    assert cli.main(["prune", "--model", "-x", "--output_dir", "y"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hf-cascade: error: width=-3: allowed is 1 or more\n")


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(word, arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "_call", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["card"])


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
    try:
        status = cli.main([word, "--help"])
    except SystemExit as end:  # argparse's own
        status = end.code
    assert status == 0
    assert flag in capsys.readouterr().out


def test_a_reader_of_help_may_leave_early():
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_cascade", "grpo", "--help", "all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()


@pytest.mark.parametrize("word", cli.READ_FROM_SOURCE)
def test_help_has_every_flag_with_a_line_and_its_default(word):
    says = flag_help.text(word, cli.WORDS[word], everything=True)
    for name, flag in fields.flags(word).items():
        assert f"\n  --{name} " in says
        if flag.owner.startswith("hf_cascade."):
            assert 10 < len(flag.help) <= 100 and flag.help.endswith("."), name
            assert "%" not in flag.help.replace("%%", ""), f"{name}: argparse takes a bare % for a placeholder"
    short = flag_help.text(word, cli.WORDS[word])
    own = [name for name, flag in fields.flags(word).items() if flag.owner.startswith("hf_cascade.")]
    assert all(f"\n  --{name} " in short for name in own)
    assert max(map(len, says.splitlines())) <= 180 and short.count("\n") < 180


def test_a_command_says_what_is_wrong_with_its_input(tmp_path, capsys):
    assert cli.main(["prune", "--model", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-cascade: error:")]
    assert str(tmp_path / "none") in line and not (tmp_path / "out").exists()


@pytest.mark.slow  # ten seconds of imports each
@pytest.mark.parametrize("word, flag", [("pretrain", "--model_config"), ("odpo", "--reward_scale")])
def test_trainers_have_their_own_help(word, flag):
    said = subprocess.run(
        [sys.executable, assets.find(f"trainers/{word}.py"), "--help"], capture_output=True, text=True
    )
    assert said.returncode == 0 and flag in said.stdout and "--learning_rate" in said.stdout
