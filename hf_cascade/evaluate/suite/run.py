"""`run_suite`: tasks on one model, each on its own: one that cannot be run says why, and the others go on."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from hf_cascade.evaluate.backends.asking import Decoding, Unsupported
from hf_cascade.evaluate.benchmarks import data
from hf_cascade.evaluate.benchmarks.judge_settings import JudgeSettings
from hf_cascade.evaluate.harness import open_tasks, prepare, quiet
from hf_cascade.evaluate.suite.samples import GENERATED, Progress, collect
from hf_cascade.evaluate.suite.scoring import NoVerdicts, aggregate, score
from hf_cascade.evaluate.suite.settings import SuiteSettings
from hf_cascade.evaluate.suite.store import Store
from hf_cascade.rewards.running import SandboxUnavailable

RUN, NOT_RUN = "run", "not run"
# what a task may lack; anything else is a fault, of which the log has the whole trace
LACKS = (data.MissingData, data.UnusableData, Unsupported, SandboxUnavailable, ConnectionError, ImportError, NoVerdicts)
logger = logging.getLogger(__name__)


def run_suite(
    lm: LM,
    tasks: list[str],
    settings: SuiteSettings,
    folder: str | Path,
    report: Callable[[float, str], None] | None = None,
) -> dict[str, dict]:
    """
    Run tasks on a model. Under `accelerate launch` every process calls it, with a model of its own.

    Args:
        lm (`LM`): of [`open_backend`], or any other of lm-eval's.
        tasks (`list[str]`): names of tasks or groups.
        settings ([`SuiteSettings`]): how.
        folder (`str` or `Path`): answers are kept in its `samples/<task>.jsonl`; a second call asks only what is
            missing there.
        report (`Callable[[float, str], None]`, *optional*): gets the share of all tasks that is done, and what is being
            done. Without it a line is shown on a terminal.

    Returns:
        `dict[str, dict]`: figures of each task, or `{"status": "not run", "reason": ...}`. On processes but the first
        it is empty.

    Raises:
        ValueError, FileNotFoundError: an unknown task or folder, or a chat with a model that has no chat template.
    """
    tokenizer = getattr(getattr(lm, "tokenizer", None), "name_or_path", None)  # counts what tasks measure in tokens
    manager = open_tasks(tasks, settings.tasks_path, {"tokenizer": tokenizer} if tokenizer else None)
    if hasattr(lm, "check_chat"):
        if settings.chat:
            lm.check_chat(settings.system_prompt)
        lm.chat, lm.system_prompt, lm.seed = settings.chat, settings.system_prompt, settings.seed
    elif settings.chat:
        raise ValueError(f"{type(lm).__name__} renders no chats: open the model with open_backend, or leave chat out")
    results: dict[str, dict] = {}
    with settings.environment(), quiet():
        for place, name in enumerate(tasks):
            told = report and partial(_part, report, place, len(tasks))
            results |= _run(lm, name, manager, settings, Path(folder), told)
    return results


def _run(lm: LM, name: str, manager: TaskManager, settings: SuiteSettings, folder: Path, report) -> dict[str, dict]:
    """One task, or all of a group."""
    used = dict(data.used)
    loaded, reason = _attempt(lambda: _load(lm, name, manager))
    if (reason := _agreed(lm, reason)) is not None:
        return {name: {"status": NOT_RUN, "reason": reason}} if lm.rank == 0 else {}
    read = {split: entry for split, entry in data.used.items() if entry is not used.get(split)}
    found = {}
    for place, (task_name, task) in enumerate(loaded.items()):
        part = report and partial(_part, report, place, len(loaded))
        figures = _run_task(lm, task, settings, folder, Progress(task_name, part, lm.rank == 0))
        if lm.rank == 0:
            found[task_name] = figures if figures["status"] == NOT_RUN else {**figures, "data": read}
    return found


def _load(lm: LM, name: str, manager: TaskManager) -> dict[str, Task]:
    """
    A task, or all of a group, with their rows.

    Raises:
        Unsupported: it measures a longer window than the model has.
    """
    needed = ((manager.task_index[name].cfg or {}).get("metadata") or {}).get("positions", 0)
    window = getattr(lm, "max_length", None) or needed
    if window < needed:
        raise Unsupported(f"the model's window of {window:,} tokens is shorter than the one that is measured")
    return manager.load([name])["tasks"]


def _run_task(lm: LM, task: Task, settings: SuiteSettings, folder: Path, progress: Progress) -> dict:
    """One task; figures on the first process."""
    began, store, own = time.monotonic(), Store(folder, progress.task, lm.rank), _decoding(task)
    lm.barrier()  # all have read what is there before anything is written
    # every process comes to the next line, whatever happened to it
    parts = lm.gather_object(_attempt(lambda: _rows(lm, task, settings, store, progress)), dst=0)
    figures = {}
    if lm.rank == 0:
        figures = _finish(task, parts, store, getattr(lm, "failure", None))
        if figures["status"] == RUN:
            figures |= {**_described(task, settings, figures), "seconds": time.monotonic() - began}
            figures["protocol"]["task_max_gen_tokens"] = own and own.max_tokens
    lm.barrier()
    return figures


def _part(report: Callable[[float, str], None], place: int, parts: int, share: float, label: str) -> None:
    """Report the share of one of several parts."""
    report((place + share) / parts, label)


def _agreed(lm: LM, reason: str | None) -> str | None:
    """Why any process cannot go on; known to all of them."""
    if lm.world_size == 1:
        return reason
    reasons: list[str | None] = [None] * lm.world_size
    torch.distributed.all_gather_object(reasons, reason)
    return next((one for one in reasons if one is not None), None)


def _attempt(work: Callable) -> tuple:
    """What some work gives, and why it gave nothing."""
    try:
        return work(), None
    except LACKS as error:
        return None, str(error)
    except Exception as error:  # a fault in one task must not cost the others, nor let other processes wait for ever
        logger.exception("a task failed")
        return None, f"{type(error).__name__}: {error}"


def _rows(lm: LM, task: Task, settings: SuiteSettings, store: Store | None, progress: Progress) -> list[dict]:
    """Scored rows of this process."""
    if getattr(task, "MULTIMODAL", False) and not getattr(lm, "MULTIMODAL", False):
        raise Unsupported("the task has images, and this model or back end reads text only")
    configure(task, settings)
    return measure(lm, task, settings, store, progress)


def measure(lm: LM, task: Task, settings: SuiteSettings, store: Store | None, progress: Progress) -> list[dict]:
    """Ask and score the rows of this process; see [`scoring.score`]."""
    prepare(task)
    full = len(task.eval_docs)
    if full == 0:
        raise data.MissingData("the task has no rows")
    if lm.rank >= min(full, settings.limit or full):
        return []
    task.build_all_requests(limit=settings.limit, rank=lm.rank, world_size=lm.world_size)
    return score(task, collect(lm, task, settings, store, progress))


def configure(task: Task, settings: SuiteSettings) -> None:
    """
    Put the settings' decoding and number of samples in place of the task's own; a task that does not sample has one
    response to each problem.

    Raises:
        Unsupported: several samples by greedy decoding.
    """
    if task.OUTPUT_TYPE != GENERATED:
        return  # nothing is sampled
    task.set_config("generation_kwargs", {**(task.config.generation_kwargs or {}), **settings.generation()})
    greedy = _decoding(task).temperature == 0
    if settings.samples is not None and (task.config.repeats > 1 or not greedy):
        task.set_config("repeats", settings.samples)
    if task.config.repeats > 1 and greedy:
        raise Unsupported(
            f"greedy decoding would give {task.config.repeats} times one response: give --samples 1 too, or a "
            "temperature above 0"
        )


def _finish(task: Task, parts: list[tuple], store: Store, failure: str | None) -> dict:
    """Figures from the rows of all processes; writes the samples with their verdicts. `failure`: why answers lack."""
    reasons = [reason for _, reason in parts if reason is not None]
    if reasons:
        return {"status": NOT_RUN, "reason": reasons[0]}
    rows = sorted((row for part, _ in parts for row in part), key=lambda row: row["doc_id"])
    store.reload()
    store.merge(_records(rows, store))
    figures, reason = _attempt(lambda: aggregate(task, rows))
    failure = failure if any(not sample["received"] for row in rows for sample in row["samples"]) else None
    if reason:
        return {"status": NOT_RUN, "reason": f"{reason}; the last error: {failure}" if failure else reason}
    return {"status": RUN, "reason": None, **figures, "failure": failure}


def _described(task: Task, settings: SuiteSettings, figures: dict) -> dict:
    """What a task is, and how it was asked."""
    about, decoding = task.config.metadata or {}, _decoding(task)
    generated = decoding is not None
    return {
        "chance": about.get("chance"),
        "num_fewshot": about.get("num_fewshot", task.config.num_fewshot),
        "rows_full": len(task.eval_docs),
        "samples_per_row": task.config.repeats if generated else 1,
        "version": task.VERSION,
        "protocol": {
            "chat": settings.chat,
            "system_prompt": settings.system_prompt,
            "seed": settings.seed,
            "temperature": decoding and decoding.temperature,
            "top_p": decoding and decoding.top_p,
            "max_gen_tokens": decoding and decoding.max_tokens,
            "until": decoding and list(decoding.until),
        },
        "judge": _judge(figures) if "judge" in (about.get("needs") or ()) else None,
    }


def _decoding(task: Task) -> Decoding | None:
    """How a task's responses are generated; `None` of one that scores continuations."""
    return Decoding.of(task.config.generation_kwargs) if task.OUTPUT_TYPE == GENERATED else None


