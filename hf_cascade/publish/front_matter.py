"""The YAML in front of a card, for the Hub's filters and its own table of results: `ModelCardData`, never by hand."""

import math

from huggingface_hub import EvalResult, ModelCardData

from hf_cascade.evaluate.suite.report import metric_name
from hf_cascade.publish import results
from hf_cascade.publish.escaping import Markdown
from hf_cascade.publish.facts import Facts
from hf_cascade.publish.history import hub_datasets
from hf_cascade.publish.paths import without_paths

NAMED = 10  # configs of a data set; more are counted
ORDER = ["license", "license_name", "license_link", "language", "library_name", "pipeline_tag", "base_model"]
ORDER += ["base_model_relation", "datasets", "tags"]
ARXIV = "2601.08584"
TAGS = {"prune": "pruned", "distill": "distillation", "sft": "sft", "odpo": "online-dpo", "grpo": "grpo"}
TEXT, IMAGES = "text-generation", "image-text-to-text"


def front_matter(facts: Facts) -> Markdown:
    """The YAML block with its fences of `---`; what is not known is not in it."""
    entries = eval_results(facts)
    data = ModelCardData(
        **facts.legal,
        language=facts.language or None,
        library_name="transformers",
        pipeline_tag=IMAGES if facts.takes_images else TEXT,
        base_model=[facts.base_model] if facts.base_model else None,
        base_model_relation=relation(facts) if facts.base_model else None,
        datasets=hub_datasets(facts.stages) or None,
        tags=tags(facts),
        eval_results=entries or None,
        model_name=facts.name if entries else None,
    )
    return Markdown(f"---\n{data.to_yaml(original_order=ORDER)}\n---")


def relation(facts: Facts) -> str:
    """What a model is to its base model, in the Hub's words."""
    return "quantized" if facts.quantization else "finetune"


def tags(facts: Facts) -> list[str]:
    """Tags by the stages of the line, the kind and the paper."""
    found = ["cascade-distillation"] if {"prune", "distill"} <= set(facts.runs) else []
    found += [tag for run, tag in TAGS.items() if run in facts.runs]
    found += [facts.kind] if facts.kind != "base" else []
    found += ["conversational"] if facts.chat is not None and facts.kind != "base" else []
    found += [facts.quantization] if facts.quantization else []
    return [*found, "hf-cascade", *[f"arxiv:{ARXIV}"] * ("cascade-distillation" in found)]


def eval_results(facts: Facts) -> list[EvalResult]:
    """
    The `model-index`: rows of suites, and lm-eval tasks beside them; a part of a benchmark is not in it.

    The format has no place for an error: it is an argument of the metric, in the metric's unit.
    """
    found = []
    for row in results.ran(facts):
        if not row.get("short") and math.isfinite(row["value"]):
            found.append(_entry(facts, row, 2 if row["scale"] != 1 else 4))
    for name, task in ((facts.evals or {}).get("tasks") or {}).items():
        if not facts.evals.get("limit") and math.isfinite(task["value"]):
            args = {"stderr": task.get("stderr"), "rows": task.get("rows")}
            found.append(_result(facts, name, name, task.get("metric") or "acc", task["value"], args, {}))
    return found


def _entry(facts: Facts, row: dict, digits: int) -> EvalResult:
    keys = ("stderr", "low", "high", "within_problem", "rows", "samples_per_row", "num_fewshot")
    args = {key: row[key] for key in keys if row.get(key) is not None}
    data = row.get("data") or {}
    names = [name.split("/") for name in data]
    where = {}
    if len({tuple(parts[:2]) for parts in names}) == 1:
        configs = list(dict.fromkeys("/".join(parts[2:-1]) for parts in names))
        splits, revisions = {parts[-1] for parts in names}, {read.get("revision") for read in data.values()}
        where["dataset_type"] = "/".join(names[0][:2])
        where["dataset_config"] = f"{len(configs)} configs" if len(configs) > NAMED else ", ".join(configs) or None
        where["dataset_split"] = splits.pop() if len(splits) == 1 else None
        where["dataset_revision"] = revisions.pop() if len(revisions) == 1 else None
    return _result(facts, row["label"], row["label"], metric_name(row), round(row["value"], digits), args, where)


def _result(facts: Facts, label: str, dataset: str, metric: str, value: float, args: dict, where: dict) -> EvalResult:
    slug = "".join(letter if letter.isalnum() else "-" for letter in dataset.lower()).strip("-")
    return EvalResult(
        task_type=IMAGES if facts.takes_images else TEXT,
        dataset_name=without_paths(label),
        metric_type=metric,
        metric_name=f"{label}: {metric}",
        metric_value=round(value, 4),
        metric_args={key: round(one, 4) if isinstance(one, float) else one for key, one in args.items()},
        verified=False,
        **{"dataset_type": slug, **where},
    )
