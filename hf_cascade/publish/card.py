"""`render`: a model card from facts by the templates in `hub_cards`; `validate` says what is wrong with one."""

import re

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_cascade import assets
from hf_cascade.evaluate import tables
from hf_cascade.publish import escaping, history, results
from hf_cascade.publish.card_validation import validate
from hf_cascade.publish.escaping import Markdown, code, escape
from hf_cascade.publish.facts import Facts
from hf_cascade.publish.front_matter import ARXIV, front_matter
from hf_cascade.publish.limitations import limitations
from hf_cascade.publish.lineage import Stage, in_order
from hf_cascade.publish.pictures import CAPTIONS, WIDE
from hf_cascade.publish.usage import usage_of

__all__ = ["render", "validate"]

FOLDER = "hub_cards"
DISTILLED = "distilled on a teacher's logits"
METHODS = {"odpo": "Online DPO", "grpo": "GRPO"}
_ROWS = {
    "num_parameters": "parameters",
    "num_hidden_layers": "layers",
    "hidden_size": "hidden size",
    "intermediate_size": "FFN size",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key-value heads",
    "head_dim": "head dimension",
    "vision_layers": "vision layers",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context (positions)",
    "tie_word_embeddings": "one matrix for embedding and head",
    "dtype": "type of the weights",
    "bytes": "weights on disk",
}


def render(facts: Facts, decision=None, images: dict[str, str] | None = None) -> str:
    """
    The text of README.md: YAML front matter and Markdown.

    Args:
        facts ([`Facts`]): of a finished folder.
        decision ([`Decision`], *optional*): the gate's; unset, the card says that it was not asked.
        images (`dict[str, str]`, *optional*): [`pictures.draw`]'s names to paths in the repository.

    Raises:
        ValueError: a file of the model lacks what a card says.
        jinja2.UndefinedError, TypeError: a template asks for what facts do not have.
    """
    environment = Environment(
        loader=FileSystemLoader(assets.root() / FOLDER),
        undefined=StrictUndefined,
        finalize=escaping.finalize,
        autoescape=False,  # a card is Markdown: `finalize` escapes what is printed
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= escaping.FILTERS
    try:
        context = _context(facts, decision, images or {})
    except (KeyError, TypeError, AttributeError) as error:  # JSON of another version, or not of ours
        raise ValueError(
            f"{facts.folder}: a file lacks what a card says ({type(error).__name__}: {error}): "
            "evaluate the model again with this version"
        ) from error
    text = environment.get_template(f"{facts.kind}.md.jinja").render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _context(facts: Facts, decision, images: dict[str, str]) -> dict:
    """Everything that templates may name."""
    record = facts.record
    return {
        "front_matter": front_matter(facts),
        "name": facts.name,
        "summary": summary(facts),
        "suites": results.suite_tables(facts),
        "others": [one for one in (results.held_out(facts), results.task_table(facts)) if one is not None],
        "preference": results.preference_table(facts),
        "responses": results.response_line(facts),
        "part_mark": results.PART,
        "has_paper": any(row.get("paper") is not None for row in results.ran(facts)),
        "is_cascade": {"prune", "distill"} <= set(facts.runs),
        "version": str(record["versions"].get("hf_cascade") or "of unknown version"),
        "legend": results.legend(facts),
        "evaluated": facts.evals is not None,
        "stale": facts.stale,
        "use": usage_of(facts),
        "dimensions": dimensions(facts),
        "unmeasured": facts.origin.name if facts.origin and len(facts.shapes) == 1 else None,
        "line": history.line_table(facts.stages),
        "data": history.data_table(facts.stages),
        "beside": history.beside_table(facts.stages),
        "distilled": history.distilled_tokens(facts.stages),
        "commands": history.commands(in_order(facts.stages)),
        "pictures": _rows_of(images),
        "charts": {name.partition(":")[2]: path for name, path in images.items() if name.startswith("results:")},
        "unknown": Markdown(", ".join(code(name) for name in history.unknown(facts.stages))),
        "limitations": limitations(facts),
        "contamination": facts.contamination,
        "overlaps": _overlaps(facts.contamination or {}),
        "conformance": _conformance(facts.conformance),
        "decision": decision,
        "base_model": facts.base_model,
        "license": facts.legal.get("license"),
        "arxiv": ARXIV,
        "key": re.sub(r"[^a-z0-9]+", "-", facts.name.lower()).strip("-") or "model",
        "versions": _versions(record),
        "created": record["created"][:10],
        "year": record["created"][:4],
    }


def summary(facts: Facts) -> Markdown:
    """What the model is, in a sentence."""
    output = facts.record.get("output") or {}
    size = output.get("num_parameters") or facts.shapes[-1].values.get("num_parameters")
    kind = {"base": "base language", "instruct": "instruction-following", "reasoning": "reasoning"}[facts.kind]
    kind = kind.replace("language", "vision-language") if facts.takes_images else kind
    what = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} model"
    what += f" of {tables.count(size)} parameters" if size else ""
    told = [what]
    parent = facts.shapes[0] if len(facts.shapes) > 1 else None
    begun = parent.name if parent else facts.origin and facts.origin.name
    if "prune" in facts.runs:
        share = size and parent and parent.values.get("num_parameters")
        to = f" to {100 * size / share:.0f}% of its {tables.count(share)} parameters" if share else ""
        told.append(f"pruned from {code(begun)}{to}" if begun else "pruned")
    if "distill" in facts.runs:
        teachers = history.teachers(facts.stages)
        told.append("distilled on the logits of " + _and([code(name) for name in teachers]) if teachers else DISTILLED)
    told += [_tuned(stage) for stage in facts.stages if stage.run == "sft"][-1:]
    methods = [METHODS[run] for run in dict.fromkeys(facts.runs) if run in METHODS]
    told += [f"trained by {_and(methods)}"] if methods else []
    told += [f"quantized ({escape(facts.quantization)})"] if facts.quantization else []
    return Markdown(f"{escape(facts.name)} is {told[0]}" + (f", {_and(told[1:])}" if told[1:] else "") + ".")


