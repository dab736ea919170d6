"""What is to be published, model by model: the flags of `hf-cascade publish`, or a family file with the same names.

    collection: Cascade tiny
    targets: recipes/tiny/targets.yaml
    models:
      - {model: 14b, repo_id: cascade-tiny-14b, kind: base}
      - {model: 8b, repo_id: cascade-tiny-8b, base_model: 14b}

A bare `model` is a stage's folder in `run_dir`; anything with a slash is a path. What stands at a model goes before
the command line's flag, and that before what stands at the top, which is for all models.
"""

import difflib
import hashlib
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

from hf_cascade import assets, manifest
from hf_cascade.fields import Field, class_fields
from hf_cascade.publish.config import PublishArguments
from hf_cascade.recipe import read_yaml

MODELS = "models"
OF_A_MODEL = ("model", "repo_id", "parent", "base_model", "targets", "license", "license_name", "license_link")
OF_A_MODEL += ("language", "kind", "override")
OF_ALL = ("private", "gated", "tag", "collection", *OF_A_MODEL[2:-1])
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Planned:
    """
    One model to publish.

    Attributes:
        model (`Path`): its folder.
        repo_id (`str`): its repository.
        parent, targets, base_model, license, license_name, license_link, kind, override (`str`, *optional*): as in
            [`PublishArguments`].
        language (`list[str]`): ISO codes.
    """

    model: Path
    repo_id: str
    parent: str | None = None
    base_model: str | None = None
    targets: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    kind: str | None = None
    override: str | None = None


@dataclass(frozen=True)
class Terms:
    """What holds for all models: `private`, `gated`, `tag` and the `collection`'s title."""

    private: bool | None = None
    gated: str | None = None
    tag: str | None = None
    collection: str | None = None


def read(arguments: PublishArguments) -> tuple[list[Planned], Terms]:
    """
    The models to publish, and the terms.

    Raises:
        FileNotFoundError: the family file or a model's folder is not there.
        ValueError: a key that is none, a value of another type, or a name that stands twice; says all of them.
    """
    given = {one.name: getattr(arguments, one.name) for one in fields(PublishArguments)}
    if arguments.family is None:
        entries, top = [{name: given[name] for name in OF_A_MODEL if given[name]}], {}
        place, run_dir = "", None
    else:
        path = assets.find(arguments.family)
        content = read_yaml(path)
        _check(content, path)
        entries, top = content.pop(MODELS), content
        place = f"{path}: "
        run_dir = Path(arguments.run_dir) if arguments.run_dir else Path("runs") / path.resolve().parent.name
    defaults = {one.name: one.default for one in fields(PublishArguments)}
    set_here = {name: value for name, value in given.items() if value not in (defaults[name], [])}
    everywhere = {**top, **set_here}
    repos = {entry["model"]: _repo_id(entry["repo_id"], arguments.namespace, place) for entry in entries}
    folders = _folders([entry["model"] for entry in entries], run_dir, place)
    planned = []
    for entry in entries:
        flags = {name: everywhere[name] for name in OF_A_MODEL if name in everywhere} | entry
        flags |= {"model": folders[entry["model"]], "repo_id": repos[entry["model"]]}
        flags["base_model"] = _base_model(flags.get("base_model"), repos if run_dir else {}, place)
        flags["language"] = tuple(flags.get("language", ()))
        planned.append(Planned(**flags))
    planned = _linked(planned)
    twice = sorted({one.repo_id for one in planned if [other.repo_id for other in planned].count(one.repo_id) > 1})
    if twice:
        raise ValueError(f"{place}{', '.join(twice)} is the repository of more than one model")
    return planned, Terms(**{one.name: everywhere[one.name] for one in fields(Terms) if one.name in everywhere})


def _check(content: dict, path: Path) -> None:
    """Everything that is wrong with a family file, at once."""
    known = class_fields(PublishArguments.__module__, PublishArguments.__name__)
    problems = _complaints({key: value for key, value in content.items() if key != MODELS}, OF_ALL, known, "")
    entries = content.get(MODELS)
    if not isinstance(entries, list) or not entries:
        problems.append(f"{MODELS}: must be a list of models, each with at least model and repo_id")
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        where = f"{MODELS}[{number}]"
        if not isinstance(entry, dict) or not {"model", "repo_id"} <= set(entry):
            problems.append(f"{where}: must be a mapping with at least model and repo_id, and is {entry!r}")
        else:
            problems += _complaints(entry, OF_A_MODEL, known, f"{where}.")
    if problems:
        raise ValueError(f"{path}: " + f"\n{path}: ".join(problems))


def _complaints(given: dict, allowed: tuple[str, ...], known: dict[str, Field], where: str) -> list[str]:
    problems = []
    for key, value in given.items():
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            problems.append(f"{where}{key}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
        elif complaint := known[key].complaint(value):
            problems.append(f"{where}{key}: {complaint}")
    return problems


def _folders(models: list[str], run_dir: Path | None, place: str) -> dict[str, Path]:
    """Each model's folder: a stage of the run, or a path, found as by [`assets.find`]. Names all that are missing."""
    found: dict[str, Path] = {}
    for model in models:
        if run_dir is not None and "/" not in model:
            found[model] = run_dir / model
        else:
            found[model] = Path(model) if Path(model).exists() else assets.root() / model
    missing = [model for model in models if not found[model].is_dir()]
    if missing and run_dir is None:
        raise FileNotFoundError(f"{missing[0]} is no folder: give a finished model's")
    if missing:
        names = "".join(f"\n  {model if '/' in model else run_dir / model}" for model in missing)
        raise FileNotFoundError(
            f"{place}{len(missing)} of {len(models)} models have no folder here:{names}\n`hf-cascade run` makes them: "
            f"run the recipe first. A bare name is looked for in --run_dir, here {run_dir}; a path is taken as it is."
        )
    return found


def _linked(planned: list[Planned]) -> list[Planned]:
    """Models that name no base model, with the nearest ancestor among the others, by the hashes in their lineage."""
    files = {one.repo_id: one.model / manifest.FILE for one in planned}
    repos = {hashlib.sha256(path.read_bytes()).hexdigest(): name for name, path in files.items() if path.is_file()}
    found = []
    for one in planned:
        try:
            lineage = manifest.read(one.model)["lineage"] if one.base_model is None else []
            ancestors = [repos[stage["manifest_sha256"]] for stage in lineage if stage["manifest_sha256"] in repos]
        except (OSError, ValueError, KeyError, TypeError):  # no manifest that can be read, which the gate says
            ancestors = []
        found.append(replace(one, base_model=ancestors[-1]) if ancestors else one)
    return found


def _repo_id(name: str, namespace: str | None, place: str) -> str:
    if "/" not in name and namespace is not None:
        name = f"{namespace}/{name}"
    if not _REPO_ID.fullmatch(name):
        raise ValueError(
            f"{place}repo_id={name}: give ORG/NAME, with letters, digits, - _ . only, or --namespace ORG for all models"
        )
    return name


def _base_model(given: str | None, repos: dict[str, str], place: str) -> str | None:
    """A Hub id, or that of another model of the family, by what stands at its `model`."""
    if given in repos:
        return repos[given]
    if given is not None and "/" not in given:
        known = f", or one of this family: {', '.join(repos)}" if repos else ""
        raise ValueError(f"{place}base_model={given}: give a Hub id, ORG/NAME{known}")
    return given
