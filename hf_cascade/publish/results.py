"""What was measured, as a card's tables: every figure from evals.json, beside the paper's, the parent's, and chance."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from hf_cascade.evaluate import tables
from hf_cascade.evaluate.suite import kept, report, suites
from hf_cascade.evaluate.suite.completeness import joined
from hf_cascade.evaluate.suite.figures import RUN, Z, is_even
from hf_cascade.publish.escaping import Markdown
from hf_cascade.publish.facts import Facts
from hf_cascade.publish.lineage import is_hub_id

RANKER = "pwrm"  # what evals.json calls the pairwise reward model, whatever its folder
PART = "†"  # marks what was measured on a part of its benchmark


@dataclass(frozen=True)
class Table:
    """
    A table with what has to be said below it.

    Attributes:
        name (`str`): of its suite, or part of evals.json.
        title (`str`): its heading.
        header (`list[str]`), rows (`list[list[str]]`): cells.
        not_run (`list[str]`): `MMLU 5-shot: reason`.
        part (`list[str]`): `MATH: the first 8 rows`: what was measured on a part of its benchmark.
        more (`list[tuple]`): (title, header, rows) of further tables: responses, judges, protocol.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    not_run: list[str] = field(default_factory=list)
    part: list[str] = field(default_factory=list)
    more: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)


def suite_tables(facts: Facts) -> list[Table]:
    """One table for each suite in evals.json."""
    return [_suite_table(facts, name) for name in (facts.evals or {}).get("suites") or {}]


def suite_results(facts: Facts) -> dict:
    """
    evals.json of the model, and of its parent, as `hf-cascade evaluate` has them in results.json: what its reports and
    pictures read.
    """
    evals = facts.evals or {}
    known = [_described(name, content["rows"]) for name, content in (evals.get("suites") or {}).items()]
    models = [{**evals, "name": facts.name, "suites": evals.get("suites") or {}}]
    parent = (facts.parent_evals or {}).get("suites") or {}
    same = {suite["name"]: parent[suite["name"]] for suite in known if suite["name"] in parent}
    if same and facts.parent != facts.name:
        models.insert(0, {"name": facts.parent, "suites": same})
    compared = bool(same) or any(
        row.get("parent") is not None for suite in models[-1]["suites"].values() for row in suite["rows"].values()
    )
    named = facts.parent if compared else None
    return {"suites": known, "suite_parent": named, "models": models, "children": [], "heldout": None}


def ran(facts: Facts) -> list[dict]:
    """All rows that were run, each label once: `{"suite", "label", "scale", "tasks", **figures}`."""
    found: dict[str, dict] = {}
    for suite in suite_results(facts)["suites"]:
        rows = facts.evals["suites"][suite["name"]]["rows"]
        for row in suite["rows"]:
            figures = rows.get(row["label"]) or {}
            if figures.get("status") == RUN:
                found.setdefault(row["label"], {"suite": suite["name"], **row, **figures})
    return list(found.values())


def missing(facts: Facts) -> list[str]:
    """Labels of the rows that were not run."""
    suites_ = ((facts.evals or {}).get("suites") or {}).values()
    return list(dict.fromkeys(n for suite in suites_ for n, row in suite["rows"].items() if row.get("status") != RUN))


def held_out(facts: Facts) -> Table | None:
    """Perplexity and divergence on held-out text; `None` where it was not measured."""
    evals, rows = facts.evals or {}, []
    teacher = evals.get("teacher")
    for key in ("heldout", "long"):
        figures = evals.get(key)
        if not figures:
            continue
        parents = (
            evals["retention"] * figures["perplexity"] / 100 if key == "heldout" and evals.get("retention") else None
        )
        rows.append(
            [
                f"{figures['max_length']:,} tokens",
                Markdown(f"**{tables.figure(figures['perplexity'])}**"),
                tables.figure(parents),
                tables.percent(evals.get("retention") if key == "heldout" else None),
                tables.fixed(figures["bits_per_byte"], 3),
                tables.fixed(figures.get("kl"), 3),
                tables.share(figures.get("top1_agreement")),
                tables.count(figures["tokens"]),
            ]
        )
    if not rows:
        return None
    name = teacher or "the parent"
    header = ["window", "perplexity ↓", f"{name}'s", "kept", "bits per byte ↓", f"KL from {name} ↓", "same top token"]
    return _without_empty(Table("heldout", "Held-out text", [*header, "tokens scored"], rows))


