"""What suites will lack, as far as it can be told before any work: a judge, rows, images, a window."""

from dataclasses import dataclass
from pathlib import Path

from hf_cascade.evaluate.benchmarks.data import pinned
from hf_cascade.evaluate.benchmarks.dataset_folder import MissingData, of_dataset
from hf_cascade.evaluate.suite.suites import Suite

_JUDGE, _ROWS = "there is no judge: give --judge_url and --judge_model", "rows"


@dataclass(frozen=True)
class Able:
    """
    What a model can be asked.

    Attributes:
        images (`bool`): whether it reads them, or may.
        window (`int`, *optional*): its tokens; `None`: no end, or not known here.
    """

    images: bool = True
    window: int | None = None


def lacks(
    suites: list[Suite], tasks: dict[str, dict], models: dict[str, Able], judge: bool, data: str | None
) -> list[str]:
    """
    Rows that cannot be run.

    Args:
        suites (`list[Suite]`): to be run.
        tasks (`dict[str, dict]`): the YAML of each task.
        models (`dict[str, Able]`): by name.
        judge (`bool`): whether there is one.
        data (`str`, *optional*): the folder with the benchmarks' rows; `None`: the Hub, which is not asked here.

    Returns:
        `list[str]`: a line for each reason, as `MMMU 2-shot, MathVista: small reads no images`.

    Raises:
        ValueError: not one row can be run on any model.
    """
    told: dict[str, dict[str, None]] = {}  # reason to labels
    absent: dict[str, None] = {}
    able = False
    for row in [row for suite in suites for row in suite.rows]:
        yamls = [tasks[task] for task in row.tasks]
        here = [repo for repo in repos_of(yamls) if data is not None and not _is_here(data, repo)]
        unjudged = not judge and any("judge" in _about(given, "needs", ()) for given in yamls)
        shared = _JUDGE if unjudged else _ROWS if here else None
        absent |= dict.fromkeys(here if shared == _ROWS else ())
        each = {name: _of_model(yamls, name, model) for name, model in models.items()}
        for reason in [shared] if shared else filter(None, each.values()):
            told.setdefault(reason, {})[row.label] = None
        able = able or not shared and not all(each.values())
    texts = {_ROWS: f"{data} has no {', '.join(absent)}"}
    lines = [f"{', '.join(labels)}: {texts.get(reason, reason)}" for reason, labels in told.items()]
    if not able:
        why = "; ".join(lines) if len(told) > 1 else next(texts.get(reason, reason) for reason in told)
        raise ValueError(f"nothing of what is asked for can be run. {why}")
    return lines


def repos_of(yamls: list[dict]) -> list[str]:
    """The datasets whose rows tasks are scored on."""
    found = [(given.get("dataset_kwargs") or {}).get("repo") for given in yamls]
    return list(dict.fromkeys(filter(None, found)))


def _of_model(yamls: list[dict], name: str, model: Able) -> str | None:
    """What a row asks of a model that it cannot do."""
    if not model.images and any("images" in _about(given, "needs", ()) for given in yamls):
        return f"{name} reads no images"
    needed = max(_about(given, "positions", 0) for given in yamls)
    if model.window is not None and model.window < needed:
        return f"{name} has a window of {model.window:,} tokens"
    return None


def _about(given: dict, key: str, otherwise):
    return (given.get("metadata") or {}).get(key) or otherwise


def _is_here(data: str, repo: str) -> bool:
    try:
        of_dataset(Path(data), repo, pinned(repo))
    except MissingData:
        return False
    return True
