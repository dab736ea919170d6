"""A cascade as a file: stages, their settings, and which stage starts from which. Checked whole before anything runs.

`cascade.yaml` maps stage names to `{run, config, inputs, set}`. `config` is the flat YAML the stage's script reads by
itself; `set` changes flags for this stage; `inputs` gives flags the folder of an earlier stage (a bare name), or a path
or Hub id (anything with a slash). There is no second vocabulary: keys are the scripts' flags.
"""

import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from hf_cascade import assets, fields, manifest, needs

STAGE_KEYS = ("run", "config", "inputs", "set")
# The runner's business, secrets, and code from a checkpoint: not a recipe's.
FORBIDDEN = {
    "output_dir": "the runner sets it",
    "env": "set environment variables where you start hf-cascade",
    "hub_token": "log in with `hf auth login`; recipes are published",
    "push_to_hub_token": "log in with `hf auth login`; recipes are published",
    "trust_remote_code": "hf-cascade runs no code from checkpoints or datasets",
    "push_to_hub": "`hf-cascade publish` does it, when the model is evaluated",
    "log_completions_hub_repo": "`hf-cascade publish` does it, when the model is evaluated",
    "config": "name it beside `set`",
}
# ... and not in a mapping inside a flag, nor in the YAML file that a script or command reads by itself.
NEVER = ("env", "hub_token", "push_to_hub_token", "trust_remote_code", "push_to_hub")
MODELLESS = ("difficulty", "evaluate")  # runs whose folder holds no model
DECISION_FILE = "decision.json"  # what makes a folder a reward model
FILE_FLAGS = ("model_config", "tasks_path")  # always files here
TEXT_FLAGS = ("calibration", "calibration_images", "heldout", "dataset", "prompts")  # a file, or on the Hub
TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".parquet", ".csv", ".gz")
FILE_BUILDERS = ("json", "text", "parquet", "csv")  # `path` of a `datasets:` part that reads local files
TEMPLATES = Path(__file__).parent / "data" / "templates"  # chat templates known by their names
RUNNERS_NAMES = ("logs", "settings", "run.json")


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
    """
    Everything that is wrong with a recipe.

    Args:
        problems (`str`): one line each, with file and key.
    """

    def __init__(self, *problems: str):
        several = f"the recipe cannot run, {len(problems)} to mend:\n  "
        super().__init__((several if len(problems) > 1 else "") + "\n  ".join(problems))


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, where YAML itself would let the last one win."""

    def construct_mapping(self, node, deep=False):
        """As the base; raises `ConstructorError` with the line of a key that was written before."""
        seen = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor` is no key of its own
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.append(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """
    Read a YAML mapping.

    Raises:
        RecipeError: not YAML, a key twice, or no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
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
    content = {str(stage): written for stage, written in read_yaml(path).items()}
    problems: list[str] = []
    for stage in overrides or {}:
        if stage not in content:
            problems.append(f"--set {stage}: no such stage{_near(stage, content)}")
    stages: dict[str, Stage] = {}
    for name, written in content.items():
        changes = (overrides or {}).get(name, {})
        stages[name] = _load_stage(path, name, written, changes, stages, problems)
    if not content:
        problems.append(f"{path}: no stages")
    if problems:
        raise RecipeError(*dict.fromkeys(problems))  # stages that share a config share its mistakes
    return Recipe(path, tuple(stages.values()))


def _load_stage(path: Path, name: str, written, changes: dict, earlier: dict, problems: list[str]) -> Stage:
    """Check one stage and add what is wrong to `problems`: with any, the stage returned only stands for its name."""
    where = f"{path}: {name}"
    if not re.fullmatch(r"[\w-][\w.-]*", name) or name in RUNNERS_NAMES:
        problems.append(
            f"{where}: a stage's name becomes a folder: letters, digits, - _ . only, no dot first, and none of "
            f"{', '.join(RUNNERS_NAMES)}"
        )
    wrong = _check_form(name, written, where)
    if wrong:
        problems += wrong
        return Stage(name, "", None, {}, {}, "")
    run, inputs = written["run"], written.get("inputs") or {}
    config_file, settings = None, {}
    if written.get("config") is not None:
        config_file = path.parent / written["config"]
        if config_file.is_file():
            try:
                settings = read_yaml(config_file)
            except RecipeError as error:
                problems.append(str(error))
        else:
            problems.append(f"{where}.config: {config_file} does not exist")
    problems += check_flags(run, settings, str(config_file))
    settings |= written.get("set") or {}
    problems += check_flags(run, written.get("set") or {}, f"{where}.set")
    settings |= changes
    problems += check_flags(run, changes, f"--set {name}")
    problems += check_flags(run, inputs, f"{where}.inputs")
    problems += [f"{where}.inputs.{key}: stands in `set` or `config` too" for key in inputs if key in settings]
    problems += needs.check(run, settings, inputs, where)
    problems += _check_files(settings, where)
    problems += _check_inputs(inputs, earlier, where)
    fingerprint = "" if problems else _fingerprint(run, settings, inputs, earlier)
    return Stage(name, run, config_file, settings, inputs, fingerprint)


