"""`.eval_results/*.yaml`: figures of benchmarks that have a leaderboard on the Hub, in the Hub's own format."""

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from hf_cascade.evaluate.suite.figures import Z
from hf_cascade.evaluate.suite.report import decoding, metric_name
from hf_cascade.publish import results
from hf_cascade.publish.facts import Facts

FOLDER = ".eval_results"
# Task of ours to (data set, its task id, file): of the data sets that the Hub lists as benchmarks those that a suite
# measures, with the ids that results on the Hub use. No other of ours is among the listed ones that we know of.
LISTED = {"cascade_gpqa_diamond_cot": ("Idavidrein/gpqa", "diamond", "gpqa.yaml")}


def files(facts: Facts) -> dict[str, str]:
    """
    The files of a model: path in the repository to text.

    A part of a benchmark, a figure of other weights and a task that is not listed make none; of two rows of one
    benchmark the first counts.
    """
    found: dict[str, str] = {}
    if facts.stale:
        return found
    for row in results.ran(facts):
        tasks = row["tasks"]
        if len(tasks) != 1 or tasks[0] not in LISTED or row.get("short"):
            continue
        dataset, task_id, file = LISTED[tasks[0]]
        revisions = [entry.get("revision") for entry in (row.get("data") or {}).values()]
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=task_id,
            value=round(row["value"], 2),  # percent, as results on the Hub are
            dataset_revision=revisions[0] if len(revisions) == 1 else None,
            source_url=f"https://huggingface.co/{facts.repo_id}" if facts.repo_id else None,
            source_name="Model Card" if facts.repo_id else None,
            notes=notes(row),
        )
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        found.setdefault(f"{FOLDER}/{file}", text)
    return found


def notes(row: dict) -> str:
    """How the figure was measured: shots, samples, decoding."""
    told = [metric_name(row), decoding(row)]
    told += [f"{row['num_fewshot']} shots"] if row.get("num_fewshot") is not None else []
    told += [f"± {Z * row['stderr']:.2f} (95%)"] if row.get("stderr") else []
    return "; ".join(told)