def _tuned(stage: Stage) -> str:
    """What fine-tuning was on: conversations or chains of thought, and whose logits."""
    teachers = (stage.record or {"inputs": {}})["inputs"].get(history.TEACHER)
    names = [code(name) for name in history.names(teachers)]
    return history.what(stage) + (f" by the logits of {_and(names)}" if names else "")


def dimensions(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the original parent, the direct one, this model."""
    names = [*(shape.name for shape in facts.shapes[:-1]), facts.name]
    pairs = zip(names, facts.shapes, strict=True)
    header = ["", *(name if name == shape.role else f"{name} ({shape.role})" for name, shape in pairs)]
    rows = []
    for key, label in _ROWS.items():
        cells = [_dimension(key, shape.values.get(key)) for shape in facts.shapes]
        if any(cell != tables.MISSING for cell in cells):
            rows.append([label, *cells])
    return header, rows


def _dimension(key: str, value) -> str:
    if value is None:
        return tables.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "bytes":
        return tables.size(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rows_of(images: dict[str, str]) -> list[list[tuple[str, str, str]]]:
    """(text for those who cannot see it, caption, path) of each picture but the results', two in a row."""
    narrow = [(*CAPTIONS[kind], images[kind]) for kind in CAPTIONS if kind in images and kind not in WIDE]
    rows = [narrow[place : place + 2] for place in range(0, len(narrow), 2)]
    return rows + [[(*CAPTIONS[kind], images[kind])] for kind in WIDE if kind in images]


def _overlaps(contamination: dict) -> tuple[list[str], list[list]]:
    """Header and rows: what benchmark rows stand in the training text."""
    header = ["rows of", "all", "too short to check", "overlapping", "half and more"]
    keys = ("rows", "too_short", "overlapping", "mostly")
    return header, [[name, *(split[key] for key in keys)] for name, split in contamination.get("splits", {}).items()]


def _conformance(given: dict | None) -> str | None:
    """`20 of 20 tasks`: how many scorers were proved right."""
    tasks = (given or {}).get("tasks")
    if not tasks:
        return None
    return f"{sum(task['status'] == 'green' for task in tasks.values())} of {len(tasks)} tasks"


def _versions(record: dict) -> list[tuple[str, str]]:
    """What the last stage ran on."""
    found = [(name.replace("_", "-"), version) for name, version in record["versions"].items() if version]
    found += [("hf-cascade's commit", record["git_sha"])] if record.get("git_sha") else []
    hardware = record.get("hardware") or {}
    processor = f"{hardware['cpu']}, {hardware['cores']} cores" if hardware.get("cpu") else None
    found += [("processor", processor)] if processor else []
    return found + ([("accelerator", hardware["accelerator"])] if hardware.get("accelerator") else [])


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
