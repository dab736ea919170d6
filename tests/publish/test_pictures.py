"""Pictures of a card: drawn where there is data, each with a caption, and never for what was not measured."""

import json

from PIL import Image

from hf_cascade.publish import facts, pictures
from hf_cascade.publish.card import render, validate
from tests.publish.card_folders import evals, line, task


def test_what_there_is_data_for(tmp_path):
    model = line(tmp_path / "runs", "base")
    assert set(pictures.draw(facts.read(model), tmp_path)) == {
        "kl",
        "layer_scores",
        "explained_variance",
        "ffn_spectra",
    }
    evals(model, ["table2"], {"cascade_mmlu_redux": task(0.6), "cascade_math": task(0.5)}, "Ministral 3 8B")
    Image.new("RGB", (4, 4)).save(model / "progress.png")
    found = facts.read(model, license="mit")
    drawn = pictures.draw(found, tmp_path)
    assert {"results:table2", "progress"} <= set(drawn)
    for path in drawn.values():
        assert path.parent == tmp_path / "card" and Image.open(path).size[0] >= 4
    assert {name.partition(":")[0] for name in drawn} <= set(pictures.CAPTIONS)
    images = {name: path.relative_to(tmp_path).as_posix() for name, path in drawn.items()}
    text = render(found, images=images)
    assert validate(text, set(images.values())) == []
    assert all(text.count(f"({path})") == 1 for path in images.values())


def test_kl_goes_on_from_stage_to_stage_and_begins_at_the_last_pruning(tmp_path):
    found = facts.read(line(tmp_path, "base"))
    ((name, tokens, values),) = pictures.kl_curves(found)
    assert name == "small" and tokens[0] == 10240 and values[-1] == 0.04
    stage, log = found.logs[0]
    object.__setattr__(found, "logs", [(stage, log), (stage, log)])
    assert pictures.kl_curves(found)[1][1][0] == tokens[-1] + 10240


def test_nothing_to_draw(tmp_path):
    model = line(tmp_path / "runs", "base")
    for name in ("small-pruned/prune_report.json", "small/log.json"):
        (tmp_path / "runs" / name).unlink()
    assert pictures.draw(facts.read(model), tmp_path) == {} and not (tmp_path / "card").exists()
    (model / "log.json").write_text(json.dumps([{"loss": 1.0, "num_tokens": 5}]))  # a stage without KL
    assert pictures.draw(facts.read(model), tmp_path) == {}
