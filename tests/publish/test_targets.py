"""Targets files: the shipped ones, and what is refused."""

import json

import pytest

from hf_cascade import assets
from hf_cascade.evaluate.suite import suites
from hf_cascade.publish import gate_targets, targets
from hf_cascade.publish.targets import Targets

SHIPPED = sorted(assets.find("recipes").glob("*/*targets.yaml"))


def test_defaults_are_those_of_the_design():
    found = Targets()
    assert (found.points, found.within_problem_errors, found.unparsed, found.distinct) == (1.0, 2.0, 0.02, 0.9)
    assert (found.judge_failures, found.swap_agreement, found.unfinished, found.truncated) == (0.01, 0.7, None, None)
    assert found.paper and found.contamination == {} and found.retention is None


def test_the_shipped_files_name_suites_and_rows_that_exist():
    assert len(SHIPPED) == 6
    for path in SHIPPED:
        found = targets.load(path)
        labels = {row.label for name in found.suites for row in suites.load(name).rows}
        named = {label for label in (*(found.retention or {}), *found.optional) if label != targets.PERPLEXITY}
        assert found.suites and named <= labels, path


def test_the_tiny_family_reaches_its_targets():
    """The figures of recipes/tiny/results, which its suite made."""
    results = json.loads(assets.find("recipes/tiny/results/results.json").read_text())
    limits = targets.load("recipes/tiny/targets.yaml")
    published = [model for model in results["models"] if model["name"] in ("14b", "8b", "3b")]
    assert len(published) == 3 and limits.suites == ("tiny",)
    for model in published:
        lines = gate_targets.lines(model, model, limits, "evaluate")
        assert len(lines) == 3 and all(line.passed for line in lines), lines


@pytest.mark.parametrize("part", ["instruct", "reasoning"])
def test_tiny_post_trained_models_reach_theirs(part):
    results = json.loads(assets.find(f"recipes/tiny/results/{part}/results.json").read_text())
    limits = targets.load(f"recipes/tiny/{part}_targets.yaml")
    first, last = results["models"][0], results["models"][-1]
    assert all(line.passed for line in gate_targets.lines(last, last, limits, "evaluate"))
    assert not all(line.passed for line in gate_targets.lines(first, first, limits, "evaluate"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("retenton: 0.8", ["no key retenton", "did you mean retention?", "Allowed are suites"]),
        ("suites: [tniy]", ["suites=tniy", "allowed are", "tiny"]),
        ("suites: tiny", ["give a list of names"]),
        ("unparsed: 2", ["unparsed=2", "from 0 to 1"]),
        ("unparsed: null", ["unparsed=None"]),
        ("distinct: true", ["distinct=True"]),
        ("points: -1", ["points=-1"]),
        ("points: .inf", ["points=inf"]),
        ("retention: high", ["retention='high'"]),
        ("retention: {perplexity: high}", ["retention of perplexity='high'"]),
        ("floors: 3", ["floors=3"]),
        ("paper: 3", ["paper=3"]),
        ("contamination: {most: 0.1}", ["contamination=", "mostly"]),
        ("contamination: {mostly: 3}", ["mostly=3"]),
        ("- a", ["must be a YAML mapping"]),
        ("paper: true\npaper: false", ["stands twice"]),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_allowed(tmp_path, text, words):
    path = tmp_path / "targets.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        targets.load(path)
    for word in [*words, "targets.yaml"]:
        assert word in str(caught.value)


def test_contamination_may_be_asked_for_or_not():
    assert Targets(contamination=True).contamination == {}
    assert Targets(contamination=False).contamination is False
