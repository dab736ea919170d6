"""The gate's lines about what a model reaches: the paper's figure or a part of the parent's, row by row."""

from collections.abc import Iterator

from hf_cascade.evaluate.suite import published
from hf_cascade.evaluate.suite import suites as shipped
from hf_cascade.evaluate.suite.figures import RUN
from hf_cascade.publish.targets import PERPLEXITY, Targets
from hf_cascade.publish.verdict import Line

_LOWER = "train longer, or give the recipe another target if this is what you want: {} in its targets file"
_PARENT = "measure the parent too: {}"


def lines(evals: dict, output: dict, targets: Targets, command: str) -> list[Line]:
    """
    A line for each row that has a target, and for the held-out perplexity.

    Args:
        evals (`dict`): of the folder's evals.json.
        output (`dict`): the model's sizes, of its manifest.
        targets (`Targets`): the limits.
        command (`str`): evaluates the folder.
    """
    paper_model = published.row_for(output) if targets.paper else None
    found, rows = [], dict(_rows(evals, targets))
    for row, figures in rows.values():
        if figures["status"] != RUN:
            continue
        paper = published.value(row.published, paper_model)
        known = paper is not None and published.load(row.published[0]).protocol[row.published[1]]["shots"] is not None
        if known:
            found.append(_paper_line(row, figures, paper, paper_model, targets, command))
        if row.label in targets.floors:
            said = f"{targets.floors[row.label]:g}"
            name = f"{row.label}: the recipe's floor"
            found.append(_compared(name, row, figures, targets.floors[row.label], said, targets, "floors"))
        floor = _floor(targets, row.label, also_held=known)
        if floor is not None:
            found.append(_parent_line(row, figures, floor, targets, command))
    found += _perplexity(evals, targets, command)
    found += _rewards(rows, evals, targets)
    found += _without_row(rows, targets)
    if not found and targets.retention is None:
        limit = "the paper's figures for a model of its sizes, or a part of the parent's"
        remedy = f"give `retention: {{{PERPLEXITY}: 0.9, ...}}` in the targets file; `retention: {{}}` asks for none"
        found.append(Line("rows have a target", False, "nothing says what this model must reach", limit, remedy))
    return found


def _rows(evals: dict, targets: Targets) -> Iterator[tuple[str, tuple[shipped.Row, dict]]]:
    """Label to suite row and figures; of a label in several suites the required suite's wins."""
    recorded = evals.get("suites") or {}
    for name in sorted(recorded, key=lambda name: name in targets.suites):
        if name not in shipped.names():
            continue  # of another version; its rows have no scale that is known
        for row in shipped.load(name).rows:
            if row.label in recorded[name]["rows"]:
                yield row.label, (row, recorded[name]["rows"][row.label])


def _floor(targets: Targets, label: str, also_held: bool) -> float | None:
    """The part of the parent's figure that a row must keep; one number for all is for rows the paper does not hold."""
    if isinstance(targets.retention, dict):
        return targets.retention.get(label)
    return None if also_held else targets.retention


def _paper_line(row, figures: dict, paper: float, model: str, targets: Targets, command: str) -> Line:
    name = f"{row.label}: the paper's"
    told = published.load(row.published[0]).protocol[row.published[1]]
    samples = told["metric"].partition("@")[2] if told["metric"].startswith("avg@") else None
    others = []
    if figures.get("num_fewshot") is not None and figures["num_fewshot"] != told["shots"]:
        others.append(f"{figures['num_fewshot']} shots, not {told['shots']}")
    if samples and figures.get("samples_per_row") != int(samples):
        others.append(f"{figures.get('samples_per_row')} samples, not {samples}")
    if others:
        limit = f"the paper's protocol: {told['shots']} shots, {told['metric']}"
        return Line(name, False, ", ".join(others), limit, f"{command}   (without --samples)")
    return _compared(name, row, figures, paper, f"{model}'s {paper:g}", targets, "paper: false")


