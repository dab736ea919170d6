"""`hf-cascade evaluate --conformance`: prove the scorers of all tasks, or of some, without a model."""

import argparse
import json
import time
from pathlib import Path

from hf_cascade import progress
from hf_cascade.evaluate.conformance.prove import GREEN, NOT_RUN, prove, scorers_sha256

FLAG, NAME = "--conformance", "conformance"
COLUMNS = ("oracle", "formats", "anti-oracle", "deceptions", "thinking", "hostile", "samples", "positions", "stable")
COLUMNS += ("real responses",)
FAILED = 1  # exit status


def make_parser() -> argparse.ArgumentParser:
    """Flags beside `--conformance`."""
    parser = argparse.ArgumentParser(prog="hf-cascade evaluate --conformance", description=__doc__)
    parser.add_argument(FLAG, action="store_true", required=True, help="prove the scorers; no model is measured")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these; unset, all that hf-cascade ships")
    parser.add_argument("--output_dir", help=f"folder for {NAME}.json and {NAME}.md")
    return parser


def main(argv: list[str]) -> int:
    """
    Print a line a task, then the table; what failed, in full.

    Returns:
        `int`: 0 where everything is green, 1 otherwise.
    """
    arguments = make_parser().parse_args(argv)
    started = time.monotonic()

    def report(done: int, total: int, name: str) -> None:
        progress.report(done, total, label=f"conformance: {name}")
        left = (time.monotonic() - started) / done * (total - done) if done else None
        print(f"{done}/{total} {name}" + (f"  about {left:.0f} s left" if left is not None else ""), flush=True)

    tasks = [name for given in arguments.tasks or () for name in given.split(",") if name]  # lm-eval's way too
    proved = prove(tasks or None, report)
    print(table(proved))
    for name, task in proved.items():
        for line in [task["reason"]] * (task["status"] == NOT_RUN) + task["failed"]:
            print(f"{name}: {line}")
    if arguments.output_dir:
        folder = Path(arguments.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        record = {"scorers_sha256": scorers_sha256(), "tasks": proved}
        (folder / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (folder / f"{NAME}.md").write_text(table(proved) + "\n", encoding="utf-8")
    red = [name for name, task in proved.items() if task["status"] != GREEN]
    print(f"{len(proved) - len(red)} of {len(proved)} tasks are green" + (f"; not: {', '.join(red)}" if red else ""))
    return FAILED if red else 0


def table(proved: dict[str, dict]) -> str:
    """Markdown: a row a task, a column a check, passed of all."""
    columns = [column for column in COLUMNS if any(column in task["checks"] for task in proved.values())]
    lines = [f"| task | {' | '.join(columns)} | |", "|---" + "|---:" * len(columns) + "|---|"]
    for name, task in proved.items():
        counts = [task["checks"].get(column) for column in columns]
        cells = ["" if count is None else f"{count[0]}/{count[1]}" for count in counts]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {task['status']} |")
    return "\n".join(lines)
