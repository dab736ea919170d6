"""Pictures of a pruning, from its prune_report.json: what was looked at, what was kept, which shapes were tried."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from hf_cascade import plots


def pruning(report: dict, name: str, folder: Path) -> list[Path]:
    """
    Draw a prune_report.json: [`layer_scores`] where layers were removed, [`explained_variance`] where the stream was
    narrowed, [`ffn_spectra`] where FFN columns went, [`frontier`] where shapes were searched.

    Returns:
        `list[Path]`: `KIND_NAME.png` in `folder`, as far as they were drawn.
    """
    pictures = {}
    if len(report["kept_layers"]) < len(report["layer_scores"]):
        pictures["layer_scores"] = layer_scores
    if report["explained_variance"] and report["hidden_size"]:
        pictures["explained_variance"] = explained_variance
    if report.get("ffn_spectra"):
        pictures["ffn_spectra"] = ffn_spectra
    if len(report.get("frontier", ())) > 1:
        pictures["frontier"] = frontier
    paths = {folder / f"{kind}_{name}.png": draw for kind, draw in pictures.items()}
    for path, draw in paths.items():
        draw(report, path)
    return list(paths)


def layer_scores(report: dict, path: Path) -> None:
    """Bars of `report["layer_scores"]` of a prune_report.json, one a parent layer; `kept_layers` in colour."""
    scores, kept = report["layer_scores"], set(report["kept_layers"])
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(max(5.5, 0.3 * len(scores) + 2), 3.6))
        top, low = _cut(scores), min(scores)
        span = (top - low) or 1.0
        for layer, score in enumerate(scores):
            y, fill = min(score, top), plots.COLOURS[0] if layer in kept else "white"
            axes.plot(layer, y, "o", color=plots.COLOURS[0], markerfacecolor=fill, markersize=9)
            if score > top or len(scores) <= 16:
                label = f"{score:,.0f} ↑" if score > top else f"{score:.4g}"  # beyond the axis: say how high it is
                axes.annotate(label, (layer, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
        axes.set_ylim(low - 0.1 * span, top + 0.15 * span)
        axes.set_xlim(-0.6, len(scores) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(min(len(scores), 20), integer=True))
        axes.set(xlabel="layer of the parent", ylabel="layer score")
        axes.set_title(f"{len(kept)} of {len(scores)} layers are kept", pad=26)
        if len(kept) < len(scores):
            handles = [
                plots.key("kept", plots.COLOURS[0], "o"),
                plots.key("removed", plots.COLOURS[0], "o", hollow=True),
            ]
            axes.legend(handles=handles, **plots.UNDER_TITLE, ncols=2)
        plots.save(figure, path)


def explained_variance(report: dict, path: Path) -> None:
    """The curve of `report["explained_variance"]`, cumulative by component, with the `hidden_size` that was kept."""
    variance, hidden = report["explained_variance"], report["hidden_size"]
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(5.5, 3.6))
        components = range(1, len(variance) + 1)
        axes.plot(components, [100 * share for share in variance], color=plots.COLOURS[0], linewidth=2)
        kept = 100 * variance[hidden - 1]
        axes.axvline(hidden, color=plots.GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot([hidden], [kept], "o", color=plots.COLOURS[1], markersize=8)
        left = hidden > len(variance) / 2
        axes.annotate(
            f"{hidden:,} of {len(variance):,} components\nhold {kept:.2f}%",
            (hidden, kept),
            xytext=(-10 if left else 10, -14),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
        )
        axes.set_xlim(0, len(variance) * 1.02)
        axes.set_ylim(min(100 * variance[0], 95) - 2, 102)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}%"))
        axes.set(xlabel="components", ylabel="variance explained", title="What the narrower stream holds")
        plots.save(figure, path)


def ffn_spectra(report: dict, path: Path) -> None:
    """One curve a kept layer of `report["ffn_spectra"]`: the share of the score in the best columns, by their share."""
    spectra, share = report["ffn_spectra"], 100 * report["ffn_share"]
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(5.5, 3.6))
        colours = plt.get_cmap("viridis")
        for layer, spectrum in enumerate(spectra):
            colour = colours(layer / max(len(spectra) - 1, 1) * 0.9)
            percent = [100 * place / (len(spectrum) - 1) for place in range(len(spectrum))]
            axes.plot(percent, [100 * value for value in spectrum], color=colour, linewidth=1.2)
        axes.axvline(share, color=plots.GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"{share:.0f}% of the columns stay",
            (share, 4),
            xytext=(-6 if share > 50 else 6, 0),
            textcoords="offset points",
            ha="right" if share > 50 else "left",
        )
        scale = plt.cm.ScalarMappable(plt.Normalize(1, max(len(spectra), 2)), colours)
        bar = figure.colorbar(scale, ax=axes, label="kept layer")
        bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}%"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}%"))
        axes.set(xlabel="columns, best first", ylabel="score they hold", title="How sharp the FFN scores are")
        plots.save(figure, path)


def frontier(report: dict, path: Path) -> None:
    """One line a number of layers of `report["frontier"]`: divergence by hidden size; the best shape is marked."""
    rows = sorted(report["frontier"], key=lambda row: row["hidden_size"])
    layers = sorted({row["num_hidden_layers"] for row in rows}, reverse=True)
    best = min(rows, key=lambda row: row["kl"])
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.0))
        for index, count in enumerate(layers):
            line = [row for row in rows if row["num_hidden_layers"] == count]
            axes.plot(
                [row["hidden_size"] for row in line],
                [row["kl"] for row in line],
                color=plots.COLOURS[index % 6],
                marker=plots.MARKERS[index % 6],
                linewidth=1.5,
                label=f"{count} layers",
            )
        axes.plot(best["hidden_size"], best["kl"], "o", markersize=15, markerfacecolor="none", color=plots.INK)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        shape = f"{best['num_hidden_layers']} x {best['hidden_size']:,} / {best['intermediate_size']:,}"
        axes.set(xlabel="hidden size", ylabel="KL to the parent, untrained (log scale)")
        axes.set_title(f"{best['parameters']:,} parameters: best as {shape}")
        plots.save(figure, path)


def _cut(values: list[float]) -> float:
    """Where an axis may end: the largest value that is not far above all others."""
    ordered = sorted(values)
    while len(ordered) > 2 and ordered[-1] - ordered[0] > 10 * (ordered[-2] - ordered[0]):
        ordered.pop()
    return ordered[-1]
