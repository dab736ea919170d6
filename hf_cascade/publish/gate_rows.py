"""The gate's lines about benchmarks: suites run whole, answers all there and readable, and a judge to believe."""

import math

from hf_cascade.evaluate.suite import suites as shipped
from hf_cascade.evaluate.suite.figures import RUN
from hf_cascade.publish.gate_evidence import listed, run_tasks
from hf_cascade.publish.targets import Targets
from hf_cascade.publish.verdict import Line

_PARTIAL = "figures of "  # how figures.py begins the line about rows without a verdict
_AGAIN = "the same command again asks only what is missing: {}"
_MODEL = "look at the responses (REPORT/suites/*/*/samples); {}"


def lines(evals: dict, targets: Targets, command: str) -> list[Line]:
    """
    All of them but [`ran`]; those about samples and judges only where some task has any.

    Args:
        evals (`dict`): of the folder's evals.json.
        targets (`Targets`): the limits.
        command (`str`): evaluates the folder.
    """
    tasks = run_tasks(evals)
    generated = [(task, one) for task, one in tasks if (one.get("protocol") or {}).get("temperature") is not None]
    sampled = [(task, one) for task, one in generated if (one.get("samples_per_row") or 1) > 1]
    judged = [(task, one) for task, one in tasks if one.get("judge")]
    found = [whole(evals, targets, command)]
    if generated:
        found += [received(generated, command), parsed(generated, targets), counted(generated, targets, command)]
    if sampled:
        found.append(distinct(sampled, targets))
    if judged:
        found += [judge_answers(judged, targets, command), judge_agrees(judged, targets)]
    return found


def ran(evals: dict, targets: Targets, command: str) -> Line:
    """Every row of the required suites was run; rows of others that were not are told."""
    recorded = evals.get("suites") or {}
    missing, told, count = [], [], 0
    for name in targets.suites:
        rows = recorded.get(name, {}).get("rows", {})
        for row in shipped.load(name).rows:
            figures = rows.get(row.label, {"status": "not run", "reason": f"suite {name} was not run"})
            if figures["status"] != RUN:
                place = told if row.label in targets.optional else missing
                place.append(f"{row.label} ({figures.get('reason')})")
    for name, suite in recorded.items():
        rows = suite["rows"]
        count += sum(one["status"] == RUN for one in rows.values())
        if name not in targets.suites:
            told += [f"{label} ({one.get('reason')})" for label, one in rows.items() if one["status"] != RUN]
    limit = f"every row of {', '.join(targets.suites)}" if targets.suites else "one row or more"
    limit += f", but for {', '.join(targets.optional)}" * bool(targets.optional)
    note = f"; not run: {listed(list(dict.fromkeys(told)), ', ', 'rows')}" * bool(told)
    if missing or not count:
        what = f"{len(missing)} not run: {listed(missing, ', ', 'rows')}" if missing else "no row was run"
        return Line("suites were run", False, what + note, limit, command)
    return Line("suites were run", True, f"{count} rows{note}", limit)


def whole(evals: dict, targets: Targets, command: str) -> Line:
    """The required suites' rows are of the whole benchmark; of other suites the card says it."""
    short, others = [], []
    for name, suite in (evals.get("suites") or {}).items():
        for label, row in suite["rows"].items():
            if row["status"] == RUN and (parts := _short(row, targets)):
                required = not targets.suites or name in targets.suites
                (short if required else others).append(f"{label}: {parts[0]}")
    note = f"; not whole in other suites: {listed(others, ', ', 'rows')}" * bool(others)
    figure = listed(short, "; ", "rows") if short else "all rows of each set"
    remedy = f"{command}   (without --limit; with --data FOLDER or the Hub for all rows)" if short else ""
    return Line("sets are whole", not short, figure + note, "as many rows as the benchmark has", remedy)


def received(tasks: list[tuple[str, dict]], command: str) -> Line:
    """As many responses came as were asked for."""
    short, total = [], 0
    for task, one in tasks:
        asked = (one["samples_per_row"] or 1) * one["rows_full"]
        total += one["samples"]
        if one["samples"] != asked:
            short.append(f"{task}: {one['samples']:,} of {asked:,}")
    figure = listed(short, ", ", "tasks") if short else f"{total:,} responses"
    return Line("samples are all there", not short, figure, "samples received = asked",
                _AGAIN.format(command) if short else "")  # fmt: skip


def distinct(tasks: list[tuple[str, dict]], targets: Targets) -> Line:
    """A problem's samples are different: a server that ignores the seed gives one answer k times."""
    remedy = "use a server that honours `seed`, delete REPORT/suites, and evaluate again with a temperature above 0"
    return _at_least("samples are distinct", tasks, "distinct", targets.distinct, remedy)


