"""Budget mode: sizes as people write them, shapes that fit, and the best of them by measurement."""

import json

import pytest
import torch

from hf_cascade import PruneConfig
from hf_cascade.cli import main as hf_cascade
from hf_cascade.prune.calibration import Calibration
from hf_cascade.prune.model import prune_with_report
from hf_cascade.prune.parent import Parent
from hf_cascade.prune.search import Candidate, default_multiple, enumerate_candidates, measure, parse_budget
from hf_cascade.shape import count_total
from tests.prune.families import FAMILIES, build, ids
from tests.prune.test_command import parent, text  # noqa: F401 (fixtures)


@pytest.mark.parametrize(
    ("written", "parameters"),
    [
        ("3.4B", 3.4e9),
        ("350M", 3.5e8),
        ("120k", 1.2e5),
        ("1200000", 1.2e6),
        ("40%", 4e9),
        ("0.4", 4e9),
        (" 25 % ", 2.5e9),
    ],
)
def test_sizes_as_people_write_them(written, parameters):
    assert parse_budget(written, 10**10) == pytest.approx(parameters)


@pytest.mark.parametrize("written", ["", "big", "3.4X", "-1", "0", "10B", "100%", "12GB"])
def test_no_sizes(written):
    with pytest.raises(ValueError, match="size|above 0 and below"):
        parse_budget(written, 10**10)


def test_multiples_for_fast_kernels():
    assert [default_multiple(hidden) for hidden in (5120, 4096, 1024, 960, 576, 96, 48)] == [
        128,
        128,
        128,
        64,
        64,
        8,
        4,
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_candidate_fits_and_can_be(family, tied):
    model = build(family, dtype=torch.float32, tie_word_embeddings=tied)
    whole = sum(value.numel() for value in model.parameters())
    found = enumerate_candidates(model.config, PruneConfig(), 0.7 * whole, 4)
    assert len(found) > 2
    for candidate in found:
        child, _ = prune_with_report(model.to("meta"), candidate.apply(PruneConfig()))
        assert child.num_parameters() == candidate.parameters and 0.63 * whole <= candidate.parameters <= 0.7 * whole
        assert (candidate.hidden_size % 4, candidate.intermediate_size % 4) == (0, 0)
        wider = Candidate(candidate.num_hidden_layers, candidate.hidden_size, candidate.intermediate_size + 4, 0)
        if wider.intermediate_size <= 80:  # the widest FFN that fits
            bigger, _ = prune_with_report(model, wider.apply(PruneConfig()))
            assert bigger.num_parameters() > 0.7 * whole


def test_named_dimensions_stay():
    config = build("qwen3").config
    found = enumerate_candidates(config, PruneConfig(num_hidden_layers=3), 0.6 * count_total(config.to_dict()), 4)
    assert {candidate.num_hidden_layers for candidate in found} == {3} and len(found) > 1
    with pytest.raises(ValueError, match="no shape of this parent fills"):
        enumerate_candidates(config, PruneConfig(), 2000, 4)


def test_what_is_measured_is_what_pruning_gives():
    """With all layers kept and the same text, a candidate's divergence is that of the child it stands for."""
    model, fitted, held_out = build("qwen3", dtype=torch.float32), ids(64), ids(8, seed=9)
    config = PruneConfig(ffn_score="output", layer_score="cosine")
    batches = list(fitted.split(8))
    shapes = [Candidate(4, 36, 60, 0), Candidate(4, 40, 40, 0), Candidate(3, 48, 60, 0)]
    windows = Calibration(Parent.from_model(model), [*batches, held_out], 1)
    from hf_cascade.prune import search

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "TEXT_SHARE", 1.0)
        patch.setattr(search, "GROUP", 2)
        with torch.no_grad():
            measure(windows.parent, config, windows, shapes, lambda count=1: None)
    for candidate in shapes:
        _, report = prune_with_report(model, candidate.apply(config), batches, held_out=[held_out])
        assert candidate.kl == pytest.approx(report["held_out"]["kl"], rel=1e-3)


def test_the_command_searches_shows_and_prunes(parent, text, tmp_path, capsys):  # noqa: F811
    flags = ["prune", "--model", parent, "--calibration", text, "--calibration_length", 16, "--calibration_samples", 60]
    command = [*map(str, flags), "--output_dir", str(tmp_path / "child"), "--target_parameters", "60%"]
    assert hf_cascade([*command, "--search_only"]) == 0
    assert "KL to the parent" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert hf_cascade(command) == 0
    report = json.loads((tmp_path / "child/prune_report.json").read_text())
    frontier = report["frontier"]
    assert frontier == sorted(frontier, key=lambda row: row["kl"]) and len(frontier) > 3
    config = json.loads((tmp_path / "child/config.json").read_text())
    assert all(config[name] == frontier[0][name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    assert (tmp_path / "child/prune_plots/frontier_child.png").is_file()
    assert not (tmp_path / "child/search.json").exists()
    record = json.loads((tmp_path / "child/cascade.json").read_text())
    assert record["config"]["target_parameters"] == "60%"
    assert record["config"]["hidden_size"] == config["hidden_size"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--target_parameters", "60%", "--target_memory", "1MB"], "give one of them"),
        (["--target_parameters", "900B"], "below"),
        (["--target_parameters", "lots"], "is no size"),
        (["--target_parameters", "60%", "--multiple_of", "0"], "multiple_of=0: allowed is 1 to 48"),
        (["--target_parameters", "1%"], "no shape of this parent fills"),
        (["--target_memory", "60"], "no shape of this parent fills"),
    ],
)
def test_impossible_budgets(parent, text, tmp_path, capsys, flags, complaint):  # noqa: F811
    command = ["prune", "--model", str(parent), "--calibration", str(text), "--output_dir", str(tmp_path / "child")]
    assert hf_cascade([*command, *flags]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-cascade: error:")]
    assert len(said) == 1 and complaint in said[0], said
    assert not list(tmp_path.iterdir())
