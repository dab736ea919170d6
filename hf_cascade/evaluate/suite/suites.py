"""A suite: benchmarks measured together, as one table of the paper or several (paper section 6), from `evals/suites`.

```yaml
title: "Table 2: base models"
chat: false              # whether prompts go through the chat template
include: [table3]        # rows of other suites, first
rows:
  - task: cascade_triviaqa           # or `tasks: [...]`, whose mean is the row
    label: TriviaQA 5-shot
    metric: acc                      # unset, the task's first
    scale: 100                       # from the task's unit to the row's; default 100: percent
    published: {table: table2, row: TriviaQA 5-shot}     # of evals/published, if the paper has it
```
"""

from dataclasses import dataclass

import yaml

from hf_cascade import assets
from hf_cascade.evaluate.suite import published

FOLDER = "evals/suites"
_KEYS = ("title", "chat", "include", "rows")
_ROW_KEYS = ("task", "tasks", "label", "metric", "scale", "published")


@dataclass(frozen=True)
class Row:
    """
    One benchmark of a suite.

    Attributes:
        label (`str`): what reports call it.
        tasks (`tuple[str, ...]`): lm-eval tasks; of several the mean is the row's value.
        metric (`str`, *optional*): the tasks' metric; `None` is each task's first.
        scale (`float`): the row's value is the metric's times this.
        published (`tuple[str, str]`, *optional*): table and row of [`published`].
    """

    label: str
    tasks: tuple[str, ...]
    metric: str | None = None
    scale: float = 100
    published: tuple[str, str] | None = None


@dataclass(frozen=True)
class Suite:
    """
    Benchmarks measured together.

    Attributes:
        name (`str`): of its file.
        title (`str`): for reports.
        chat (`bool`): whether prompts go through the model's chat template.
        rows (`list[Row]`): in the order of the table.
    """

    name: str
    title: str
    chat: bool
    rows: list[Row]

    @property
    def tasks(self) -> list[str]:
        """All tasks, each once."""
        return list(dict.fromkeys(task for row in self.rows for task in row.tasks))


def names() -> list[str]:
    """Suites that ship with the project."""
    return sorted(path.stem for path in assets.find(FOLDER).glob("*.yaml"))


def load(name: str, _within: tuple[str, ...] = ()) -> Suite:
    """
    Read a suite.

    Args:
        name (`str`): `table3`, `base`, ...

    Raises:
        ValueError: there is no such suite, or its file is not what this module's docstring says.
    """
    if name not in names():
        raise ValueError(f"suite={name}: there is none of that name; allowed are {', '.join(names())}")
    if name in _within:
        raise ValueError(f"{FOLDER}/{name}.yaml includes itself: {' > '.join((*_within, name))}")
    where = f"{FOLDER}/{name}.yaml"
    given = yaml.safe_load((assets.find(FOLDER) / f"{name}.yaml").read_text(encoding="utf-8"))
    _check_keys(given, _KEYS, where)
    included = [load(other, (*_within, name)) for other in given.get("include", [])]
    own = [_row(row, where) for row in given.get("rows", [])]
    rows = _merge([*(row for suite in included for row in suite.rows), *own], where)
    chats = {suite.chat for suite in included} | ({given["chat"]} if "chat" in given else set())
    if len(chats) > 1:
        raise ValueError(f"{where}: some rows are measured through the chat template and some are not; make two suites")
    return Suite(name, given.get("title", name), bool(chats and chats.pop()), rows)


def check_tasks(suite: Suite, known: dict[str, list[str] | None], where: str) -> None:
    """
    Refuse a suite of tasks or metrics that do not exist.

    Args:
        suite (`Suite`): the suite.
        known (`dict[str, list[str]]`): tasks that exist, with their metrics; `None` where they are not known.
        where (`str`): their folder, for the message.

    Raises:
        ValueError: a task or metric is not there.
    """
    unknown = [task for task in suite.tasks if task not in known]
    if unknown:
        raise ValueError(
            f"suite {suite.name}: {', '.join(unknown)} not in {where}; it has {', '.join(sorted(known)) or 'no task'}"
        )
    for row in suite.rows:
        for task in row.tasks:
            if row.metric is not None and known[task] is not None and row.metric not in known[task]:
                has = ", ".join(known[task])
                raise ValueError(f"suite {suite.name}, {row.label}: {task} has no metric {row.metric}; it has {has}")


def _row(given, where: str) -> Row:
    _check_keys(given, _ROW_KEYS, f"{where}, a row")
    tasks = given["tasks"] if "tasks" in given else [given.get("task")]
    texts = isinstance(tasks, list) and tasks and all(isinstance(task, str) for task in tasks)
    if ("task" in given) == ("tasks" in given) or not texts or not isinstance(given.get("label"), str):
        raise ValueError(f"{where}: {given}: a row has a `label`, and either `task` or a list `tasks`")
    scale = given.get("scale", 100)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or scale <= 0:
        raise ValueError(f"{where}, {given['label']}: scale={scale!r}: give a number above 0")
    place = None
    if "published" in given:
        _check_keys(given["published"], ("table", "row"), f"{where}, {given['label']}: published")
        place = (given["published"].get("table"), given["published"].get("row"))
        published.check(*place)
    return Row(given["label"], tuple(tasks), given.get("metric"), scale, place)


def _merge(rows: list[Row], where: str) -> list[Row]:
    """Rows that two included suites share, once; two different rows of one label are refused."""
    merged: dict[str, Row] = {}
    for row in rows:
        known = merged.setdefault(row.label, row)
        if (known.tasks, known.metric, known.scale) != (row.tasks, row.metric, row.scale):
            raise ValueError(f"{where}: two rows are called {row.label}; give one of them another label")
    if not merged:
        raise ValueError(f"{where} has no rows: give `rows` or `include`")
    return list(merged.values())


def _check_keys(given, allowed: tuple[str, ...], where: str) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: {given!r} is not a mapping; its keys are {', '.join(allowed)}")
    unknown = [str(key) for key in given if key not in allowed]
    if unknown:
        raise ValueError(f"{where}: there is no key {', '.join(unknown)}; allowed are {', '.join(allowed)}")
