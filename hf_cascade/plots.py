"""Pictures of a measured family, drawn with matplotlib's Agg backend; `pruning_plots` draws in the same style.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; series also differ in marker, and are labelled
where they stand rather than in a legend where there is room.
"""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

INK, GREY = "#222222", "#777777"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECECEC",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def family(results: dict, folder: Path) -> list[Path]:
    """
    Draw what `hf-cascade evaluate` measured (its results.json): perplexity against parameters and against tokens, and
    lm-eval scores. What was not measured is not drawn.

    Returns:
        `list[Path]`: the PNG files, in `folder`.
    """
    pictures = {}
    if results["heldout"] and results["children"]:
        pictures["perplexity_parameters.png"] = _against_parameters
        if all(_points(results, child, "total_tokens") for child in results["children"]):
            pictures["perplexity_tokens.png"] = _against_tokens
    if any(model["tasks"] for model in results["models"]):
        pictures["tasks.png"] = _scores
    for name, draw in pictures.items():
        with plt.rc_context(STYLE):
            save(draw(results), folder / name)
    return [folder / name for name in pictures]


def _against_parameters(results: dict) -> Figure:
    """One line a step; the horizontal axis names the models."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    parent = _parent(results)
    series: dict[str, list[tuple[int, float]]] = {step: [] for step in results["steps"]}
    names = {parent["num_parameters"]: [parent["name"]]} if parent else {}
    for child in results["children"]:
        for step, parameters, perplexity in _points(results, child, "num_parameters"):
            series[step].append((parameters, perplexity))
        names.setdefault(parameters, []).append(child["name"])
    labels = []
    for index, (step, points) in enumerate(series.items()):
        if points:
            colour, fill = COLOURS[index % 6], "white" if index == 0 else COLOURS[index % 6]
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(
                xs, ys, marker=MARKERS[index % 6], color=colour, markerfacecolor=fill, markersize=7, linewidth=1.5
            )
            labels.append((xs[0], ys[0], step, colour))
    for child in results["children"]:
        _, parameters, perplexity = _points(results, child, "num_parameters")[-1]
        axes.annotate(_figure(perplexity), (parameters, perplexity), **_UNDER)
    if parent:
        point = (parent["num_parameters"], parent["heldout"]["perplexity"])
        axes.plot(*point, "*", color=INK, markersize=14)
        axes.annotate(_figure(point[1]), point, **_UNDER)
    axes.set_xscale("log")
    _perplexity_axis(axes)
    _label_apart(axes, labels)
    _name_ticks(axes, names)
    axes.set(xlabel="parameters", title="Perplexity and size, stage by stage")
    return figure


def _against_tokens(results: dict) -> Figure:
    """One line a child, from its pruning through its stages; tokens are counted along the lineage."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    parent = _parent(results)
    if parent:
        axes.axhline(parent["heldout"]["perplexity"], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        label = f"{parent['name']}: {_figure(parent['heldout']['perplexity'])}"
        place = (1, parent["heldout"]["perplexity"])
        axes.annotate(label, place, xycoords=("axes fraction", "data"), **_ABOVE, ha="right", color=GREY)
    steps = {}
    for index, child in enumerate(results["children"]):
        colour = COLOURS[index % 6]
        points = _points(results, child, "total_tokens")
        axes.plot([x for _, x, _ in points], [y for *_, y in points], color=colour, linewidth=1.5, zorder=2)
        for step, tokens, perplexity in points:
            steps[step] = marker = MARKERS[results["steps"].index(step) % 6]
            fill = "white" if step == results["steps"][0] else colour
            axes.plot(tokens, perplexity, marker, color=colour, markerfacecolor=fill, markersize=7, zorder=3)
        axes.annotate(child["name"], points[0][1:], **_ABOVE, ha="center", color=colour, weight="bold")
        axes.annotate(_figure(points[-1][2]), points[-1][1:], **_RIGHT, color=colour)
    _perplexity_axis(axes)
    low, high = axes.get_xlim()
    axes.set_xlim(low - 0.05 * (high - low), high + 0.15 * (high - low))  # room for labels
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    handles = [key(step, INK, steps[step], step == results["steps"][0]) for step in results["steps"] if step in steps]
    axes.legend(handles=handles, **UNDER_TITLE, ncols=len(handles))
    axes.set_xlabel("tokens distilled, counted along each model's lineage")
    axes.set_title("Perplexity and distilled tokens", pad=26)
    return figure


def _scores(results: dict) -> Figure:
    """One panel a task, one row a model, bars of one standard error."""
    models = [model for model in results["models"] if model["tasks"]]
    tasks = list(models[0]["tasks"])
    size = (2.2 + 2.6 * len(tasks), 1.6 + 0.32 * len(models))
    figure, panels = plt.subplots(1, len(tasks), figsize=size, sharey=True, squeeze=False)
    colours = _colours(results)
    for axes, task in zip(panels[0], tasks, strict=True):
        for row, model in enumerate(models):
            score, colour = model["tasks"][task], colours.get(model["name"], INK)
            axes.errorbar(score["value"], row, xerr=score["stderr"], fmt="o", color=colour, capsize=3, markersize=6)
        first = models[0]["tasks"][task]
        if first["chance"] is not None:
            axes.axvline(first["chance"], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            place = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
            axes.annotate(
                "chance", (first["chance"], 1), xycoords=("data", "axes fraction"), **place, color=GREY, size=8
            )
        arrow = "higher is better →" if first["higher_is_better"] else "← lower is better"
        axes.set_title(task.removeprefix("cascade_"), fontsize=10, pad=18)
        axes.tick_params(left=False)
        axes.set_xlabel(f"{first['metric']}, {arrow}", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.15)
    panels[0][0].set_yticks(range(len(models)), [model["name"] for model in models])
    panels[0][0].invert_yaxis()
    return figure


UNDER_TITLE = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.99), "borderaxespad": 0.2, "columnspacing": 1.2}
# where a label stands from its point
_ABOVE = {"textcoords": "offset points", "xytext": (0, 7), "va": "bottom"}
_RIGHT = {"textcoords": "offset points", "xytext": (7, 2), "va": "bottom", "ha": "left"}
_UNDER = {"textcoords": "offset points", "xytext": (0, -9), "va": "top", "ha": "center"}


