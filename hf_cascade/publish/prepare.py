"""What a release of one model consists of, made on this machine: the gate's decision, the card, and every file."""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hf_cascade import __version__
from hf_cascade.publish import card, eval_results, facts, gate, pictures, targets
from hf_cascade.publish.family_file import Planned
from hf_cascade.publish.folder import Unsafe, Upload, left_out, uploads
from hf_cascade.pushing import CARD, RELEASE


@dataclass(frozen=True)
class Prepared:
    """
    One model, ready to be sent or refused.

    Attributes:
        planned (`Planned`): what was asked for.
        limits (`Targets`): the gate's.
        decision (`Decision`): the gate's.
        kind (`str`): base, instruct or reasoning; empty where there is no card.
        card (`str`, *optional*): README.md; `None` where it could not be made.
        files (`list[Upload]`): everything to send; empty for a folder that is not safe.
        left_out (`list[str]`): names in the folder that stay behind, or are replaced.
        problems (`list[str]`): why there is no card, or what the Hub would not understand in it.
    """

    planned: Planned
    limits: targets.Targets
    decision: gate.Decision
    kind: str
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
        replaced = [name for name in self.left_out if name == CARD]
        others = [name for name in self.left_out if name != CARD]
        lines += [f"left out: {', '.join(others)}"] * bool(others)
        return "\n".join(lines + [f"the folder's own {CARD} is replaced by the card"] * bool(replaced))


def prepare(planned: Planned) -> Prepared:
    """
    Decide, and make everything that would be sent; no connection is made.

    Raises:
        FileNotFoundError: no targets file of that name.
        ValueError: a targets file that cannot be read.
    """
    limits = targets.load(planned.targets) if planned.targets else targets.Targets()
    decision = gate.decide(planned.model, limits, planned.override)
    kind, text, files, problems = "", None, [], []
    try:
        kind, text, files, problems = everything(planned, decision)
    except (OSError, ValueError) as error:  # a folder that the gate refuses can be anything
        problems = [str(error)]
    except (KeyError, TypeError, AttributeError) as error:  # a file that was edited, or of another version
        problems = [f"a record in {planned.model} lacks what a card asks of it: {type(error).__name__}: {error}"]
    return Prepared(planned, limits, decision, kind, text, files, left_out(planned.model), problems)


def everything(planned: Planned, decision: gate.Decision | None) -> tuple[str, str, list[Upload], list[str]]:
    """
    What a repository is to hold.

    Args:
        planned (`Planned`): the model, and what its card is told.
        decision (`Decision`, *optional*): unset, the card says that the gate was not asked.

    Returns:
        `tuple`: the kind, the card, all files (none for a folder that is not safe), and what is wrong with the card.

    Raises:
        ValueError, OSError: a record in the folder is missing or cannot be read.
    """
    told = facts.read(
        planned.model,
        planned.parent,
        kind=planned.kind,
        repo_id=planned.repo_id,
        base_model=planned.base_model,
        license=planned.license,
        license_name=planned.license_name,
        license_link=planned.license_link,
        language=list(planned.language),
    )
    with tempfile.TemporaryDirectory() as scratch:
        drawn = pictures.draw(told, Path(scratch))
        links = {name: path.relative_to(scratch).as_posix() for name, path in drawn.items()}
        images = {links[name]: path.read_bytes() for name, path in drawn.items()}
    text = card.render(told, decision, links)
    made = {CARD: text, **eval_results.files(told)}
    made |= {RELEASE: _record(planned, decision)} if decision is not None else {}
    made = {name: content.encode() for name, content in made.items()} | images
    try:
        files = uploads(planned.model)
    except Unsafe:  # which the decision has told
        files = []
    taken = {file.path_in_repo for file in files}
    files += [
        Upload(name, None, content, hashlib.sha256(content).hexdigest(), len(content))
        for name, content in made.items()
        if files and name not in taken
    ]
    return told.kind, text, files, card.validate(text, {*made, *taken})


def _record(planned: Planned, decision: gate.Decision) -> str:
    """`publish.json`: what the gate found, and under which limits it was let pass."""
    record = {"schema": 1, "hf_cascade": __version__, "repo_id": planned.repo_id, "gate": decision.as_dict()}
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
