"""online/tools.py: a tool stays itself within its limits, and neither hangs, ends nor floods training."""

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers.utils import get_json_schema
from trl.trainer.utils import is_async_callable

from hf_cascade.online.tools import ToolLimits, limit_tool

SHORT = 0.05  # seconds


def add(first: int, second: int = 1) -> int:
    """
    Adds two numbers.

    Args:
        first: The first number.
        second: The second number.
    """
    return first + second


async def fetch(page: str) -> str:
    """
    Reads a page.

    Args:
        page: Its name.
    """
    await asyncio.sleep(0)
    return page * 3


class Shop:
    """An environment."""

    def __init__(self):
        self.bought = []

    def buy(self, item: str) -> list:
        """
        Buys something.

        Args:
            item: What to buy.
        """
        self.bought.append(item)
        return list(self.bought)


def tool_that(action):
    """A tool without arguments that does `action`."""

    def tool():
        """Does something."""
        return action()

    return tool


def async_tool_that(action):
    """A coroutine function that awaits `action()`."""

    async def tool():
        """Does something."""
        return await action()

    return tool


def raise_(error):
    raise error


@pytest.fixture
def gate():
    """An event that hanging tools wait for; opened at the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("tool", [add, fetch, Shop().buy, Shop.buy], ids=lambda tool: tool.__qualname__)
def test_transformers_and_trl_see_the_same_tool(tool):
    limited = limit_tool(tool, 10, 100)
    assert get_json_schema(limited) == get_json_schema(tool)
    assert limited.__name__ == tool.__name__ and inspect.signature(limited) == inspect.signature(tool)
    assert inspect.isfunction(limited)  # what chat templates take
    assert is_async_callable(limited) == inspect.iscoroutinefunction(limited) == inspect.iscoroutinefunction(tool)


def test_results_are_the_text_that_trl_makes():
    assert limit_tool(add, 10, 100)(first=2, second=3) == "5"
    assert limit_tool(add, 10, 100)(2) == "3"
    assert asyncio.run(limit_tool(fetch, 10, 100)(page="ab")) == "ababab"
    for result in (None, {"a": 1}, [1, "b"], [], [{"no": "type"}]):
        assert limit_tool(tool_that(lambda result=result: result), 10, 100)() == str(result)


def test_methods_of_environments():
    shop, limits = Shop(), ToolLimits(10, 100)
    assert limits.wrap(shop.buy)(item="tea") == "['tea']"
    wrapped = type("Wrapped", (Shop,), {"buy": limits.wrap(Shop.buy)})
    mine, other = wrapped(), wrapped()
    mine.buy("milk")
    assert (mine.buy(item="bread"), other.buy(item="salt")) == ("['milk', 'bread']", "['salt']")
    assert [name for name, _ in inspect.getmembers(wrapped, inspect.isfunction) if name == "buy"] == ["buy"]
    assert limits.counts["calls"] == 4


def test_a_hanging_tool_is_left_and_then_refused(gate):
    limits = ToolLimits(SHORT, 100, max_abandoned=2)
    hang, fine = limits.wrap(tool_that(gate.wait)), limits.wrap(add)
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"tool tool did not answer within 0.05 s"):
            hang()
    with pytest.raises(RuntimeError, match="tool tool is refused: 2 of its calls still run"):
        hang()
    assert fine(1) == "2"  # another tool is not refused
    assert limits.counts == {"calls": 3, "timeouts": 2, "failures": 0, "refused": 1, "cut": 0}
    assert limits.abandoned == 2
    gate.set()
    for thread in [thread for thread in threading.enumerate() if thread.name == "tool tool"]:
        thread.join()
    assert limits.abandoned == 0 and hang() == "True"  # taken again once they returned


def test_instances_of_an_environment_share_their_abandoned_calls(gate):
    class Slow:
        def look(self) -> str:
            """Looks."""
            gate.wait()

    limits = ToolLimits(SHORT, 100, max_abandoned=1)
    with pytest.raises(TimeoutError):
        limits.wrap(Slow().look)()
    with pytest.raises(RuntimeError, match="refused"):
        limits.wrap(Slow().look)()


def test_a_hanging_coroutine_is_cancelled():
    seen = []

    async def hang():
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main():
        with pytest.raises(TimeoutError, match="did not answer"):
            await limited()
        await asyncio.sleep(0)
        assert seen == ["cancelled"]  # before the loop's own end cancels what is left

    limited = limit_tool(async_tool_that(hang), SHORT, 100)
    asyncio.run(main())
    assert limited.limits.counts["timeouts"] == 1 and limited.limits.abandoned == 0


def test_a_coroutine_that_ignores_its_cancellation_is_left():
    async def main():
        release = asyncio.Event()

        async def stubborn():
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

        limits = ToolLimits(SHORT, 100, max_abandoned=1)
        limited = limits.wrap(async_tool_that(stubborn))
        with pytest.raises(TimeoutError):
            await limited()
        await asyncio.sleep(0)
        assert limits.abandoned == 1
        with pytest.raises(RuntimeError, match="refused"):
            await limited()
        release.set()

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.parametrize("error", [KeyError("k"), TimeoutError("own"), ValueError("v")], ids=repr)
def test_errors_of_tools_are_raised_as_they_are(error):
    limited = limit_tool(tool_that(lambda: raise_(error)), 10, 100)
    with pytest.raises(type(error)) as caught:
        limited()
    assert caught.value is error
    assert limited.limits.counts["failures"] == 1 and limited.limits.counts["timeouts"] == 0

    async def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        asyncio.run(limit_tool(async_tool_that(fail), 10, 100)())
    assert caught.value is error


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
def test_a_tool_cannot_end_training(error):
    with pytest.raises(RuntimeError, match=f"tool tool raised {type(error).__name__}"):
        limit_tool(tool_that(lambda: raise_(error)), 10, 100)()

    async def leave():
        raise error

    async def main():  # as TRL gathers them
        return await asyncio.gather(limit_tool(async_tool_that(leave), 10, 100)(), fetch("a"), return_exceptions=True)

    failed, fine = asyncio.run(main())
    assert isinstance(failed, RuntimeError) and type(error).__name__ in str(failed) and fine == "aaa"


def test_an_object_whose_text_cannot_be_had_is_the_tools_error():
    class Broken:
        def __str__(self):
            raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):  # TRL's own str() stands outside its try
        limit_tool(tool_that(Broken), 10, 100)()


def test_long_results_are_cut_with_a_note():
    for result in ("abcdef" * 1000, ["abcdef"] * 1000):
        limited = limit_tool(tool_that(lambda result=result: result), 10, 10)
        assert limited() == f"{str(result)[:10]}\n[cut: 10 of {len(str(result))} characters]"
        assert limited.limits.counts["cut"] == 1
    exact = limit_tool(tool_that(lambda: "a" * 10), 10, 10)
    assert exact() == "a" * 10 and exact.limits.counts["cut"] == 0
    with pytest.raises(RuntimeError, match=r"^eeeeeeeeee\n\[cut: 10 of 5000 characters\]$"):
        limit_tool(tool_that(lambda: raise_(ValueError("e" * 5000))), 10, 10)()


def test_content_blocks_pass_with_their_text_cut():
    image = object()
    blocks = [{"type": "text", "text": "abcdef"}, {"type": "image", "image": image}, {"type": "text", "text": "ghijkl"}]
    limited = limit_tool(tool_that(lambda: blocks), 10, 8)
    assert limited() == [
        {"type": "text", "text": "abcdef"},
        {"type": "image", "image": image},
        {"type": "text", "text": "gh\n[cut: 2 of 6 characters]"},
    ]
    assert blocks[2]["text"] == "ghijkl"  # the tool's own list is not changed
    assert limit_tool(tool_that(lambda: blocks), 10, 100)() == blocks


def test_calls_from_many_threads_and_tasks_are_all_counted():
    limits = ToolLimits(10, 100)
    sync, coroutine = limits.wrap(add), limits.wrap(fetch)

    async def main():
        return await asyncio.gather(*(coroutine(str(number)) for number in range(50)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(sync, range(200))) == [str(number + 1) for number in range(200)]
    assert asyncio.run(main()) == [str(number) * 3 for number in range(50)]
    assert limits.counts["calls"] == 250 and limits.counts["failures"] == 0


def test_hanging_calls_at_once_take_the_time_of_one():
    async def hang():
        await asyncio.sleep(1000)

    async def main():
        limited = limit_tool(async_tool_that(hang), 0.2, 100)
        return await asyncio.gather(*(limited() for _ in range(50)), return_exceptions=True)

    results = asyncio.run(asyncio.wait_for(main(), 5))  # one after the other: 10 s
    assert len(results) == 50 and all(isinstance(result, TimeoutError) for result in results)


def undocumented(first: int):
    return first


def unhinted(first):
    """
    Does.

    Args:
        first: A number.
    """


def undescribed(first: int):
    """Does."""


@pytest.mark.parametrize("tool", [undocumented, unhinted, undescribed], ids=lambda tool: tool.__name__)
def test_tools_that_the_model_cannot_be_told_of_are_refused(tool):
    with pytest.raises(ValueError, match=f"tool {tool.__name__} cannot be described to the model: .*needs a docstring"):
        limit_tool(tool, 10, 100)


@pytest.mark.parametrize("tool", ["search", None, len, Shop, Shop()], ids=["str", "None", "builtin", "class", "object"])
def test_only_functions_and_methods(tool):
    with pytest.raises(ValueError, match="a tool is a function or a method, not"):
        limit_tool(tool, 10, 100)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_the_time_must_be_above_zero(seconds):
    with pytest.raises(ValueError, match="seconds is .*: give a finite time above 0"):
        ToolLimits(seconds, 100)


@pytest.mark.parametrize("limits", [(0, 1), (1, 0)])
def test_the_other_limits_must_be_above_zero(limits):
    with pytest.raises(ValueError, match="give 1 or more for both"):
        ToolLimits(1, *limits)
