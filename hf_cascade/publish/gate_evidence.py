"""The gate's lines about a folder and its records: safe, complete, measured as it is, by proved scorers, not trained on
the answers."""

import json
import shlex
from pathlib import Path

from hf_cascade import companions, manifest
from hf_cascade.evaluate.suite.figures import RUN
from hf_cascade.evaluate.suite.kept import COMPANIONS
from hf_cascade.loading import VOCABULARIES
from hf_cascade.publish import tensors
from hf_cascade.publish.folder import CONFIG, CONTAMINATION, EVALS, refusals
from hf_cascade.publish.targets import MOSTLY, Targets
from hf_cascade.publish.verdict import Line

SHOWN, PROBLEMS = 3, 20  # of many things alike, and of what makes a folder unsafe; the others are counted
CONFORMANCE = "conformance"  # key of evals.json: {"scorers_sha256", "tasks": {task: {"status", "reason"}}}


def safe(folder: Path) -> Line:
    """Nothing in the folder that must never be published."""
    problems = refusals(folder)
    return Line(
        "files are safe",
        not problems,
        listed(problems, "\n                   ", "problems", PROBLEMS)
        if problems
        else "safetensors, no code, no tokens",
        "whole safetensors; no pickles, code, outward links, hidden or empty files, or tokens",
        "as each line says; what is not published anyway may be moved elsewhere" if problems else "",
        final=True,
    )


