"""Recipes are checked whole before anything runs: every mistake is named with its file and key."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_cascade import assets
from hf_cascade.recipe import RecipeError, load_recipe

PARENT = "org/parent"
TEXT = [{"path": "json", "data_files": "text.jsonl", "split": "train"}]


class Book:
    """A recipe of three stages in a folder of its own; tests spoil it."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "text.jsonl").write_text('{"text": "a"}\n')
        self.configs = {
            "prune.yaml": {"calibration": "text.jsonl", "method": "paper"},
            "short.yaml": {"datasets": TEXT, "max_length": 256, "learning_rate": 1e-3},
        }
        self.stages = {
            "small": {"run": "prune", "config": "prune.yaml", "inputs": {"model": PARENT}, "set": {"hidden_size": 8}},
            "short": {
                "run": "distill",
                "config": "short.yaml",
                "inputs": {"model_name_or_path": "small", "teacher_model_name_or_path": PARENT},
            },
            "report": {
                "run": "evaluate",
                "inputs": {"model": [PARENT, "short"], "teacher": PARENT},
                "set": {"dataset": "text.jsonl"},
            },
        }

    def write(self, text: str | None = None) -> str:
        for name, content in self.configs.items():
            (self.folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
        path = self.folder / "cascade.yaml"
        path.write_text(yaml.safe_dump(self.stages, sort_keys=False) if text is None else text)
        return str(path)

    def load(self, overrides: dict | None = None):
        return load_recipe(self.write(), overrides)

    def problems(self, text: str | None = None, overrides: dict | None = None) -> str:
        with pytest.raises(RecipeError) as caught:
            load_recipe(self.write(text), overrides)
        return str(caught.value)

    def fingerprints(self, overrides: dict | None = None) -> dict[str, str]:
        return {stage.name: stage.fingerprint for stage in self.load(overrides).stages}


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Book(tmp_path)


def test_a_good_recipe(book):
    recipe = book.load()
    small, short, report = recipe.stages
    assert recipe.path == book.folder / "cascade.yaml"
    assert [stage.name for stage in recipe.stages] == ["small", "short", "report"]
    assert small.settings == {"calibration": "text.jsonl", "method": "paper", "hidden_size": 8}
    assert small.config_file == book.folder / "prune.yaml" and report.config_file is None
    assert short.inputs == {"model_name_or_path": "small", "teacher_model_name_or_path": PARENT}
    assert load_recipe(str(book.folder)).stages == recipe.stages  # a folder's cascade.yaml


def test_set_and_the_command_line_win_over_config(book):
    book.stages["short"]["set"] = {"max_length": 512, "learning_rate": 2e-3}
    short = book.load({"short": {"learning_rate": "3e-3"}}).stages[1]
    assert (short.settings["max_length"], short.settings["learning_rate"]) == (512, "3e-3")


def test_the_shipped_recipes():
    """All files with stages; the flat files of the scripts and of accelerate are not recipes."""
    content = {path: yaml.safe_load(path.read_text()) for path in sorted(assets.find("recipes").glob("*/*.yaml"))}
    recipes = [
        path for path, stages in content.items() if all(isinstance(s, dict) and "run" in s for s in stages.values())
    ]
    names = {f"{path.parent.name}/{path.name}" for path in recipes}
    assert names >= {"tiny/cascade.yaml", "tiny/parent.yaml", "ministral3/cascade.yaml"}
    for path in recipes:
        assert load_recipe(str(path)).stages


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["cascade.yaml: must be a YAML mapping", "NoneType"]),
        ("- run: prune", ["must be a YAML mapping", "list"]),
        ("{}", ["no stages"]),
        ("small: {run: prune", ["cascade.yaml: while parsing"]),
        ("small: {run: prune}\nsmall: {run: distill}", ["the key 'small' stands twice", "line 2"]),
        ("small: {run: prune, set: {seed: 1, seed: 2}}", ["the key 'seed' stands twice", "line 1"]),
        ("small: prune", ["small: a stage is a mapping of run, config, inputs, set"]),
        ("small: {config: prune.yaml}", ["with at least `run`"]),
        ("small: {run: prune, inptus: {model: org/parent}}", ["small.inptus: unknown key; did you mean inputs?"]),
        ("small: {run: purne}", ["small.run: 'purne' is not one of prune, ", "did you mean prune?"]),
        ("small: {run: [prune]}", ["small.run: ['prune'] is not one of"]),
        ("small: {run: prune, set: [hidden_size]}", ["small.set: must be a mapping of flags to values"]),
        ("small: {run: prune, inputs: org/parent}", ["small.inputs: must be a mapping"]),
        ("small: {run: prune, config: {a: 1}}", ["small.config: must be the path of a YAML file"]),
        ("small: {run: prune, inputs: {model: org/parent}, set: {seed: 2001-99-99}}", ["cascade.yaml: month"]),
        ("small: !!python/object/apply:os.getcwd []", ["could not determine a constructor"]),
        ("small: {run: prune, inputs: {model: org/parent}, config: prun.yaml}", ["prun.yaml does not exist"]),
    ],
)
def test_what_is_no_recipe(book, text, words):
    said = book.problems(text)
    for word in words:
        assert word in said


