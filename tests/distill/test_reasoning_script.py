"""`trainers/sft.py` on reasoning data as a user runs it, with and without a teacher: what is left out and learnt."""

import json

import pytest
from transformers import AutoTokenizer

from hf_cascade import manifest, stage
from tests.distill.test_reasoning import ROWS, THOUGHT, row
from tests.distill.test_sft import PARENT, StopAt, place, sft, write  # noqa: F401

FLAGS = {
    "max_length": 256,
    "chat_template_path": "mistral",
    "filters": ["format", "repetition", "language"],
    "long_fraction": 0.5,
    "long_min_tokens": 60,
    "max_steps": 2,
}
SHORT = [row(f"Nine, as {word}.", "Nine.") for word in ("said", "asked", "it is")]


@pytest.fixture
def chains(place):  # noqa: F811
    write(place / "chains.jsonl", [*ROWS.values(), *SHORT])


@pytest.fixture
def trainers(monkeypatch) -> list:
    """Every trainer that the script makes."""
    made, train = [], stage.train
    monkeypatch.setattr(
        stage, "train", lambda trainer, *args, **kwargs: made.append(trainer) or train(trainer, *args, **kwargs)
    )
    return made


def learnt(trainer) -> list[str]:
    """What the labels of each row are as text."""
    kit = trainer.processing_class
    return [kit.decode([label for label in row["labels"] if label != -100]) for row in trainer.train_dataset]


@pytest.mark.parametrize("teacher", [None, PARENT])
def test_what_is_left_is_learnt(place, sft, chains, trainers, teacher, capsys):  # noqa: F811
    out = f"reasoning-{teacher is None}"
    assert sft(out, "chains", PARENT, teacher, plain_sft=teacher is None, **FLAGS) == 0
    texts = learnt(trainers[0])
    assert len(texts) == 7  # half of seven is four: all
    kit = AutoTokenizer.from_pretrained(place / out)
    marks = kit.convert_tokens_to_ids(["[THINK]", "[/THINK]"])
    for tokens in trainers[0].train_dataset:
        ids = [label for label in tokens["labels"] if label != -100]
        assert [ids.count(mark) for mark in marks] == [1, 1] and ids[0] == marks[0] and ids[-1] == kit.eos_token_id
    long = [text for text in texts if THOUGHT in text]
    assert len(long) == 4 and all(text.startswith(f"[THINK]{THOUGHT}[/THINK]") for text in long)
    report = json.loads((place / out / "reasoning_data.json").read_text())
    assert [one["removed"] for one in report["filters"].values()] == [4, 4, 3]
    assert report["before"]["rows"] == 18 and report["after"]["rows"] == 7
    numbers = manifest.read(place / out)["metrics"]["reasoning_data"]
    assert (numbers["rows_before"], numbers["rows"], numbers["long_fraction"]) == (18, 7, 4 / 7)
    assert "format: 4 removed (4 fail it)" in capsys.readouterr().err


def test_a_resumed_run_has_the_same_rows(place, sft, chains, trainers, monkeypatch):  # noqa: F811
    flags = {"teacher": None, "plain_sft": True, **FLAGS, "max_steps": 4}
    assert sft("chains-whole", "chains", PARENT, **flags) == 0
    with monkeypatch.context() as patch:
        StopAt(patch, 2)
        assert sft("chains-broken", "chains", PARENT, **flags) == stage.STOPPED
    assert not (place / "chains-broken" / "reasoning_data.json").exists()
    assert sft("chains-broken", "chains", PARENT, **flags) == 0
    assert learnt(trainers[0]) == learnt(trainers[1]) == learnt(trainers[2])
    for name in ("model.safetensors", "reasoning_data.json"):
        assert (place / "chains-whole" / name).read_bytes() == (place / "chains-broken" / name).read_bytes()


def test_without_the_flags_nothing_changes(place, sft, chains, trainers):  # noqa: F811
    flags = {**FLAGS, "filters": None, "long_fraction": None}
    assert sft("as-it-is", "chains", PARENT, None, plain_sft=True, **flags) == 0
    texts = learnt(trainers[0])
    assert len(texts) == 18 and sum("<think>" in text for text in texts) == 2  # as plain letters
    assert not (place / "as-it-is" / "reasoning_data.json").exists()
    assert "reasoning_data" not in manifest.read(place / "as-it-is")["metrics"]


def test_pictures_and_held_out_rows_stay(place, sft, trainers):  # noqa: F811
    said = [{"role": "assistant", "content": "<think>abc</think>cab"}, {"role": "assistant", "content": "abc"}]
    rows = [
        {"messages": [{"role": "user", "content": "what"}, said[n % 2]], "images": [f"{n % 3}.png"]} for n in range(12)
    ]
    write(place / "looked.jsonl", rows)
    flags = {"filters": ["format"], "max_steps": 1, "test_split_size": 0.5, "chat_template_path": "mistral"}
    assert sft("looked", "looked", "seeing", None, plain_sft=True, **flags) == 0
    trainer = trainers[0]
    for part in (trainer.train_dataset, trainer.eval_dataset):
        assert 0 < len(part) < 6
        for kept in part:
            said = {"role": "assistant", "content": "cab", "reasoning_content": "abc"}
            assert kept["messages"][1] == said and kept["images"][0].size[1] in (8, 12, 16)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"filters": ["form"]}, "there is no 'form'; allowed are format, repetition, language"),
        ({"long_fraction": 0.5, "long_min_tokens": 4000}, "none is long: 4000 tokens and more are long"),
        ({"streaming": True}, "count rows before training; set streaming: false"),
        ({"rows": "pairs", "assistant_only_loss": False}, "no row is left of 8: removed were format 8"),
    ],
)
def test_refusals(place, sft, chains, flags, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        sft("refused", **{"rows": "chains", "model": PARENT, "teacher": None, "plain_sft": True, **FLAGS, **flags})
    assert not (place / "refused").exists()