def complete(folder: Path) -> Line:
    """The stage that made the folder has finished, and what it recorded is what is there."""
    name, limit = "run is complete", f"{manifest.FILE} of a finished stage that fits the files, and a tokenizer"
    try:
        record = manifest.read(folder)
        told = record["output"]
        if not told:
            wrong = f"{manifest.FILE} is of {record['run']!r}, which makes no model"
        else:
            wrong = _differences(told, manifest.describe(folder, told.get("num_parameters")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = str(error) if isinstance(error, OSError | ValueError) else f"{manifest.FILE} has no {error}"
    if not wrong and not any(True for pattern in VOCABULARIES for _ in folder.glob(pattern)):
        wrong = f"no tokenizer: none of {', '.join(VOCABULARIES)}"
    if wrong:
        remedy = "run the stage to its end: the same command goes on where it stopped"
        if not manifest.is_finished(folder):
            remedy += "; for a model of other code, hf_cascade.manifest.write with output=manifest.describe(...)"
        return Line(name, False, wrong, limit, remedy)
    return Line(name, True, f"stage {record['stage']} ({record['run']}), {told['num_parameters']:,} parameters", limit)


def finite(folder: Path) -> Line:
    """No infinity or NaN among the weights."""
    name, limit = "weights are finite", "finite numbers only"
    if tensors.faults(folder):
        return Line(name, False, "not read: the checkpoint is not whole", limit, "mend the files first")
    found = {path.name: tensors.not_finite(path) for path in sorted(folder.glob("*.safetensors"))}
    wrong = [f"{tensor} ({file})" for file, (_, bad) in found.items() for tensor in bad]
    if wrong:
        remedy = "train again from the last good checkpoint, with a lower learning rate"
        return Line(name, False, listed(wrong, ", ", "tensors"), limit, remedy)
    return Line(name, True, f"{sum(count for count, _ in found.values()):,} numbers", limit)


def measured(folder: Path, evals: dict | None, targets: Targets) -> Line:
    """The evaluation in the folder is of the weights in the folder."""
    name, limit = "evaluation is of these weights", f"{EVALS} with the hash of {CONFIG} and the weights as they are"
    remedy = evaluate(folder, targets)
    if evals is None:
        return Line(name, False, f"no {EVALS}", limit, remedy)
    told = evals.get("weights_sha256")
    if not isinstance(told, str):
        return Line(name, False, f"{EVALS} names no weights: no suite was run", limit, remedy)
    try:
        now = manifest.weights_sha256(folder)
    except FileNotFoundError as error:
        return Line(name, False, str(error), limit, remedy)
    figure = f"sha256 {now[:12]}" if told == now else f"measured {told[:12]}, and the folder has {now[:12]}"
    return Line(name, told == now, figure, limit, "" if told == now else remedy)


def asked_alike(folder: Path, evals: dict, targets: Targets) -> Line:
    """Tokenizer, chat template, processor and generation config are those that the evaluation used."""
    name = "tokenizer and templates as measured"
    limit = f"{', '.join(companions.PARTS)} as {EVALS} has their hashes; how files are written does not count"
    told, remedy = evals.get(COMPANIONS), evaluate(folder, targets)
    if not isinstance(told, dict):
        return Line(name, False, f"{EVALS} does not say with which it was measured", limit, remedy)
    try:
        now = companions.digests(folder)
    except (OSError, ValueError) as error:
        return Line(name, False, str(error), limit, "mend that file as it was, or save it again and evaluate")
    if changed := companions.differences(told, now):
        return Line(name, False, f"since the evaluation: {', '.join(changed)}", limit, f"undo that, or {remedy}")
    return Line(name, True, ", ".join(part for part in companions.PARTS if now[part]), limit)


def proved(folder: Path, evals: dict, targets: Targets) -> Line:
    """The scorers of all tasks with figures passed their proof, and are the ones installed now."""
    from hf_cascade.evaluate.conformance.prove import GREEN, NOT_RUN, is_green, scorers_sha256  # lm-eval takes seconds

    name, limit = "scorers are proved", "conformance green for every task that was run, of the scorers installed now"
    tasks = sorted({task for task, _ in run_tasks(evals)})
    record = evals.get(CONFORMANCE)
    prove = f"hf-cascade evaluate --conformance --tasks {' '.join(tasks)}"
    again = f"{prove}\n                   and, when it is green, {evaluate(folder, targets)}"
    if not record:
        return Line(name, False, f"no conformance in {EVALS}", limit, again)
    told = record.get("tasks") or {}
    status = {task: told.get(task, {}).get("status", NOT_RUN) for task in tasks}
    if red := [f"{task}: {one}" for task, one in status.items() if one != GREEN]:
        return Line(name, False, listed(red, ", ", "tasks"), limit, again)
    if record.get("scorers_sha256") != scorers_sha256():
        figure = f"{len(tasks)} tasks were proved, by scorers, tasks or rows that have changed since"
        return Line(name, False, figure, limit, again)
    green = is_green({task: {"status": one} for task, one in status.items()})
    return Line(name, green, f"{len(tasks)} tasks", limit, "" if green else again)


def contamination(folder: Path, evals: dict, targets: Targets) -> Line | None:
    """There is a report on all training text that is known, about all rows that were run; `None` if none is wanted."""
    if targets.contamination is False:
        return None
    most = targets.contamination.get(MOSTLY)
    limit = "a report on this model's training text, about the rows that were run"
    limit += "" if most is None else f", of which at most {most:.2%} mostly stand in it"
    names = " ".join(targets.suites or sorted(evals.get("suites") or {})) or "SUITE"
    remedy = f"hf-cascade contamination --model {shlex.quote(str(folder))} --suite {names}"
    name, path = "contamination is reported", folder / CONTAMINATION
    if not path.is_file():
        return Line(name, False, f"no {CONTAMINATION}", limit, remedy)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        wrong = _not_covered(folder, report, evals)
        rows = sum(split["rows"] for split in report["splits"].values())
        mostly = sum(split["mostly"] for split in report["splits"].values())
        unknown = report["unknown_text"]
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        return Line(name, False, f"{CONTAMINATION} cannot be used: {error}", limit, remedy)
    if wrong:
        return Line(name, False, wrong, limit, remedy)
    figure = f"{mostly:,} of {rows:,} rows mostly in {len(report['text']):,} sources"
    figure += f"; text of {', '.join(map(str, unknown))} is not known" * bool(unknown)
    figure += _by_name(folder)
    if most is not None and mostly > most * rows:
        return Line(name, False, figure, limit, "take those documents out of the training text, and train again")
    return Line(name, True, figure, limit)


def run_tasks(evals: dict) -> list[tuple[str, dict]]:
    """(task, figures) of every task that was run, of all suites; the same figures once."""
    found: list[tuple[str, dict]] = []
    for suite in (evals.get("suites") or {}).values():
        for task, figures in suite["tasks"].items():
            if figures["status"] == RUN and (task, figures) not in found:
                found.append((task, figures))
    return found


def evaluate(folder: Path, targets: Targets) -> str:
    """The command that measures a folder."""
    names = " ".join(targets.suites) or "SUITE"
    parent = " --teacher PARENT" if targets.retention else ""
    return f"hf-cascade evaluate --model {shlex.quote(str(folder))} --suite {names}{parent} --output_dir REPORT"


def listed(parts: list[str], between: str, kind: str, shown: int = SHOWN) -> str:
    """The first few of many, and how many more."""
    more = len(parts) - shown
    return between.join(parts[:shown]) + (f"{between}{more} more {kind}" if more > 0 else "")


def _differences(told: dict, found: dict) -> str:
    """What of the manifest's `output` is not so in the folder."""
    wrong = [f"{key} is {found[key]}, recorded {told[key]}" for key in found if key in told and told[key] != found[key]]
    return f"the files are not those that were recorded: {listed(wrong, ', ', 'more')}" if wrong else ""


def _by_name(folder: Path) -> str:
    """Sources of local text without a recorded hash, as before it was recorded, or where they were not found."""
    from hf_cascade.evaluate.contamination.sources import without_hash  # takes seconds

    names = without_hash(str(folder))
    told = f"; by name alone, as no stage recorded hashes: {listed(names, ' and ', 'sources')}"
    return told * bool(names)


def _not_covered(folder: Path, report: dict, evals: dict) -> str:
    """Training text, or rows that were run, that a report is not about."""
    from hf_cascade.evaluate.contamination.sources import contents_of_model, of_model  # takes seconds

    text, _ = of_model(str(folder))
    if missing := sorted(set(text) - set(report["text"])):
        return f"not about {listed(missing, ', ', 'sources of text')}, which the stages read"
    recorded = contents_of_model(str(folder))
    if recorded and "text_sha256" not in report:
        return f"{CONTAMINATION} has no hashes of the text, as an older hf-cascade wrote it: run the command again"
    known = set(report.get("text_sha256", {}).values())
    if other := [name for sha256, (name, _) in recorded.items() if sha256 not in known]:
        return f"of {listed(sorted(other), ', ', 'files')} it is about another content than the stages read"
    checked, short = report["splits"], {}
    for _, figures in run_tasks(evals):
        for split, entry in (figures.get("data") or {}).items():
            if split not in checked:
                short[split] = None
            elif entry["rows"] > checked[split]["rows"]:
                short[f"{split} ({checked[split]['rows']:,} of {entry['rows']:,} rows)"] = None
    return f"not about {listed(list(short), ', ', 'splits')}" if short else ""
