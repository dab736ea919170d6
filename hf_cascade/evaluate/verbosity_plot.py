"""The picture of what models gain by longer answers: accuracy against output tokens, as the paper's figure 5."""

import math
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter
from matplotlib.transforms import Bbox

from hf_cascade.plots import COLOURS, GREY, MARKERS, STYLE, save

FILE = "verbosity.png"
COLUMNS = 3  # panels side by side
# where a name may stand from its point, in points: the nearest that is free
PLACES = [(sign * reach, up) for reach in (10, 18, 28) for up in (0, 10, -10, 20, -20, 30, -30) for sign in (1, -1)]
PLACES += [(0, sign * up) for up in (12, 24, 36, 48) for sign in (1, -1)]


def verbosity(results: dict, folder: Path) -> list[Path]:
    """Draw [`tables.verbosity`], a panel a reward; nothing where no rewards were given. Returns the file written."""
    if not results["comparison"] or not results["models"][0]["preference"]["verbosity"]["rewards"]:
        return []
    with plt.rc_context(STYLE):
        save(draw(results), folder / FILE)
    return [folder / FILE]


def draw(results: dict) -> Figure:
    """A point a model with its 95% intervals, arrows from stage to stage, and thin lines for smaller budgets."""
    rewards = list(results["models"][0]["preference"]["verbosity"]["rewards"])
    columns = min(COLUMNS, len(rewards))
    rows = -(-len(rewards) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(6.4 * columns, 4.6 * rows), squeeze=False)
    for axes in grid.flat[len(rewards) :]:
        axes.set_visible(False)
    drawn = [(axes, _panel(axes, results, name)) for axes, name in zip(grid.flat, rewards, strict=False)]
    figure.canvas.draw()  # sets the layout, by which names are placed
    figure.set_layout_engine("none")
    for axes, points in drawn:
        _name(axes, points)
    return figure


def _panel(axes: Axes, results: dict, reward: str) -> dict[str, tuple[Line2D, list[Bbox]]]:
    """One reward; returns the marker, and the bars as boxes, of each model that has it."""
    budgets, points, binary, top = results["comparison"]["budgets"], {}, True, 0.0
    for index, model in enumerate(results["models"]):
        spent = model["preference"]["verbosity"]
        tokens, gain = spent["tokens"], spent["rewards"][reward]
        if gain["rate"] is None:
            continue
        binary, top = binary and gain["binary"], max(top, gain["high"])
        colour, marker = COLOURS[index % 6], MARKERS[(index + index // 6) % 6]
        if gain["budget"] is not None:
            axes.plot(budgets, gain["budget"], color=colour, linewidth=1, alpha=0.55, zorder=2)
        x, y = tokens["rate"], gain["rate"]
        bars = [[(tokens["low"], y), (tokens["high"], y)], [(x, gain["low"]), (x, gain["high"])]]
        for bar in bars:
            axes.plot(*zip(*bar, strict=True), color=colour, linewidth=1.5, zorder=4)
        (point,) = axes.plot(x, y, marker, color=colour, markersize=7, zorder=4)
        points[model["name"]] = (point, [Bbox(bar) for bar in bars])
    for model in results["models"]:
        if model["name"] in points and model["previous"] in points:
            start, end = (points[name][0].get_xydata()[0] for name in (model["previous"], model["name"]))
            arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1, "shrinkA": 6, "shrinkB": 6}
            axes.annotate("", end, start, arrowprops=arrow, zorder=3)
    _axes(axes, budgets, binary, top)
    axes.set_title(reward)
    return points


def _axes(axes: Axes, budgets: list[int], binary: bool, top: float) -> None:
    """Tokens on a logarithmic scale, from the smallest to the largest budget; rewards from 0 where none is less."""
    axes.set_xscale("log")
    axes.set_xlim(budgets[0], budgets[-1] * (budgets[-1] / budgets[0]) ** 0.1)  # room for names
    subdivisions = (1, 2, 5) if budgets[-1] > 20 * budgets[0] else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axes.xaxis.set_major_locator(LogLocator(subs=subdivisions, numticks=20))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("mean output tokens  (thin line: if answers were cut there)")
    if axes.get_ylim()[0] > 0 or axes.dataLim.y0 >= 0:
        top = top or 1
        axes.set_ylim(-0.03 * top, 1.12 * top)
    if binary:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("accuracy" if binary else "mean reward")


def _name(axes: Axes, points: dict[str, tuple[Line2D, list[Bbox]]]) -> None:
    """Write each model's name beside its point, clear of points, bars, names and frame; or else a legend."""
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    taken = [bar.transformed(axes.transData).padded(4) for _, bars in points.values() for bar in bars]
    curves = [axes.transData.transform_path(line.get_path()) for line in axes.lines]
    names = []

    def cost(text: Text) -> float:
        """What a name covers; a line is no obstacle, but a place without one is better."""
        box = text.get_window_extent(renderer)
        inside = frame.x0 < box.x0 < box.x1 < frame.x1 and frame.y0 < box.y0 < box.y1 < frame.y1
        if any(map(box.overlaps, taken)) or not inside:
            return math.inf
        x, y = text.get_position()
        return math.hypot(x, y) + 5 * sum(curve.intersects_bbox(box, filled=False) for curve in curves)

    for name, (marker, _) in points.items():
        style = {"color": marker.get_color(), "weight": "bold", "fontsize": 9, "zorder": 5, "va": "center"}
        text = axes.annotate(name, marker.get_xydata()[0], PLACES[0], textcoords="offset points", **style)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        names.append(text)
        costs = {place: cost(_moved(text, place)) for place in PLACES}
        best = min(costs, key=costs.get)
        if costs[best] == math.inf or len(points) > len(COLOURS):  # then colours repeat
            for text in names:
                text.remove()
            axes.legend([marker for marker, _ in points.values()], list(points), loc="best", fontsize=8)
            return
        taken.append(_moved(text, best).get_window_extent(renderer))


def _moved(text: Text, place: tuple[float, float]) -> Text:
    """A name at an offset from its point."""
    text.set(position=place, horizontalalignment={-1: "right", 0: "center", 1: "left"}[(place[0] > 0) - (place[0] < 0)])
    return text