def parsed(tasks: list[tuple[str, dict]], targets: Targets) -> Line:
    """Answers can be read out of the responses."""
    remedy = _MODEL.format("mend the chat template, --max_gen_tokens, or the model")
    known = [(task, one) for task, one in tasks if one.get("unparsed") is not None]
    return _at_most("answers are read", known, "unparsed", targets.unparsed, remedy)


def counted(tasks: list[tuple[str, dict]], targets: Targets, command: str) -> Line:
    """Unfinished thinking and responses cut off are counted, and limited where targets say so."""
    limits = {"unfinished": targets.unfinished, "truncated": targets.truncated}
    parts, wrong = [], []
    for name, limit in limits.items():
        missing = [task for task, one in tasks if one.get(name) is None or math.isnan(one[name])]
        share, task = max(((one.get(name) or 0.0, task) for task, one in tasks), key=lambda pair: pair[0])
        parts.append(f"{name} {share:.1%}" + f" ({task})" * (share > 0))
        if missing:
            wrong.append(f"{name} not counted in {listed(missing, ', ', 'tasks')}")
        elif limit is not None and share > limit:
            wrong.append(f"{name} {share:.1%} in {task}")
    limit = ", ".join(f"{name} {'counted' if most is None else f'at most {most:.1%}'}" for name, most in limits.items())
    remedy = _MODEL.format(f"give more --max_gen_tokens: {command}")
    figure = "; ".join(wrong) if wrong else "at most " + ", ".join(parts)
    return Line("unfinished and cut off", not wrong, figure, limit, remedy if wrong else "")


def judge_answers(tasks: list[tuple[str, dict]], targets: Targets, command: str) -> Line:
    """The judge answered."""
    figures = [(task, {"judge_failures": _metric(one, "judge_failures")}) for task, one in tasks]
    return _at_most("judge answers", figures, "judge_failures", targets.judge_failures, _AGAIN.format(command))


def judge_agrees(tasks: list[tuple[str, dict]], targets: Targets) -> Line:
    """The judge of pairs does not take the other side when they are swapped."""
    pairs = [
        (task, {"swap_agreement": _metric(one, "swap_agreement")})
        for task, one in tasks
        if one["metric"].startswith("win_rate") or _metric(one, "swap_agreement") is not None
    ]
    remedy = "take a stronger judge (--judge_model), and evaluate again"
    return _at_least("judge agrees with itself", pairs, "swap_agreement", targets.swap_agreement, remedy)


def _at_most(name: str, tasks: list[tuple[str, dict]], key: str, most: float, remedy: str) -> Line:
    wrong = [f"{task}: {_share(one[key])}" for task, one in tasks if one[key] is None or not one[key] <= most]
    top = max((one[key] for _, one in tasks if one[key] is not None), default=0.0)
    figure = listed(wrong, ", ", "tasks") if wrong else f"{key} at most {top:.1%} in {len(tasks)} tasks"
    return Line(name, not wrong, figure, f"{key} at most {most:.1%} in each task", remedy if wrong else "")


def _at_least(name: str, tasks: list[tuple[str, dict]], key: str, least: float, remedy: str) -> Line:
    wrong = [f"{task}: {_share(one.get(key))}" for task, one in tasks if one.get(key) is None or not one[key] >= least]
    low = min((one[key] for _, one in tasks if one.get(key) is not None), default=1.0)
    figure = listed(wrong, ", ", "tasks") if wrong else f"{key} at least {low:.1%} in {len(tasks)} tasks"
    return Line(name, not wrong, figure, f"{key} at least {least:.1%} in each task", remedy if wrong else "")


def _share(value: float | None) -> str:
    return "not counted" if value is None else f"{value:.1%}"


def _metric(figures: dict, name: str) -> float | None:
    return ((figures.get("all") or {}).get(name) or {}).get("value")


def _short(row: dict, targets: Targets) -> list[str]:
    """Why a row is not the whole benchmark. Rows that the judge failed on are the judge's line, up to its limit."""
    parts = list(row.get("short") or [])
    rows, full = row["rows"], row.get("rows_full")
    if full is None:
        parts.append("it is not known how many rows there are")
    elif rows < full and not any(part.startswith(_PARTIAL) for part in parts):
        parts.append(f"{_PARTIAL}{rows:,} of {full:,} rows")
    # both orders of a pair must be judged, so up to twice as many rows may lack a verdict
    if row.get("judge") and full and (full - rows) / full <= 2 * targets.judge_failures:
        parts = [part for part in parts if not part.startswith(_PARTIAL)]
    return parts
