"""Finished folders for tests of cards: manifests, configs and invented figures, no weights."""

import hashlib
import json
from pathlib import Path

from hf_cascade.evaluate.suite import figures, suites
from hf_cascade.shape import count_parameters

CONFIG = {
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if tools %}{{ tools }}{% endif %}"
THINKING = TEMPLATE + "{# [THINK] and [/THINK] #}"
VERSIONS = {"python": "3.11.7", "hf_cascade": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}


def folder(path: Path, run: str, parent: Path | None = None, *, config: dict | None = None, **changes) -> Path:
    """A finished folder of a stage; `changes` are entries of its cascade.json."""
    path.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **(config or {})}
    (path / "config.json").write_text(json.dumps(config))
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings")
    lineage = []
    if parent is not None and (parent / "cascade.json").is_file():
        text = (parent / "cascade.json").read_text()
        above = json.loads(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        itself = {"stage": above["stage"], "run": above["run"], "folder": parent.name, "manifest_sha256": digest}
        lineage = [*above["lineage"], itself]
    flag = "model" if run == "prune" else "model_name_or_path"
    record = {
        "schema": 1,
        "stage": path.name,
        "run": run,
        "created": "2026-11-28T13:22:52+00:00",
        "config": {"learning_rate": 1e-4, "max_length": 256} if run != "prune" else {"method": "compensated"},
        "config_sha256": "0" * 64,
        "inputs": {flag: str(parent)} if parent is not None else {},
        "output": {
            "num_parameters": count_parameters(config),
            "bytes": 2 * count_parameters(config),
            **{size: config[size] for size in sizes},
        },
        "data": None,
        "metrics": {"seconds": 83.4},
        "lineage": lineage,
        "versions": VERSIONS,
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "accelerator": None},
        "git_sha": "a" * 40,
        **changes,
    }
    (path / "cascade.json").write_text(json.dumps(record))
    return path


def line(root: Path, kind: str) -> Path:
    """A line of folders up to a model of a kind; the last one, with a chat template where it has to have one."""
    parent = folder(root / "parent", "pretrain", config={"intermediate_size": 256})
    pruned = folder(root / "small-pruned", "prune", parent)
    report = {"layer_scores": [0.5, 0.1, 0.9], "kept_layers": [0, 2], "explained_variance": [0.6, 0.9, 0.97, 1.0]}
    report |= {"hidden_size": 3, "ffn_spectra": [[0.0, 0.7, 1.0], [0.0, 0.6, 1.0]], "ffn_share": 0.5}
    (pruned / "prune_report.json").write_text(json.dumps(report))
    data = {"datasets": [{"path": "HuggingFaceFW/fineweb-edu", "name": "sample-10BT", "revision": "abc123"}]}
    data |= {"learning_rate": 5e-4, "max_length": 256}
    ledger = [{"stage": "small", "tokens": 60416, "lengths": {"window": 128, "longest": 256}}]
    inputs = {"model_name_or_path": str(pruned), "teacher_model_name_or_path": str(parent)}
    small = folder(
        root / "small", "distill", pruned, config={}, inputs=inputs, data={"tokens": 60416, "ledger": ledger}
    )
    text = json.loads((small / "cascade.json").read_text())
    text["config"] = data
    (small / "cascade.json").write_text(json.dumps(text))
    log = [{"num_tokens": 10240.0 * step, "distill/kl": 0.2 / step} for step in range(1, 6)]
    (small / "log.json").write_text(json.dumps(log))
    if kind == "base":
        return small
    tuned = folder(root / "small-sft", "sft", small)
    (tuned / "chat_template.jinja").write_text(TEMPLATE)
    if kind == "instruct":
        return tuned
    reasoning = folder(
        root / "small-reasoning", "grpo", tuned, metrics={"seconds": 117.9, "grpo/generated_tokens": 104158}
    )
    (reasoning / "chat_template.jinja").write_text(THINKING)
    return reasoning


def task(value: float, **changes) -> dict:
    """Invented figures of a task, as `run_suite` gives them."""
    data = {"openai/MMMLU/default/test": {"rows": 14042, "full_rows": 14042, "revision": "f" * 40, "sha256": "e" * 64}}
    return {
        "status": "run",
        "reason": None,
        "metric": "acc",
        "value": value,
        "stderr": 0.004,
        "chance": 0.25,
        "higher_is_better": True,
        "rows": 14042,
        "rows_full": 14042,
        "num_fewshot": 5,
        "samples_per_row": 1,
        "all": {},
        "protocol": {"chat": False, "temperature": None},
        "data": data,
        **changes,
    }


def evals(path: Path, names: list[str], tasks: dict[str, dict], paper: str | None = None, parent: dict | None = None):
    """Write evals.json with rows of shipped suites; tasks that are not given were not run."""
    found = {}
    for name in names:
        suite = suites.load(name)
        lacking = {"status": "not run", "reason": "its rows are not here: set HF_CASCADE_DATA"}
        every = {one: tasks.get(one, lacking) for one in suite.tasks}
        rows = figures.rows_of(suite, every)
        figures.set_beside(rows, suite, paper, (parent or {}).get(name, {}).get("rows"))
        found[name] = {"rows": rows, "tasks": every}
    digest = hashlib.sha256((path / "cascade.json").read_bytes()).hexdigest()
    record = {"schema": 1, "name": path.name, "teacher": "parent", "manifest_sha256": digest, "limit": None}
    record |= {"retention": 93.0, "tasks": {}, "preference": None, "comparison": None, "suites": found}
    record["heldout"] = {"perplexity": 41.2, "bits_per_byte": 1.968, "tokens": 98304, "max_length": 256, "kl": 0.075}
    record["heldout"] |= {"nll": 3.71, "top1_agreement": 0.799}
    (path / "evals.json").write_text(json.dumps(record))
    return found
