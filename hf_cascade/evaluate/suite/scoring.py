"""From answers to a task's figures: lm-eval's filters, scorers, aggregations and errors, and what the samples tell."""

import hashlib
import json
from collections.abc import Callable, Sequence
from statistics import fmean

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, stderr_for_metric
from lm_eval.api.task import Task
from lm_eval.utils import handle_non_serializable

from hf_cascade.evaluate import metrics
from hf_cascade.evaluate.benchmarks.sampled import watched

BOOTSTRAP = 1000  # resamples where a standard error has no formula; lm-eval's 100,000 take minutes
PLAIN = "none"  # lm-eval's name of a filter that has none


class NoVerdicts(ValueError):
    """Not one row of a task can be scored: it is "not run"."""


def score(task: Task, samples: list[Instance]) -> list[dict]:
    """
    Score the rows of one process.

    Args:
        task (`Task`): its instances have their answers.
        samples (`list[Instance]`): of `samples.collect`.

    Returns:
        `list[dict]`: of each row `doc_id`, `doc_sha256`, `metrics` (by name), `verdicts` ([correct, parsed] of each
        sample, where the task's scorer gives them), `judged` (records of a judge), `samples` (key, and what is known
        about each answer), `distinct`.
        A row of which an answer is missing altogether has no metrics.
    """
    rows: dict[int, list[Instance]] = {}
    for instance in task.instances:
        rows.setdefault(instance.doc_id, []).append(instance)
    whole = {row for row, instances in rows.items() if all(instance.resps for instance in instances)}
    task._instances = [instance for instance in task.instances if instance.doc_id in whole]
    if task._instances:
        task.apply_filters()
    answers: dict[int, list[Instance]] = {}
    for sample in samples:
        answers.setdefault(sample.doc_id, []).append(sample)
    scored = []
    for row, instances in rows.items():
        instances = sorted(instances, key=lambda one: one.idx) if row in whole else []
        found, verdicts, judged = _metrics(task, instances)
        known = {"metrics": found, "verdicts": verdicts, "judged": judged}
        scored.append({"doc_id": row, **known, **_described(answers[row])})
    return scored


def aggregate(task: Task, rows: list[dict]) -> dict:
    """
    Figures of a task over all its rows: lm-eval's, and what the samples tell.

    Args:
        task (`Task`): the task.
        rows (`list[dict]`): of [`score`], of all processes.

    Returns:
        `dict`: `metric`, `value`, `stderr`, `higher_is_better`, `share` (no row is below 0 or above 1), `all`,
        `rows`, `within_problem`, `samples`, `distinct`, `unparsed`, `unfinished`, `truncated`, `looped`, `cut_prompts`,
        `clipped`, `output_tokens`, `thinking_tokens`, `pass_at`, `maj_at`, and `missing` of `asked` answers.

    Raises:
        NoVerdicts: no row has a figure.
    """
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    wanted = [entry["metric"] for entry in task.config.metric_list or ()]
    first = next((name for want in wanted for name in names if name.split(" (")[0] == want), None)
    if first is None:
        raise NoVerdicts("not one row has a verdict: each lacks an answer, or all judgements of it")
    figures = {name: _figure(task, name, [row["metrics"][name] for row in rows if name in row["metrics"]])
               for name in names}  # fmt: skip
    if figures[first]["stderr"] is None and f"{first}_error" in figures:  # a scorer that has its own
        figures[first]["stderr"] = figures[f"{first}_error"]["value"]
    samples = [sample for row in rows for sample in row["samples"]]
    generated = task.OUTPUT_TYPE == "generate_until"
    several = max((len(row["samples"]) for row in rows), default=0) > 1 and generated
    received = sum(sample["received"] for sample in samples)

    def value(name: str) -> float | None:
        return figures[name]["value"] if name in figures else None

    return {
        "metric": first,
        **figures[first],
        "higher_is_better": task.higher_is_better()[first.split(" (")[0]],
        "share": task.higher_is_better()[first.split(" (")[0]]
        and all(0 <= row["metrics"].get(first, 0) <= 1 for row in rows),
        "all": figures,
        "rows": sum(first in row["metrics"] for row in rows),
        "asked": len(samples),
        "missing": len(samples) - received,
        "within_problem": value("within_problem"),
        "samples": received if generated else sum(bool(row["metrics"]) for row in rows),
        "distinct": _mean([row["distinct"] for row in rows if row["distinct"] is not None]) if generated else None,
        "unparsed": value("unparsed"),
        "unfinished": value("unfinished"),
        "truncated": _mean([sample["finish"] == "length" for sample in samples if "finish" in sample]),
        "looped": _mean([sample["looped"] for sample in samples if "looped" in sample]),
        "cut_prompts": _mean([sample["cut_prompt"] for sample in samples if "cut_prompt" in sample]),
        "clipped": _mean([sample["clipped"] for sample in samples if "clipped" in sample]),
        "output_tokens": _mean([sample["tokens"] for sample in samples if "tokens" in sample]),
        "thinking_tokens": _mean([sample["thinking_tokens"] for sample in samples if "thinking_tokens" in sample]),
        "pass_at": _at_k(rows, _pass_at) if several else {},
        "maj_at": _at_k(rows, _maj_at) if several else {},
    }