def task_table(facts: Facts) -> Table | None:
    """lm-eval tasks that were run outside of suites; `None` without any."""
    rows = []
    for name, task in ((facts.evals or {}).get("tasks") or {}).items():
        parents = ((facts.parent_evals or {}).get("tasks") or {}).get(name)
        error = task.get("stderr")
        value = tables.fixed(task["value"], 3) + ("" if error is None else f" ± {Z * error:.3f}")
        arrow = "↑" if task.get("higher_is_better", True) else "↓"
        theirs = tables.fixed(parents and parents["value"], 3)
        chance = tables.fixed(task.get("chance"), 3)
        rows.append([name, f"{task.get('metric', '')} {arrow}", Markdown(f"**{value}**"), theirs, chance])
    header = ["task", "metric", facts.name, report.parent_label(facts.parent or "parent"), "chance"]
    limit = facts.evals.get("limit") if rows else None
    part = [f"all tasks: at most {limit:,} rows each"] if limit else []
    return _without_empty(Table("tasks", "Further tasks", header, rows, part=part)) if rows else None


def preference_table(facts: Facts) -> Table | None:
    """Win rates and rewards of sampled answers against a baseline; `None` where it was not measured."""
    evals = facts.evals or {}
    found, asked = evals.get("preference"), evals.get("comparison") or {}
    if not found:
        return None
    ranker = Path(asked.get("reward_model") or RANKER).name
    rows = [
        [ranker if name == RANKER else name, "wins, percent", _interval(win, 100, 1), tables.MISSING, win["judged"]]
        for name, win in (found.get("wins") or {}).items()
    ]
    theirs = _baseline(facts, asked)
    for name, reward in ((found.get("verbosity") or {}).get("rewards") or {}).items():
        beside = _unbroken(_interval(theirs.get(name) or {}, 1, 3).replace("**", ""))
        rows.append([name, "mean", _interval(reward, 1, 3), beside, reward["judged"]])
    if not rows:
        return None
    baseline = asked.get("baseline")
    title = f"Sampled answers, beside those of {baseline}" if baseline else "Sampled answers"
    header = ["by", "figure", f"{facts.name} (95%)", str(baseline), "answers"]
    return _without_empty(Table("preference", title, header, rows, part=_about_wins(found, asked)))


def _baseline(facts: Facts, asked: dict) -> dict:
    """Rewards of the baseline's answers, where it is a stage of the line and was asked with the model."""
    for stage in facts.stages[:-1]:
        if stage.name == asked.get("baseline") and stage.folder is not None:
            evals = kept.read(stage.folder) or {}
            if evals.get("comparison") == asked:
                return ((evals.get("preference") or {}).get("verbosity") or {}).get("rewards") or {}
    return {}


def _about_wins(found: dict, asked: dict) -> list[str]:
    """What a win is."""
    if not found.get("wins"):
        return []
    return [
        f"wins: how often its answer is preferred to that of {asked.get('baseline')} to the same prompt; "
        "50 is no difference, and equal answers count half."
    ]


def _interval(given: dict, scale: float, digits: int) -> str:
    """`57.5 (55.8 to 59.1)`."""
    if given.get("rate") is None:
        return tables.MISSING
    rate, low, high = (f"{scale * given[key]:,.{digits}f}" for key in ("rate", "low", "high"))
    return _unbroken(f"**{rate}** ({low} to {high})")


def response_line(facts: Facts) -> str | None:
    """How sampled answers were drawn and how they end; `None` where none were drawn."""
    evals = facts.evals or {}
    found, asked = evals.get("preference"), evals.get("comparison") or {}
    if not found:
        return None
    told = [f"{found['responses']:,} answers"] if found.get("responses") else []
    source = asked.get("prompts")
    of = f" of {source if is_hub_id(source) else Path(source).name}" if source else ""
    told += [f"to {asked['rows']:,} prompts{of}"] if asked.get("rows") else []
    told += [f"temperature {asked['sampling_temperature']:g}, top_p {asked['top_p']:g}"] if asked.get("top_p") else []
    told += [f"mean length {tables.figure(found['tokens'])} tokens"] if found.get("tokens") else []
    names = {"loop_rate": "loop", "truncated_rate": "are cut off"}
    told += [f"{tables.share(found[key])} {what}" for key, what in names.items() if found.get(key) is not None]
    return ", ".join(told).replace(", to ", " to ", 1) + "." if told else None


def _suite_table(facts: Facts, name: str) -> Table:
    results = suite_results(facts)
    suite = next(one for one in results["suites"] if one["name"] == name)
    mine, theirs = results["models"][-1], results["models"][0] if len(results["models"]) > 1 else {"suites": {}}
    rows = mine["suites"][name]["rows"]
    beside = (theirs["suites"].get(name) or {"rows": {}})["rows"]
    papers = dict.fromkeys(one["paper_model"] for one in rows.values() if one.get("paper_model"))
    parent = report.parent_label(facts.parent or "parent")
    header = ["benchmark", facts.name, parent, "kept", f"{', '.join(papers)} (paper)", "minus paper", "chance"]
    lines = []
    for row in suite["rows"]:
        one = rows.get(row["label"]) or {"status": "not run", "reason": "it is not in evals.json"}
        lines.append([row["label"], *_cells(one, beside.get(row["label"]), row)])
    alone = {**results, "models": [mine]}
    more = [("Responses", *report.samples(alone, suite)), ("Judged", *report.judged(alone, suite))]
    more.append(("How it was measured", *report.protocol(alone, suite)))
    more = [_without_model(*one) for one in more if one[2]]
    part = [f"{r['label']}: {joined(p, '; ', 'reasons')}" for r in suite["rows"] if (p := _short(rows, r["label"]))]
    return _without_empty(Table(name, suite["title"], header, lines, report.not_run(alone, suite), part, more))