def test_not_text(book):
    book.write()
    (book.folder / "cascade.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cascade.yaml"):
        load_recipe(str(book.folder / "cascade.yaml"))


def test_no_such_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="looked at"):
        load_recipe(str(tmp_path / "cascade.yaml"))
    with pytest.raises(FileNotFoundError, match="cascade.yaml"):
        load_recipe(str(tmp_path))


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "a\nb", "logs", "settings", "run.json"])
def test_stage_names_become_folders(book, name):
    book.stages = {name: book.stages["small"]}
    assert "a stage's name becomes a folder" in book.problems()


def test_names_that_yaml_reads_as_numbers(book):
    book.stages = {14: book.stages["small"]}
    assert [stage.name for stage in book.load({"14": {"seed": 1}}).stages] == ["14"]


def test_merge_keys_are_no_duplicates(book):
    text = "a: &a {run: prune, inputs: {model: org/parent}}\nb:\n  <<: *a\n  set: {seed: 1}"
    assert load_recipe(book.write(text)).stages[1].settings == {"seed": 1}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"hiden_size": 8}, "small.set.hiden_size: unknown key; did you mean hidden_size?"),
        ({"hidden_size": "8"}, "small.set.hidden_size: '8' is str; allowed is int | None"),
        ({"method": "papre"}, "'papre' is not one of paper, compensated"),
        ({"ridge": None}, "small.set.ridge: has no value"),
        ({1: 2}, "small.set.1: unknown key"),
        ({"output_dir": "x"}, "small.set.output_dir: not allowed in a recipe: the runner sets it"),
        ({"env": {"A": "b"}}, "small.set.env: not allowed"),
        ({"hub_token": "hf_x"}, "small.set.hub_token: not allowed"),
        ({"trust_remote_code": True}, "small.set.trust_remote_code: not allowed"),
        ({"push_to_hub": True}, "small.set.push_to_hub: not allowed"),
        ({"config": "x.yaml"}, "small.set.config: not allowed"),
        ({"model": PARENT}, "small.model: name it under `inputs`"),
        ({"calibration": "missing.jsonl"}, "small.calibration: missing.jsonl does not exist"),
        ({"calibration": "recipes/missing"}, "small.calibration: recipes/missing does not exist"),
    ],
)
def test_flags(book, flags, words):
    book.stages["small"]["set"] = flags
    assert words in book.problems()


def test_a_token_is_not_repeated(book):
    book.stages["small"]["set"] = {"hub_token": "hf_secret"}
    assert "hf_secret" not in book.problems()


@pytest.mark.parametrize("source", ["org/dataset", "text.jsonl"])
def test_text_may_be_a_file_or_on_the_hub(book, source):
    book.stages["small"]["set"] = {"calibration": source}
    assert book.load()


