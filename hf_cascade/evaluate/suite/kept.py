"""evals.json of a model folder: what is kept of earlier runs on the same weights; the parent's figures from there."""

import hashlib
import json
from pathlib import Path

from hf_cascade import assets, companions, manifest
from hf_cascade.evaluate.family import Member
from hf_cascade.evaluate.suite.figures import RUN

EVALS = "evals.json"
OLD = f"{EVALS}.old"  # what it held before figures were dropped; on the list of no upload
COMPANIONS = "companions"  # key of evals.json: hashes of tokenizer, chat template, processor, generation config
_HELD = ("heldout", "long", "retention", "teacher")
_ASKED = {"tasks": ("tasks",), "preference": ("preference", "comparison")}


def merge(new: dict, folder: Path) -> tuple[dict, list[str]]:
    """
    A model's new figures with those of earlier runs that they do not replace, if the weights are the same. Where any
    are dropped, the earlier file is copied to `evals.json.old` beside it, or `.old.2` where that is another one.

    Args:
        new (`dict`): for evals.json; `weights_sha256` says of which weights, `companions` with which tokenizer, chat
            template, processor and generation config.
        folder (`Path`): holds the earlier evals.json, if there is one.

    Returns:
        `dict`: what evals.json is to hold.
        `list[str]`: lines about what was dropped, and the file that still has it.

    Raises:
        ValueError: the earlier file is no JSON.
        OSError: it cannot be copied.
    """
    earlier = read(folder)
    if earlier is None:
        return new, []
    if why := _other_model(earlier, new):
        lost = _lost(earlier, new)
        return new, [_dropped(folder, lost, why)] if lost else []
    before, now, lines = earlier.get("suites") or {}, new.get("suites") or {}, []
    if now and before and _scorers(earlier) != _scorers(new):
        lines = [_dropped(folder, list(before), "they were scored otherwise than hf-cascade does now")]
        before = {}
    merged = {**earlier, **new, "suites": {**before, **now}}
    for suite in before.keys() & now.keys():
        merged["suites"][suite] = {part: _better(before[suite][part], now[suite][part]) for part in ("rows", "tasks")}
    merged["conformance"] = _proofs(earlier.get("conformance"), new.get("conformance"))
    if new.get("heldout") is None:
        merged |= {name: earlier[name] for name in _HELD if name in earlier}
    for part, names in _ASKED.items():
        if not new.get(part):
            merged |= {name: earlier[name] for name in names if name in earlier}
    return merged, lines


def _other_model(earlier: dict, new: dict) -> str:
    """Why earlier figures are not of the model that was measured now; empty if they are."""
    if earlier.get("weights_sha256") is None:
        return "which weights they were measured on was not recorded"
    if earlier["weights_sha256"] != new["weights_sha256"]:
        return "they were measured on other weights"
    return _other_companions(earlier.get(COMPANIONS), new.get(COMPANIONS))


def _dropped(folder: Path, lost: list[str], why: str) -> str:
    """A line about figures that are dropped, once the file that has them is kept under another name."""
    content, number = (folder / EVALS).read_bytes(), 1
    old = folder / OLD
    while old.exists() and old.read_bytes() != content:
        number += 1
        old = folder / f"{OLD}.{number}"
    if not old.exists():
        old.write_bytes(content)
    return f"{folder / EVALS}: {', '.join(lost)} dropped: {why}; {old.name} beside it still has them"


def _lost(earlier: dict, new: dict) -> list[str]:
    """What was measured before, and not now."""
    parts = {"heldout": "held-out text", "tasks": "tasks", "preference": "answers to prompts"}
    before, now = earlier.get("suites") or {}, new.get("suites") or {}
    suites = []
    for name, suite in before.items():
        run = {part: _run(suite, part) - _run(now.get(name), part) for part in ("tasks", "rows")}
        if name not in now:
            suites.append(name)
        elif least := sorted(run["tasks"] or run["rows"]):
            suites.append(f"{', '.join(least)} of {name}")
    return suites + [what for part, what in parts.items() if earlier.get(part) and not new.get(part)]


