"""The stages a model came through, oldest first, with each one's manifest where it can still be found by its hash."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from hf_cascade import assets, manifest

MODEL_INPUTS = ("model", "model_name_or_path")
BESIDE_INPUTS = ("teacher_model_name_or_path", "prompts_from", "judge_model_name_or_path", "reward_model")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")


@dataclass(frozen=True)
class Stage:
    """
    One stage of a model's line.

    Attributes:
        name (`str`): as the recipe calls it.
        run (`str`): what made it: pretrain, prune, distill, sft, ...
        sha256 (`str`): hash of its cascade.json, by which its children know it.
        record (`dict`, *optional*): that manifest; `None` where no file of that hash is here.
        folder (`Path`, *optional*): the stage's folder, where it is here.
    """

    name: str
    run: str
    sha256: str
    record: dict | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Origin:
    """
    What a line began with, if its first stage did not make a model anew.

    Attributes:
        name (`str`): Hub id, or the folder's name.
        hub_id (`str`, *optional*): the Hub id.
        folder (`Path`, *optional*): the folder, where it is here.
    """

    name: str
    hub_id: str | None = None
    folder: Path | None = None


def stages_of(folder: Path, record: dict) -> list[Stage]:
    """
    A model's ancestors and itself, oldest first.

    A manifest is looked for beside the model's folder and where its child's manifest says, and is known by its hash.
    """
    line = [Stage(record["stage"], record["run"], _sha256(folder / manifest.FILE), record, folder)]
    for entry in reversed(record["lineage"]):
        known = next((stage for stage in line if stage.record is not None), None)
        line.insert(0, _find(entry, folder, known))
    return line


def in_order(stages: list[Stage]) -> list[Stage]:
    """
    All that must be run to make a line again, in order: its stages, and before each one those that made its teacher,
    judge, reward model or prompts, as far as they are here.

    A manifest keeps no hash of the latter: they are what is there now, beside the stage or where it says.
    """
    found: dict[str, Stage] = {}
    seen = {stage.sha256 for stage in stages}

    def visit(stage: Stage, flags: tuple[str, ...]) -> None:
        for source in [source for flag in flags for source in manifest.named(stage.record, flag)]:
            place = manifest.beside(source, stage.folder)
            sha256 = place and _sha256(place / manifest.FILE)
            if sha256 and sha256 not in seen:
                seen.add(sha256)
                record = manifest.read(place)
                visit(one := Stage(record["stage"], record["run"], sha256, record, place), MODEL_INPUTS + BESIDE_INPUTS)
                found[sha256] = one

    for stage in stages:
        if stage.record is not None and stage.folder is not None:
            visit(stage, BESIDE_INPUTS)
        found[stage.sha256] = stage
    return list(found.values())


def origin_of(stages: list[Stage]) -> Origin | None:
    """The model that a line began with: its first stage's model input; `None` of one that began anew, or unknown."""
    first = stages[0]
    given = model_input(first.record) if first.record else None
    if given is None or first.run == "pretrain":
        return None
    if (place := here(given)) is not None:
        return Origin(place.resolve().name, folder=place)
    return Origin(given, hub_id=given) if is_hub_id(given) else Origin(Path(given).name)


def model_input(record: dict) -> str | None:
    """What a stage took as its model."""
    for flag in MODEL_INPUTS:
        if value := record["inputs"].get(flag):
            return value[0] if isinstance(value, list) else value
    return None


def here(source: str) -> Path | None:
    """The folder that an input names, if it is still there."""
    try:
        place = Path(assets.locate(source))
    except FileNotFoundError:
        return None
    return place if place.is_dir() else None


def is_hub_id(source: str) -> bool:
    """Whether an input can only be a Hub id: `ORG/NAME`, and no path of a recipe or run."""
    try:
        return bool(HUB_ID.match(source)) and not Path(assets.locate(source)).exists()
    except FileNotFoundError:
        return False


def _find(entry: dict, folder: Path, child: Stage | None) -> Stage:
    """A stage by its entry in a lineage."""
    beside = folder.resolve().parent / entry["folder"]
    files = [beside / manifest.FILE]
    if child is not None:
        given = model_input(child.record)
        if given and (place := here(given)) is not None:
            files.append(place / manifest.FILE)
    for path in files:
        if path.is_file() and _sha256(path) == entry["manifest_sha256"]:
            record = json.loads(path.read_text(encoding="utf-8"))
            return Stage(entry["stage"], entry["run"], entry["manifest_sha256"], record, path.parent)
    return Stage(entry["stage"], entry["run"], entry["manifest_sha256"])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
