"""Who is whose child: evaluated folders arranged by the lineage in their cascade.json, never by their names.

A child is one pruning and the distillation stages after it, as the paper's Algorithm 1 makes them; the next child may
be pruned from any of its stages.
"""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from hf_cascade import assets, manifest

# Names of the distillation stages of a child, where no child of the family has more. Short, then long: paper section 2.
STEPS = {1: ("distilled",), 2: ("short context", "long context")}
PRUNED = "pruned"
_BEFORE = ("prune", "pretrain")


@dataclass(frozen=True)
class Member:
    """
    A model to measure and where it comes from.

    Attributes:
        name (`str`): what tables call it.
        source (`str`): folder or Hub id.
        record (`dict`, *optional*): its cascade.json.
        sha256 (`str`, *optional*): hash of that file; lineages name ancestors by it.
    """

    name: str
    source: str
    record: dict | None = None
    sha256: str | None = None

    @property
    def chain(self) -> list[dict]:
        """Ancestors, oldest first, and the model itself: `{"stage", "run", "folder", "manifest_sha256"}` each."""
        if self.record is None:
            return []
        itself = {"stage": self.record["stage"], "run": self.record["run"], "folder": Path(self.source).name}
        return [*self.record["lineage"], {**itself, "manifest_sha256": self.sha256}]

    @property
    def own(self) -> list[dict]:
        """The end of the chain that made this child: at most one prune, and the distill stages after it."""
        stages = list(itertools.takewhile(lambda stage: stage["run"] == "distill", reversed(self.chain)))
        before = self.chain[: len(self.chain) - len(stages)]
        return [*([before[-1]] if before and before[-1]["run"] == "prune" else []), *reversed(stages)]

    @property
    def made(self) -> list[dict]:
        """What made this model since its pruning, that too, or since pretraining: [`own`] and the stages after it."""
        stages = list(itertools.takewhile(lambda stage: stage["run"] not in _BEFORE, reversed(self.chain)))
        before = self.chain[: len(self.chain) - len(stages)]
        return [*([before[-1]] if before and before[-1]["run"] == "prune" else []), *reversed(stages)]

    @property
    def step(self) -> int | None:
        """Distillation stages since the pruning: 0 is just pruned. None for a model that is nobody's child."""
        return sum(stage["run"] == "distill" for stage in self.own) if self.own else None


def read_members(sources: list[str]) -> list[Member]:
    """
    Look each model up.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder has no config.json, or one model is given twice.
    """
    members = []
    for given in sources:
        source = assets.locate(given)
        folder = Path(source)
        record = sha256 = None
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                _refuse(given, folder)
            if manifest.is_finished(folder):
                record = manifest.read(folder)
                sha256 = hashlib.sha256((folder / manifest.FILE).read_bytes()).hexdigest()
            source = str(folder.resolve())
        staged = record is not None and record["run"] in ("prune", "distill")
        name = record["stage"] if staged else Path(source).name if folder.is_dir() else source
        members.append(Member(name, source, record, sha256))
    for kind in ("source", "name"):
        values = [getattr(member, kind) for member in members]
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise ValueError(
                f"model: {', '.join(repeated)} given more than once; models need folders of different names"
            )
    return members


def _refuse(given: str, folder: Path):
    """`ValueError` about a folder that is no model."""
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        raise ValueError(f"{given} holds no config.json: give a folder that from_pretrained opens, or a Hub id")
    base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    raise ValueError(
        f"{given} is a PEFT adapter of {base}, no whole model: merge it "
        "(PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)) and give that folder, "
        "with the tokenizer in it"
    )


def arrange(members: list[Member]) -> list[dict]:
    """
    The children among `members`, in their order: `{"name", "stages": [{"step", "model"}]}`.

    A child is named after its last stage. Stages of it that are not among `members` are left out; two models that go on
    from one stage are two children, which share it.
    """
    by_hash = {member.sha256: member for member in members if member.sha256}
    earlier = earlier_stages(members)
    labels = step_labels(members)
    children = []
    for member in members:
        if not member.own or member.name in earlier:
            continue
        present = [by_hash[stage["manifest_sha256"]] for stage in member.own if stage["manifest_sha256"] in by_hash]
        stages = [{"step": labels[stage.step], "model": stage.name} for stage in present]
        children.append({"name": member.name, "stages": stages})
    return children


def earlier_stages(members: list[Member]) -> set[str]:
    """Names of the models that are an earlier stage of another one's child."""
    hashes = {stage["manifest_sha256"] for member in members for stage in member.own[:-1]}
    return {member.name for member in members if member.sha256 in hashes}


def previous(member: Member, members: list[Member]) -> str | None:
    """The name of the nearest ancestor of a model that is among `members`; a report's arrows start there."""
    by_hash = {other.sha256: other.name for other in members if other.sha256}
    names = [by_hash.get(stage["manifest_sha256"]) for stage in member.chain[:-1]]
    return next((name for name in reversed(names) if name is not None), None)


def step_labels(members: list[Member]) -> list[str]:
    """Names of steps 0, 1, ... for the longest child."""
    longest = max((member.step or 0 for member in members), default=0)
    return [PRUNED, *STEPS.get(longest, [f"distilled {step}" for step in range(1, longest + 1)])]


def tokens_and_seconds(member: Member, members: list[Member]) -> dict[str, float | None]:
    """
    What a model cost: `tokens` and `seconds` of its own stage, `child_tokens` and `child_seconds` since its pruning
    (or, of a model that was not pruned, its pretraining), post-training among them, `total_tokens` distilled along the
    whole lineage. None where a cascade.json cannot be found or does not say; post-training seldom counts tokens.
    """
    if member.record is None:
        return dict.fromkeys(("tokens", "seconds", "child_tokens", "child_seconds", "total_tokens"))
    records = {other.sha256: other.record for other in members if other.record}
    for stage in member.chain:
        beside = Path(member.source).parent / stage["folder"]
        if stage["manifest_sha256"] not in records and manifest.is_finished(beside):
            found = hashlib.sha256((beside / manifest.FILE).read_bytes()).hexdigest()
            records[found] = manifest.read(beside)

    def total(stages: list[dict], figure) -> float | None:
        figures = [figure(records.get(stage["manifest_sha256"])) for stage in stages]
        return None if None in figures else sum(figures)

    trained = [stage for stage in member.made if stage["run"] != "prune"]
    distilled = [stage for stage in member.chain if stage["run"] == "distill"]
    return {
        "tokens": _tokens(member.record),
        "seconds": _seconds(member.record),
        "child_tokens": total(trained, _tokens) if member.made else None,
        "child_seconds": total(member.made, _seconds) if member.made else None,
        "total_tokens": total(distilled, _tokens),
    }


def _tokens(record: dict | None) -> int | None:
    if record is None:
        return None
    return (record.get("data") or {}).get("tokens", 0 if record["run"] == "prune" else None)


def _seconds(record: dict | None) -> float | None:
    return None if record is None else record["metrics"].get("seconds")
