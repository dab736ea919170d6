"""What a model's users should know before they trust it, each sentence from a figure or from what is missing."""

from hf_cascade.evaluate import tables
from hf_cascade.publish import results
from hf_cascade.publish.facts import Facts
from hf_cascade.publish.history import judges as judges_of
from hf_cascade.publish.history import longest_answers, longest_window, names, since_pruning, window_after
from hf_cascade.shape import text_config

KIND = {
    "base": "It is a base model: it continues text, and was not trained to follow instructions or to refuse requests.",
    "instruct": "It follows instructions as far as its training goes; answers can be wrong, and should be checked.",
    "reasoning": "What it writes before its answer is not a proof: the thinking can be wrong and the answer right, or "
    "the other way round.",
}
SAFETY = "Whether its answers are safe was not measured: none of the figures here is about safety or bias."
NOTABLE = 0.01  # shares of at least a hundredth are worth a sentence; ours
IMAGE_TASKS = ("cascade_mmmu", "cascade_mathvista", "cascade_mm_mt_bench")
RETENTION = 90  # percent of the parent's value below which a benchmark is named; ours


def limitations(facts: Facts) -> list[str]:
    """Sentences, from what the model is to what is not known about it."""
    found = [KIND[facts.kind], *_window(facts), *_languages(facts), *_responses(facts), *_losses(facts)]
    found += [*_judges(facts), *_images(facts), *_missing(facts), SAFETY]
    return found


def _window(facts: Facts) -> list[str]:
    claimed = text_config(facts.config).get("max_position_embeddings")
    stages, pruned = since_pruning(facts.stages), "prune" in facts.runs
    trained = longest_window(stages)
    if claimed is None:
        return []
    if trained is None:
        return [f"Its config allows {claimed:,} tokens of context; how long its training text was is not known."]
    length, stage = trained
    told = [f"Its config allows {claimed:,} tokens of context, and "]
    told[0] += "all" * (length >= claimed) + "only the first" * (length < claimed)
    told[0] += f" {length:,} were trained on{' since it was pruned' * pruned}, in stage {stage}"
    known = all(one.record for one in stages) and (pruned or facts.origin is None)
    told[0] += "." if known else ", as far as records are here."
    after = window_after(facts.stages, stage)
    if after is not None and after < length:
        told.append(f"Fine-tuning after that stage saw conversations of at most {after:,} tokens.")
    if (answers := longest_answers(stages)) is not None:
        told.append(f"When it was trained by its own answers, they were cut off at {answers:,} tokens.")
    long = (facts.evals or {}).get("long")
    retrieval = any("retrieval" in task for row in results.ran(facts) for task in row.get("tasks") or ())
    if not long and not retrieval and claimed > 8192:
        told.append("How well it uses a long context was not measured.")
    return told


def _languages(facts: Facts) -> list[str]:
    if not facts.language:
        return ["Which languages it is good for is not known: nothing in its records says."]
    return []


def _responses(facts: Facts) -> list[str]:
    """Loops, thinking that never closes and cut-off answers, of the benchmark where each is worst."""
    told = []
    names = {"looped": "looped", "unfinished": "never closed their thinking", "truncated": "hit the token limit"}
    rows = results.ran(facts)
    for key, what in names.items():
        worst = max((row for row in rows if row.get(key)), key=lambda row: row[key], default=None)
        if worst is not None and worst[key] >= NOTABLE:
            told.append(f"Of its answers to {worst['label']}, {tables.share(worst[key])} {what}.")
    found = (facts.evals or {}).get("preference") or {}
    for key, what in {"loop_rate": "looped", "truncated_rate": "hit the token limit"}.items():
        if (found.get(key) or 0) >= NOTABLE:
            told.append(f"Of sampled answers, {tables.share(found[key])} {what}.")
    unfinished = (found.get("verbosity") or {}).get("unfinished_rate")
    if unfinished and unfinished >= NOTABLE:
        told.append(f"Of sampled answers, {tables.share(unfinished)} never closed their thinking.")
    return told


def _losses(facts: Facts) -> list[str]:
    """Benchmarks that keep least of the parent's value, and those within their interval of chance."""
    rows = results.ran(facts)
    lost = sorted((row for row in rows if (row.get("retention") or 100) < RETENTION), key=lambda row: row["retention"])
    told = []
    if lost:
        names = ", ".join(f"{row['label']} ({tables.percent(row['retention'])})" for row in lost[:3])
        parent = facts.parent or "its parent"
        told.append(f"On {len(lost)} of {len(rows)} benchmarks it keeps less than {RETENTION}% of {parent}: {names}.")
    blind = [row["label"] for row in rows if row.get("chance") is not None and _at_chance(row)]
    if blind:
        told.append(f"On {'; '.join(blind)} it cannot be told from chance.")
    held = (facts.evals or {}).get("retention")
    if not rows and held is not None and held < RETENTION:
        told.append(f"On held-out text it keeps {tables.percent(held)}, by perplexity, of its teacher.")
    return told


def _at_chance(row: dict) -> bool:
    return row.get("low") is not None and row["low"] <= row["chance"] <= row["high"]


def _judges(facts: Facts) -> list[str]:
    judges = dict.fromkeys(row["judge"]["model"] for row in results.ran(facts) if row.get("judge"))
    told = [f"Judged benchmarks depend on their judge, here {', '.join(judges)}."] if judges else []
    asked = (facts.evals or {}).get("comparison") or {}
    trainers = [name for stage in facts.stages if stage.record for name in judges_of(stage.record)]
    for name in names(asked.get("reward_model")):
        if name in trainers:
            told.append(f"It was trained to win by {name}: its wins by that say less than those by other measures.")
    return told


def _images(facts: Facts) -> list[str]:
    if not facts.takes_images:
        return []
    tasks = [task for row in results.ran(facts) for task in row["tasks"]]
    told = []
    if not any(task.startswith(IMAGE_TASKS) for task in tasks):
        told.append("It takes images, and how well it reads them was not measured.")
    if not facts.has_processor:
        told.append("Its folder holds no image processor, so it can be given text only.")
    return told


def _missing(facts: Facts) -> list[str]:
    told = []
    if facts.evals is None:
        return ["It was not evaluated: no figure of its quality is known."]
    if facts.stale:
        told.append("Its figures were measured before its folder was made anew, and may be those of other weights.")
    if labels := results.missing(facts):
        told.append(f"Not run: {'; '.join(labels)}.")
    if not facts.evals.get("suites"):
        told.append("No benchmark suite was run.")
    if facts.contamination is None:
        told.append("Whether benchmark rows stand in its training text was not checked.")
    if facts.quantization:
        told.append(f"Its weights are quantized ({facts.quantization}).")
    return told
