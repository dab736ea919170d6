"""From tasks' figures to a suite's rows, and each row beside the paper's figure and the parent's."""

import math

from hf_cascade.evaluate.suite import published
from hf_cascade.evaluate.suite.completeness import joined, shortfalls
from hf_cascade.evaluate.suite.suites import Row, Suite

Z = 1.96  # standard errors on either side of a value: the 95% interval of a normal distribution
RUN, NOT_RUN = "run", "not run"
_MEANS = ("distinct", "unparsed", "unfinished", "truncated", "looped", "output_tokens", "thinking_tokens")
_WINDOW = {"cut_prompts": "prompts", "clipped": "responses that were asked for"}
_JUDGED = ("judge_failures", "swap_agreement")  # of judged tasks


def rows_of(suite: Suite, tasks: dict[str, dict]) -> dict[str, dict]:
    """
    A model's rows of a suite.

    Args:
        suite (`Suite`): the suite.
        tasks (`dict[str, dict]`): the runner's figures of its tasks.

    Returns:
        `dict`: label to figures, in the row's unit: `status`, `reason`, `metric`, `value`, `stderr`, `low` and `high`
        (95% interval), `within_problem`, `chance`, `higher_is_better`, `num_fewshot`, `rows`, `rows_full`, `samples`,
        `samples_per_row`, shares and tokens of responses, `pass_at`, `maj_at`, `seconds`, `protocol`, `judge`, `data`;
        and `short`, why it is not the whole benchmark or protocol, and so not comparable. Of a row that was not run,
        the first two.
    """
    return {row.label: _row(row, [tasks.get(task) for task in row.tasks]) for row in suite.rows}


def set_beside(rows: dict[str, dict], suite: Suite, paper_row: str | None, parent: dict[str, dict] | None) -> None:
    """
    Add to each row of a model what it is compared with: `paper`, `difference`, `inside`; `parent`, `retention`.

    Args:
        rows (`dict[str, dict]`): of [`rows_of`]; changed.
        suite (`Suite`): the suite.
        paper_row (`str`, *optional*): the paper's model of the same size.
        parent (`dict[str, dict]`, *optional*): rows of the parent, from the same suite.
    """
    for row in suite.rows:
        figures = rows[row.label]
        paper, other = published.value(row.published, paper_row), (parent or {}).get(row.label)
        figures |= {"paper_model": paper_row if paper is not None else None, "paper": paper}
        figures |= {"parent": other["value"] if other and other["status"] == RUN else None}
        figures |= {"difference": None, "inside": None, "retention": None}
        if figures["status"] != RUN:
            continue
        if paper is not None:
            figures["difference"] = figures["value"] - paper
            figures["inside"] = _inside(figures, paper)
        if figures["parent"] is not None:
            over, under = figures["value"], figures["parent"]
            over, under = (over, under) if figures["higher_is_better"] else (under, over)
            figures["retention"] = 100 * over / under if under > 0 else None


def interval(value: float, stderr: float | None, rows: int, share: bool = False) -> tuple[float | None, float | None]:
    """
    The 95% interval of a mean: 1.96 standard errors on either side; of a share, no further than 0 and 1.

    Where all rows of a share agree (0 or 1) the standard error is 0, which says nothing: there it is Wilson's.
    """
    if stderr is None or math.isnan(stderr):
        return None, None
    if stderr == 0 and value in (0.0, 1.0):
        reach = Z * Z / (rows + Z * Z)
        return (0.0, reach) if value == 0 else (1 - reach, 1.0)
    low, high = value - Z * stderr, value + Z * stderr
    return (max(low, 0.0), min(high, 1.0)) if share else (low, high)


def is_even(figures: dict) -> bool:
    """Whether a row's interval reaches as far on one side as on the other, so that one number tells it."""
    return math.isclose(figures["high"] - figures["value"], figures["value"] - figures["low"], abs_tol=1e-9)


def _row(row: Row, tasks: list[dict | None]) -> dict:
    """One row: the mean over its tasks."""
    metrics = [row.metric or (task or {}).get("metric") for task in tasks]
    reasons = [_reason(task, metric) for task, metric in zip(tasks, metrics, strict=True)]
    if any(reasons):
        return {"status": NOT_RUN, "reason": _told(row.tasks, reasons)}
    scores = [_score(task, metric) for task, metric in zip(tasks, metrics, strict=True)]
    value, stderr = _mean([score["value"] for score in scores]), _error(tasks, [score["stderr"] for score in scores])
    rows = sum(task["rows"] for task in tasks)
    main = all(metric == task["metric"] for task, metric in zip(tasks, metrics, strict=True))
    low, high = interval(value, stderr, rows, main and all(task.get("share") for task in tasks))
    first, scale = tasks[0], row.scale
    figures = {"status": RUN, "reason": None, "metric": metrics[0], "value": value * scale}
    figures |= {name: _times(number, scale) for name, number in (("stderr", stderr), ("low", low), ("high", high))}
    figures |= {
        "within_problem": _times(_mean([task.get("within_problem") for task in tasks]), scale),
        "chance": _times(_mean([task.get("chance") for task in tasks]) if main else None, scale),
        "higher_is_better": first.get("higher_is_better", True),
        "num_fewshot": first.get("num_fewshot"),
        "rows": rows,
        "rows_full": _sum([task.get("rows_full") for task in tasks]),
        "samples_per_row": first.get("samples_per_row"),
        "samples": _sum([task.get("samples") for task in tasks]),
        **{name: _mean([task.get(name) for task in tasks]) for name in _MEANS},
        "seconds": _sum([task.get("seconds") for task in tasks]),
        **{name: _mean([_value(task, name) for task in tasks]) for name in _JUDGED},
        "protocol": first.get("protocol") or {},
        "judge": first.get("judge"),
        "data": {key: entry for task in tasks for key, entry in (task.get("data") or {}).items()},
    }
    figures["short"] = list(dict.fromkeys(line for task in tasks for line in shortfalls(task.get("data") or {})))
    if figures["rows_full"] is not None and rows < figures["rows_full"]:
        figures["short"].append(f"figures of {rows:,} of {figures['rows_full']:,} rows")
    for name, what in _WINDOW.items():
        if most := max(task.get(name) or 0 for task in tasks):
            figures["short"].append(f"the model's window is too short for {100 * most:.3g}% of the {what}")
    figures["short"] += dict.fromkeys(filter(None, [*map(_cut_off, tasks), _missing(tasks)]))
    for name in ("pass_at", "maj_at"):
        figures[name] = {k: at * scale for k, at in (first.get(name) or {}).items()} if len(tasks) == 1 else {}
    return figures


