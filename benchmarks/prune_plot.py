"""The picture of `benchmarks/prune.py`: one panel a parent and shape, one line a method."""

BEFORE, AFTER = "#b0b0b0", "#1f5fa8"


def draw(panels: dict[tuple[str, str], dict[str, dict]], steps: int, path: str) -> None:
    """
    Save the divergences before and after the steps, on log axes.

    Args:
        panels (`dict`): (parent, shape) to label to the row that was measured.
        steps (`int`): distillation steps.
        path (`str`): the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {place: rows for place, rows in panels.items() if rows}
    if not panels:
        return
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    height = 1.2 + 0.38 * max(len(rows) for rows in panels.values())
    figure, grid = pyplot.subplots(lines, columns, figsize=(7 * columns, height * lines), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, ((parent, shape), rows) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, rows, steps)
        axes.set_title(f"{parent}, {shape}", loc="left", fontsize=11, fontweight="bold")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=2, frameon=False)
    figure.supxlabel("KL(parent || child) on held-out text, nats a token (log scale)", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(axes, rows: dict[str, dict], steps: int) -> None:
    """A line from before to after for each method, the recommended one on top; whiskers are the range of the seeds."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for place, row in enumerate(rows.values()):
        before, after = row["before"]["kl"], [part["kl"] for part in row["after"]]
        if after:
            mean = sum(after) / len(after)
            whiskers = [[mean - min(after)], [max(after) - mean]]
            axes.plot([before, mean], [place, place], color=BEFORE, linewidth=1.5, zorder=1)
            label = f"after {steps} steps" if place == 0 else None
            axes.errorbar(mean, place, xerr=whiskers, fmt="o", color=AFTER, capsize=3, label=label, zorder=3)
            _number(axes, mean, place, "right" if mean <= before else "left")
        label = "pruned" if place == 0 else None
        axes.scatter(before, place, facecolors="white", edgecolors="black", label=label, zorder=2)
        _number(axes, before, place, "right" if after and before < mean else "left")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axes.set_ylim(-0.5, len(rows) - 0.3)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#e8e8e8")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _number(axes, value: float, place: int, side: str) -> None:
    """A value above its mark, grown to one side so that two close marks stay readable."""
    shift = 4 if side == "right" else -4
    axes.annotate(f"{value:.3f}", (value, place), (shift, 6), textcoords="offset points", ha=side, fontsize=8)
