"""A cascade as a file: stages, their settings, and which stage starts from which. Checked whole before anything runs.

`cascade.yaml` maps stage names to `{run, config, inputs, set}`. `config` is the flat YAML the stage's script reads by
itself; `set` changes flags for this stage; `inputs` gives flags the folder of an earlier stage (a bare name), or a path
or Hub id (anything with a slash). There is no second vocabulary: keys are the scripts' flags.
"""

import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from hf_cascade import assets, fields

STAGE_KEYS = ("run", "config", "inputs", "set")
# The runner's business, secrets, and code from a checkpoint: not a recipe's.
FORBIDDEN = {
    "output_dir": "the runner sets it",
    "env": "set environment variables where you start hf-cascade",
    "hub_token": "log in with `hf auth login`; recipes are published",
    "trust_remote_code": "hf-cascade runs no code from checkpoints or datasets",
    "push_to_hub": "publishing is a stage of its own",
    "config": "name it beside `set`",
}
# A folder is moved or copied with its run; these inputs decide what a stage computes.
FILE_FLAGS = ("calibration", "dataset", "model_config", "tasks_path")


@dataclass(frozen=True)
class Stage:
    """
    One stage of a recipe.

    Attributes:
        name (`str`): names the stage's folder.
        run (`str`): what runs: a key of `fields.DATACLASSES`.
        config_file (`Path`, *optional*): its YAML.
        settings (`dict`): flags from that file, changed by `set`.
        inputs (`dict[str, str | list[str]]`): flags to stage names, paths or Hub ids, as written.
        fingerprint (`str`): hash of all of this and of the stages it starts from.
    """

    name: str
    run: str
    config_file: Path | None
    settings: dict
    inputs: dict[str, str | list[str]]
    fingerprint: str

    def sources(self) -> list[str]:
        """Every value among the inputs."""
        return [source for value in self.inputs.values() for source in (value if isinstance(value, list) else [value])]


@dataclass(frozen=True)
class Recipe:
    """Stages in order, and the file they come from."""

    path: Path
    stages: tuple[Stage, ...]


class RecipeError(ValueError):
    """Everything that is wrong with a recipe, one line each with file and key."""


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, where YAML itself would let the last one win."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """
    Read a YAML mapping.

    Raises:
        RecipeError: not YAML, a key twice, or no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must be a YAML mapping of keys to values, and is {type(content).__name__}")
    return content


def load_recipe(name: str, overrides: dict[str, dict] | None = None) -> Recipe:
    """
    Load and check a recipe; imports neither torch nor a model.

    Args:
        name (`str`): path of a `cascade.yaml`, found as by `assets.find`.
        overrides (`dict[str, dict]`, *optional*): stage name to flags changed on the command line.

    Raises:
        FileNotFoundError: no such recipe.
        RecipeError: lists every problem.
    """
    path = assets.find(name)
    if path.is_dir():
        path = assets.find(Path(name) / "cascade.yaml")
    content = read_yaml(path)
    problems: list[str] = []
    for stage in overrides or {}:
        if stage not in content:
            problems.append(f"--set {stage}: no such stage{_near(stage, content)}")
    stages: dict[str, Stage] = {}
    for stage_name, written in content.items():
        stage = _load_stage(path, str(stage_name), written, (overrides or {}).get(stage_name, {}), stages, problems)
        if stage is not None:
            stages[stage.name] = stage
    if not content:
        problems.append(f"{path}: no stages")
    if problems:
        raise RecipeError("\n  ".join([f"the recipe cannot run, {len(problems)} to mend:", *problems]))
    return Recipe(path, tuple(stages.values()))


