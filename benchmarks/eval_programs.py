"""How fast `cascade_mbpp` and `cascade_livecodebench` judge programs, beside plain Python processes, and how rightly.

    OMP_NUM_THREADS=1 python benchmarks/eval_programs.py --mbpp mbpp.jsonl > benchmarks/results/eval_programs_cpu.md

MBPP as published (google-research/google-research, CC BY 4.0); LiveCodeBench's rows are the synthetic ones that ship
with the project. The floor is `python` on the same program and tests, as many at a time, with nothing that keeps it in.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import livecodebench, mbpp
from hf_cascade.evaluate.benchmarks.programs import ProgramJudge

LIVECODEBENCH = "evals/rows/lighteval/code_generation_lite/v6/test.jsonl"
# code_eval, which stock lm-eval's mbpp uses, loads from the Hub; this is its rule: the response and the tests are run
# as one text, and the program has passed if nothing was raised.
RULE = "import sys\ntry:\n    exec(sys.stdin.read(), {})\nexcept BaseException:\n    sys.exit(1)\nprint('the end')\n"
STOCK_SECONDS = 3.0  # code_eval's default


def read_lines(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def plain(code: str, stdin: str = "") -> bool:
    command = [mbpp.JUDGE.backend.python, "-c", code]  # the sandbox's own, which may start faster than this one
    try:
        return not subprocess.run(command, input=stdin, text=True, capture_output=True, timeout=20).returncode
    except subprocess.TimeoutExpired:
        return False


def stock(row: dict, response: str) -> bool:
    """What the rule of stock lm-eval's mbpp says of a response."""
    code = "\n".join([response.partition("[DONE]")[0], *row["test_list"]])
    command = [sys.executable, "-c", RULE]
    try:
        ended = subprocess.run(command, input=code, text=True, capture_output=True, timeout=STOCK_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return ended.stdout.endswith("the end\n")


def rate(work, count: int, times: int) -> tuple[float, list[float]]:
    """Median of programs a second, and all of them."""
    rates = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates), rates


def print_rates(name: str, module, rows: list[dict], answers: list[str], floor, settings) -> None:
    """Programs a second of the floor, of the filter, and one by one."""
    make = type(module.JUDGE)

    def judged(workers: int):
        judge = make(module.trial, module.JUDGE.limits, workers=workers)
        judge.backend.check()
        judge.run(rows, [[answer] for answer in answers])

    def plainly():
        with ThreadPoolExecutor(settings.workers) as pool:
            list(pool.map(floor, rows, answers))

    found = [
        rate(work, len(rows), settings.times) for work in (plainly, lambda: judged(settings.workers), lambda: judged(1))
    ]
    low = found[0][0]
    cells = [f"{middle:.1f} ({min(all_of):.1f}-{max(all_of):.1f})" for middle, all_of in found]
    print(f"| {name} | {' | '.join(cells)} | {found[1][0] / low:.2f} | {found[2][0] / low:.2f} |", flush=True)


def livecodebench_floor(row: dict, answer: str) -> bool:
    """A plain process for each test on standard input; one for all tests of a method."""
    trial = livecodebench.trial(row, answer)
    if isinstance(trial.tests[0], str):
        return plain("\n".join([trial.program, trial.setup, trial.tests[0]]))
    return all([plain(trial.program, test["input"]) for test in trial.tests])


def print_verdicts(name: str, rows: list[dict], answers: list[str], workers: int) -> None:
    judge = ProgramJudge(mbpp.trial, mbpp.LIMITS, workers=workers)
    judge.run(rows, [[answer] for answer in answers])
    found = Counter(judge.verdict(row, answer).correct for row, answer in zip(rows, answers, strict=True))
    with ThreadPoolExecutor(workers) as pool:
        other = sum(pool.map(stock, rows, answers))
    print(f"| {name} | {found[1.0]} | {found[0.0]} | {found[None]} | {other} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbpp", required=True, help="mbpp.jsonl, all 974 rows")
    parser.add_argument("--workers", type=int, default=2, help="programs at a time")
    parser.add_argument("--times", type=int, default=3, help="repeats of each measurement")
    parser.add_argument("--rows", type=int, default=150, help="first rows of MBPP's test split")
    settings = parser.parse_args()
    mbpp.JUDGE.backend.check()
    everything = read_lines(settings.mbpp)
    test = [row for row in everything if 11 <= row["task_id"] <= 510][: settings.rows]
    print(f"# Programs of the evaluation\n\n{os.cpu_count()} CPUs, {platform.release()}, {settings.workers} at a time.")
    print("\n## Programs a second\n\nMedian and range of", settings.times, "runs.\n")
    print("| programs | plain processes | the task's filter | the same, one at a time | ratio | ratio, one at a time |")
    print("|---|---|---|---|---|---|")
    codes = [row["code"].replace("\r\n", "\n") for row in test]
    whole = {row["task_id"]: "\n".join([mbpp.setup_of(row), mbpp.test_of(row)]) for row in test}
    name = f"MBPP, {len(test)} solutions, 3 tests each"
    print_rates(name, mbpp, test, codes, lambda row, code: plain(f"{code}\n{whole[row['task_id']]}"), settings)
    rows = read_lines(assets.find(LIVECODEBENCH))
    answers = [livecodebench.right(row)[0] for row in rows]
    tests = sum(len(livecodebench.tests_of(*_columns(row))[0]) for row in rows)
    name = f"LiveCodeBench, {len(rows)} programs, {tests} tests"
    print_rates(name, livecodebench, rows, answers, livecodebench_floor, settings)
    print("\n## Verdicts about MBPP's test split\n")
    print(f"| {len(test)} responses | 1 | 0 | None | 1 by the rule of stock lm-eval |\n|---|---|---|---|---|")
    for place, form in enumerate(FORMS):
        print_verdicts(form, test, [mbpp.right(row)[place] for row in test], settings.workers)
    for place, form in enumerate(CHEATS):
        print_verdicts(form, test, [mbpp.wrong(row)[place] for row in test], settings.workers)
    print_verdicts("another row's solution", test, [row["code"] for row in test[1:] + test[:1]], settings.workers)


def _columns(row: dict) -> tuple[str, str, str]:
    return row["public_test_cases"], row["private_test_cases"], row["metadata"]


FORMS = ("solution", "solution, [DONE], more", "solution in a fence")  # of mbpp.right, in its order
CHEATS = ("values that equal nothing", "values that equal everything", "os._exit(0) when called")  # of mbpp.wrong


if __name__ == "__main__":
    main()
