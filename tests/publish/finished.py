"""A finished folder in small: a real model of a few thousand weights, its manifest, and evals.json as it is written."""

import json
from functools import cache
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from hf_cascade import companions, manifest
from hf_cascade.evaluate.suite import figures, suites
from tests.data.tiny import tokenizer

SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 40}
TEXT = {"text.jsonl": "7" * 64}
PARENT = {"continuation": 50.0, "bits per byte": 2.0}


def model_folder(folder: Path, shards: bool = False) -> Path:
    """A model with its tokenizer, and the manifest of the stage that made it; no evaluation yet."""
    torch.manual_seed(0)
    config = LlamaConfig(num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32, **SIZES)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="8KB" if shards else "50GB")
    tokenizer().save_pretrained(folder)
    GenerationConfig().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}\n")
    told = manifest.write(
        folder,
        stage="3b",
        run="distill",
        config={"datasets": [{"path": "json", "data_files": "text.jsonl", "split": "train"}]},
        inputs={"model_name_or_path": "org/parent"},
        metrics={"seconds": 1.0},
        output=manifest.describe(folder, model.num_parameters()),
    )
    (folder / manifest.FILE).write_text(json.dumps({**told, "text_sha256": TEXT}))  # as where the file is here
    return folder


def task(value: float = 0.5, **changes) -> dict:
    """The runner's figures of one task that is scored by log-likelihood."""
    found = {"status": "run", "reason": None, "metric": "acc", "value": value, "stderr": 0.01, "within_problem": None}
    found |= {"higher_is_better": True, "chance": None, "num_fewshot": None, "rows": 100, "rows_full": 100}
    found |= {"samples_per_row": 1, "samples": 100, "distinct": None, "unparsed": None, "unfinished": None}
    found |= {"truncated": None, "looped": None, "output_tokens": None, "thinking_tokens": None, "pass_at": {}}
    found |= {"maj_at": {}, "all": {}, "data": {}, "version": 1, "seconds": 1.0, "protocol": {"temperature": None}}
    return {**found, "judge": None, **changes}


def sampled(value: float = 0.9, k: int = 16, **changes) -> dict:
    """Of one whose responses are sampled: 30 problems."""
    found = {"metric": "avg_at_k", "rows": 30, "rows_full": 30, "samples_per_row": k, "samples": 30 * k}
    found |= {"distinct": 1.0, "unparsed": 0.0, "unfinished": 0.0, "truncated": 0.0, "within_problem": 0.0}
    return task(value, **{**found, "num_fewshot": 0, "protocol": {"temperature": 0.7}, **changes})


def judged(value: float, metric: str, failures: float = 0.0, agreement: float | None = None, **changes) -> dict:
    """Of one that a judge scores."""
    every = {"judge_failures": {"value": failures, "stderr": None}}
    if agreement is not None:
        every["swap_agreement"] = {"value": agreement, "stderr": None}
    judge = {"model": "judge", "url": "http://127.0.0.1:8000/v1"}
    return sampled(value, 1, **{"metric": metric, "all": every, "judge": judge, "within_problem": None, **changes})


def tiny_tasks() -> dict[str, dict]:
    """Figures of the suite `tiny`."""
    bits = {"metric": "bits_per_byte", "higher_is_better": False}
    return {"cascade_tiny_continuation": task(0.45, metric="acc_bytes"), "cascade_tiny_bits": task(2.1, **bits)}


def record(folder: Path, name: str = "tiny", tasks: dict | None = None, parent: dict | None = None, **changes) -> dict:
    """Write evals.json, with the rows that the evaluation makes of tasks' figures."""
    tasks = tiny_tasks() if tasks is None else tasks
    suite = suites.load(name)
    rows = figures.rows_of(suite, tasks)
    parent = PARENT if parent is None else parent
    told = {label: {"status": "run", "value": value} for label, value in parent.items()}
    figures.set_beside(rows, suite, None, told)
    evals = {"schema": 1, "teacher": "parent", "retention": 90.0, "heldout": {"perplexity": 40.0}}
    evals |= {"weights_sha256": manifest.weights_sha256(folder), "suites": {name: {"rows": rows, "tasks": tasks}}}
    evals["companions"] = companions.digests(folder)
    proofs = {one: {"status": "green", "reason": None} for one in tasks}
    evals |= {"conformance": {"scorers_sha256": scorers(), "tasks": proofs}, **changes}
    (folder / "evals.json").write_text(json.dumps(evals))
    return evals


@cache
def scorers() -> str:
    """Of the scorers that are installed."""
    from hf_cascade.evaluate.conformance.prove import scorers_sha256

    return scorers_sha256()