def label(metric: str, filtered: str) -> str:
    """A metric's name, with its filter where it has one."""
    return metric if filtered == PLAIN else f"{metric} ({filtered})"


def _metrics(task: Task, instances: list[Instance]) -> tuple[dict, list, list]:
    """A row's figures by name, the verdicts about its samples, and what a judge said of them."""
    found, verdicts, judged = {}, [], []
    for filtered in instances[0].filtered_resps if instances else ():
        given = instances[0].filtered_resps[filtered]
        judged += [record for record in given if isinstance(record, dict)] if isinstance(given, list) else []
        with watched() as seen:
            row = task.process_results(instances[0].doc, [one.filtered_resps[filtered] for one in instances])
        verdicts = seen
        found |= {label(name, filtered): value for name, value in row.items() if value is not None}
    return found, [list(verdict) for verdict in verdicts], judged


def _described(samples: list[Instance]) -> dict:
    """What is known about a row's answers."""
    texts = [sample.resps[0] for sample in samples if sample.resps and isinstance(sample.resps[0], str)]
    document = json.dumps(samples[0].doc, sort_keys=True, default=handle_non_serializable, ensure_ascii=False)
    return {
        "doc_sha256": hashlib.sha256(document.encode(errors="surrogatepass")).hexdigest(),
        "samples": [{"key": sample.key, "received": bool(sample.resps), **sample.known} for sample in samples],
        "distinct": len(set(texts)) / len(texts) if texts else None,
    }


def _figure(task: Task, name: str, values: list) -> dict:
    """Value and standard error, as lm-eval has them."""
    metric = name.split(" (")[0]
    aggregation = task.aggregation().get(metric, mean)
    error = stderr_for_metric(aggregation, min(BOOTSTRAP, 100) if metric in ("bleu", "chrf", "ter") else BOOTSTRAP)
    stderr = error(values) if error is not None and len(values) > 1 else None
    return {"value": aggregation(values), "stderr": None if stderr is None else float(stderr)}


def _at_k(rows: list[dict], of_row: Callable[[list, int], float | None]) -> dict[str, float]:
    """A figure for 1, 2, 4, ... and all samples: its mean over the rows that have as many verdicts."""
    verdicts = [[verdict for verdict in row["verdicts"] if verdict[0] is not None] for row in rows]
    most = max(map(len, verdicts), default=0)
    counts = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most} - {0})
    found = {}
    for count in counts:
        values = [of_row(row, count) for row in verdicts if len(row) >= count]
        found[str(count)] = fmean(values)
    return found


def _pass_at(verdicts: list, count: int) -> float:
    right = sum(correct > metrics.RIGHT for correct, _ in verdicts)
    return metrics.pass_at_k(len(verdicts), right, count)


def _maj_at(verdicts: list, count: int) -> float:
    return metrics.maj_at_k([parsed for _, parsed in verdicts], [correct for correct, _ in verdicts], count)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
