"""The gate before publishing: everything that must hold of a finished folder, with figure, limit and how to mend it.

What is asked: evaluation of exactly these weights by proved scorers on whole sets, samples that are all there and
distinct, answers that can be read, a judge to believe, no NaN, a contamination report, and the paper's or the parent's
figures (`recipes/*/targets.yaml`). An override needs a reason, and stands on the card; it never lifts what makes the
folder unsafe.
"""

from pathlib import Path

from hf_cascade import manifest
from hf_cascade.evaluate.suite import kept
from hf_cascade.publish import gate_evidence, gate_rows, gate_targets
from hf_cascade.publish.targets import Targets
from hf_cascade.publish.verdict import Decision, Line

__all__ = ["Decision", "Line", "decide"]


def decide(folder: str | Path, targets: Targets, override: str | None = None) -> Decision:
    """
    Ask everything of a folder. Reads all weights twice; asks nothing of the network.

    Args:
        folder (`str` or `Path`): a finished folder.
        targets (`Targets`): the limits.
        override (`str`, *optional*): why it is to be published although lines fail.

    Raises:
        ValueError: an override without a reason.
    """
    Decision([], override)  # whether the reason is one, before the weights are read
    folder = Path(folder)
    lines = [gate_evidence.safe(folder)]
    if not folder.is_dir():
        return Decision(lines, override)
    lines += [gate_evidence.complete(folder), gate_evidence.finite(folder)]
    evals, unread = _evals(folder)
    lines.append(unread or gate_evidence.measured(folder, evals, targets))
    if evals is not None:
        lines += _about(folder, evals, targets)
    return Decision(lines, override)


def _evals(folder: Path) -> tuple[dict | None, Line | None]:
    """evals.json, or the line that says why it cannot be read."""
    try:
        return kept.read(folder), None
    except (ValueError, OSError) as error:
        name, limit = "evaluation is of these weights", f"a readable {kept.EVALS}"
        return None, Line(name, False, str(error), limit, "delete it, and evaluate the model again")


def _about(folder: Path, evals: dict, targets: Targets) -> list[Line]:
    """Lines about the evaluation."""
    command = gate_evidence.evaluate(folder, targets)
    try:
        lines = [gate_rows.ran(evals, targets, command)]
        if gate_evidence.run_tasks(evals):  # else there is nothing to ask about
            lines.append(gate_evidence.asked_alike(folder, evals, targets))
            lines += [gate_evidence.proved(folder, evals, targets), *gate_rows.lines(evals, targets, command)]
            lines += gate_targets.lines(evals, _sizes(folder), targets, command)
        report = gate_evidence.contamination(folder, evals, targets)
    except (KeyError, TypeError, AttributeError) as error:  # a file that was edited, or of another version
        figure = f"{kept.EVALS} lacks what is asked of it: {type(error).__name__}: {error}"
        return [Line("evaluation can be read", False, figure, "figures as hf-cascade evaluate writes them", command)]
    return [*lines, *[report] * (report is not None)]


def _sizes(folder: Path) -> dict:
    """The model's sizes by its manifest; none where that cannot be read, which is a line of its own."""
    try:
        return manifest.read(folder).get("output") or {}
    except (OSError, ValueError):
        return {}