def test_mistakes_in_a_config_name_that_file_once(book):
    book.configs["short.yaml"]["learnig_rate"] = 1
    book.stages["again"] = {**book.stages["short"]}
    said = book.problems()
    assert said.count("short.yaml.learnig_rate: unknown key; did you mean learning_rate?") == 1
    book.configs["short.yaml"] = {"env": {"HF_TOKEN": "x"}, "datasets": TEXT}
    assert "short.yaml.env: not allowed" in book.problems()


def test_a_config_that_is_not_yaml(book):
    book.write()
    (book.folder / "prune.yaml").write_text("method: paper\nmethod: compensated\n")
    with pytest.raises(RecipeError, match="prune.yaml: the key 'method' stands twice"):
        load_recipe(str(book.folder))


def test_unquoted_no(book):
    book.write()
    (book.folder / "short.yaml").write_text("eval_strategy: no\n")
    with pytest.raises(RecipeError, match="eval_strategy: False is not one of no, .*quote it"):
        load_recipe(str(book.folder))


@pytest.mark.parametrize(
    ("datasets", "words"),
    [
        ([{"path": "json", "data_files": "gone.jsonl"}], "short.datasets[0].data_files: gone.jsonl does not exist"),
        ([*TEXT, {"pth": "json"}], "short.datasets[1]: must be a mapping with at least `path`"),
        ([{"path": "json", "data_file": "a"}], "short.datasets[0].data_file: unknown key; did you mean data_files?"),
        ([{"path": "org/text", "fraction": "half"}], "short.datasets[0].fraction: 'half' is str; allowed is float"),
        ("text.jsonl", "short.yaml.datasets: 'text.jsonl' is str; allowed is list"),
    ],
)
def test_parts_of_the_text(book, datasets, words):
    book.configs["short.yaml"]["datasets"] = datasets
    assert words in book.problems()


def test_files_of_a_hub_dataset_are_not_looked_for_here(book):
    book.configs["short.yaml"]["datasets"] = [{"path": "org/text", "data_files": "data/part.parquet"}]
    assert book.load()


@pytest.mark.parametrize(
    ("stage", "inputs", "words"),
    [
        ("small", {"model": "short"}, "small.inputs.model: 'short' is no earlier stage"),
        ("report", {"model": ["shrot"]}, "'shrot' is no earlier stage, path or Hub id; did you mean short?"),
        ("small", {"model": "small"}, "'small' is no earlier stage"),
        ("small", {"model": "./gone"}, "small.inputs.model: gone does not exist"),
        ("small", {"model": "recipes/gone/parent"}, "recipes/gone/parent does not exist"),
        ("small", {"modle": PARENT}, "small.inputs.modle: unknown key; did you mean model?"),
        ("small", {"model": [PARENT]}, "small.inputs.model: ['org/parent'] is list; allowed is str"),
        ("report", {"model": "short"}, "report.inputs.model: 'short' is str; allowed is list[str]"),
        ("report", {"model": ["short", {"a": 1}]}, "report.inputs.model: {'a': 1} is no earlier stage"),
        ("small", {"model": PARENT, "output_dir": "x/y"}, "small.inputs.output_dir: not allowed"),
        ("small", {"model": PARENT, "hidden_size": "a/b"}, "small.inputs.hidden_size: 'a/b' is str; allowed is int"),
        ("small", {"model": PARENT, "calibration": "org/t"}, "stands in `set` or `config` too"),
        ("small", {}, "small.inputs.model: missing, and prune needs it"),
        ("report", {"teacher": PARENT}, "report.inputs.model: missing, and evaluate needs it"),
        ("short", {"model_name_or_path": "small"}, "distill needs one of inputs.teacher_model_name_or_path"),
    ],
)
def test_inputs(book, stage, inputs, words):
    book.stages[stage]["inputs"] = inputs
    assert words in book.problems()


def test_pretrain_starts_at_random_or_from_a_model(book):
    (book.folder / "model.json").write_text("{}")
    stage = {"run": "pretrain", "config": "short.yaml", "inputs": {"tokenizer": "org/tokenizer"}}
    book.stages = {"parent": stage}
    assert "one of set.model_config and inputs.model_name_or_path" in book.problems()
    stage["set"] = {"model_config": "gone.json"}
    assert "parent.model_config: gone.json does not exist" in book.problems()
    stage["set"] = {"model_config": "model.json"}
    assert book.load()
    stage["inputs"]["model_name_or_path"] = PARENT
    assert "one of set.model_config and inputs.model_name_or_path" in book.problems()


