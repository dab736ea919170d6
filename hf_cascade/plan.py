"""What a recipe will make, before it runs: the shape, exact size, window and tokens of every stage."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich import box
from rich.table import Table

from hf_cascade import assets
from hf_cascade.recipe import Recipe, RecipeError, Stage
from hf_cascade.shape import ChildShape, count_parameters, is_tied, text_config

PARENT_CONFIG = "parent_config.json"
SHAPE_FLAGS = ("num_hidden_layers", "hidden_size", "intermediate_size", "tie_word_embeddings")
BUDGET_FLAGS = ("target_parameters", "target_memory")
COLUMNS = ("stage", "run", "starts from", "layers x hidden / FFN", "parameters", "window", "tokens", "state")
MODEL_FLAGS = ("model", "model_name_or_path")
TEACHER_FLAGS = ("teacher", "teacher_model_name_or_path")


@dataclass(frozen=True)
class PlannedStage:
    """
    A stage and the config of the model it leaves, where that can be known without the Hub.

    Attributes:
        stage (`Stage`): the stage.
        config (`dict`, *optional*): its model's config.json.
    """

    stage: Stage
    config: dict | None


def make_plan(recipe: Recipe) -> list[PlannedStage]:
    """
    Follow the shapes through the stages.

    The parent's shape is read from its folder, or from `parent_config.json` beside the recipe when it is on the Hub.

    Raises:
        RecipeError: lists every shape that cannot be pruned from its parent, and every teacher with other tokens.
    """
    configs: dict[str, dict | None] = {}
    problems = _check_tokenizers(recipe)
    for stage in recipe.stages:
        try:
            configs[stage.name] = _config_after(stage, configs, recipe.path)
        except (ValueError, FileNotFoundError) as error:
            problems.append(f"{recipe.path}: {stage.name}: {error}")
            configs[stage.name] = None
    if problems:
        raise RecipeError(*problems)
    return [PlannedStage(stage, configs[stage.name]) for stage in recipe.stages]


def _config_after(stage: Stage, configs: dict[str, dict | None], recipe: Path) -> dict | None:
    """The config of the model a stage leaves; `None` when it leaves none, or the parent is on the Hub."""
    source = _source(stage)
    if isinstance(source, list):
        return None
    if source in configs:
        config = configs[source]
    else:
        file = assets.find(stage.settings["model_config"]) if source is None else _parent_config(source, recipe)
        config = _read_config(file) if file is not None else None
    if stage.run != "prune" or config is None:
        return config
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
        teacher = next((stage.inputs[flag] for flag in TEACHER_FLAGS if flag in stage.inputs), None)
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


def _parent_config(source: str, recipe: Path) -> Path | None:
    """A parent's config.json; for one on the Hub the copy beside the recipe, if there is one."""
    folder = Path(assets.locate(source))
    if folder.is_dir():
        return folder / "config.json"
    beside = recipe.parent / PARENT_CONFIG
    return beside if beside.is_file() else None


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


def table(planned: list[PlannedStage], states: dict[str, str]) -> Table:
    """
    The plan for a person.

    Args:
        planned (`list[PlannedStage]`): from [`make_plan`].
        states (`dict[str, str]`): stage name to `new`, `resumes` or `done`.
    """
    rows = [_row(part, states) for part in planned]
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(COLUMNS):
        # where a terminal is narrow, only the column that says where a stage starts from gives way
        yields = name == "starts from"
        width = 8 if yields else max(len(row[number]) for row in [COLUMNS, *rows])
        justify = "right" if name in ("parameters", "window", "tokens") else "left"
        view.add_column(name, no_wrap=not yields, overflow="ellipsis", min_width=width, justify=justify)
    for row in rows:
        view.add_row(*row)
    return view


def _row(part: PlannedStage, states: dict[str, str]) -> list[str]:
    stage, config = part.stage, part.config
    source = _source(stage) or "a random start"
    shape = parameters = ""
    if config is not None and stage.run != "evaluate":
        text = text_config(config)
        tied = " tied" if is_tied(config) else ""
        shape = f"{text['num_hidden_layers']} x {text['hidden_size']} / {text['intermediate_size']}{tied}"
        parameters = f"{count_parameters(config):,}"
    window, tokens = (stage.settings.get(flag) for flag in ("max_length", "train_tokens"))
    return [
        stage.name,
        stage.run,
        f"{len(source)} models" if isinstance(source, list) else source.rpartition("/")[2],
        shape,
        parameters,
        f"{window:,}" if window else "",
        f"{int(tokens):,}" if tokens else "",
        states.get(stage.name, "new"),
    ]
