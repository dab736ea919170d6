"""What evaluation costs beside the model's own forward passes: the runner of suites against stock lm-eval.

    OMP_NUM_THREADS=1 python benchmarks/eval_overhead.py [--rounds 3] [--startup]

The same requests on the same model go through `lm_eval.evaluate` with lm-eval's `HFLM`, and through `run_suite`, which
also keeps every answer on disk. Times are CPU seconds of this process, so that other work on the machine hardly counts;
rounds are interleaved, and medians are printed. `forward` is the time inside the model, the floor of either.
`--startup` also times new processes until tasks can be loaded by name; stock lm-eval scans all of its own first.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM

from hf_cascade import assets
from hf_cascade.evaluate.backends.hf import HFBackend
from hf_cascade.evaluate.harness import open_tasks, quiet
from hf_cascade.evaluate.suite.run import run_suite
from hf_cascade.evaluate.suite.settings import SuiteSettings
from hf_cascade.loading import load_model, load_tokenizer

PARENT = "recipes/tiny/parent"
LIKELIHOOD, GENERATION, SAMPLED = "cascade_tiny_continuation", "overhead_greedy", "overhead_sampled"
LARGER = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
BATCH = 8
CODE = """
import json


def load(file, **_):
    from datasets import Dataset

    return {"test": Dataset.from_list([json.loads(line) for line in open(file)])}


def score(doc, results):
    return {"acc": float(bool(results))}
"""
YAML = """
task: {name}
custom_dataset: !function overhead.load
dataset_kwargs: {{file: {rows}}}
test_split: test
output_type: generate_until
doc_to_text: context
doc_to_target: context
num_fewshot: 0
generation_kwargs: {{max_gen_toks: 32, until: ["Q:"], {decoding}}}
process_results: !function overhead.score
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
STOCK = "from lm_eval.models.huggingface import HFLM; from lm_eval.tasks import TaskManager; "
STARTUP = {
    "stock lm-eval: its own tasks": STOCK + "TaskManager()",
    "stock lm-eval: our folder alone": STOCK + "TaskManager(include_path='evals/tasks', include_defaults=False)",
    "ours": "from hf_cascade.evaluate.backends.hf import HFBackend; from hf_cascade.evaluate.suite import run; "
    "run.open_tasks(['cascade_tiny'], 'evals/tasks')",
}


class Clock:
    """CPU seconds inside a model's forward."""

    def __init__(self, model):
        self.seconds, self._forward = 0.0, model.forward
        model.forward = self._timed

    def _timed(self, *args, **kwargs):
        began = time.process_time()
        output = self._forward(*args, **kwargs)
        self.seconds += time.process_time() - began
        return output


def models():
    """The recipe's parent, and a random one that is larger."""
    yield "recipes/tiny/parent", load_model(PARENT, dtype="float32")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(assets.find(PARENT), **LARGER)
    yield "random, larger", AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def write_tasks(folder: Path, rows: int) -> str:
    """Tasks that generate, and the rows of the likelihood task, in one folder."""
    shipped = assets.find("evals/tasks/tiny")
    lines = (shipped / "continuation.jsonl").read_text().splitlines()[:rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "overhead.py").write_text(CODE)
    decodings = {GENERATION: "do_sample: false", SAMPLED: "do_sample: true, temperature: 1.0, top_p: 0.95"}
    for name, decoding in decodings.items():
        (folder / f"{name}.yaml").write_text(YAML.format(name=name, rows=folder / "rows.jsonl", decoding=decoding))
    (folder / "continuation.yaml").write_text((shipped / "continuation.yaml").read_text())
    return str(folder)


def stock(model, tokenizer, task: str, tasks_path: str, rows: int):
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its bars
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH)
        evaluate(lm, open_tasks([task], tasks_path).load([task]), limit=rows, log_samples=True, bootstrap_iters=0)


def ours(model, tokenizer, task: str, tasks_path: str, rows: int):
    lm = HFBackend(model, tokenizer, batch_size=BATCH, identity="benchmark")
    with tempfile.TemporaryDirectory() as folder:
        found = run_suite(lm, [task], SuiteSettings(limit=rows, tasks_path=tasks_path), folder)
    assert found[task]["status"] == "run", found


def measure(run, *args) -> tuple[float, float]:
    """CPU seconds of a run, and of the model in it."""
    clock = args[0].clock
    clock.seconds, began = 0.0, time.process_time()
    run(*args)
    return time.process_time() - began, clock.seconds


def startup() -> None:
    """Seconds from nothing until tasks can be loaded by name, a model's class imported; in new processes."""
    print("\n| start-up | CPU s | wall s |\n|---|---|---|")
    for name, code in STARTUP.items():
        before, began = os.times(), time.perf_counter()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        wall, after = time.perf_counter() - began, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        print(f"| {name} | {cpu:.1f} | {wall:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--startup", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(PARENT)
    print(f"{arguments.rows} rows, batches of {BATCH}, medians of {arguments.rounds} rounds, CPU seconds\n")
    print("| model | requests | stock | of it forward | ours | of it forward | ours / stock | ours / its forward |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        tasks_path = write_tasks(Path(folder), arguments.rows)
        for name, model in models():
            object.__setattr__(model, "clock", Clock(model))
            for task in (LIKELIHOOD, GENERATION, SAMPLED):
                setup = (model, tokenizer, task, tasks_path, arguments.rows)
                measure(stock, *setup)  # warm
                rounds = [(measure(stock, *setup), measure(ours, *setup)) for _ in range(arguments.rounds)]
                figures = [median(pair[who][what] for pair in rounds) for who in (0, 1) for what in (0, 1)]
                ratio = median(pair[1][0] / pair[0][0] for pair in rounds)
                over = median(pair[1][0] / pair[1][1] for pair in rounds)
                cells = [
                    f"{name}, {model.num_parameters() / 1e6:.1f} M",
                    task,
                    *(f"{figure:.2f}" for figure in figures),
                ]
                print("| " + " | ".join([*cells, f"{ratio:.2f}", f"{over:.2f}"]) + " |", flush=True)
    if arguments.startup:
        startup()


if __name__ == "__main__":
    main()