def _check_form(name: str, written, where: str) -> list[str]:
    """What keeps a stage from being read at all."""
    if name in FORBIDDEN and not (isinstance(written, dict) and "run" in written):
        return [f"{where}: not allowed in a recipe: {FORBIDDEN[name]}"]
    if not isinstance(written, dict) or "run" not in written:
        return [f"{where}: a stage is a mapping of {', '.join(STAGE_KEYS)} with at least `run`"]
    unknown = [key for key in written if key not in STAGE_KEYS]
    reasons = {key: f"not allowed in a recipe: {FORBIDDEN[key]}" for key in unknown if key in FORBIDDEN}
    problems = [f"{where}.{key}: {reasons.get(key, f'unknown key{_near(key, STAGE_KEYS)}')}" for key in unknown]
    run = written["run"]
    if not isinstance(run, str) or run not in fields.DATACLASSES:
        allowed = ", ".join(fields.DATACLASSES)
        problems.append(f"{where}.run: {run!r} is not one of {allowed}{_near(run, fields.DATACLASSES)}")
    for key, kind in (("config", str), ("inputs", dict), ("set", dict)):
        value = written.get(key)
        if value is not None and not isinstance(value, kind):
            must = "the path of a YAML file" if kind is str else "a mapping of flags to values"
            problems.append(f"{where}.{key}: must be {must}, and is {value!r}")
    return problems


def check_flags(run: str, given: dict, where: str) -> list[str]:
    """What is wrong with flags given to a stage: unknown or forbidden names, wrong types, values that do not exist."""
    known, problems = fields.flags(run), []
    for key, value in given.items():
        if key in FORBIDDEN:
            problems.append(f"{where}.{key}: not allowed in a recipe: {FORBIDDEN[key]}")
        elif key not in known:
            problems.append(f"{where}.{key}: unknown key{_near(key, known)}")
        elif complaint := known[key].complaint(value):
            problems.append(f"{where}.{key}: {complaint}")
        problems += [
            f"{where}.{key}: {inner} is not allowed in a recipe: {FORBIDDEN[inner]}"
            for inner in _forbidden_inside(value)
        ]
    return problems


def check_config(argv: list[str]) -> None:
    """
    Refuse a `--config` file, of a script or command run by itself, that holds what no recipe may.

    Args:
        argv (`list[str]`): the command line.

    Raises:
        RecipeError: names the file and the keys; their values are not shown. A file that is not there is left to who
            reads it.
    """
    names = [argv[place + 1] for place, word in enumerate(argv[:-1]) if word == "--config"]
    names += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    problems = []
    for name in names:
        try:
            content = read_yaml(assets.find(name))
        except FileNotFoundError:
            continue
        top = [key for key in NEVER if key in content]
        problems += [f"{name}: {key} is not allowed in a file: {FORBIDDEN[key]}" for key in top]
        for flag, value in content.items():
            if flag not in top:
                inside = _forbidden_inside(value)
                problems += [f"{name}: {flag}: {key} is not allowed in a file: {FORBIDDEN[key]}" for key in inside]
    if problems:
        raise RecipeError(*problems)


def _forbidden_inside(value) -> list[str]:
    """Keys no recipe may hold, in the mappings some flags take (`model_init_kwargs`)."""
    if isinstance(value, list):
        return [key for part in value for key in _forbidden_inside(part)]
    if not isinstance(value, dict):
        return []
    here = [key for key in NEVER if key in value]
    return here + _forbidden_inside(list(value.values()))


