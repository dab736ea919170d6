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
import re
from dataclasses import dataclass, fields
from pathlib import Path

from hf_cascade import assets
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
    planned = []
    for entry in entries:
        flags = {name: everywhere[name] for name in OF_A_MODEL if name in everywhere} | entry
        flags |= {"model": _folder(entry["model"], run_dir, place), "repo_id": repos[entry["model"]]}
        flags["base_model"] = _base_model(flags.get("base_model"), repos if run_dir else {}, place)
        flags["language"] = tuple(flags.get("language", ()))
        planned.append(Planned(**flags))
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


def _folder(model: str, run_dir: Path | None, place: str) -> Path:
    """The folder of a model: a stage's of the run, or a path, found as by [`assets.find`]."""
    if run_dir is None or "/" in model:
        folder = assets.find(model)
    else:
        folder = run_dir / model
    if not folder.is_dir():
        hint = f"; stages are looked for in {run_dir}: run the recipe first, or give --run_dir" if run_dir else ""
        raise FileNotFoundError(f"{place}{folder} is no folder: give a finished model's{hint}")
    return folder


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
