"""No token leaves but in the header; no code from checkpoints, recipes or settings; keys that allow it are named."""

import ast
import inspect
import json
import logging
import os
import signal
import sys
from pathlib import Path

import datasets
import pytest
import yaml

import hf_cascade
from hf_cascade import assets, cli, recipe, stage
from hf_cascade.publish import command
from tests.publish import finished
from tests.publish.hub import TOKEN
from tests.publish.test_command import FORGIVING, HELD_OUT

PLANTED = "hf_" + "planted" * 5
KEYS = ("hub_token", "push_to_hub", "env", "trust_remote_code")
SOURCES = sorted([*Path(hf_cascade.__file__).parent.rglob("*.py"), *assets.find("trainers").glob("*.py")])
LOADING = ("from_pretrained", "from_config", "pipeline")
# classes that read files of settings, or that open their model by hf_cascade.loading
OURS = ("Comparison", "PairwiseRewardModel", "LocalGrader", "DecisionConfig", "GenerationConfig")
OURS += ("PeftConfig", "PeftModel")  # an adapter on a model that is open


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def loads(call: ast.Call) -> bool:
    """Whether a call opens something that could name code, in transformers."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    return name in LOADING and owner.rpartition(".")[2] not in OURS


def test_code_from_checkpoints_is_refused_in_so_many_words_at_every_call():
    found = [(path, call) for path in SOURCES for call in calls(path) if loads(call)]
    assert len(found) > 5  # the search finds what there is
    silent = []
    for path, call in found:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if given.get("trust_remote_code") != "False":
            silent.append(f"{path}:{call.lineno} {ast.unparse(call)[:80]}")
    assert not silent, silent


def test_nothing_in_the_source_allows_code():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", f"{path}:{node.value.lineno}"


def test_datasets_runs_no_scripts_of_its_own_accord():
    """`load_dataset` has nothing to allow since datasets 4: this fails when that changes."""
    assert "trust_remote_code" not in inspect.signature(datasets.load_dataset).parameters


# --- recipes and settings


@pytest.fixture
def book(tmp_path):
    """A recipe of one stage, to which keys are added."""

    def write(where: str, key: str) -> str:
        value = {"env": {"A": PLANTED}, "hub_token": PLANTED}.get(key, True)
        config, stages = {"method": "paper"}, {"small": {"run": "prune", "inputs": {"model": "org/parent"}}}
        content = {"small": stages["small"] | {"config": "prune.yaml", "set": {"calibration": "org/text"}}}
        if where == "recipe":
            content[key] = value
        if where == "stage":
            content["small"][key] = value
        if where == "set":
            content["small"]["set"][key] = value
        if where == "config":
            config[key] = value
        (tmp_path / "prune.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "cascade.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path / "cascade.yaml")

    return write


@pytest.mark.parametrize("where", ["recipe", "stage", "set", "config"])
@pytest.mark.parametrize("key", KEYS)
def test_a_recipe_may_not_hold_it_anywhere(book, where, key):
    with pytest.raises(recipe.RecipeError, match=rf"{key}: not allowed in a recipe") as error:
        recipe.load_recipe(book(where, key))
    assert PLANTED not in str(error.value)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("key", KEYS)
def test_nor_the_file_of_a_script_or_command(key, inside, tmp_path, capsys, monkeypatch):
    value = {"env": {"PLANTED_HERE": "1"}, "hub_token": PLANTED}.get(key, True)
    content = {"model_init_kwargs": {key: value}} if inside else {key: value}
    file = tmp_path / "stage.yaml"
    file.write_text(yaml.safe_dump(content))
    assert cli.main(["evaluate", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"{key} is not allowed in a file" in said and PLANTED not in said

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["sft.py", f"--config={file}"])
    try:
        with pytest.raises(SystemExit) as end:
            stage.run_script(None, lambda: pytest.fail("the file was read"))
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"{key} is not allowed in a file" in said and PLANTED not in said
    assert "PLANTED_HERE" not in os.environ


@pytest.mark.parametrize("name, value", [("hub_token", PLANTED), ("trust_remote_code", True)])
def test_nor_the_command_line_of_a_script(name, value, capsys, monkeypatch):
    """However it is abbreviated: what was read is looked at."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["sft.py"])
    try:
        with pytest.raises(SystemExit) as end:
            stage.run_script(lambda _: pytest.fail("it ran"), lambda: (type("Args", (), {name: value})(),))
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"{name} is not allowed" in said and PLANTED not in said


