"""What a release of one model consists of, made on this machine: the gate's decision, the card, and every file."""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hf_cascade import __version__
from hf_cascade.publish import card, eval_results, facts, gate, pictures, targets
from hf_cascade.publish.family_file import Planned
from hf_cascade.publish.folder import Upload, left_out, uploads

CARD, DECISION, IMAGES = "README.md", "publish.json", "images"


@dataclass(frozen=True)
class Prepared:
    """
    One model, ready to be sent or refused.

    Attributes:
        planned (`Planned`): what was asked for.
        limits (`Targets`): the gate's.
        decision (`Decision`): the gate's.
        card (`str`, *optional*): README.md; `None` where it could not be made.
        files (`list[Upload]`): everything to send; empty where the gate is closed.
        left_out (`list[str]`): names in the folder that stay behind.
        problems (`list[str]`): why there is no card, or what the Hub would not understand in it.
    """

    planned: Planned
    limits: targets.Targets
    decision: gate.Decision
    card: str | None
    files: list[Upload]
    left_out: list[str]
    problems: list[str]

    @property
    def ready(self) -> bool:
        """Whether it may be sent."""
        return self.decision.passed and not self.problems

    def decide(self) -> gate.Decision:
        """The gate, asked once more: the folder may have changed since."""
        return gate.decide(self.planned.model, self.limits, self.planned.override)

    def text(self) -> str:
        """For a terminal: the decision, and what keeps the card from being right."""
        lines = [f"{self.planned.model} to {self.planned.repo_id}", "", self.decision.text()]
        lines += [f"FAILED  card: {problem}" for problem in self.problems]
        return "\n".join(lines)

    def listing(self) -> str:
        """For a terminal: every file with its size and hash, and what stays behind."""
        width = max((len(file.path_in_repo) for file in self.files), default=0)
        lines = [f"  {file.path_in_repo:{width}}  {file.size:>15,}  {file.sha256[:12]}" for file in self.files]
        total = sum(file.size for file in self.files)
        lines = [f"{len(self.files)} files, {total:,} bytes:", *lines]
        return "\n".join(lines + [f"left out: {', '.join(self.left_out)}"] * bool(self.left_out))


def prepare(planned: Planned) -> Prepared:
    """
    Decide, and make everything that would be sent; no connection is made.

    Raises:
        FileNotFoundError: no targets file of that name.
        ValueError: a targets file that cannot be read.
    """
    limits = targets.load(planned.targets) if planned.targets else targets.Targets()
    decision = gate.decide(planned.model, limits, planned.override)
    text, files, problems = None, [], []
    try:
        text, files, problems = _files(planned, decision)
    except (OSError, ValueError) as error:  # a folder that the gate refuses can be anything
        problems = [str(error)]
    return Prepared(planned, limits, decision, text, files, left_out(planned.model), problems)


def _files(planned: Planned, decision: gate.Decision) -> tuple[str, list[Upload], list[str]]:
    """The card, all files, and what is wrong with the card."""
    told = facts.read(
        planned.model,
        planned.parent,
        kind=planned.kind,
        repo_id=planned.repo_id,
        base_model=planned.base_model,
        license=planned.license,
        language=list(planned.language),
    )
    with tempfile.TemporaryDirectory() as scratch:
        drawn = pictures.draw(told, Path(scratch))
        images = {f"{IMAGES}/{path.name}": path.read_bytes() for path in drawn.values()}
        links = {name: f"{IMAGES}/{path.name}" for name, path in drawn.items()}
    text = card.render(told, decision, links)
    made = {CARD: text, DECISION: _record(planned, decision), **eval_results.files(told)}
    made = {name: content.encode() for name, content in made.items()} | images
    files = uploads(planned.model) if decision.passed else []
    taken = {file.path_in_repo for file in files}
    files += [
        Upload(name, None, content, hashlib.sha256(content).hexdigest(), len(content))
        for name, content in made.items()
        if files and name not in taken
    ]
    return text, files, card.validate(text)


def _record(planned: Planned, decision: gate.Decision) -> str:
    """`publish.json`: what the gate found, and under which limits it was let pass."""
    record = {"schema": 1, "hf_cascade": __version__, "repo_id": planned.repo_id, "gate": decision.as_dict()}
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
