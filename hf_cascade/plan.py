"""What a recipe will make, before it runs: the shape, exact size, window and tokens of every stage."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich import box
from rich.table import Table

from hf_cascade import assets
from hf_cascade.recipe import MODELLESS, Recipe, RecipeError, Stage
from hf_cascade.shape import ChildShape, count_parameters, is_tied, text_config

PARENT_CONFIG = "parent_config.json"
HUB_CONFIGS = "configs"  # folder beside a recipe with NAME.json of Hub ids ORG/NAME
SHAPE_FLAGS = ("num_hidden_layers", "hidden_size", "intermediate_size", "tie_word_embeddings")
BUDGET_FLAGS = ("target_parameters", "target_memory")
COLUMNS = ("stage", "run", "starts from", "layers x hidden / FFN", "parameters", "window", "tokens", "state")
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
MODEL_FLAGS = ("model", "model_name_or_path")
TEACHER_FLAGS = ("teacher", "teacher_model_name_or_path")


@dataclass(frozen=True)
class PlannedStage:
    """
    A stage and the models it is about, where they can be known without the Hub.

    Attributes:
        stage (`Stage`): the stage.
        config (`dict`, *optional*): config.json of the model it leaves.
        source (`dict`, *optional*): of the model it starts from.
        teacher (`dict`, *optional*): of its teacher.
        reward (`dict`, *optional*): of its reward model.
    """

    stage: Stage
    config: dict | None
    source: dict | None = None
    teacher: dict | None = None
    reward: dict | None = None


def make_plan(recipe: Recipe) -> list[PlannedStage]:
    """
    Follow the shapes through the stages.

    A model's shape is read from its folder; of one on the Hub from `configs/NAME.json` beside the recipe, NAME being
    what follows the slash of its id, else from `parent_config.json` there.

    Raises:
        RecipeError: lists every shape that cannot be pruned from its parent, and every teacher with other tokens.
    """
    configs: dict[str, dict | None] = {}
    problems, planned = _check_tokenizers(recipe), []
    for stage in recipe.stages:
        source = configs[stage.name] = None
        try:
            source = _config_of(_source(stage), stage, configs, recipe.path)
            configs[stage.name] = _config_after(stage, source)
        except (ValueError, FileNotFoundError) as error:
            problems.append(f"{recipe.path}: {stage.name}: {error}")
        others = [_other_config(other, stage, configs, recipe.path) for other in (_teacher(stage), _judge(stage))]
        planned.append(PlannedStage(stage, configs[stage.name], source, *others))
    if problems:
        raise RecipeError(*problems)
    return planned


def _config_of(source: str | list[str] | None, stage: Stage, configs: dict, recipe: Path) -> dict | None:
    """The config of a stage's input; `None` for several models, and for one on the Hub."""
    if isinstance(source, list) or source is None and stage.run == "difficulty":  # a server's model
        return None
    if source in configs:
        return configs[source]
    file = assets.find(stage.settings["model_config"]) if source is None else _parent_config(source, recipe)
    return _read_config(file) if file is not None else None


def _other_config(other: str | None, stage: Stage, configs: dict, recipe: Path) -> dict | None:
    """A teacher's or reward model's config, or `None`: of any family, and the stage itself says what is wrong."""
    try:
        return None if other is None else _config_of(other, stage, configs, recipe)
    except (ValueError, FileNotFoundError):
        return None


def _config_after(stage: Stage, config: dict | None) -> dict | None:
    """The config of the model a stage leaves, of the one it starts from; `None` when it leaves none."""
    if config is None or stage.run in MODELLESS:
        return config
    if stage.run != "prune":  # saved in the type it was trained in
        dtype = stage.settings.get("dtype") or "float32"
        return config if dtype == "auto" else {**config, "dtype": dtype}
    searched = any(stage.settings.get(flag) for flag in BUDGET_FLAGS)
    if searched and stage.settings.get("calibration") is not None:
        return None  # its shape is found when it runs
    shape = ChildShape(**{flag: stage.settings.get(flag) for flag in SHAPE_FLAGS})
    child = shape.apply(config)
    if (searched or child != ChildShape().apply(config)) and stage.settings.get("calibration") is None:
        raise ValueError("pruning to a smaller shape needs text: set calibration to a text file or a dataset's Hub id")
    return child


def _check_tokenizers(recipe: Recipe) -> list[str]:
    """
    Students and teachers must share their tokens, since logits are compared id by id.

    Models that are folders here are compared now; the others by the stage itself, before it loads their weights.
    """
    origin: dict[str, str] = {}  # stage -> where its tokenizer comes from
    problems = []
    for stage in recipe.stages:
        source = stage.inputs.get("tokenizer") or stage.settings.get("tokenizer") or _source(stage)
        students = [origin.get(part, part) for part in (source if isinstance(source, list) else [source])]
        origin[stage.name] = students[0]
        teacher = _teacher(stage)
        theirs = _vocabulary(origin.get(teacher, teacher))
        for student in dict.fromkeys(students):
            ours = _vocabulary(student)
            if ours is not None and theirs is not None and ours != theirs:
                differing = sorted(
                    token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)
                )
                shown = ", ".join(f"{token!r}: {ours.get(token)} and {theirs.get(token)}" for token in differing[:3])
                problems.append(
                    f"{recipe.path}: {stage.name}: {student} and its teacher {teacher} have different tokenizers: "
                    f"{len(differing)} tokens differ ({shown}); name a teacher with the student's tokenizer"
                )
    return problems


