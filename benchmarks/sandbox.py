"""What a run in the sandbox costs beside a bare process, and whether the program reward judges as a plain harness does.

    OMP_NUM_THREADS=1 python benchmarks/sandbox.py --mbpp mbpp.jsonl --humaneval HumanEval.jsonl \\
        > benchmarks/results/sandbox_cpu.md

MBPP is CC BY 4.0 (google-research/google-research, mbpp), HumanEval MIT (openai/human-eval), both as published. The
plain harness is `python` on the solution and its tests, with exit code 0 for a pass; it can be forged, but the programs
here are the data sets' own, and mutants of them: one operator, constant or condition of each is another (`mutate`).
"""

import argparse
import ast
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hf_cascade.rewards.programs import ProgramReward
from hf_cascade.rewards.sandbox import Bubblewrap, Job, Limits, UnsafeSubprocess

OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
OTHER |= {ast.Mod: ast.FloorDiv, ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt}
OTHER |= {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And}


def read_mbpp(path: str) -> list[dict]:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [
        {
            "name": f"MBPP/{row['task_id']}",
            "prompt": row["text"],
            "setup": row["test_setup_code"],
            "tests": row["test_list"],
            "solution": row["code"].replace("\r\n", "\n"),
        }
        for row in rows
    ]


def read_humaneval(path: str) -> list[dict]:
    """What stands before the function that is asked for is the setup: imports and functions that the check uses."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [
        {
            "name": row["task_id"],
            "prompt": row["prompt"],
            "setup": row["prompt"][: row["prompt"].rindex(f"def {row['entry_point']}")],
            "tests": [f"{row['test']}\ncheck({row['entry_point']})"],
            "solution": row["prompt"] + row["canonical_solution"],
        }
        for row in rows
    ]


def mutate(source: str, drawn: random.Random) -> str | None:
    """The program with one operator, constant or condition changed, or a `return` without its value."""
    tree = ast.parse(source)
    places = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in OTHER:
            places.append(lambda node=node: setattr(node, "op", OTHER[type(node.op)]()))
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
            places.append(lambda node=node: node.ops.__setitem__(0, OTHER[type(node.ops[0])]()))
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            places.append(lambda node=node: setattr(node, "value", node.value + 1))
        elif isinstance(node, ast.Return) and node.value is not None:
            places.append(lambda node=node: setattr(node, "value", ast.Constant(None)))
    if not places:
        return None
    drawn.choice(places)()
    return ast.unparse(tree)


def passes_plainly(program: str, row: dict, seconds: float) -> bool:
    """The plain harness."""
    code = "\n".join([row["setup"], program, *row["tests"]])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "main.py").write_text(code)
        command = [sys.executable, "main.py"]
        try:
            return not subprocess.run(command, cwd=folder, capture_output=True, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return False


def judge(rows: list[dict], programs: list[str], workers: int, limits: Limits) -> tuple[list, float]:
    """Rewards, and the seconds they took."""
    reward = ProgramReward(workers=workers, limits=limits)
    start = time.perf_counter()
    texts = [f"```python\n{program}\n```" for program in programs]
    columns = {name: [row[name] for row in rows] for name in ("tests", "setup")}
    return reward([row["prompt"] for row in rows], texts, **columns), time.perf_counter() - start


def seconds_each(work, times: int) -> list[float]:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def print_costs(times: int, workers: int) -> None:
    sandbox, bare = Bubblewrap(), UnsafeSubprocess()
    sandbox.check()
    python = sandbox.python
    print("\n## Seconds a run\n\nMedian (and 90th percentile) of", times, "runs, in turns, one at a time.\n")
    print(
        "| program | bare process | UnsafeSubprocess | Bubblewrap | ratio to bare | added |\n|---|---|---|---|---|---|"
    )
    programs = {"print(1)": "print(1)", "import of json, re, math": "import json, re, math; print(1)"}
    for name, code in programs.items():
        job, unsafe = Job({"main.py": code}), Job({"main.py": code}, (python, "main.py"))
        kinds = [
            lambda code=code: subprocess.run([python, "-c", code], capture_output=True, check=True),
            lambda job=unsafe: bare.run(job),
            lambda job=job: sandbox.run(job),
        ]
        taken = list(zip(*([seconds_each(kind, 1)[0] for kind in kinds] for _ in range(times)), strict=True))
        medians = [statistics.median(kind) for kind in taken]
        cells = [f"{statistics.median(kind):.3f} ({statistics.quantiles(kind, n=10)[-1]:.3f})" for kind in taken]
        added = medians[2] - medians[0]
        print(f"| `{name}` | {' | '.join(cells)} | {medians[2] / medians[0]:.2f} | {added:.3f} |", flush=True)
    print("\n## Runs a second of `print(1)`\n\n| at a time | bare process | Bubblewrap | ratio |\n|---|---|---|---|")
    for count in (1, workers):
        rates = []
        for kind in (bare, sandbox):
            job = Job({"main.py": "print(1)"}, (python, "main.py"))
            start = time.perf_counter()
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(lambda _, kind=kind, job=job: kind.run(job), range(times)))
            rates.append(times / (time.perf_counter() - start))
        print(f"| {count} | {rates[0]:.1f} | {rates[1]:.1f} | {rates[1] / rates[0]:.2f} |", flush=True)


def print_verdicts(name: str, rows: list[dict], settings) -> None:
    limits, drawn = Limits(seconds=settings.seconds), random.Random(0)
    rewards, seconds = judge(rows, [row["solution"] for row in rows], settings.workers, limits)
    counts, tests = Counter(rewards), sum(len(row["tests"]) for row in rows)
    lost = [row["name"] for row, reward in zip(rows, rewards, strict=True) if reward != 1]
    print(
        f"| {name}, {len(rows)} solutions | {counts[1.0]} | {counts[0.0]} | {counts[None]} | - |",
        f"{tests / seconds:.1f} |",
        f"Not 1: {', '.join(lost) or 'none'} |",
        flush=True,
    )
    mutants = [(row, mutant) for row in rows if (mutant := mutate(row["solution"], drawn)) is not None]
    if settings.mutants:
        mutants = drawn.sample(mutants, min(settings.mutants, len(mutants)))
    rewards, seconds = judge([row for row, _ in mutants], [mutant for _, mutant in mutants], settings.workers, limits)
    with ThreadPoolExecutor(settings.workers) as pool:
        plain = list(pool.map(lambda both: passes_plainly(both[1], both[0], 3 * settings.seconds), mutants))
    counts = Counter(rewards)
    pairs = list(zip(mutants, rewards, plain, strict=True))
    differ = [f"{row['name']} ({reward}, plain {float(truth)})" for (row, _), reward, truth in pairs if reward != truth]
    print(
        f"| {name}, {len(mutants)} mutants | {counts[1.0]} | {counts[0.0]} | {counts[None]} "
        f"| {len(mutants) - len(differ)} of {len(mutants)} | - | Differ: {', '.join(differ) or 'none'} |",
        flush=True,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbpp", help="mbpp.jsonl")
    parser.add_argument("--humaneval", help="HumanEval.jsonl")
    parser.add_argument("--times", type=int, default=100, help="runs of each kind")
    parser.add_argument("--workers", type=int, default=2, help="sandboxes at a time")
    parser.add_argument("--seconds", type=float, default=4.0, help="limit of a test")
    parser.add_argument("--mutants", type=int, default=0, help="mutants of a data set; the default is one of each row")
    parser.add_argument("--rows", type=int, default=None, help="first rows of a data set only")
    settings = parser.parse_args()
    print(f"# Sandbox\n\n{os.cpu_count()} CPUs, {platform.release()}, Python {platform.python_version()}.")
    print(subprocess.check_output(["bwrap", "--version"], text=True).strip())
    print_costs(settings.times, settings.workers)
    print("\n## Verdicts of `ProgramReward`\n\nAgreement with the plain harness; tests a second where all are run.\n")
    print("| programs | 1 | 0 | None | agreement | tests/s | |\n|---|---|---|---|---|---|---|")
    for name, path, read in (("MBPP", settings.mbpp, read_mbpp), ("HumanEval", settings.humaneval, read_humaneval)):
        if path:
            print_verdicts(name, read(path)[: settings.rows], settings)


if __name__ == "__main__":
    main()
