"""What evals.json keeps when a model is measured again: answers stay beside suites, and what is lost is said."""

import json
from pathlib import Path

import pytest

from hf_cascade import companions, manifest
from hf_cascade.evaluate.command import _write_evals
from hf_cascade.evaluate.family import Member
from hf_cascade.evaluate.suite import kept

ANSWERS = {"rewards": {"exact_match": 0.275}}
SUITE = {"tiny": {"rows": {}, "tasks": {}}}


@pytest.fixture
def member(tmp_path):
    folder = tmp_path / "odpo"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "cascade.json").write_text("{}")
    return Member("odpo", str(folder), {"run": "odpo"}, "0" * 64)


def measure(member: Member, **figures) -> dict:
    """What a run of `hf-cascade evaluate` leaves in the model's folder."""
    suites = figures.get("suites", {})
    sha256 = manifest.weights_sha256(member.source) if suites else None  # as a run without suites has it
    model = {"name": "odpo", "heldout": None, "tasks": {}, "preference": None, "suites": {}, "weights_sha256": sha256}
    model |= {kept.COMPANIONS: companions.digests(member.source) if suites else None, **figures}
    shared = dict.fromkeys(("teacher", "heldout", "limit", "conformance"))
    comparison = {"baseline": "sft"} if model["preference"] else None
    results = {**shared, "schema": 1, "comparison": comparison, "models": [model]}
    _write_evals(member, results, None)
    return kept.read(member.source)


@pytest.mark.parametrize(
    "order", [({"preference": ANSWERS}, {"suites": SUITE}), ({"suites": SUITE}, {"preference": ANSWERS})]
)
def test_answers_and_suites_stand_side_by_side_in_either_order(member, order, capsys):
    first, second = order
    assert measure(member, **first)["weights_sha256"] == manifest.weights_sha256(member.source)
    found = measure(member, **second)
    assert found["preference"] == ANSWERS and found["comparison"] == {"baseline": "sft"} and found["suites"] == SUITE
    assert not capsys.readouterr().out


def test_answers_of_other_weights_are_dropped_and_that_is_said(member, capsys):
    measure(member, preference=ANSWERS)
    (Path(member.source) / "model.safetensors").write_bytes(b"others")
    assert measure(member, suites=SUITE)["preference"] is None
    assert "answers to prompts dropped: they were measured on other weights" in capsys.readouterr().out


def test_figures_without_a_hash_are_dropped_and_that_is_said(member, tmp_path, capsys):
    (tmp_path / "odpo" / kept.EVALS).write_text(json.dumps({"preference": ANSWERS, "heldout": {"perplexity": 9.0}}))
    assert measure(member, suites=SUITE)["preference"] is None
    assert "held-out text, answers to prompts dropped: which weights they were measured on" in capsys.readouterr().out
