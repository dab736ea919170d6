"""`hf-cascade contamination`: which benchmark rows stand in the text that a model was trained on.

hf-cascade contamination --model runs/tiny/14b --suite table3 --data ~/benchmarks
hf-cascade contamination --train corpus.jsonl.gz --tasks cascade_mmlu --output_dir report
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from hf_cascade import assets, progress
from hf_cascade.data.contents import sha256_of_text
from hf_cascade.evaluate.benchmarks import data
from hf_cascade.evaluate.benchmarks.judge_settings import JudgeSettings
from hf_cascade.evaluate.contamination import sources
from hf_cascade.evaluate.contamination.overlap import Overlap
from hf_cascade.evaluate.suite.settings import SuiteSettings
from hf_cascade.rewards.running import SandboxUnavailable

NAME = "contamination"
SHOWN = 5  # examples a split in the report; contamination.json has all


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="hf-cascade contamination", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a stage's folder: the text of all its stages is read, by their cascade.json")
    parser.add_argument("--train", nargs="+", default=[], metavar="FILE", help="files or Hub ids of training text")
    parser.add_argument("--suite", nargs="+", default=[], help="suites whose rows are looked for")
    parser.add_argument("--tasks", nargs="+", default=[], help="tasks whose rows are looked for")
    parser.add_argument("--data", help=f"folder with the benchmarks' rows, instead of {data.VARIABLE}")
    parser.add_argument("--output_dir", help=f"folder for {NAME}.json and {NAME}.md; unset, the model's")
    return parser


def main(argv: list[str]) -> int:
    """
    Read everything and write the report.

    Raises:
        ValueError, FileNotFoundError: nothing to read or to look for; nothing is written.
    """
    arguments = make_parser().parse_args(argv)
    text, unknown = _text(arguments)
    folder = Path(arguments.output_dir or arguments.model or NAME)
    judge = JudgeSettings(url="http://127.0.0.1:9/v1", model="none")  # judged tasks want one; nobody is asked
    with SuiteSettings(data=arguments.data and str(assets.find(arguments.data).resolve()), judge=judge).environment():
        splits, missing = benchmark_rows(_tasks(arguments))
    if not splits:
        raise ValueError("no benchmark's rows are here: " + "; ".join(missing.values()))
    hashes = sha256_of_text({"datasets": list(text.values())})
    if arguments.model:
        _warn_of_changes(arguments.model, set(hashes.values()))
    overlap, started = Overlap(splits), time.monotonic()
    for done, (name, source) in enumerate(text.items()):
        progress.report(done, len(text), label=name)
        print(f"{done}/{len(text)} {name}", flush=True)
        overlap.read(sources.read(source), name)
    record = overlap.report() | {
        "text": list(text),
        "text_sha256": hashes,
        "unknown_text": unknown,
        "not_checked": missing,
        "seconds": time.monotonic() - started,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((f"{NAME}.json", json.dumps(record, indent=1)), (f"{NAME}.md", report_text(record))):
        draft = folder / f".{name}.partial"
        draft.write_text(content + "\n", encoding="utf-8")
        os.replace(draft, folder / name)
    print(report_text(record))
    return 0


def benchmark_rows(tasks: list[str]) -> tuple[dict, dict[str, str]]:
    """
    All rows that tasks read, their shots' too.

    Returns:
        `tuple`: split to rows, and task to the reason why its rows are not here.
    """
    from hf_cascade.evaluate.harness import open_tasks, quiet

    manager = open_tasks(tasks, "evals/tasks")
    data.used.clear()
    splits, missing = {}, {}
    for task in tasks:
        before = len(data.used)
        try:
            with quiet():
                loaded = manager.load([task])["tasks"]
            if len(data.used) == before:  # rows of its own, or read for a task before it
                splits |= {name: list(one.eval_docs) for name, one in loaded.items() if _own_rows(one)}
        except (data.MissingData, SandboxUnavailable) as error:
            missing[task] = str(error)
    for split in list(data.used):
        organisation, name, *config, part = split.split("/")
        splits[split] = data.read(f"{organisation}/{name}", part, config[0] if config else None)
    return splits, missing


def _own_rows(task) -> bool:
    """Whether a task's rows ship with it, as those of evals/tasks/tiny do."""
    return "file" in (task.config.dataset_kwargs or {})


def report_text(record: dict) -> str:
    """Markdown: a row a split, then examples, then what is not known."""
    lines = [
        f"{record['words']:,} words in {record['documents']:,} documents of {', '.join(record['text'])}.",
        "A row overlaps where training text has 13 words of it in a row; a text of 8 to 12 words counts whole, and "
        "wording that more than 10 rows share does not count. `mostly`: half of the row's 13-grams and more.",
        "",
        "| rows | all | too short | overlapping | mostly |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, split in record["splits"].items():
        lines.append(
            f"| {name} | {split['rows']} | {split['too_short']} | {split['overlapping']} | {split['mostly']} |"
        )
    for name, split in record["splits"].items():
        for example in split["examples"][:SHOWN]:
            where = f"{example['share']:.0%} of {name}, {example['row']}, first in {example['where']}"
            lines += ["", f"- {where}: \u201c{example['text']}\u201d"]
    if record["unknown_text"]:
        lines += ["", f"Text not known here, so not looked through: that of {', '.join(record['unknown_text'])}."]
    for task, reason in record["not_checked"].items():
        lines += ["", f"Not checked: {task}: {reason}"]
    return "\n".join(lines)


def _text(arguments: argparse.Namespace) -> tuple[dict[str, dict], list[str]]:
    if not arguments.model and not arguments.train:
        raise ValueError("nothing to look through: give --model (a stage's folder) or --train (files or Hub ids)")
    text, unknown = sources.of_model(arguments.model) if arguments.model else ({}, [])
    text |= {name: sources.of_file(name) for name in arguments.train}
    if not text:
        raise ValueError(f"model={arguments.model}: none of its stages names any text; give it as --train")
    return text, unknown


def _warn_of_changes(model: str, found: set[str]) -> None:
    """Files that hold other text than when a stage read them: a report on them is not one on that stage's text."""
    for sha256, (name, stage) in sources.contents_of_model(model).items():
        if sha256 not in found:
            text = f"hf-cascade: warning: {name} is not what stage {stage} read (sha256 {sha256[:12]})"
            print(f"{text}: name the file with that text by --train too, for a report on it", file=sys.stderr)


def _tasks(arguments: argparse.Namespace) -> list[str]:
    from hf_cascade.evaluate.suite import suites

    tasks = [task for name in arguments.suite for row in suites.load(name).rows for task in row.tasks]
    tasks = list(dict.fromkeys(tasks + arguments.tasks))
    if not tasks:
        raise ValueError("nothing to look for: give --suite (table2, ..., base, instruct, reasoning) or --tasks")
    return tasks