def _judge(figures: dict) -> dict:
    """Who judged, and what the task's scorer says of it: `failures`, `prompt_tokens`, `cost`, ..."""
    judge = JudgeSettings.from_environment()
    values = {name: one["value"] for name, one in figures["all"].items()}
    about = {name.removeprefix("judge_"): value for name, value in values.items() if name.startswith("judge_")}
    about |= {name: values[name] for name in ("swap_agreement", "position_bias") if name in values}
    return {"model": judge.model, "url": judge.url, **about}


def _records(rows: list[dict], store: Store) -> list[dict]:
    """Kept answers with their row's figures and each one's verdict."""
    records = []
    for row in rows:
        verdicts = row["verdicts"] if len(row["verdicts"]) == sum(s["received"] for s in row["samples"]) else []
        verdicts = iter(verdicts)
        for place, sample in enumerate(row["samples"]):
            record = store.get(sample["key"])
            if record is None:
                continue
            record = {**record, "doc_id": row["doc_id"], "doc_sha256": row["doc_sha256"]}
            correct, parsed = next(verdicts, (None, None))
            record |= {"correct": correct, "parsed": parsed}
            if place == 0:
                record |= {"metrics": row["metrics"], **({"judged": row["judged"]} if row["judged"] else {})}
            records.append(record)
    return records