def _missing(tasks: list[dict]) -> str | None:
    """Whether answers did not come, as of a server in trouble."""
    lost, asked = (sum(task.get(name) or 0 for task in tasks) for name in ("missing", "asked"))
    why = next((f" (the last error: {task['failure']})" for task in tasks if task.get("failure")), "")
    return f"{lost:,} of {asked:,} answers did not come{why}; the same command asks for them again" if lost else None


def _cut_off(task: dict) -> str | None:
    """Whether responses are cut off at fewer tokens than the task allows."""
    told = task.get("protocol") or {}
    used, own = told.get("max_gen_tokens"), told.get("task_max_gen_tokens")
    if not task.get("truncated") or not used or not own or used >= own:
        return None
    return (
        f"{100 * task['truncated']:.3g}% of the responses cut off at {used:,} tokens, of which the task allows {own:,}"
    )


def _error(tasks: list[dict], errors: list[float | None]) -> float | None:
    """
    Standard error of a mean over tasks: of different datasets, whose errors are independent, the root of the sum of
    squares over their number; of one dataset, such as translations of the same questions, at most the mean.
    """
    if any(error is None for error in errors):
        return None
    read = [{"/".join(key.split("/")[:2]) for key in task.get("data") or ()} for task in tasks]
    apart = all(read) and sum(map(len, read)) == len(set().union(*read))
    return math.sqrt(sum(error**2 for error in errors)) / len(errors) if apart else _mean(errors)


def _told(names: tuple[str, ...], reasons: list[str | None]) -> str:
    """Why a row has no value: each reason once, with the tasks' names where it is not that of all."""
    lacking: dict[str, list[str]] = {}
    for name, reason in zip(names, reasons, strict=True):
        if reason is not None:
            lacking.setdefault(reason, []).append(name)
    parts = [why if len(who) == len(names) else f"{', '.join(who)}: {why}" for why, who in lacking.items()]
    return joined(parts, "; ", "reasons")


def _reason(task: dict | None, metric: str | None) -> str | None:
    """Why a task has no value; `None` where it has one."""
    if task is None:
        return "the run ended before it"
    if task["status"] != RUN:
        return task.get("reason") or "no reason given"
    if _score(task, metric) is None:
        return f"it has no metric {metric}; it has {', '.join(task.get('all') or {}) or task['metric']}"
    value = _score(task, metric)["value"]
    return "no verdict about any row" if value is None or math.isnan(value) else None


def _score(task: dict, metric: str | None) -> dict | None:
    """Value and error of a metric. Judged tasks give the error as a metric of its own: no formula knows it."""
    every = task.get("all") or {}
    found = {"value": task["value"], "stderr": task.get("stderr")} if metric == task["metric"] else every.get(metric)
    if found and found["stderr"] is None and f"{metric}_error" in every:
        return {**found, "stderr": every[f"{metric}_error"]["value"]}
    return found


def _value(task: dict, metric: str) -> float | None:
    return ((task.get("all") or {}).get(metric) or {}).get("value")


def _inside(figures: dict, paper: float) -> bool | None:
    """
    Whether the paper's figure is in the model's 95% interval.

    On the same fixed problems only sampling differs: where a within-problem error is known and all rows were run, it
    makes the interval.
    """
    if figures["within_problem"] is not None and figures["rows"] == figures["rows_full"]:
        return abs(figures["value"] - paper) <= Z * figures["within_problem"]
    return None if figures["low"] is None else figures["low"] <= paper <= figures["high"]


def _mean(numbers: list[float | None]) -> float | None:
    """`None` where one is missing or not a number."""
    return None if any(number is None or math.isnan(number) for number in numbers) else sum(numbers) / len(numbers)


def _sum(numbers: list[float | None]) -> float | None:
    return None if any(number is None for number in numbers) else sum(numbers)


def _times(number: float | None, scale: float) -> float | None:
    return None if number is None else number * scale