def _parent(results: dict) -> dict | None:
    return next((model for model in results["models"] if model["name"] == results["teacher"]), None)


def _points(results: dict, child: dict, key: str) -> list[tuple[str, float, float]]:
    """(step, `key` of the model, perplexity) of a child's stages, without those that lack `key`."""
    by_name = {model["name"]: model for model in results["models"]}
    stages = [(stage["step"], by_name[stage["model"]]) for stage in child["stages"]]
    return [(step, model[key], model["heldout"]["perplexity"]) for step, model in stages if model[key] is not None]


def _colours(results: dict) -> dict[str, str]:
    """Model name to the colour of its child."""
    return {
        stage["model"]: COLOURS[index % 6]
        for index, child in enumerate(results["children"])
        for stage in child["stages"]
    }


def _perplexity_axis(axes: Axes) -> None:
    """Logarithmic, with plain numbers at 1, 2, 5 times powers of ten; more of them where the range is small."""
    axes.set_yscale("log")
    low, high = (math.log(limit) for limit in axes.get_ylim())
    low, high = math.exp(low - 0.06 * (high - low)), math.exp(high + 0.06 * (high - low))  # room for labels
    axes.set_ylim(low, high)
    subdivisions = (1, 2, 5) if high > 4 * low else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    axes.yaxis.set_major_locator(LogLocator(subs=subdivisions))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.set_ylabel("held-out perplexity (log scale)")


def _label_apart(axes: Axes, labels: list[tuple[float, float, str, str]], gap: float = 0.055) -> None:
    """Write each label to the left of its point, moved up where labels would touch; `gap` in heights of the axes."""
    low, high = (math.log(limit) for limit in axes.get_xlim())
    axes.set_xlim(math.exp(low - 0.27 * (high - low)), math.exp(high + 0.04 * (high - low)))
    to_share = axes.transData + axes.transAxes.inverted()
    last = -1.0
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        across, up = to_share.transform((x, y))
        last = max(up, last + gap)
        axes.text(across - 0.02, last, text, transform=axes.transAxes, ha="right", va="center", color=colour)


def _name_ticks(axes: Axes, names: dict[int, list[str]]) -> None:
    """Ticks at the models' sizes, with their names."""
    axes.set_xticks(list(names), [f"{_count(size)}\n" + "\n".join(models) for size, models in names.items()])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def key(label: str, colour: str, marker: str, hollow: bool = False) -> Line2D:
    """An entry of a legend: a marker without a line."""
    fill = "white" if hollow else colour
    return Line2D([], [], color=colour, marker=marker, linestyle="", markerfacecolor=fill, label=label)


def _count(number: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"


def _figure(perplexity: float) -> str:
    return f"{perplexity:.1f}" if perplexity < 100 else f"{perplexity:,.0f}"


def save(figure: Figure, path: Path) -> None:
    """Write a picture, in the format of the path's ending, and forget it."""
    figure.savefig(path, dpi=150)
    plt.close(figure)
