"""`Facts`: everything a model card says, read off a finished folder; what no file says is `None`."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCard, try_to_load_from_cache

from hf_cascade import manifest
from hf_cascade.evaluate.suite import kept
from hf_cascade.publish.lineage import HUB_ID, Origin, Stage, here, model_input, origin_of, stages_of
from hf_cascade.publish.shapes import Shape, shapes_of
from hf_cascade.publish.talking import Chat, chat_of

KINDS = ("base", "instruct", "reasoning")
_REASONING_FILTER = "format"  # a filter that only reasoning traces have: their thinking is well formed
FP8 = "fp8"  # the run that converts a finished model
_LEGAL = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Facts:
    """
    What a card says.

    Attributes:
        folder (`Path`): the model.
        name (`str`): of the repository, or else of the folder.
        repo_id (`str`, *optional*): where it is to be published.
        kind (`str`): base, instruct or reasoning.
        config (`dict`): its config.json.
        record (`dict`): its cascade.json.
        stages (`list[Stage]`): its line, oldest first, itself last.
        origin (`Origin`, *optional*): what the line began with.
        shapes (`list[Shape]`): dimensions of the original parent, the direct one if it is another, and the model.
        parent (`str`, *optional*): name of the model whose results stand beside; `parent_evals` has them.
        base_model (`str`, *optional*): Hub id.
        legal (`dict`): `license`, `license_name`, `license_link`, as far as known; `legal_source` says from where.
        language (`list[str]`): ISO codes; empty where nothing says.
        evals, parent_evals, contamination, conformance (`dict`, *optional*): files of these names.
        stale (`bool`): the figures of evals.json belong to another manifest than this one.
        prunings (`list`): (stage, prune_report.json) of the line.
        logs (`list`): (stage, log.json) of the stages that distilled.
        chat (`Chat`, *optional*): how it is talked to; `None` without a chat template.
        generation (`dict`): its generation_config.json.
        has_processor (`bool`): whether it has a processor for images.
    """

    folder: Path
    name: str
    repo_id: str | None
    kind: str
    config: dict
    record: dict
    stages: list[Stage]
    origin: Origin | None
    shapes: list[Shape]
    parent: str | None = None
    base_model: str | None = None
    legal: dict = field(default_factory=dict)
    legal_source: str | None = None
    language: list[str] = field(default_factory=list)
    evals: dict | None = None
    parent_evals: dict | None = None
    stale: bool = False
    contamination: dict | None = None
    conformance: dict | None = None
    prunings: list[tuple[Stage, dict]] = field(default_factory=list)
    logs: list[tuple[Stage, list]] = field(default_factory=list)
    chat: Chat | None = None
    generation: dict = field(default_factory=dict)
    has_processor: bool = False

    @property
    def runs(self) -> list[str]:
        """What made the stages of the line, oldest first."""
        return [stage.run for stage in self.stages]

    @property
    def takes_images(self) -> bool:
        """Whether the architecture has a vision tower."""
        return "vision_config" in self.config

    @property
    def quantization(self) -> str | None:
        """How the weights are quantized, `None` where they are not."""
        given = self.config.get("quantization_config")
        return given and str(given.get("quant_method", "quantized"))


def read(
    folder: str | Path,
    parent: str | Path | None = None,
    *,
    kind: str | None = None,
    repo_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    language: list[str] | None = None,
) -> Facts:
    """
    Read a finished folder.

    Args:
        folder (`str` or `Path`): the model.
        parent (`str` or `Path`, *optional*): folder of the model to set beside it; unset, what its manifests name.
        kind (`str`, *optional*): base, instruct or reasoning; unset, by the stages.
        repo_id (`str`, *optional*): where it is to be published.
        base_model (`str`, *optional*): Hub id of its direct parent; unset, that of the model its line began with, and
            none for a twin in FP8 of one of the line, which is no conversion of that one.
        license, license_name, license_link (`str`, *optional*): unset, those of the parent's card.
        language (`list[str]`, *optional*): ISO codes; unset, those of the parent's card.

    Raises:
        FileNotFoundError: the folder is not finished, or is no model.
        ValueError: a file in it cannot be read, an unknown kind, or a base model that is no Hub id.
    """
    folder = Path(folder)
    _check(kind, base_model)
    record, config = manifest.read(folder), _config(folder)
    stages = stages_of(folder, record)
    origin, evals = origin_of(stages), kept.read(folder)
    converted = record["run"] == FP8 and len(stages) > 1
    beside = _parent_folder(parent, record, stages, origin)
    parent_evals = kept.read(beside) if beside else None
    given = {"license": license, "license_name": license_name, "license_link": license_link}
    return Facts(
        folder=folder,
        name=repo_id.rpartition("/")[2] if repo_id else folder.resolve().name,
        repo_id=repo_id,
        kind=kind or kind_of(stages),
        config=config,
        record=record,
        stages=stages,
        origin=origin,
        shapes=shapes_of(stages, origin, config, record),
        parent=_parent_name(beside, parent_evals, evals, origin),
        base_model=base_model or (origin.hub_id if origin and not converted else None),
        evals=evals,
        parent_evals=parent_evals,
        stale=bool(evals) and evals.get("manifest_sha256") not in (None, stages[-1].sha256),
        prunings=_files(stages, "prune_report.json", ("prune",)),
        logs=_files(stages, "log.json", ("distill",)),
        **_terms(given, language, *_parent_card(beside, stages, origin, base_model)),
        **_own(folder, evals or {}),
    )


def _check(kind: str | None, base_model: str | None) -> None:
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind={kind}: allowed are {', '.join(KINDS)}")
    if base_model is not None and not HUB_ID.match(base_model):
        raise ValueError(f"base_model={base_model!r}: a Hub id is ORG/NAME")


def _config(folder: Path) -> dict:
    """
    Raises:
        FileNotFoundError: there is no config.json.
    """
    config = _json(folder / "config.json")
    if config is None:
        raise FileNotFoundError(f"{folder} holds no config.json: give the folder of a model")
    return config


def _terms(given: dict, language: list[str] | None, card: dict, source: str | None) -> dict:
    """Licence and languages: as given, or else as the parent's card has them."""
    if given["license"]:
        legal, source = {key: value for key, value in given.items() if value}, "given"
    else:
        legal = {key: card[key] for key in _LEGAL if isinstance(card.get(key), str)}
    languages = language or _languages(card.get("language"))
    return {"legal": legal, "legal_source": source if legal else None, "language": languages}


