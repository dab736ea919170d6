"""lm-eval tasks through its Python API: our task folder only, offline, quiet, with progress."""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

from lm_eval import evaluate
from lm_eval.api import task as task_module
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_cascade import assets

FEWSHOT_SEED = 1234  # lm-eval's default
BOOTSTRAP = 1000  # resamples where a standard error has no formula; lm-eval's 100,000 take minutes


class _QuietHFLM(HFLM):
    """HFLM that calls `report` with the share of a task's requests that is done, instead of drawing bars."""

    def __init__(self, *args, report: Callable[[float], None] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self._report = report
        self._done = self._total = 0

    def loglikelihood(self, requests, disable_tqdm: bool = False):
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, override_bs=None):
        self._done, self._total = 0, len(requests)
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _model_call(self, inps, *args, **kwargs):
        self._done += inps.shape[0]
        if self._report is not None and self._total:
            self._report(min(1.0, self._done / self._total))
        return super()._model_call(inps, *args, **kwargs)


@contextmanager
def _quiet():
    """No bar for each task's prompts, and no warning of what we do on purpose: a model object, a task's own loader."""
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task_module.tqdm
    logger.setLevel(logging.ERROR)
    task_module.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        task_module.tqdm = bar


def open_tasks(tasks: list[str], tasks_path: str) -> TaskManager:
    """
    The task manager for a folder of YAMLs; lm-eval's own thousands of tasks are not scanned.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a name is no task or group in it.
    """
    folder = assets.find(tasks_path)
    manager = TaskManager(include_path=str(folder.resolve()), include_defaults=False)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        allowed = ", ".join(manager.all_tasks) or "none: it has no task YAML"
        raise ValueError(f"tasks: {', '.join(unknown)} not in {folder}; allowed are {allowed}")
    return manager


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[str],
    manager: TaskManager,
    batch_size: int,
    limit: int | None = None,
    report: Callable[[float], None] | None = None,
) -> dict[str, dict]:
    """
    Run tasks on a loaded model.

    Args:
        model (`PreTrainedModel`): the model, in evaluation mode, where it should run.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        tasks (`list[str]`): tasks or groups of `manager`.
        manager (`TaskManager`): of [`open_tasks`].
        batch_size (`int`): requests at once.
        limit (`int`, *optional*): rows of each task.
        report (`Callable[[float], None]`, *optional*): called with the share of a task that is done.

    Returns:
        `dict`: task to `{"metric", "value", "stderr", "higher_is_better", "chance", "rows", "version"}`, where `metric`
        is the task's first; further metrics are in `all`, name to value and stderr.
    """
    with _quiet():
        lm = _QuietHFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, report=report)
        return score(lm, tasks, manager, limit)


def score(lm: LM, tasks: list[str], manager: TaskManager, limit: int | None = None) -> dict[str, dict]:
    """
    [`run_tasks`] for any lm-eval model.

    `lm_eval.simple_evaluate` does the same, but it also calls git and pip at every run to describe the machine; the
    manifest says that once.
    """
    loaded = manager.load(tasks)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return collect(evaluate(lm, loaded, limit=limit, log_samples=False, bootstrap_iters=BOOTSTRAP))


def collect(results: dict) -> dict[str, dict]:
    """The figures of lm-eval's answer that [`run_tasks`] returns; groups without a joint score are left out."""
    collected = {}
    for task, config in results["configs"].items():
        row = results["results"][task]
        metrics = {}
        for key, value in row.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr"):
                continue
            stderr = row.get(f"{name}_stderr,{filtered}")
            label = name if filtered == "none" else f"{name} ({filtered})"
            metrics[label] = {"value": value, "stderr": stderr if isinstance(stderr, float) else None}
        first = next(iter(metrics))
        collected[task] = {
            "metric": first,
            **metrics[first],
            "higher_is_better": results["higher_is_better"][task][first.split(" (")[0]],
            "chance": (config.get("metadata") or {}).get("chance"),
            "rows": results["n-samples"][task]["effective"],
            "version": results["versions"].get(task),
            "all": metrics,
        }
    return collected