def _run(suite: dict | None, part: str) -> set[str]:
    """Names of the tasks, or rows, of a suite that have figures."""
    entries = (suite or {}).get(part) or {}
    return {name for name, entry in entries.items() if entry.get("status") == RUN}


def _other_companions(before: dict | None, now: dict | None) -> str:
    """Why figures are of the same weights, and yet of another model."""
    if before is None and now is not None:
        return "which tokenizer and chat template they were measured with was not recorded"
    changed = companions.differences(before or {}, now or {})
    return f"since they were measured: {', '.join(changed)}" if changed else ""


def _scorers(figures: dict) -> str | None:
    return (figures.get("conformance") or {}).get("scorers_sha256")


def _proofs(before: dict | None, now: dict | None) -> dict | None:
    """All tasks that these scorers were proved for."""
    if before is None or now is None or before["scorers_sha256"] != now["scorers_sha256"]:
        return now or before  # figures of other scorers are dropped above
    return {**now, "tasks": {**before["tasks"], **now["tasks"]}}


def _better(before: dict[str, dict], now: dict[str, dict]) -> dict[str, dict]:
    """New figures, but for those that were not run now, or on a part of the benchmark and before on all of it."""
    merged = {}
    for name in {**before, **now}:
        earlier, newer = _worth(before.get(name)), _worth(now.get(name))
        if earlier > newer:
            merged[name] = before[name]
        elif name in now:
            merged[name] = now[name]
    return merged


def _worth(figures: dict | None) -> int:
    if figures is None or figures["status"] != RUN:
        return 0
    whole = not figures.get("short") and figures["rows"] == figures.get("rows_full")
    return 2 if whole else 1


def read(folder: Path) -> dict | None:
    """
    evals.json of a folder; `None` where there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    path = Path(folder) / EVALS
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it and measure the model again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object: delete it and measure the model again")
    return found


def parent_from(given: str) -> tuple[str, dict]:
    """
    Name and suites of a parent whose folder the user names.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no evals.json with suites.
    """
    folder = assets.find(given)
    found = read(folder)
    if not (found or {}).get("suites"):
        raise ValueError(f"parent={given}: it has no {EVALS} with suites: measure it, as --teacher or in its own run")
    return found.get("name") or folder.resolve().name, found["suites"]


def parent_of(member: Member) -> tuple[str | None, dict]:
    """
    Name and suites of the parent that a model's cascade.json names: the teacher of a distilled model, or else what its
    line of stages began with. `(None, {})` where that has no figures, or was made anew since.
    """
    if member.record is None:
        return None, {}
    sources = [member.record["inputs"].get("teacher_model_name_or_path")] if member.record["run"] == "distill" else []
    beside = Path(member.source).parent
    if member.record["lineage"]:
        oldest = member.record["lineage"][0]
        folder = beside / oldest["folder"]
        sources.append(_pruned_from(folder) if oldest["run"] == "prune" else str(folder))
    sources = [source for source in sources if isinstance(source, str)]
    folders = [Path(assets.locate(source)) for source in sources if _exists(source)]
    for folder in [*folders, *(beside / Path(source).name for source in sources)]:  # the latter of a run that was moved
        found = read(folder)
        record = folder / manifest.FILE
        now = hashlib.sha256(record.read_bytes()).hexdigest() if record.is_file() else None
        if found and found.get("suites") and found.get("manifest_sha256") == now:
            return found.get("name") or folder.name, found["suites"]
    return None, {}


def _pruned_from(folder: Path) -> str | None:
    """What a pruned model's folder was made of."""
    return manifest.read(folder)["inputs"].get("model") if manifest.is_finished(folder) else None


def _exists(source: str) -> bool:
    try:
        return Path(assets.locate(source)).is_dir()
    except FileNotFoundError:
        return False
