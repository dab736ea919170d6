"""What a recipe will make, before it runs: the shape, exact size, window and tokens of every stage."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from hf_cascade import assets
from hf_cascade.recipe import Recipe, RecipeError, Stage
from hf_cascade.shape import ChildShape, count_parameters, is_tied, text_config

PARENT_CONFIG = "parent_config.json"
SHAPE_FLAGS = ("num_hidden_layers", "hidden_size", "intermediate_size", "tie_word_embeddings")
COLUMNS = ("stage", "run", "starts from", "layers x hidden / FFN", "parameters", "window", "tokens", "state")
MODEL_FLAGS = ("model", "model_name_or_path")


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
        RecipeError: lists every shape that cannot be pruned from its parent.
    """
    configs: dict[str, dict | None] = {}
    planned, problems = [], []
    for stage in recipe.stages:
        source = next((stage.inputs[flag] for flag in MODEL_FLAGS if flag in stage.inputs), None)
        config = None
        if isinstance(source, str):
            config = configs[source] if source in configs else _parent_config(source, recipe.path)
        elif "model_config" in stage.settings:
            config = json.loads(assets.find(stage.settings["model_config"]).read_text())
        if stage.run == "prune" and config is not None:
            shape = ChildShape(**{flag: stage.settings.get(flag) for flag in SHAPE_FLAGS})
            try:
                shape.check(config)
                config = shape.apply(config)
            except ValueError as error:
                problems.append(f"{recipe.path}: {stage.name}: {error}")
                config = None
        configs[stage.name] = config
        planned.append(PlannedStage(stage, config))
    if problems:
        raise RecipeError("\n  ".join([f"the recipe cannot run, {len(problems)} to mend:", *problems]))
    return planned


def _parent_config(source: str, recipe: Path) -> dict | None:
    folder = Path(assets.locate(source))
    file = folder / "config.json" if folder.is_dir() else recipe.parent / PARENT_CONFIG
    return json.loads(file.read_text()) if file.is_file() else None


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
        width = 8 if name == "starts from" else max(len(row[number]) for row in [COLUMNS, *rows])
        justify = "right" if name in ("parameters", "window", "tokens") else "left"
        view.add_column(name, no_wrap=True, min_width=width, justify=justify)
    for row in rows:
        view.add_row(*row)
    return view


def _row(part: PlannedStage, states: dict[str, str]) -> list[str]:
    stage, config = part.stage, part.config
    source = next((stage.inputs[flag] for flag in MODEL_FLAGS if flag in stage.inputs), "a random start")
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