def _check_files(settings: dict, where: str) -> list[str]:
    """Local files that settings name and that are not there, and parts of `datasets:` that cannot be read."""
    problems, known = [], fields.class_fields("trl.scripts.utils", "DatasetConfig")
    files = [(flag, settings.get(flag)) for flag in FILE_FLAGS]
    for flag in TEXT_FLAGS:
        value = settings.get(flag)
        if str(value).endswith(TEXT_SUFFIXES):
            files.append((flag, value))
        else:
            problems += _missing(value, f"{where}.{flag}", assets.locate)
    template = settings.get("chat_template_path")
    if template not in (shipped := [path.stem for path in TEMPLATES.glob("*.jinja")]):
        problems += [
            f"{problem}; shipped are: {', '.join(shipped)}"
            for problem in _missing(template, f"{where}.chat_template_path", assets.find)
        ]
    parts = settings.get("datasets")
    for number, part in enumerate(parts if isinstance(parts, list) else []):
        flag = f"datasets[{number}]"
        if not isinstance(part, dict) or "path" not in part:
            problems.append(f"{where}.{flag}: must be a mapping with at least `path`, and is {part!r}")
            continue
        for key, value in part.items():
            complaint = known[key].complaint(value) if key in known else f"unknown key{_near(key, known)}"
            problems += [f"{where}.{flag}.{key}: {complaint}"] if complaint else []
        if part["path"] in FILE_BUILDERS:
            files.append((f"{flag}.data_files", part.get("data_files")))
    return problems + [problem for flag, value in files for problem in _missing(value, f"{where}.{flag}", assets.find)]


def _check_inputs(inputs: dict, earlier: dict, where: str) -> list[str]:
    problems = []
    for flag, value in inputs.items():
        for source in value if isinstance(value, list) else [value]:
            if isinstance(source, str) and "/" in source:
                problems += _missing(source, f"{where}.inputs.{flag}", assets.locate)
            elif not isinstance(source, str) or source not in earlier:
                near = _near(source, earlier)
                problems.append(f"{where}.inputs.{flag}: {source!r} is no earlier stage, path or Hub id{near}")
            elif flag == "prompts_from" and earlier[source].run not in ("difficulty", ""):
                run = earlier[source].run
                problems.append(f"{where}.inputs.{flag}: {source} is made by {run}: name a stage with run: difficulty")
            elif flag != "prompts_from" and earlier[source].run in MODELLESS:
                problems.append(
                    f"{where}.inputs.{flag}: {source} is made by {earlier[source].run}, which makes no model"
                )
    return problems + _check_reward_model(inputs.get("reward_model"), earlier, f"{where}.inputs.reward_model")


def _check_reward_model(source, earlier: dict, where: str) -> list[str]:
    """A reward model that is no reward model, where that can be seen before it is made or fetched."""
    if not isinstance(source, str):
        return []
    if source in earlier:
        run = earlier[source].run  # "": a stage with mistakes of its own
        return [] if run in ("pwrm", "") else [f"{where}: {source} is made by {run}: name a stage with run: pwrm"]
    try:
        folder = assets.find(source)
    except FileNotFoundError:
        return []  # on the Hub, or complained about already
    if (folder / DECISION_FILE).is_file():
        return []
    return [f"{where}: {source} has no {DECISION_FILE}: name a folder that trainers/pwrm.py made"]


def _missing(value, where: str, look) -> list[str]:
    """What `assets.find` or `assets.locate` says about a path; other kinds of values are complained about elsewhere."""
    try:
        if isinstance(value, str):
            look(value)
    except FileNotFoundError as error:
        return [f"{where}: {error}"]
    return []


def _near(word, known) -> str:
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _fingerprint(run: str, settings: dict, inputs: dict, earlier: dict[str, Stage]) -> str:
    """Hash of what a stage computes: change a setting anywhere upstream and it changes too."""

    def identity(source) -> str:
        if source in earlier:
            return earlier[source].fingerprint
        record = Path(str(source)) / manifest.FILE  # a model made anew in the same folder is another one
        try:
            return f"{source} {hashlib.sha256(assets.find(record).read_bytes()).hexdigest()}"
        except FileNotFoundError:
            return str(source)  # on the Hub, or no stage made it

    upstream = {
        flag: [identity(source) for source in (value if isinstance(value, list) else [value])]
        for flag, value in inputs.items()
    }
    return hashlib.sha256(json.dumps([run, settings, upstream], sort_keys=True, default=str).encode()).hexdigest()
