"""A task's requests, answered: by what is kept from an earlier run, and by the model for the rest."""

import copy
import sys
import time
import uuid
from collections.abc import Callable

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from lm_eval.api.task import Task
from tqdm import tqdm

from hf_cascade.evaluate.backends.asking import Decoding, Response
from hf_cascade.evaluate.suite.settings import SuiteSettings
from hf_cascade.evaluate.suite.store import Store, key_of

GENERATED = "generate_until"
EVERY_SECONDS = 60.0  # between two lines in a log; ours


class Progress:
    """
    How many of a task's requests are answered: to `report` (share, and what is left in words), as a bar on a terminal,
    or where neither is there, as of a batch job, as a line a minute.
    """

    def __init__(self, task: str, report: Callable[[float, str], None] | None = None, shown: bool = True):
        self.task, self.report, self.shown = task, report, shown
        self._bar = None

    def start(self, total: int, known: int) -> None:
        """Requests of the task, and those that need not be asked."""
        self.total, self.done, self.known, self._started = total, known, known, time.monotonic()
        self._told = self._started
        if self.shown and self.report is None and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=known, desc=self.task, unit=" answers", leave=False)
        self._tell()

    def step(self, following: int = 0) -> None:
        """One more is answered; `following` others will be told right after it, and what is left is told with them."""
        self.done += 1
        if self._bar is not None:
            self._bar.update()
        if not following:
            self._tell()

    def close(self) -> None:
        """No more will be."""
        if self._bar is not None:
            self._bar.close()

    def _tell(self) -> None:
        if not self.shown or self._bar is not None:
            return
        now = time.monotonic()
        if self.report is None and now - self._told < EVERY_SECONDS:
            return
        self._told, new = now, self.done - self.known
        label = f"{self.task}: {self.done:,} of {self.total:,} answers"
        if new and self.done < self.total:
            label += f", {_duration((now - self._started) / new * (self.total - self.done))} left"
        if self.report is None:
            print(label, file=sys.stderr, flush=True)
        else:
            self.report(self.done / max(1, self.total), label)


class _Hook(CacheHook):
    """lm-eval's models tell this one each log-likelihood as soon as they have it."""

    def __init__(self, waiting: list[Instance], keep: Callable[[Instance, object], None]):
        super().__init__(None)
        self.keep = keep
        self.waiting: dict[tuple, list[Instance]] = {}
        for request in waiting:
            if request.request_type != GENERATED:
                self.waiting.setdefault((request.request_type, *request.args), []).append(request)

    def add_partial(self, attr: str, req, res) -> None:
        """lm-eval's hook: keep the result `res` of a request `req` of kind `attr`."""
        if attr != GENERATED:
            for request in self.waiting.pop((attr, *req), ()):
                self.keep(request, res)


def collect(lm: LM, task: Task, settings: SuiteSettings, store: Store | None, progress: Progress) -> list[Instance]:
    """
    Answer all requests of this process.

    Args:
        lm (`LM`): the model.
        task (`Task`): with its requests built; the answers go to the `resps` of its instances.
        settings ([`SuiteSettings`]): how.
        store ([`Store`], *optional*): what is kept.
        progress ([`Progress`]): is told.

    Returns:
        `list[Instance]`: one for each sample, with `key`, `repeat` and `known` ([`Response`]'s attributes), in order;
        its `resps` is empty where no answer came.
    """
    identity = getattr(lm, "identity", None) or f"unknown {uuid.uuid4()}"  # never taken for an earlier model
    asked = [one for instance in task.instances for one in _copies(instance, identity, settings)]
    for one in asked:
        record = store and store.get(one.key)
        if record is not None:
            one.resps.append(_answer(record))
            one.known = {name: record[name] for name in Response.FIELDS if name in record}
    waiting = [one for one in asked if not one.resps]
    progress.start(len(asked), len(asked) - len(waiting))

    def keep(request: Instance, answer) -> None:
        if answer is not None and not request.resps:
            request.resps.append(answer)
            request.known = _known(lm, request, answer)
            if store is not None:
                store.add(_record(request, answer))
        progress.step(getattr(lm, "following", 0) if request.request_type == GENERATED else 0)

    try:
        for kind in dict.fromkeys(one.request_type for one in waiting):
            _ask(lm, kind, [one for one in waiting if one.request_type == kind], keep)
    finally:
        progress.close()
        if store is not None:
            store.close()
    for one in asked:
        one.original.resps.extend(one.resps)
    return asked


def _ask(lm: LM, kind: str, requests: list[Instance], keep: Callable) -> None:
    """Ask the model; what it does not report by itself is kept when it returns."""
    told = set()

    def once(request: Instance, answer) -> None:
        if id(request) not in told:
            told.add(id(request))
            keep(request, answer)

    before = lm.cache_hook
    lm.set_cache_hook(_Hook(requests, once))
    if hasattr(lm, "on_response"):
        lm.on_response = once
    try:
        answers = getattr(lm, kind)(requests)
    finally:
        lm.set_cache_hook(before)
        if hasattr(lm, "on_response"):
            lm.on_response = None
    for request, answer in zip(requests, answers, strict=True):
        once(request, answer)


def _copies(instance: Instance, identity: str, settings: SuiteSettings) -> list[Instance]:
    """An instance once for each of its samples, with the key of each."""
    generated = instance.request_type == GENERATED
    seed = settings.seed if generated and Decoding.of(instance.args[1]).temperature > 0 else None
    chat = [settings.chat, settings.system_prompt]
    asked = key_of(identity, instance.request_type, *instance.args, *chat, seed)  # images are hashed once
    copies = []
    for repeat in range((instance.repeats or 1) if generated else 1):
        one = copy.copy(instance)
        one.resps, one.repeat, one.original, one.known = [], repeat, instance, {}
        one.key = key_of(asked, repeat)
        copies.append(one)
    return copies


def _record(request: Instance, answer) -> dict:
    """An answer as it is kept."""
    record = {"key": request.key, "kind": request.request_type, "doc_id": request.doc_id, "repeat": request.repeat}
    if request.request_type != GENERATED:
        answer = answer if isinstance(answer, float) else [float(answer[0]), bool(answer[1])]
        return {**record, "answer": answer, **request.known}
    return {**record, "response": str(answer), **request.known}


def _known(lm: LM, request: Instance, answer) -> dict:
    """What is known about an answer beside it."""
    if isinstance(answer, Response):
        return answer.known()
    cut = getattr(lm, "cut", None)
    return {} if cut is None or request.request_type == GENERATED else {"cut_prompt": request.args[:2] in cut}


def _answer(record: dict):
    """The answer of a record, as a model gives it."""
    if record["kind"] != GENERATED:
        answer = record["answer"]
        return answer if isinstance(answer, float) else (answer[0], answer[1])
    return Response(record["response"], **{name: record[name] for name in Response.FIELDS if name in record})


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
