"""What a run of Online DPO did, over its steps: `progress.json` and `progress.png` beside the model."""

import json
import math
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from hf_cascade.plots import COLOURS, GREY, STYLE, save

# title, metric, value of the starting policy where it is known
PANELS = (
    ("win rate against the start", "odpo/win_rate", 0.5),
    ("responses in an infinite loop", "odpo/loop_rate", None),
    ("tokens longer than the start", "odpo/length_drift_tokens", 0.0),
    ("KL to the reference, nats a response", "odpo/kl", 0.0),
)


def write_report(log_history: list[dict], folder: Path) -> dict[str, float]:
    """
    Keep what training and evaluation logged about preference, and draw it.

    Args:
        log_history (`list[dict]`): `trainer.state.log_history`.
        folder (`Path`): of the stage.

    Returns:
        `dict[str, float]`: the last value of every metric that was evaluated, for the manifest.
    """
    wanted = [{key: value for key, value in entry.items() if _is_wanted(key)} for entry in log_history]
    entries = [entry for entry in wanted if set(entry) - {"step", "epoch"}]
    (folder / "progress.json").write_text(json.dumps(entries, indent=1))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(9, 6))
        for axes, panel in zip(grid.flat, PANELS, strict=True):
            _draw(axes, entries, *panel)
        save(figure, folder / "progress.png")
    return {key: value for entry in entries for key, value in entry.items() if key.startswith("eval_odpo/")}


def _is_wanted(key: str) -> bool:
    return key == "step" or key.removeprefix("eval_").startswith(("odpo/", "rewards/", "completions/mean"))


def _draw(axes: Axes, entries: list[dict], title: str, metric: str, start: float | None) -> None:
    """Training prompts thin and grey, held-out prompts with markers."""
    axes.set_title(title)
    axes.set_xlabel("step")
    if start is not None:
        axes.axhline(start, color=GREY, linewidth=1, linestyle=":")
    styles = ((metric, "training prompts", GREY, None), (f"eval_{metric}", "held-out prompts", COLOURS[0], "o"))
    for key, label, colour, marker in styles:
        points = [(entry["step"], entry[key]) for entry in entries if _is_number(entry.get(key))]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=1.5, label=label)
    if axes.lines and axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)


def _is_number(value) -> bool:
    return value is not None and math.isfinite(value)
