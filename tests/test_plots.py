"""Plots: they are drawn from what is there, and no two texts touch."""

import itertools
import json

import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Text

from hf_cascade import plots, pruning_plots

STEPS = ["pruned", "short context", "long context"]


def task(value, chance, better):
    figures = {"metric": "acc", "value": value, "stderr": 0.03, "chance": chance}
    return {**figures, "higher_is_better": better, "rows": 200}


def made_up(perplexities, sizes=(1_180_000, 848_560, 351_936), parent=19.8):
    """results.json of a family with three children and three steps each."""
    models, children = [], []

    def add(name, parameters, perplexity, tokens):
        tasks = {"cascade_tiny_bits": task(1.8, None, False), "cascade_tiny_continuation": task(0.5, 0.25, True)}
        heldout = {"perplexity": perplexity}
        models.append({"name": name, "num_parameters": parameters, "heldout": heldout, "tasks": tasks})
        models[-1]["total_tokens"] = tokens

    add("parent", 1_770_000, parent, None)
    for hop, (name, size, row) in enumerate(zip(("14b", "8b", "3b"), sizes, perplexities, strict=True)):
        for step, (suffix, perplexity) in enumerate(zip(("-pruned", "-short", ""), row, strict=True)):
            add(name + suffix, size, perplexity, 250_000 * hop + (0, 250_000, 290_000)[step])
        names = (f"{name}-pruned", f"{name}-short", name)
        children.append({"name": name, "stages": [{"step": s, "model": m} for s, m in zip(STEPS, names, strict=True)]})
    return {"teacher": "parent", "heldout": {}, "models": models, "steps": STEPS, "children": children} | {
        "heldout": {"max_length": 256}
    }


REPORT = {
    "layer_scores": [1264.6, 1.081, 1.043, 1.041, 1.0294, 1.0293, 1.022, 1.021],
    "kept_layers": [0, 1, 2, 3, 4],
    "explained_variance": [1 - 0.6 * 0.9**i for i in range(95)] + [1.0],
    "hidden_size": 64,
    "ffn_spectra": [[1 - (1 - place / 100) ** power for place in range(101)] for power in (1.5, 2, 3, 4, 6)],
    "ffn_share": 0.28,
    "frontier": [
        {"num_hidden_layers": n, "hidden_size": k, "intermediate_size": 96, "parameters": 352_000, "kl": n * k / 900}
        for n in (8, 6, 5)
        for k in (96, 80, 64)
    ],
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures, kept open instead of closed after saving."""
    figures = {}

    def keep(figure, path):
        figure.savefig(path)
        figures[path.name] = figure

    monkeypatch.setattr(plots, "save", keep)
    yield figures
    plt.close("all")


def touching(figure) -> list[tuple[str, str]]:
    """Pairs of visible texts whose boxes overlap, and texts outside the picture."""
    renderer = figure.canvas.get_renderer()
    hidden = set()  # labels of ticks beyond the axis, which are not drawn
    for axis in itertools.chain.from_iterable((axes.xaxis, axes.yaxis) for axes in figure.axes):
        low, high = sorted(axis.get_view_interval())
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        hidden |= {tick.label1 for tick in ticks if not low <= tick.get_loc() <= high}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in texts if text not in hidden]
    boxes = []
    for text in texts:
        box = text.get_window_extent(renderer)
        inside = all(-1 <= limit <= end + 1 for limit, end in zip(box.max, figure.bbox.max, strict=True))
        assert inside and box.min.min() > -1, text.get_text()
        boxes.append((text.get_text(), box.padded(-1)))
    pairs = itertools.combinations(boxes, 2)
    return [(a, b) for (a, box_a), (b, box_b) in pairs if box_a.overlaps(box_b)]


@pytest.mark.parametrize(
    "perplexities",
    [
        [(31.3, 20.9, 20.3), (32.2, 23.8, 22.4), (946, 42.1, 34.3)],
        [(20.5, 20.1, 20.0), (24.2, 21.5, 21.1), (60.4, 28.2, 27.9)],
        [(19.9, 19.8, 19.8), (19.9, 19.9, 19.8), (20.0, 19.9, 19.9)],
    ],
    ids=["plain", "compensated", "all alike"],
)
def test_family_pictures_are_legible(perplexities, drawn, tmp_path):
    paths = plots.family(made_up(perplexities), tmp_path)
    assert [path.name for path in paths] == ["perplexity_parameters.png", "perplexity_tokens.png", "tasks.png"]
    for name, figure in drawn.items():
        assert touching(figure) == [], name


def test_the_papers_sizes_fit_too(drawn, tmp_path):
    results = made_up([(9, 7, 6.5), (12, 8, 7.5), (30, 11, 10)], sizes=(13_506_000_000, 8_400_000_000, 3_400_000_000))
    results["models"][0]["num_parameters"] = 23_572_403_200
    plots.family(results, tmp_path)
    assert touching(drawn["perplexity_parameters.png"]) == []


def test_what_was_not_measured_is_not_drawn(tmp_path):
    results = made_up([(31, 21, 20), (32, 24, 22), (60, 42, 34)])
    for model in results["models"]:
        model["tasks"], model["total_tokens"] = {}, None
    assert [path.name for path in plots.family(results, tmp_path)] == ["perplexity_parameters.png"]
    results["children"] = []
    assert plots.family(results, tmp_path) == []


def test_pruning_pictures_are_legible(drawn, tmp_path):
    paths = pruning_plots.pruning(REPORT, "3b", tmp_path)
    assert [path.name for path in paths] == [
        f"{kind}_3b.png" for kind in ("layer_scores", "explained_variance", "ffn_spectra", "frontier")
    ]
    for figure in drawn.values():
        assert touching(figure) == []


def test_a_pruning_of_the_ffn_alone_has_no_picture(tmp_path):
    ffn_only = {"layer_scores": [2.0, 1.0], "kept_layers": [0, 1], "explained_variance": [], "hidden_size": None}
    assert pruning_plots.pruning(ffn_only, "14b", tmp_path) == []


def test_many_layers_and_equal_scores(drawn, tmp_path):
    many = json.loads(json.dumps(REPORT)) | {"layer_scores": [1.5] * 40, "kept_layers": list(range(26))}
    pruning_plots.layer_scores(many, tmp_path / "many.png")
    assert touching(drawn["many.png"]) == []
