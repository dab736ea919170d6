"""What evals.json keeps when a model is measured again: answers stay beside suites, and what is lost is said."""

import json
from pathlib import Path

import pytest

from hf_cascade import companions, manifest
from hf_cascade.evaluate.command import _write_evals
from hf_cascade.evaluate.family import Member
from hf_cascade.evaluate.suite import kept
from hf_cascade.publish.folder import left_out
from hf_cascade.pushing import is_allowed

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


def test_a_file_of_a_version_that_did_not_record_companions_is_kept_beside(member, capsys):
    """Nothing that took hours is gone for a short run on text."""
    folder = Path(member.source)
    earlier = {"weights_sha256": manifest.weights_sha256(folder), "suites": SUITE, "tasks": {"arc": {"acc": 0.5}}}
    (folder / kept.EVALS).write_text(json.dumps(earlier))
    assert measure(member, heldout={"perplexity": 9.0})["suites"] == {}
    assert json.loads((folder / kept.OLD).read_text()) == earlier
    told = capsys.readouterr().out
    assert "tiny, tasks dropped: which tokenizer" in told and "; evals.json.old beside it still has them" in told
    assert kept.OLD in left_out(folder) and not is_allowed(kept.OLD)
    measure(member, heldout={"perplexity": 8.0})
    assert not capsys.readouterr().out and not (folder / f"{kept.OLD}.2").exists()


def test_an_old_file_is_not_replaced(member, capsys):
    folder = Path(member.source)
    for weights in (b"1", b"2", b"3"):
        (folder / "model.safetensors").write_bytes(weights)
        measure(member, **({"preference": ANSWERS} if weights != b"3" else {"suites": SUITE}))
        if weights == b"1":
            (folder / kept.OLD).write_text("from before")
    assert (folder / kept.OLD).read_text() == "from before"
    assert json.loads((folder / f"{kept.OLD}.2").read_text())["preference"] == ANSWERS
    assert "evals.json.old.2 beside it" in capsys.readouterr().out
    assert f"{kept.OLD}.2" in left_out(folder) and not is_allowed(f"{kept.OLD}.2")


def test_tasks_of_a_suite_that_were_not_run_again_are_dropped_and_that_is_said(member, capsys):
    """As where the judge was there for the earlier run alone."""
    run, absent = {"status": "run", "rows": 1}, {"status": "not run", "reason": "no judge"}
    measure(member, suites={"table4": {"rows": {}, "tasks": {"math": run, "arena": run}}})
    (Path(member.source) / "model.safetensors").write_bytes(b"others")
    measure(member, suites={"table4": {"rows": {}, "tasks": {"math": run, "arena": absent}}})
    assert "arena of table4 dropped: they were measured on other weights" in capsys.readouterr().out
    assert (Path(member.source) / kept.OLD).is_file()


def test_figures_of_other_scorers_are_kept_beside(member):
    folder, figures = Path(member.source), {"weights_sha256": "same", "suites": SUITE}
    earlier = {**figures, "conformance": {"scorers_sha256": "old", "tasks": {}}}
    (folder / kept.EVALS).write_text(json.dumps(earlier))
    _, (line,) = kept.merge({**figures, "conformance": {"scorers_sha256": "new", "tasks": {}}}, folder)
    assert json.loads((folder / kept.OLD).read_text()) == earlier and "evals.json.old" in line