@cache
def _vocabulary(source: str | None) -> dict[str, int] | None:
    """Token to id from a folder's tokenizer.json; `None` for a model on the Hub or another kind of tokenizer."""
    file = Path(assets.locate(source)) / "tokenizer.json" if source is not None else None
    if file is None or not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        words = content["model"]["vocab"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no tokenizer ({error!r})") from error
    if isinstance(words, list):  # a unigram model: [token, score] in the order of the ids
        words = {token: number for number, (token, _) in enumerate(words)}
    return words | {token["content"]: token["id"] for token in content.get("added_tokens", [])}


def _source(stage: Stage) -> str | list[str] | None:
    """The model a stage starts from, or the models it measures."""
    return next((stage.inputs[flag] for flag in MODEL_FLAGS if flag in stage.inputs), None)


def _teacher(stage: Stage) -> str | None:
    """The teacher a stage names."""
    return next((stage.inputs[flag] for flag in TEACHER_FLAGS if flag in stage.inputs), None)


def _judge(stage: Stage) -> str | None:
    """The reward model a stage names, or the judge in its process."""
    return stage.inputs.get("reward_model") or stage.inputs.get("judge_model_name_or_path")


def _parent_config(source: str, recipe: Path) -> Path | None:
    """A model's config.json; for one on the Hub the copy beside the recipe, if there is one."""
    folder = Path(assets.locate(source))
    if folder.is_dir():
        return folder / "config.json"
    names = (f"{HUB_CONFIGS}/{source.rpartition('/')[2]}.json", PARENT_CONFIG)
    return next((recipe.parent / name for name in names if (recipe.parent / name).is_file()), None)


def _read_config(file: Path) -> dict:
    """Read a config.json and make sure that its model can be counted."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        count_parameters(config)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} does not exist: a model's folder holds its config.json") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    except (AttributeError, KeyError) as error:
        raise ValueError(f"{file} is no language model's config: {error} is missing") from error
    return config


def table(planned: list[PlannedStage], states: dict[str, str] | None = None, short: bool = False) -> Table:
    """
    The plan for a person.

    Args:
        planned (`list[PlannedStage]`): from [`make_plan`].
        states (`dict[str, str]`, *optional*): stage name to `new`, `resumes` or `done`. Unset, no such column.
        short (`bool`, *optional*, defaults to `False`): for 80 columns: `13.5B` for 13,506,073,600, no sources, and
            no column that holds nothing.
    """
    left_out = (() if states is not None else ("state",)) + (("starts from",) if short else ())
    shown = [number for number, name in enumerate(COLUMNS) if name not in left_out]
    rows = [_row(part, states or {}, short_number if short else "{:,}".format) for part in planned]
    if short:
        shown = [number for number in shown if any(row[number] for row in rows)]
    rows = [[row[number] for number in shown] for row in rows]
    columns = tuple(COLUMNS[number] for number in shown)
    return make_table(columns, rows, right=("parameters", "window", "tokens"), yields="starts from")


def make_table(
    columns: tuple[str, ...], rows: list[list[str]], right: tuple[str, ...], yields: str | None = None
) -> Table:
    """
    A table whose columns keep their width, except one that gives way where a terminal is narrow.

    Args:
        columns (`tuple[str, ...]`): their names.
        rows (`list[list[str]]`): what they hold.
        right (`tuple[str, ...]`): columns of figures.
        yields (`str`, *optional*): the column that gives way.
    """
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        width = 8 if name == yields else max(len(row[number]) for row in [columns, *rows])
        justify = "right" if name in right else "left"
        view.add_column(name, no_wrap=name != yields, overflow="ellipsis", min_width=width, justify=justify)
    for row in rows:
        view.add_row(*row)
    return view


def short_number(value: float) -> str:
    """Three figures and a unit: `13.5B`, `4.19M`."""
    size, unit = next(((size, unit) for size, unit in UNITS if value >= size), (1, ""))
    return f"{value / size:.3g}{unit}"


def _row(part: PlannedStage, states: dict[str, str], written) -> list[str]:
    stage, config = part.stage, part.config
    source = _source(stage) or stage.settings.get("served_model") or "a random start"
    shape = parameters = ""
    if config is not None and stage.run not in MODELLESS:
        text = text_config(config)
        tied = " tied" if is_tied(config) else ""
        shape = f"{text['num_hidden_layers']} x {text['hidden_size']} / {text['intermediate_size']}{tied}"
        parameters = written(count_parameters(config))
    window, tokens = (stage.settings.get(flag) for flag in ("max_length", "train_tokens"))
    sources = source if isinstance(source, list) else [source]
    return [
        stage.name,
        stage.run,
        f"{len(sources)} models" if len(sources) > 1 else sources[0].rpartition("/")[2],
        shape,
        parameters,
        f"{window:,}" if window else "",
        written(int(tokens)) if tokens else "",
        states.get(stage.name, "new"),
    ]