def _parent_line(row, figures: dict, floor: float, targets: Targets, command: str) -> Line:
    name, parent = f"{row.label}: of the parent's", figures.get("parent")
    if parent is None:
        limit = f"{floor:.0%} of the parent's figure, which must be known"
        return Line(name, False, "no figure of the parent", limit, _PARENT.format(command))
    higher = figures.get("higher_is_better", True)
    target = parent * floor if higher else parent / floor if floor else float("inf")
    said = f"{floor:.0%} of {_number(parent, row)}" if higher else f"{_number(parent, row)} over {floor:.0%}"
    return _compared(name, row, figures, target, said, targets, f"retention: {{{row.label}: ...}}")


def _compared(name: str, row, figures: dict, target: float, said: str, targets: Targets, key: str) -> Line:
    """A row's value against its target, which it may miss by a point or by what sampling alone explains."""
    points = targets.points * row.scale / 100
    slack = max(points, targets.within_problem_errors * (figures.get("within_problem") or 0.0))
    higher, value = figures.get("higher_is_better", True), figures["value"]
    passed = value >= target - slack if higher else value <= target + slack
    limit = f"at {'least' if higher else 'most'} {said} {'−' if higher else '+'} {_number(slack, row)}"
    limit += f" = {_number(target - slack if higher else target + slack, row)}"
    figure = _number(value, row) + f" (allowed {'≥' if higher else '≤'} {limit.rpartition('= ')[2]})" * passed
    return Line(name, passed, figure, limit, "" if passed else _LOWER.format(key))


def _perplexity(evals: dict, targets: Targets, command: str) -> list[Line]:
    """Held-out text: the parent's perplexity over the model's."""
    named = isinstance(targets.retention, dict)
    floor = targets.retention.get(PERPLEXITY) if named else targets.retention
    kept = evals.get("retention")
    if floor is None or (not named and kept is None):
        return []
    name, limit = "held-out perplexity: of the parent's", f"retention at least {floor:.1%}"
    if kept is None:
        command += " --dataset HELD_OUT_TEXT" + " --teacher PARENT" * ("--teacher" not in command)
        return [Line(name, False, "no held-out text was measured beside the parent", limit, command)]
    figure, passed = f"retention {kept:.1f}%", kept / 100 >= floor
    figure += f" (allowed ≥ {100 * floor:.1f}%)" * passed
    remedy = _LOWER.format(f"retention: {{{PERPLEXITY}: ...}}")
    return [Line(name, passed, figure, limit, "" if passed else remedy)]


def _rewards(rows: dict, evals: dict, targets: Targets) -> list[Line]:
    """Floors of rewards of the model's own answers to prompts, and floors that nothing was measured for."""
    rewards, found = (evals.get("preference") or {}).get("rewards") or {}, []
    for label, floor in targets.floors.items():
        name, limit = f"{label}: the recipe's floor", f"at least {floor:g}"
        if label in targets.optional or (label in rows and rows[label][1]["status"] == RUN):
            continue
        if rewards.get(label) is None:
            figure = f"no such row or reward; there are {', '.join([*rows, *rewards]) or 'none'}"
            remedy = "run what has it (--suite, or --prompts with --reward), or mend `floors` in the targets file"
            found.append(Line(name, False, figure, limit, remedy))
        else:
            passed, figure = rewards[label] >= floor, f"{rewards[label]:.3f}"
            figure += f" (allowed ≥ {floor:g})" * passed
            found.append(Line(name, passed, figure, limit, "" if passed else _LOWER.format("floors")))
    return found


def _without_row(rows: dict, targets: Targets) -> list[Line]:
    """Labels that `retention` names, and that have no figure to hold to it."""
    found = []
    for label in targets.retention if isinstance(targets.retention, dict) else ():
        if label == PERPLEXITY or (label in rows and rows[label][1]["status"] == RUN) or label in targets.optional:
            continue
        figure = "not run" if label in rows else f"no such row; there are {', '.join(rows) or 'none'}"
        remedy = "run the suite that has it, or mend `retention` in the targets file"
        found.append(
            Line(f"{label}: of the parent's", False, figure, f"at least {targets.retention[label]:.0%}", remedy)
        )
    return found


def _number(value: float, row) -> str:
    """A row's figure: one digit of a percentage, three of another unit."""
    return f"{value:.{1 if row.scale == 100 else 3}f}"