def _own(folder: Path, evals: dict) -> dict:
    """What the folder's other files say."""
    processors = ("processor_config.json", "preprocessor_config.json")
    return {
        "conformance": _json(folder / "conformance.json") or evals.get("conformance"),
        "contamination": _json(folder / "contamination.json"),
        "chat": chat_of(folder),
        "generation": _json(folder / "generation_config.json") or {},
        "has_processor": any((folder / name).is_file() for name in processors),
    }


def kind_of(stages: list[Stage]) -> str:
    """
    The kind of a model by the stages of its line: reinforcement learning or supervised reasoning traces make a
    reasoning model, other supervised or preference training an instruct one (paper sections 4 and 5).
    """
    runs = {stage.run for stage in stages}
    filters = {name for stage in stages if stage.record for name in stage.record["config"].get("filters") or ()}
    if "grpo" in runs or _REASONING_FILTER in filters:
        return "reasoning"
    return "instruct" if runs & {"sft", "odpo"} else "base"


def _parent_folder(given, record: dict, stages: list[Stage], origin: Origin | None) -> Path | None:
    """
    The folder of the model to set beside: the given one; the teacher of a distilled model; what its line began with.

    Raises:
        FileNotFoundError: the given one is no folder.
    """
    if given is not None:
        if not Path(given).is_dir():
            raise FileNotFoundError(f"parent={given}: it is no folder; give the parent's, with its evals.json")
        return Path(given)
    teacher = record["inputs"].get("teacher_model_name_or_path") if record["run"] == "distill" else None
    if isinstance(teacher, str) and (place := here(teacher)) is not None:
        return place
    if origin is not None and origin.folder is not None:
        return origin.folder
    pruned = next((stage for stage in stages if stage.run == "prune"), None)
    source = model_input(pruned.record) if pruned and pruned.record else None
    return here(source) if source else None


def _parent_name(beside: Path | None, parent_evals: dict | None, evals: dict | None, origin: Origin | None):
    """What the model beside is called."""
    if beside is not None:
        return (parent_evals or {}).get("name") or beside.resolve().name
    return (evals or {}).get("teacher") or (origin.name if origin else None)


def _parent_card(
    beside: Path | None, stages: list[Stage], origin: Origin | None, base_model: str | None
) -> tuple[dict, str | None]:
    """Front matter of the nearest parent's card that is here or in the Hub's cache, and whose it is."""
    places = [(base_model, _cached(base_model))] if base_model else []
    places += [(stage.name, stage.folder / "README.md") for stage in reversed(stages[:-1]) if stage.folder is not None]
    places += [(beside.name, beside / "README.md")] if beside is not None else []
    places += [(origin.hub_id, _cached(origin.hub_id))] if origin and origin.hub_id else []
    for name, path in places:
        if path is not None and path.is_file():
            data = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
            if data.get("license"):
                return data, f"the card of {name}"
    return {}, None


def _cached(hub_id: str) -> Path | None:
    """A Hub repository's card in the local cache; nothing is fetched."""
    found = try_to_load_from_cache(hub_id, "README.md")
    return Path(found) if isinstance(found, str) else None


def _languages(given) -> list[str]:
    return [given] if isinstance(given, str) else [one for one in given or () if isinstance(one, str)]


def _files(stages: list[Stage], name: str, runs: tuple[str, ...]) -> list[tuple[Stage, dict | list]]:
    """A file of each stage of these runs that has it."""
    mine = [stage for stage in stages if stage.run in runs and stage.folder is not None]
    read_files = [(stage, _json(stage.folder / name)) for stage in mine]
    return [(stage, content) for stage, content in read_files if content]


def _json(path: Path):
    """
    A JSON file; `None` where there is none.

    Raises:
        ValueError: it is none.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): make it again") from error
