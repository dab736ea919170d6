"""lm-eval tasks on a loaded model: our task folder only, offline, quiet, with progress; nothing is kept."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from lm_eval.api import task as task_module
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_cascade import assets

FEWSHOT_SEED = 1234  # lm-eval's default


@contextmanager
def quiet() -> Iterator[None]:
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


def open_tasks(tasks: list[str], tasks_path: str, metadata: dict | None = None) -> TaskManager:
    """
    The task manager for a folder of YAMLs; lm-eval's own thousands of tasks are not scanned.

    Args:
        tasks (`list[str]`): tasks or groups that must be there.
        tasks_path (`str`): the folder.
        metadata (`dict`, *optional*): for every task's loader, as lm-eval's `--metadata`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a name is no task or group in it.
    """
    folder = assets.find(tasks_path)
    manager = TaskManager(include_path=str(folder.resolve()), include_defaults=False, metadata=metadata)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        allowed = ", ".join(manager.all_tasks) or "none: it has no task YAML"
        raise ValueError(f"tasks: {', '.join(unknown)} not in {folder}; allowed are {allowed}")
    return manager


def prepare(task: Task) -> None:
    """What `lm_eval.simple_evaluate` does to a task that was loaded."""
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


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
        report (`Callable[[float], None]`, *optional*): called with the share of the tasks that is done.

    Returns:
        `dict`: task to `{"metric", "value", "stderr", "higher_is_better", "chance", "rows", "version"}`, where `metric`
        is the task's first; further metrics are in `all`, name to value and stderr.
    """
    from hf_cascade.evaluate.backends.hf import HFBackend

    with quiet():
        lm = HFBackend(model, tokenizer, batch_size=batch_size, identity="not kept")
    return score(lm, tasks, manager, limit, report)


def score(
    lm: LM,
    tasks: list[str],
    manager: TaskManager,
    limit: int | None = None,
    report: Callable[[float], None] | None = None,
) -> dict[str, dict]:
    """[`run_tasks`] for any lm-eval model."""
    from hf_cascade.evaluate.suite.run import measure
    from hf_cascade.evaluate.suite.samples import Progress
    from hf_cascade.evaluate.suite.scoring import aggregate
    from hf_cascade.evaluate.suite.settings import SuiteSettings

    results, settings = {}, SuiteSettings(limit=limit)
    with quiet():
        loaded = manager.load(tasks)["tasks"]
        for place, (name, task) in enumerate(loaded.items()):

            def told(share: float, label: str, place: int = place) -> None:
                if report is not None and share:
                    report((place + share) / len(loaded))

            figures = aggregate(task, measure(lm, task, settings, None, Progress(name, told)))
            results[name] = {
                **{name: figures[name] for name in ("metric", "value", "stderr", "higher_is_better", "rows", "all")},
                "chance": (task.config.metadata or {}).get("chance"),
                "version": task.VERSION,
            }
    return results
