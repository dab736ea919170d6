"""Pictures of a card: benchmarks, KL in distillation, layer scores and spectra of the pruning, progress in training."""

import shutil
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from hf_cascade import plots, pruning_plots
from hf_cascade.evaluate.suite import plot as suite_plot
from hf_cascade.evaluate.tables import count
from hf_cascade.publish import results
from hf_cascade.publish.facts import Facts

FOLDER = "card"  # beside the card
WIDE = ("progress",)  # of several panels: alone in a row
# Kind to (what it shows, for those who cannot see it; caption), in the order of the card
CAPTIONS = {
    "results": ("Benchmarks with 95% intervals", "Benchmarks with 95% intervals, beside the parent's and the paper's."),
    "kl": (
        "KL from the teacher against tokens",
        "Divergence from the teacher in training; stages with another window read other text.",
    ),
    "layer_scores": (
        "Score of each of the parent's layers",
        "What each layer of the parent is worth; hollow ones went.",
    ),
    "explained_variance": (
        "Variance by components",
        "How much of the parent's residual stream the narrower one holds.",
    ),
    "ffn_spectra": ("Scores of FFN columns by layer", "How sharply FFN columns differ, by layer, and how many stay."),
    "frontier": (
        "Divergence of shapes of one size",
        "Shapes of one size that were tried; the ring is the best one.",
    ),
    "progress": ("Progress of the last stage", "The last stage of training, step by step."),
}


def draw(facts: Facts, folder: Path) -> dict[str, Path]:
    """
    Draw what there is data for.

    Args:
        facts ([`Facts`]): of a model.
        folder (`Path`): where to; pictures are in its folder `card`.

    Returns:
        `dict[str, Path]`: kind, or `kind:stage`, to file.
    """
    place = Path(folder) / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    drawn = _draw(facts, place)
    if not any(place.iterdir()):
        place.rmdir()
    return drawn


def _draw(facts: Facts, place: Path) -> dict[str, Path]:
    """Draw into a folder that is there."""
    drawn: dict[str, Path] = {}
    measured = results.suite_results(facts)
    if len(results.ran(facts)) > 1:
        names = [suite["name"] for suite in measured["suites"]]
        shown = suite_plot.suites(_drawable(measured), place)
        drawn |= {f"results:{name}": path for name in names for path in shown if path.stem == f"suite_{name}"}
    if curves := kl_curves(facts):
        drawn["kl"] = place / "kl.png"
        _kl(curves, drawn["kl"])
    if (facts.folder / "progress.png").is_file():
        drawn["progress"] = place / "progress.png"
        shutil.copyfile(facts.folder / "progress.png", drawn["progress"])
    if facts.prunings:
        stage, report = facts.prunings[-1]
        for path in pruning_plots.pruning(report, stage.name, place):
            drawn[path.stem.removesuffix(f"_{stage.name}")] = path
    return drawn


def kl_curves(facts: Facts) -> list[tuple[str, list[float], list[float]]]:
    """(stage, tokens since the last pruning, KL) of the distillation stages since then."""
    since = max((place for place, stage in enumerate(facts.stages) if stage.run == "prune"), default=-1)
    recent = {stage.sha256 for stage in facts.stages[since + 1 :]}
    curves, start = [], 0.0
    for stage, log in facts.logs:
        points = [(entry["num_tokens"], entry["distill/kl"]) for entry in log if "distill/kl" in entry]
        if stage.sha256 in recent and points:
            tokens, values = zip(*points, strict=True)
            curves.append((stage.name, [start + number for number in tokens], list(values)))
            start += tokens[-1]
    return curves


def _kl(curves: list[tuple[str, list[float], list[float]]], path: Path) -> None:
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.6))
        for index, (name, tokens, values) in enumerate(curves):
            colour, marker = plots.COLOURS[index % 6], plots.MARKERS[index % 6]
            axes.plot(tokens, values, color=colour, marker=marker, markersize=4, linewidth=1.5, label=name)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value).replace(".0", "")))
        axes.set(xlabel="tokens since the pruning", ylabel="KL from the teacher (log scale)")
        axes.set_title("Distillation", pad=26)
        axes.legend(**plots.UNDER_TITLE, ncols=max(1, len(curves)))
        plots.save(figure, path)


def _drawable(measured: dict) -> dict:
    """Results in which every model has every row of the suites it has, as pictures expect."""
    blank = {"status": "not run", "reason": "", "paper": None, "parent": None, "chance": None}
    models = []
    for model in measured["models"]:
        told = {}
        for suite in measured["suites"]:
            if rows := (model["suites"].get(suite["name"]) or {}).get("rows"):
                labels = [row["label"] for row in suite["rows"]]
                told[suite["name"]] = {"rows": {label: {**blank, **(rows.get(label) or {})} for label in labels}}
        models.append({**model, "suites": told})
    return {**measured, "models": models}