def test_training_needs_text(book):
    del book.configs["short.yaml"]["datasets"]
    assert "short.set.datasets: missing, and distill needs text" in book.problems()


@pytest.mark.parametrize("key", ["trust_remote_code", "hub_token"])
def test_forbidden_keys_inside_a_mapping(book, key):
    book.stages["short"]["set"] = {"model_init_kwargs": {"quantization_config": [{key: "secret"}]}}
    said = book.problems()
    assert f"short.set.model_init_kwargs: {key} is not allowed in a recipe" in said and "secret" not in said


def test_a_model_made_anew_in_the_same_folder_is_another_one(book):
    (book.folder / "parent").mkdir()
    record = book.folder / "parent" / "cascade.json"
    book.stages["small"]["inputs"] = {"model": "./parent"}
    seen = [book.fingerprints()["short"]]
    for text in ("{}", "{ }"):
        record.write_text(text)
        seen.append(book.fingerprints()["short"])
    assert len(set(seen)) == 3


def test_inputs_that_are_there(book):
    (book.folder / "parent").mkdir()
    book.stages["small"]["inputs"] = {"model": "./parent"}
    book.stages["short"]["inputs"]["teacher_model_name_or_path"] = "recipes/tiny/tokenizer"  # shipped, from anywhere
    assert book.load()


def test_everything_wrong_is_said_at_once(book):
    book.stages["small"]["set"] = {"hiden_size": 8}
    book.stages["short"]["inputs"]["model_name_or_path"] = "smal"
    lines = book.problems().splitlines()
    assert lines[0] == "the recipe cannot run, 2 to mend:"
    assert "hiden_size" in lines[1] and "did you mean small?" in lines[2] and len(lines) == 3


def test_one_mistake_is_one_line_and_brings_no_others(book):
    book.stages["small"]["run"] = "purne"
    said = book.problems()
    assert "\n" not in said and said.startswith(str(book.folder))


def test_flags_from_the_command_line_are_checked_too(book):
    assert "--set small.hiden_size: unknown key" in book.problems(overrides={"small": {"hiden_size": 8}})
    assert "--set smal: no such stage; did you mean small?" in book.problems(overrides={"smal": {"hidden_size": 8}})
    assert "--set small.output_dir: not allowed" in book.problems(overrides={"small": {"output_dir": "x"}})


def test_fingerprints_do_not_depend_on_the_order_of_keys(book):
    before = book.fingerprints()
    book.configs = {name: dict(reversed(content.items())) for name, content in book.configs.items()}
    book.stages["short"] = {key: value for key, value in reversed(book.stages["short"].items())}
    book.stages["short"]["inputs"] = dict(reversed(book.stages["short"]["inputs"].items()))
    assert book.fingerprints() == before


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ({"small": {"seed": 1}}, {"small", "short", "report"}),
        ({"short": {"max_length": 128}}, {"short", "report"}),
        ({"report": {"batch_size": 2}}, {"report"}),
        ({"small": {"method": "paper"}}, set()),  # as it was
    ],
)
def test_fingerprints_follow_settings_downstream(book, overrides, changed):
    before, after = book.fingerprints(), book.fingerprints(overrides)
    assert {name for name in before if before[name] != after[name]} == changed


def test_fingerprints_follow_inputs_and_not_names(book):
    before = book.fingerprints()
    book.stages["short"]["inputs"]["teacher_model_name_or_path"] = "org/other"
    after = book.fingerprints()
    assert [before[name] != after[name] for name in ("small", "short", "report")] == [False, True, True]
    assert len(set(after.values())) == 3


def test_loading_imports_no_torch(book):
    code = (
        f"import sys; from hf_cascade.recipe import load_recipe; load_recipe({book.write()!r}); "
        "print(sorted({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