def _cells(one: dict, theirs: dict | None, row: dict) -> list[str]:
    """A row's cells after its label."""
    parent = one.get("parent")
    if theirs is not None and theirs.get("status") == RUN:
        beside = _value(theirs, row)
    else:
        beside = report.number(parent, row)
    paper = report.number(one.get("paper"), row)
    if one["status"] != RUN:
        return ["not run", beside, tables.MISSING, paper, tables.MISSING, report.number(one.get("chance"), row)]
    value, _, reach = _value(one, row).partition(" ")
    marks = [PART] * bool(one.get("short")) + ["↓"] * (not one.get("higher_is_better", True))
    mine = _unbroken(f"**{value}** {' '.join([reach, *marks])}".rstrip())
    kept = tables.percent(one.get("retention"))
    return [
        mine,
        _unbroken(beside),
        kept,
        paper,
        _unbroken(_difference(one, row)),
        report.number(one.get("chance"), row),
    ]


def _unbroken(text: str) -> Markdown:
    """A figure of ours that stays on one line."""
    return Markdown(text.replace(", ", ",\N{NO-BREAK SPACE}").replace(" ", "\N{NO-BREAK SPACE}"))


def _value(one: dict, row: dict) -> str:
    """`61.2 ± 0.8`, or with the ends of an interval that is not even."""
    value = report.number(one["value"], row)
    if one.get("stderr") is None or one.get("low") is None:
        return value
    if not is_even(one):
        return f"{value} ({report.number(one['low'], row)} to {report.number(one['high'], row)})"
    within = f", samples ± {report.number(Z * one['within_problem'], row)}" if one.get("within_problem") else ""
    return f"{value} ± {report.number(one['high'] - one['value'], row)}{within}"


def legend(facts: Facts) -> list[str]:
    """What marks and columns of the suites' tables mean, as far as they are there."""
    found = suite_tables(facts)
    heads = {name for table in found for name in table.header}
    cells = " ".join(cell for table in found for row in table.rows for cell in row)
    told = ["± is half of the 95% interval over a benchmark's rows drawn anew."] if "±" in cells else []
    told += (
        ["samples ±: over answers drawn anew to the same problems."] if "samples\N{NO-BREAK SPACE}±" in cells else []
    )
    told += ["kept: the value in percent of the parent's, of a loss the other way round."] if "kept" in heads else []
    if "minus paper" in heads:
        told.append(
            "minus paper: inside, where the paper's figure lies in this model's interval; "
            "where only samples can differ, in the one over samples."
        )
    told += ["chance: what a model gets that knows nothing."] if "chance" in heads else []
    told += ["↓: lower is better."] if "↓" in cells else []
    return told


def _difference(one: dict, row: dict) -> str:
    if one.get("difference") is None:
        return tables.MISSING
    if one.get("short"):
        return "not comparable"
    place = {True: " (inside)", False: " (outside)"}.get(one.get("inside"), "")
    return f"{one['difference']:+.{1 if row['scale'] != 1 else 3}f}{place}".replace("-", "−")


def _short(rows: dict, label: str) -> list[str]:
    return (rows.get(label) or {}).get("short") or []


def _described(name: str, rows: dict) -> dict:
    """A suite as results.json has it: as this version ships it, with the rows that evals.json has."""
    if name in suites.names():
        shipped = asdict(suites.load(name))
        labels = [row["label"] for row in shipped["rows"]]
        own = [row for row in shipped["rows"] if row["label"] in rows]
        return {**shipped, "rows": own + [_row(label) for label in rows if label not in labels]}
    return {"name": name, "title": name, "chat": False, "rows": [_row(label) for label in rows]}


def _row(label: str) -> dict:
    return {"label": label, "tasks": [], "metric": None, "scale": 100, "published": None}


def _without_empty(table: Table) -> Table:
    """A table without the columns that say nothing."""
    keep = [i for i in range(len(table.header)) if i == 0 or any(row[i] != tables.MISSING for row in table.rows)]
    rows = [[row[i] for i in keep] for row in table.rows]
    return Table(table.name, table.title, [table.header[i] for i in keep], rows, table.not_run, table.part, table.more)


def _without_model(title: str, header: list[str], rows: list[list[str]]) -> tuple:
    """A report's table without its column of models, of which a card has one, and without empty columns."""
    table = Table("", title, header, rows)
    if "model" in header:
        place = header.index("model")
        cut = [[cell for i, cell in enumerate(row) if i != place] for row in rows]
        table = Table("", title, [name for name in header if name != "model"], cut)
    slim = _without_empty(table)
    return slim.title, slim.header, slim.rows
