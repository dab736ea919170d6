"""Limits on tools: GRPOTrainer runs them in the training process, without time limit or end to their output."""

import asyncio
import functools
import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine

from transformers.utils import get_json_schema


class ToolLimits:
    """
    Limits that tools share, and counts of what they did. Every number ours: paper silent.

    A tool that is not a coroutine runs in a daemon thread of its own, so `signal` and other state of the main thread
    are not there. Python cannot stop a thread: a call that passed its time is abandoned, and goes on beside training
    until it returns. A tool with `max_abandoned` such calls is refused until some return. Coroutines are cancelled;
    one that blocks without `await` holds the event loop, and no limit can help.

    Every error reaches the model as TRL's `{"error": ...}` and counts in TRL's tool failures.

    ```python
    limits = ToolLimits(seconds=10, max_characters=8_000)
    trainer = CascadeODPOTrainer(..., tools=[limits.wrap(search)])


    class Shop:  # an environment: its methods are wrapped where they are defined
        @limits.wrap
        def buy(self, item: str) -> str: ...
    ```

    Args:
        seconds (`float`): longest time of one call.
        max_characters (`int`): longest text of one result or error; what is cut is said behind it.
        max_abandoned (`int`): calls of one tool that may be running past their time.

    Attributes:
        counts (`dict[str, int]`): of this process since the start: `calls`, `timeouts`, `failures` (what a tool
            raised), `refused` and `cut`.

    Raises:
        ValueError: a limit that is not above 0.
    """

    def __init__(self, seconds: float, max_characters: int, max_abandoned: int = 16):
        if not 0 < seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"seconds is {seconds}: give a finite time above 0")
        if max_characters < 1 or max_abandoned < 1:
            raise ValueError(
                f"max_characters is {max_characters} and max_abandoned {max_abandoned}: give 1 or more for both"
            )
        self.seconds, self.max_characters, self.max_abandoned = seconds, max_characters, max_abandoned
        self.counts = dict.fromkeys(("calls", "timeouts", "failures", "refused", "cut"), 0)
        self._running = defaultdict(list)  # tool -> what tells whether an abandoned call still runs
        self._lock = threading.Lock()

    @property
    def abandoned(self) -> int:
        """Calls that passed their time and still run."""
        with self._lock:
            return sum(is_running() for calls in self._running.values() for is_running in calls)

    def wrap(self, tool: Callable) -> Callable:
        """
        A tool within these limits, for TRL's `tools=[...]`, with the same name, signature, docstring and type hints.

        Results are text, as TRL makes them, but for lists of content blocks, whose text blocks share
        `max_characters`. `wrap` is also a decorator, and the result's `limits` is this object.

        Args:
            tool (`Callable`): a function, a coroutine function, or a method of either kind, bound or in its class.

        Raises:
            ValueError: it is none of these, or transformers cannot describe it to the model.
        """
        if not (inspect.isfunction(tool) or inspect.ismethod(tool)):
            raise ValueError(f"a tool is a function or a method, not {tool!r}: wrap it in a function")
        try:
            get_json_schema(tool)
        except Exception as error:  # transformers raises several kinds, and typing's
            raise ValueError(
                f"tool {tool.__qualname__} cannot be described to the model: {error}. It needs a docstring that says "
                "what it does and has a Google-style `Args:` entry for each argument, and a type hint for each"
            ) from error

        if inspect.iscoroutinefunction(tool):

            @functools.wraps(tool)
            async def limited(*args, **kwargs):
                return await self._run_coroutine(tool, args, kwargs)

        else:

            @functools.wraps(tool)
            def limited(*args, **kwargs):
                return self._run_in_thread(tool, args, kwargs)

        limited.limits = self
        return limited

    def _run_in_thread(self, tool: Callable, args: tuple, kwargs: dict):
        self._admit(tool)
        results, errors = [], []

        def work():
            try:
                results.append(self._shorten(tool(*args, **kwargs)))
            except BaseException as error:  # SystemExit too: a tool must not end training
                errors.append(error)

        thread = threading.Thread(target=work, name=f"tool {tool.__name__}", daemon=True)
        thread.start()
        thread.join(self.seconds)
        if errors:
            raise self._failure(tool, errors[0])
        if not results:
            raise self._timeout(tool, thread.is_alive)
        return results[0]

    async def _run_coroutine(self, tool: Callable[..., Coroutine], args: tuple, kwargs: dict):
        self._admit(tool)

        async def work():
            try:
                return self._shorten(await tool(*args, **kwargs)), None
            except BaseException as error:  # SystemExit in a task would end TRL's event loop
                return None, error

        task = asyncio.ensure_future(work())
        try:  # not wait_for: it waits for a tool that does not heed its cancellation
            done, _ = await asyncio.wait({task}, timeout=self.seconds)
        finally:
            task.cancel()
        if not done:
            raise self._timeout(tool, lambda: not task.done())
        result, error = task.result()
        if error is not None:
            raise self._failure(tool, error)
        return result

    def _admit(self, tool: Callable) -> None:
        """Count a call, or refuse it."""
        with self._lock:
            calls = self._running[_key(tool)]
            calls[:] = [is_running for is_running in calls if is_running()]
            refused = len(calls) >= self.max_abandoned
            self.counts["refused" if refused else "calls"] += 1
        if refused:
            raise RuntimeError(
                f"tool {tool.__name__} is refused: {len(calls)} of its calls still run after {self.seconds} s"
            )

    def _timeout(self, tool: Callable, is_running: Callable[[], bool]) -> TimeoutError:
        with self._lock:
            self.counts["timeouts"] += 1
            self._running[_key(tool)].append(is_running)
        return TimeoutError(f"tool {tool.__name__} did not answer within {self.seconds} s")

    def _failure(self, tool: Callable, error: BaseException) -> Exception:
        """What a tool raised; another error where training would end by it, or its message is too long."""
        with self._lock:
            self.counts["failures"] += 1
        if not isinstance(error, Exception):
            error, cause = RuntimeError(f"tool {tool.__name__} raised {error!r}"), error
            error.__cause__ = cause
        if len(message := str(error)) > self.max_characters:
            error, cause = RuntimeError(self._cut(message, self.max_characters)), error
            error.__cause__ = cause
        return error

    def _shorten(self, result) -> str | list[dict]:
        """A result as TRL gives it to the model, within the limit."""
        if not (
            isinstance(result, list) and result and all(isinstance(part, dict) and "type" in part for part in result)
        ):
            return self._cut(str(result), self.max_characters)
        left, parts = self.max_characters, []
        for part in result:
            if part["type"] == "text":
                part = {**part, "text": self._cut(part["text"], left)}
                left = max(0, left - len(part["text"]))
            parts.append(part)
        return parts

    def _cut(self, text: str, characters: int) -> str:
        if len(text) <= characters:
            return text
        with self._lock:
            self.counts["cut"] += 1
        return f"{text[:characters]}\n[cut: {characters} of {len(text)} characters]"


def limit_tool(tool: Callable, seconds: float, max_characters: int) -> Callable:
    """A tool within limits of its own, whose counts are at `.limits.counts`: see [`ToolLimits`]."""
    return ToolLimits(seconds, max_characters).wrap(tool)


def _key(tool: Callable) -> Callable:
    """The function itself, one for all instances of an environment: what hangs in one hangs in the others."""
    return getattr(tool, "__func__", tool)