def test_the_shipped_recipes_hold_none_of_it():
    files = [path for path in assets.find("recipes").rglob("*.yaml") if "accelerate" not in path.parts]
    files = [path for path in files if "launch" not in path.parts]
    assert len(files) > 10
    for path in files:
        recipe.check_config([f"--config={path}"])


# --- a whole release


@pytest.fixture
def folder(tmp_path):
    """A finished folder, with a token in a file that is not published, and one in a place that is scrubbed."""
    folder = finished.model_folder(tmp_path / "14b")
    finished.record(folder, heldout=HELD_OUT)
    (folder / "log.json").write_text(json.dumps([{"note": PLANTED}]))
    (tmp_path / "targets.yaml").write_text(yaml.safe_dump(FORGIVING))
    return folder


def words(folder: Path, *more: str) -> list[str]:
    given = {"model": folder, "repo_id": "org/m", "license": "apache-2.0", "targets": folder.parent / "targets.yaml"}
    return ["publish", *(word for flag, value in given.items() for word in (f"--{flag}", str(value))), *more]


@pytest.mark.parametrize("fault", [None, 500, 401, "drop before"])
def test_a_token_is_in_no_output_log_card_file_or_body(folder, hub, fault, capfd, caplog, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-" + "planted1" * 5)
    hub.tokens[PLANTED] = "releaser"
    if fault is not None:  # this Hub repeats the authorization header in its errors
        hub.fail("POST", "/commit/", fault, times=None)
    caplog.set_level(logging.INFO)  # of everybody; the HTTP library's DEBUG is the wire itself
    caplog.set_level(logging.DEBUG, "huggingface_hub")
    status = cli.main(words(folder, "--override", f"because {PLANTED}", "--private", "false"))
    assert status == (0 if fault is None else command.STOPPED)
    said = capfd.readouterr()
    everything = [said.out, said.err, caplog.text]
    everything += [request.body.decode(errors="replace") + request.target for request in hub.requests]
    everything += [content.decode(errors="replace") for content in hub.repo("org/m").files().values()]
    assert len(hub.requests) > 5 and len(everything) > 8
    for secret in (PLANTED, TOKEN, os.environ["OPENAI_API_KEY"]):
        assert not [text[:200] for text in everything if secret in text]
    assert not hub.leaks


@pytest.mark.parametrize("spoil", ["pickle", "code", "link", "auto_map", "token"])
def test_an_unsafe_folder_is_refused_before_any_connection(folder, hub, spoil, capsys, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    if spoil == "pickle":
        (folder / "training_args.bin").write_bytes(b"\x80\x04")
    if spoil == "code":
        (folder / "modeling.py").write_text("raise SystemExit")
    if spoil == "link":
        (tmp_path / "secret.json").write_text("{}")
        (folder / "generation_config.json").unlink()
        (folder / "generation_config.json").symlink_to(tmp_path / "secret.json")
    if spoil == "auto_map":
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.M"}}))
    if spoil == "token":
        (folder / "generation_config.json").write_text(json.dumps({"hub_token": PLANTED}))
    assert cli.main(words(folder, "--override", "it must go out")) == 1
    said = capsys.readouterr()
    assert "FAILED  files are safe" in said.out and PLANTED not in said.out + said.err
    assert not hub.requests
