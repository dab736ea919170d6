"""One picture a suite: every benchmark's values with 95% intervals, the paper's figures, the parent's, and chance.

Thin bars are over the benchmark's rows drawn anew, thick ones over samples drawn anew for the same problems.
"""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hf_cascade.evaluate.suite.figures import RUN, Z
from hf_cascade.evaluate.suite.report import measured, parent_label
from hf_cascade.plots import COLOURS, GREY, INK, STYLE, UNDER_TITLE, key, save

LINE = 0.17  # inches from one model of a benchmark to the next
LEGEND = 66  # characters of a line of the legend
BETWEEN = 0.2  # inches from one benchmark to the next


def suites(results: dict, folder: Path) -> list[Path]:
    """
    Draw each suite of which something was run.

    Args:
        results (`dict`): results.json.
        folder (`Path`): where to.

    Returns:
        `list[Path]`: `suite_<name>.png` of each.
    """
    drawn = []
    for suite in results["suites"]:
        models = measured(results, suite)
        rows = [row for row in suite["rows"] if any(_figures(m, suite, row)["status"] == RUN for m in models)]
        if rows:
            drawn.append(folder / f"suite_{suite['name']}.png")
            with plt.rc_context(STYLE):
                save(_draw(results, suite, rows, models), drawn[-1])
    return drawn


def _draw(results: dict, suite: dict, rows: list[dict], models: list[dict]) -> Figure:
    """Percentages share a panel; a benchmark of another unit has its own below."""
    panels = [group for group in [[row for row in rows if row["scale"] != 1]] if group]
    panels += [[row] for row in rows if row["scale"] == 1]
    parent = results["suite_parent"]
    colours, place = {}, 0
    for model in models:  # the parent is black
        colours[model["name"]] = INK if model["name"] == parent else COLOURS[place % len(COLOURS)]
        place += model["name"] != parent
    shown = parent is not None and parent not in colours
    step = LINE * (len(models) + shown) + BETWEEN
    heights = [step * len(panel) for panel in panels]
    size = (8.4, 1.1 + 0.55 * len(panels) + sum(heights))
    figure, grid = plt.subplots(len(panels), 1, figsize=size, squeeze=False, height_ratios=heights)
    marks = set()
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        for line, row in enumerate(panel):
            marks |= _benchmark(axes, line, row, suite, models, colours, parent if shown else None, step)
        axes.set_yticks(range(len(panel)), [row["label"] for row in panel])
        axes.set_ylim(len(panel) - 0.5, -0.5)
        axes.tick_params(left=False)
        axes.grid(axis="y", visible=False)
        for line in range(1, len(panel)):
            axes.axhline(line - 0.5, color="#ECECEC", linewidth=1, zorder=0)
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel(_unit(panel, suite, models), fontsize=9)
    handles = [key(name, colour, "o") for name, colour in colours.items()]
    handles += [key(parent_label(parent), INK, "s")] if shown else []
    handles += [key("the paper's", GREY, "D", hollow=True)] * ("paper" in marks)
    handles += [Line2D([], [], color=GREY, linewidth=3.5, label="95%, samples drawn anew")] * ("within" in marks)
    handles += [key("chance", GREY, "|")] * ("chance" in marks)
    widest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(5, len(handles), LEGEND // (widest + 6)))
    grid[0, 0].legend(handles=handles, **UNDER_TITLE, ncols=columns, fontsize=9)
    grid[0, 0].set_title(suite["title"], pad=12 + 15 * -(-len(handles) // columns))
    return figure


def _benchmark(axes: Axes, line: int, row: dict, suite: dict, models: list, colours: dict, parent, step: float) -> set:
    """One benchmark's marks, models from top to bottom; returns the kinds of marks beside the values."""
    marks = set()
    every = [_figures(model, suite, row) for model in models]
    count = len(models) + (parent is not None)
    offsets = [(index - (count - 1) / 2) * LINE / step for index in range(count)]
    if parent is not None:
        value = next((one["parent"] for one in every if one["parent"] is not None), None)
        if value is not None:
            axes.plot(value, line + offsets[0], "s", color=INK, markersize=5, zorder=3)
        offsets = offsets[1:]
    for model, one, offset in zip(models, every, offsets, strict=True):
        colour = colours[model["name"]]
        if one["paper"] is not None:
            marks.add("paper")
            mark = {"color": colour, "markerfacecolor": "white", "markersize": 7, "zorder": 2}
            axes.plot(one["paper"], line + offset, "D", **mark)
        if one["status"] != RUN:
            continue
        reach = None if one["low"] is None else [[one["value"] - one["low"]], [one["high"] - one["value"]]]
        style = {"color": colour, "capsize": 2, "markersize": 5, "elinewidth": 1.3, "zorder": 3}
        axes.errorbar(one["value"], line + offset, xerr=reach, fmt="o", **style)
        if one["within_problem"] is not None:
            marks.add("within")
            reach = Z * one["within_problem"]
            ends = [one["value"] - reach, one["value"] + reach]
            axes.plot(ends, [line + offset] * 2, color=colour, linewidth=3.5, solid_capstyle="butt", zorder=3)
    chance = next((one["chance"] for one in every if one.get("chance") is not None), None)
    if chance is not None:
        marks.add("chance")
        axes.plot([chance, chance], [line - 0.38, line + 0.38], color=GREY, linewidth=1.5, zorder=1)
    return marks


def _unit(panel: list[dict], suite: dict, models: list[dict]) -> str:
    """What the numbers are, and which way is better."""
    run = [_figures(model, suite, row) for row in panel for model in models]
    one = next(figures for figures in run if figures["status"] == RUN)
    unit = one["metric"].replace("_", " ") if panel[0]["scale"] == 1 else "percent"
    return f"{unit}, {'higher is better →' if one['higher_is_better'] else '← lower is better'}"


def _figures(model: dict, suite: dict, row: dict) -> dict:
    return model["suites"][suite["name"]]["rows"][row["label"]]
