"""What a run of online training did, over its steps: `progress.json` and `progress.png` beside the model."""

import json
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from hf_cascade.plots import COLOURS, GREY, STYLE, save


@dataclass(frozen=True)
class Report:
    """
    Which metrics are kept and drawn.

    Args:
        panels (`tuple[tuple, ...]`): of each picture the title, the metrics (`*` is any text), and the value of the
            starting policy where it is known. Two stand in a row.
        kept (`tuple[str, ...]`): first letters of what `progress.json` keeps, `eval_` left out.
        told (`tuple[str, ...]`): first letters of what is returned.
    """

    panels: tuple[tuple[str, tuple[str, ...], float | None], ...]
    kept: tuple[str, ...]
    told: tuple[str, ...]

    def write(self, log_history: list[dict], folder: Path) -> dict[str, float]:
        """Keep and draw `trainer.state.log_history` in `folder`; the last values that are `told`, for the manifest."""
        wanted = [{key: entry[key] for key in entry if self._is_wanted(key)} for entry in log_history]
        entries = [entry for entry in wanted if set(entry) - {"step", "epoch"}]
        (folder / "progress.json").write_text(json.dumps(entries, indent=1))
        rows = math.ceil(len(self.panels) / 2)
        with plt.rc_context(STYLE):
            figure, grid = plt.subplots(rows, 2, figsize=(9, 3 * rows))
            for axes, panel in zip(grid.flat, self.panels, strict=True):
                _draw(axes, entries, *panel)
            save(figure, folder / "progress.png")
        return {key: value for entry in entries for key, value in entry.items() if key.startswith(self.told)}

    def _is_wanted(self, key: str) -> bool:
        return key == "step" or key.removeprefix("eval_").startswith(self.kept)


def _draw(axes: Axes, entries: list[dict], title: str, patterns: tuple[str, ...], start: float | None) -> None:
    """Training prompts without markers, in grey where one metric is drawn alone; held-out prompts with markers."""
    axes.set_title(title)
    axes.set_xlabel("step")
    if start is not None:
        axes.axhline(start, color=GREY, linewidth=1, linestyle=":")
    logged = dict.fromkeys(key.removeprefix("eval_") for entry in entries for key in entry)
    metrics = [key for pattern in patterns for key in logged if fnmatchcase(key, pattern)]
    for number, metric in enumerate(metrics):
        colour, alone = COLOURS[number % len(COLOURS)], len(metrics) == 1
        labels = ("training prompts", "held-out prompts") if alone else (metric.split("/")[1].replace("_", " "), None)
        styles = ((metric, GREY if alone else colour, None), (f"eval_{metric}", colour, "o"))
        for label, (key, shade, marker) in zip(labels, styles, strict=True):
            points = [(entry["step"], entry[key]) for entry in entries if _is_number(entry.get(key))]
            if points:
                axes.plot(*zip(*points, strict=True), color=shade, marker=marker, linewidth=1.5, label=label)
    if axes.lines and axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)


def _is_number(value) -> bool:
    return value is not None and math.isfinite(value)
