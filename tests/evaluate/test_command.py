"""`hf-cascade evaluate` end to end on a tiny family, and its refusals."""

import hashlib
import json

import pytest

from hf_cascade import manifest, progress
from hf_cascade.evaluate.command import main

from .conftest import HELDOUT, tiny_model, train_tokenizer

ALL = ["parent", "small-pruned", "small-short", "small", "tiny-pruned", "tiny"]


@pytest.fixture
def heldout(tmp_path, texts):
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def snapshot(folder) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_a_family_is_measured_and_reported(family, heldout, monkeypatch, capsys):
    events = []
    monkeypatch.setattr(progress, "report", lambda step, total, **_: events.append((step, total)))
    (family / "tiny-pruned" / "prune_report.json").write_text(
        json.dumps({"layer_scores": [3.0, 1.1], "kept_layers": [0], "explained_variance": [], "hidden_size": None})
    )
    before = snapshot(family)
    monkeypatch.chdir(family)
    argv = ["--model", *ALL, "--teacher", "parent", "--dataset", str(heldout), "--max_length", "64"]
    argv += ["--long_max_length", "256", "--tasks", "cascade_tiny_copy", "--limit", "3", "--output_dir", "report"]
    assert main(argv) == 0

    results = json.loads((family / "report" / "results.json").read_text())
    models = {model["name"]: model for model in results["models"]}
    assert list(models) == ALL
    assert models["parent"]["heldout"]["kl"] == 0 and models["parent"]["retention"] == 100
    for name, model in models.items():
        assert model["num_parameters"] > 0 and model["bytes"] > 4 * model["num_parameters"]
        assert model["heldout"]["tokens"] == model["long"]["tokens"]
        share = models["parent"]["heldout"]["perplexity"] / model["heldout"]["perplexity"]
        assert model["retention"] == pytest.approx(100 * share)
        assert model["tasks"]["cascade_tiny_copy"]["rows"] == 3
        assert (model["heldout"]["kl"] > 0) == (name != "parent")
    assert models["tiny"]["total_tokens"] == 3000
    assert [child["name"] for child in results["children"]] == ["small", "tiny"]

    report = (family / "report" / "report.md").read_text()
    pictures = ["perplexity_parameters", "perplexity_tokens", "tasks", "layer_scores_tiny-pruned"]
    for name in pictures:
        assert (family / "report" / f"{name}.png").stat().st_size > 5000
        assert f"]({name}.png)" in report
    assert "| small | pruned |" in report and "long context" in report and "*chance*" in report
    assert "retention" in capsys.readouterr().out

    record = manifest.read(family / "report")
    assert record["run"] == "evaluate" and record["inputs"]["teacher"] == "parent"
    assert record["config"]["long_max_length"] == 256 and "batch_size" not in record["config"]
    assert record["metrics"]["seconds"] > 0

    after = snapshot(family)
    written = {path for path in after if "/report/" not in path and path not in before}
    assert {path: after[path] for path in before} == before  # nothing of the models changed
    assert sorted(path.split("/")[-2:] for path in written) == [[name, "evals.json"] for name in sorted(ALL[1:])]
    evals = json.loads((family / "small" / "evals.json").read_text())
    assert evals["heldout"] == models["small"]["heldout"] and evals["teacher"] == "parent"
    assert evals["manifest_sha256"] == hashlib.sha256((family / "small" / "cascade.json").read_bytes()).hexdigest()
    assert events == sorted(events) and events[-1][0] == events[-1][1]

    assert main(argv) == 0  # an earlier report is written over


def test_tasks_alone_need_no_text(family, monkeypatch):
    monkeypatch.chdir(family)
    assert main(["--model", "parent", "--tasks", "cascade_tiny_copy", "--limit", "2", "--output_dir", "out"]) == 0
    (model,) = json.loads((family / "out" / "results.json").read_text())["models"]
    assert model["heldout"] is None and model["retention"] is None
    assert "## lm-eval" in (family / "out" / "report.md").read_text()


def test_earlier_stages_can_be_measured_briefly(family, heldout, monkeypatch):
    events = []
    monkeypatch.setattr(progress, "report", lambda step, total, **_: events.append(step / total))
    monkeypatch.chdir(family)
    argv = ["--model", *ALL, "--teacher", "parent", "--dataset", str(heldout), "--max_length", "64"]
    argv += ["--long_max_length", "256", "--tasks", "cascade_tiny_copy", "--limit", "2", "--final_only", "true"]
    assert main([*argv, "--output_dir", "out"]) == 0
    models = json.loads((family / "out" / "results.json").read_text())["models"]
    assert all(model["heldout"]["kl"] is not None for model in models)
    full = [model["name"] for model in models if model["tasks"] and model["long"]]
    assert full == ["parent", "small", "tiny"]
    assert full == [model["name"] for model in models if model["tasks"] or model["long"]]
    assert events[-1] == 1


def test_without_a_teacher_there_is_no_divergence(family, heldout, monkeypatch):
    monkeypatch.chdir(family)
    argv = ["--model", "small", "--dataset", str(heldout), "--max_length", "64", "--output_dir", "out"]
    assert main([*argv, "--long_max_length", "1024"]) == 0  # more than its positions
    (model,) = json.loads((family / "out" / "results.json").read_text())["models"]
    assert model["heldout"]["kl"] is None and model["long"] is None
    assert "KL |" not in (family / "out" / "report.md").read_text()


BAD = {
    "a missing folder": (["--model", "./nowhere", "--tasks", "cascade_tiny"], "nowhere"),
    "no config": (["--model", "hollow", "--tasks", "cascade_tiny"], "config.json"),
    "a model twice": (["--model", "small", "small", "--tasks", "cascade_tiny"], "more than once"),
    "an unknown task": (["--model", "small", "--tasks", "mmlu"], "mmlu"),
    "nothing to measure": (["--model", "small"], "nothing to measure"),
    "a teacher without text": (["--model", "small", "--teacher", "parent", "--tasks", "cascade_tiny"], "--dataset"),
    "missing text": (["--model", "small", "--dataset", "no.jsonl", "--max_length", "64"], "no.jsonl"),
    "a window too long": (["--model", "small", "--dataset", HELDOUT, "--max_length", "4096"], "512 positions"),
    "a long window not longer": (["--model", "small", "--dataset", HELDOUT, "--long_max_length", "9"], "max_length"),
    "other tokenizers": (
        ["--model", "small", "--teacher", "foreign", "--dataset", HELDOUT, "--max_length", "64"],
        "different tokenizers",
    ),
    "an output folder of something else": (
        ["--model", "small", "--dataset", HELDOUT, "--max_length", "64", "--output_dir", "tiny"],
        "new or empty",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(case, family, texts, monkeypatch):
    argv, message = BAD[case]
    (family / "hollow").mkdir()
    if case == "other tokenizers":
        tiny_model(9).save_pretrained(family / "foreign")
        train_tokenizer(texts[:3]).save_pretrained(family / "foreign")
    monkeypatch.chdir(family)
    monkeypatch.setattr("hf_cascade.evaluate.command.load_model", None)
    before = snapshot(family)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main([*argv, *([] if "--output_dir" in argv else ["--output_dir", "out"])])
    assert snapshot(family) == before and not (family / "out").exists()
