"""Suites in report.md and on the terminal: every benchmark beside the paper's figure, the parent's, and chance."""

from collections.abc import Callable

from hf_cascade.evaluate import tables
from hf_cascade.evaluate.suite import published
from hf_cascade.evaluate.suite.completeness import data_label, joined
from hf_cascade.evaluate.suite.figures import RUN, Z, is_even

NOTES = """\
- **± or brackets**: the 95% interval over the benchmark's rows drawn anew (1.96 standard errors, of a share
  cut at its ends; where all rows agree, Wilson's). Of a mean over tasks of one dataset the errors are averaged, for
  they share their questions.
- **chance**: the value of a model that knows nothing.
"""
NO_PAPER = """\
The paper's figures are not beside these: no model has exactly the sizes of one of the paper's. `--paper_row` names one,
as `--paper_row "Ministral 3 8B"`; the responses are kept, so that nothing is asked again.
"""
PAPER_NOTES = """\
- **(paper)**: the figure of Ministral 3 (arXiv {arxiv}) for the model of the same sizes, or of `paper_row`. **minus
  paper**: the model's figure less the paper's, and whether the paper's is inside the model's interval: that in (±)
  where there is one and all rows were run, for then only the samples differ.
"""
PARENT_NOTES = """\
- **of {parent}**: the model's value over the parent's (of a loss, the parent's over it), in percent.
"""
JUDGE_NOTES = """\
- **no judgement**: the judge gave no usable answer; such rows are left out. **orders agree**: judgements of both orders
  that do not name opposite winners. The paper does not name its judge, and another one gives other figures.
"""
SAMPLE_NOTES = """\
- **(±)**: the 95% interval over samples drawn anew for the same problems: 1.96 times **within-problem**, the standard
  error of avg@k from sampling alone.
- **avg@k** is the mean over k responses to each problem, **pass@k** the unbiased estimate that one of k is right,
  **maj@k** whether the most frequent answer is. **distinct**: share of different responses among a problem's.
- **unparsed**: no answer was found in the response. **unfinished**: its thinking never closes. **cut off**: it reached
  the token limit. **loops**: it was repeating itself there.
"""


def sections(results: dict) -> list[str]:
    """The parts of report.md: one for each suite."""
    return [_section(results, suite) for suite in results["suites"]]


def notes(results: dict) -> str:
    """What the columns mean; empty without suites."""
    suites = [_rows(model, suite) for suite in results["suites"] for model in measured(results, suite)]
    rows = [row for suite in suites for row in suite.values()]
    if not rows:
        return ""
    told = NOTES
    if any(row["paper"] is not None for row in rows):
        arxiv = dict.fromkeys(published.load(table).arxiv for table in published.names())
        told += PAPER_NOTES.format(arxiv=", ".join(arxiv))
    if any(row["retention"] is not None for row in rows):
        told += PARENT_NOTES.format(parent=results["suite_parent"])
    told += JUDGE_NOTES * any(row["status"] == RUN and bool(row["judge"]) for row in rows)
    return told + SAMPLE_NOTES * any(row["status"] == RUN and generated(row) for row in rows)


