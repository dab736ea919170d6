"""The picture of models' answers against a baseline's: win-rate with its interval, loops, length."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from hf_cascade.plots import COLOURS, GREY, INK, MARKERS, STYLE, UNDER_TITLE, key, save

FILE = "preference.png"


def preference(results: dict, folder: Path) -> list[Path]:
    """Draw [`tables.answers`]; nothing where no answers were compared. Returns the file that was written."""
    if not results["comparison"]:
        return []
    with plt.rc_context(STYLE):
        save(_draw(results), folder / FILE)
    return [folder / FILE]


def _draw(results: dict) -> Figure:
    """One row a model, three panels."""
    models, baseline = results["models"], results["comparison"]["baseline"]
    found = [model["preference"] for model in models]
    figure, panels = plt.subplots(1, 3, figsize=(11, 2.2 + 0.45 * len(models)), sharey=True)
    figure.get_layout_engine().set(wspace=0.06)  # so that 100% and the next 0% keep apart
    _wins(panels[0], found, baseline)
    loops, cut = ([one[name] for one in found] for name in ("loop_rate", "truncated_rate"))
    rows = range(len(models))
    panels[1].barh(rows, loops, color=COLOURS[1], height=0.5)
    panels[1].barh(rows, cut, left=loops, color="#D9D9D9", height=0.5)
    panels[1].legend(handles=[key("loops", COLOURS[1], "s"), key("cut off", "#BBBBBB", "s")], **UNDER_TITLE, ncols=2)
    panels[1].set_xlim(0, 1)
    panels[1].xaxis.set_major_formatter(PercentFormatter(1))
    panels[1].set_xlabel("share of answers without an end")
    panels[2].barh(rows, [one["tokens"] for one in found], color=COLOURS[0], height=0.5)
    at = next(one["tokens"] for model, one in zip(models, found, strict=True) if model["name"] == baseline)
    panels[2].axvline(at, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    panels[2].set_xlabel("tokens an answer (dashed: baseline)")
    for axes, title in zip(panels, ("Win-rate", "Loops", "Length"), strict=True):
        axes.set_title(title, pad=26)
        axes.tick_params(left=False)
    panels[0].set_yticks(rows, [model["name"] for model in models])
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    return figure


def _wins(axes: Axes, found: list[dict], baseline: str) -> None:
    names = list(dict.fromkeys(name for one in found for name in one["wins"]))
    for index, name in enumerate(names):
        up = 0.18 * (index - (len(names) - 1) / 2)
        for row, one in enumerate(found):
            win = one["wins"].get(name)
            if win and win["rate"] is not None:
                colour = COLOURS[index % 6]
                axes.plot([win["low"], win["high"]], [row + up] * 2, color=colour, linewidth=2)
                axes.plot(win["rate"], row + up, MARKERS[index % 6], color=colour, markersize=7)
    handles = [key(name, COLOURS[index % 6], MARKERS[index % 6]) for index, name in enumerate(names)]
    axes.legend(handles=handles, **UNDER_TITLE, ncols=max(1, len(names)))
    axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(f"preferred to {baseline}'s answer")