def _load_stage(path: Path, name: str, written, overrides: dict, earlier: dict, problems: list[str]) -> Stage | None:
    """Check one stage and add what is wrong to `problems`; `None` when it cannot even be read."""
    where = f"{path}: {name}"
    if not isinstance(written, dict) or "run" not in written:
        problems.append(f"{where}: a stage is a mapping of {', '.join(STAGE_KEYS)} with at least `run`")
        return None
    if not all(part.isalnum() or part in "-_." for part in name) or name.startswith("."):
        problems.append(f"{where}: a stage's name becomes a folder: letters, digits, - _ . only")
    problems += [f"{where}.{key}: unknown key{_near(key, STAGE_KEYS)}" for key in written if key not in STAGE_KEYS]
    run = written["run"]
    if run not in fields.DATACLASSES:
        problems.append(
            f"{where}.run: {run!r} is not one of {', '.join(fields.DATACLASSES)}{_near(run, fields.DATACLASSES)}"
        )
        return None
    config_file, settings = None, {}
    if written.get("config") is not None:
        config_file = path.parent / str(written["config"])
        if config_file.is_file():
            try:
                settings = read_yaml(config_file)
            except RecipeError as error:
                problems.append(str(error))
        else:
            problems.append(f"{where}.config: {config_file} does not exist")
    changes = {**(written.get("set") or {}), **overrides}
    inputs = written.get("inputs") or {}
    problems += check_flags(run, settings, str(config_file))
    problems += check_flags(run, changes, f"{where}.set")
    problems += check_flags(run, inputs, f"{where}.inputs", values=False)
    settings = {**settings, **changes}
    problems += [f"{where}.inputs.{key}: stands in `set` or `config` too" for key in inputs if key in settings]
    problems += _check_files(settings, where)
    problems += _check_inputs(inputs, earlier, where)
    return Stage(name, run, config_file, settings, inputs, _fingerprint(run, settings, inputs, earlier))


def check_flags(run: str, given: dict, where: str, values: bool = True) -> list[str]:
    """What is wrong with flags given to a stage: unknown or forbidden names, and (with `values`) wrong types."""
    known, problems = fields.flags(run), []
    for key, value in given.items():
        if key in FORBIDDEN:
            problems.append(f"{where}.{key}: not allowed in a recipe: {FORBIDDEN[key]}")
        elif key not in known:
            problems.append(f"{where}.{key}: unknown key{_near(key, known)}")
        elif values and (complaint := known[key].complaint(value)):
            problems.append(f"{where}.{key}: {complaint}")
    return problems


def _check_files(settings: dict, where: str) -> list[str]:
    """Local files that settings name and that are not there."""
    named = [(flag, settings[flag]) for flag in FILE_FLAGS if isinstance(settings.get(flag), str)]
    for part in settings.get("datasets") or []:
        if isinstance(part, dict) and isinstance(part.get("data_files"), str):
            named.append(("datasets.data_files", part["data_files"]))
    problems = []
    for flag, value in named:
        try:
            assets.locate(value) if flag != "datasets.data_files" else assets.find(value)
        except FileNotFoundError as error:
            problems.append(f"{where}.{flag}: {error}")
    return problems


def _check_inputs(inputs: dict, earlier: dict, where: str) -> list[str]:
    problems = []
    for flag, value in inputs.items():
        for source in value if isinstance(value, list) else [value]:
            if not isinstance(source, str):
                problems.append(f"{where}.inputs.{flag}: {source!r} is no stage, path or Hub id")
            elif "/" not in source and source not in earlier:
                problems.append(f"{where}.inputs.{flag}: {source!r} is no earlier stage{_near(source, earlier)}")
            elif "/" in source:
                try:
                    assets.locate(source)
                except FileNotFoundError as error:
                    problems.append(f"{where}.inputs.{flag}: {error}")
    return problems


def _near(word, known) -> str:
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _fingerprint(run: str, settings: dict, inputs: dict, earlier: dict[str, Stage]) -> str:
    """Hash of what a stage computes: change a setting anywhere upstream and it changes too."""
    upstream = {
        flag: [earlier[s].fingerprint if s in earlier else s for s in (value if isinstance(value, list) else [value])]
        for flag, value in inputs.items()
    }
    return hashlib.sha256(json.dumps([run, settings, upstream], sort_keys=True, default=str).encode()).hexdigest()