def table(results: dict, suite: dict, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a benchmark a row; each model's value and what it is set beside, of which `brief` leaves out all
    but the paper's figure."""
    models, parent = measured(results, suite), results["suite_parent"]
    read = any(row.get("parent") is not None for model in models for row in _rows(model, suite).values())
    shown = parent is not None and read and parent not in [model["name"] for model in models]
    header = ["benchmark", *([parent_label(parent)] if shown else [])]
    columns = []
    for model in models:
        rows = _rows(model, suite)
        columns.append((model, None))
        header.append(model["name"])
        if any(row.get("paper") is not None for row in rows.values()):
            name = next(row["paper_model"] for row in rows.values() if row.get("paper") is not None)
            header += ["(paper)"] if brief else [f"{name} (paper)", "minus paper"]
            columns += [(model, "paper"), *([] if brief else [(model, "difference")])]
        if not brief and model["name"] != parent and any(row.get("parent") is not None for row in rows.values()):
            header.append(f"of {parent}")
            columns.append((model, "retention"))
    lines = []
    for row in suite["rows"]:
        every = [_rows(model, suite)[row["label"]] for model in models]
        line = [row["label"]]
        if shown:
            line.append(number(next((one["parent"] for one in every if one["parent"] is not None), None), row))
        line += [_cell(_rows(model, suite)[row["label"]], kind, row) for model, kind in columns]
        chance = next((one["chance"] for one in every if one.get("chance") is not None), None)
        lines.append([*line, number(chance, row)])
    return [*header, "chance"], lines


def samples(results: dict, suite: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: of benchmarks whose responses are generated, what they are like; a row a model."""
    header = ["benchmark", "model", "k", "avg@k", "pass@k", "maj@k", "within-problem", "distinct"]
    header += ["unparsed", "unfinished", "cut off", "loops", "tokens", "thinking"]
    lines = []
    for row in suite["rows"]:
        label = row["label"]
        for model in measured(results, suite):
            one = _rows(model, suite)[row["label"]]
            if one["status"] != RUN or not generated(one):
                continue
            k = one["samples_per_row"] or 1
            several = [number(one["value"], row)] if k > 1 else [tables.MISSING]
            several += [number((one[name] or {}).get(str(k)), row) if k > 1 else tables.MISSING for name in _AT]
            line = [label, model["name"], str(k), *several, number(one["within_problem"], row, 2)]
            line += [tables.share(one[name]) for name in _SHARES]
            lines.append([*line, *(tables.fixed(one[name], 0) for name in ("output_tokens", "thinking_tokens"))])
            label = ""
    return header, lines


def judged(results: dict, suite: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: of judged benchmarks, by whom, and how far that judge can be believed."""
    lines = []
    for row in suite["rows"]:
        for model in measured(results, suite):
            one = _rows(model, suite)[row["label"]]
            if one["status"] == RUN and one["judge"]:
                shares = [tables.share(one[name]) for name in ("judge_failures", "swap_agreement")]
                lines.append([row["label"], model["name"], one["judge"]["model"], *shares])
    return ["benchmark", "model", "judge", "no judgement", "orders agree"], lines


def protocol(results: dict, suite: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: how each benchmark was measured, and what the paper says of its own way."""
    header = ["benchmark", "shots", "metric", "decoding", "samples", "rows", "data", "the paper's"]
    lines = []
    for row in suite["rows"]:
        run = [_rows(model, suite)[row["label"]] for model in measured(results, suite)]
        one = next((figures for figures in run if figures["status"] == RUN), None)
        if one is None:
            continue
        shots = tables.MISSING if one["num_fewshot"] is None else str(one["num_fewshot"])
        rows = f"{one['rows']:,}" + (f" of {one['rows_full']:,}" if one["rows_full"] else "")
        line = [row["label"], shots, metric_name(one), decoding(one), str(one["samples_per_row"] or 1), rows]
        lines.append([*line, data_label(one["data"]) or tables.MISSING, _papers(row)])
    return header, lines


def generated(figures: dict) -> bool:
    """Whether responses were generated, rather than continuations scored."""
    return figures["protocol"].get("temperature") is not None


def metric_name(figures: dict) -> str:
    """`avg@16` for `avg_at_k` of 16 samples; other metrics as they are called."""
    name = figures["metric"]
    return f"{name.removesuffix('_at_k')}@{figures['samples_per_row'] or 'k'}" if name.endswith("_at_k") else name


def decoding(figures: dict) -> str:
    """`log-likelihood`, `greedy, 512 tokens`, `T 0.7, top_p 0.95, 32,768 tokens, chat`."""
    told = figures["protocol"]
    if not generated(figures):
        return "log-likelihood" + ", chat" * bool(told.get("chat"))
    parts = [f"T {told['temperature']:g}" if told.get("temperature") else "greedy"]
    parts += [f"top_p {told['top_p']:g}"] if told.get("top_p") not in (None, 1) else []
    parts += [f"{told['max_gen_tokens']:,} tokens"] if told.get("max_gen_tokens") else []
    return ", ".join([*parts, *["chat"] * bool(told.get("chat"))])


def not_run(results: dict, suite: dict) -> list[str]:
    """`RACE High, MMMU: reason`, each reason once; with the models' names where it is not all of them."""
    return _reasons(results, suite, lambda one: None if one["status"] == RUN else one["reason"])


def short(results: dict, suite: dict) -> list[str]:
    """`RACE High: figures of 8 of 3,498 rows`: what was measured on a part of its benchmark, told as by [`not_run`]."""
    return _reasons(results, suite, lambda one: joined(one["short"], "; ", "reasons") if one.get("short") else None)


def _reasons(results: dict, suite: dict, of: Callable[[dict], str | None]) -> list[str]:
    """What is to be said of rows, each thing once."""
    told: dict[tuple[str, tuple], list[str]] = {}
    models = measured(results, suite)
    for row in suite["rows"]:
        reasons: dict[str, list[str]] = {}
        for model in models:
            if (reason := of(_rows(model, suite)[row["label"]])) is not None:
                reasons.setdefault(reason, []).append(model["name"])
        for reason, names in reasons.items():
            told.setdefault((reason, tuple(names)), []).append(row["label"])
    return [
        f"{', '.join(labels)}{'' if len(names) == len(models) else ' (' + ', '.join(names) + ')'}: {reason}"
        for (reason, names), labels in told.items()
    ]


def summary_text(results: dict) -> str:
    """Each suite's table for a terminal, and what was not run."""
    parts = []
    for suite in results["suites"]:
        header, rows = table(results, suite, brief=True)
        missing = not_run(results, suite)
        told = [f"not run: {line}" for line in missing]
        models = measured(results, suite)
        part = sum(any(_rows(model, suite)[row["label"]].get("short") for model in models) for row in suite["rows"])
        told += [f"not the whole benchmark, so not comparable: {part} of {len(rows)} rows"] * bool(part)
        parts.append("\n".join([suite["title"], tables.text(header, rows), *told]))
    return "\n\n".join(parts)


def number(value: float | None, row: dict, digits: int = 1) -> str:
    """A row's figure: one digit of a percentage, three of another unit."""
    return tables.fixed(value, digits if row["scale"] != 1 else 3)


def parent_label(name: str) -> str:
    """What the parent is called where it is not one of the models."""
    return name if "parent" in name else f"{name} (parent)"


def measured(results: dict, suite: dict) -> list[dict]:
    """The models that have this suite."""
    return [model for model in results["models"] if suite["name"] in model["suites"]]


_AT = ("pass_at", "maj_at")
_SHARES = ("distinct", "unparsed", "unfinished", "truncated", "looped")


def _rows(model: dict, suite: dict) -> dict[str, dict]:
    return model["suites"][suite["name"]]["rows"]


def _cell(one: dict, kind: str | None, row: dict) -> str:
    if kind == "paper":
        return number(one["paper"], row)
    if one["status"] != RUN:
        return "not run" if kind is None else tables.MISSING
    if kind == "difference":
        if one["difference"] is None:
            return tables.MISSING
        if one["short"]:
            return "not comparable"
        place = {True: " (inside)", False: " (outside)", None: ""}[one["inside"]]
        return f"{one['difference']:+.{1 if row['scale'] != 1 else 3}f}{place}".replace("-", "−")
    if kind == "retention":
        return tables.percent(one["retention"])
    value = number(one["value"], row).replace("-", "−")
    if one["stderr"] is None:
        return value
    if not is_even(one):
        return f"{value} [{number(one['low'], row)}, {number(one['high'], row)}]"
    within = f" (± {number(Z * one['within_problem'], row)})" if one["within_problem"] is not None else ""
    return f"{value} ± {number(one['high'] - one['value'], row)}{within}"


def _papers(row: dict) -> str:
    """The paper's protocol of a row: `5 shots, accuracy`."""
    if row["published"] is None:
        return tables.MISSING
    name, label = row["published"]
    told = published.load(name).protocol[label]
    shots = "shots not said" if told["shots"] is None else f"{told['shots']} shots"
    return f"{shots}, {told['metric']}"


def _section(results: dict, suite: dict) -> str:
    parts = [f"## {suite['title']}\n", tables.markdown(*table(results, suite))]
    rows = [row for model in measured(results, suite) for row in _rows(model, suite).values()]
    if any(row["published"] for row in suite["rows"]) and all(row.get("paper") is None for row in rows):
        parts.append(NO_PAPER)
    if lines := not_run(results, suite):
        parts.append("Not run:\n\n" + "".join(f"- {line}\n" for line in lines))
    if lines := short(results, suite):
        parts.append(
            "Not the whole benchmark as it is meant, and so not comparable:\n\n"
            + "".join(f"- {line}\n" for line in lines)
        )
    for header, lines in (samples(results, suite), judged(results, suite), protocol(results, suite)):
        if lines:
            parts.append(tables.markdown(header, lines))
    return "\n".join(parts)
