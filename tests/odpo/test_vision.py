"""Prompts with images: each row is learned from with its own images, and the tower stays as it is."""

import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as Stored
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from hf_cascade.data.image_text import load_processor
from hf_cascade.odpo import trainer as module
from tests.data import tiny
from tests.odpo.reference import Prefer, by_hand, gradients, longer
from tests.online.reference import distance, drifted, log_probs
from tests.prune import families

IMAGES = [1, 0, 2, 1, 0, 3, 1, 2]  # of each row
TEXTS = ["see", "a word", "two of them", "b", "no picture here", "many", "cd", "left or right"]
FEATURES = Features(
    {
        "prompt": [{"role": Value("string"), "content": Value("string")}],
        "images": List(Stored()),
        "number": Value("int64"),
    }
)
FORMS = {
    "pair": {"per_device_train_batch_size": 16},
    "small pairs": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
    "weight": {"loss_form": "weight", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16},
}


def dataset(counts=IMAGES, missing=None) -> Dataset:
    """A row of `missing` has no list of images at all."""
    rows = []
    for number, (text, count) in enumerate(zip(TEXTS, counts, strict=False)):
        images = [tiny.image(12 + 4 * (number % 2), 16, 10 * number + i) for i in range(count)]
        prompt = [{"role": "user", "content": text}]
        rows.append({"prompt": prompt, "images": images or missing, "number": number})
    return Dataset.from_list(rows, features=FEATURES)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """Folder of a tiny vision-language model with its processor."""
    folder = tmp_path_factory.mktemp("seeing")
    families.build("mistral3", dtype=torch.float32, num_hidden_layers=2).save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


@pytest.fixture
def make_seeing(seeing, make_trainer):
    def make(rows=None, trainer=None, **settings):
        model = drifted(seeing, AutoModelForImageTextToText)
        trainer = {"processing_class": load_processor(str(seeing)), **(trainer or {})}
        return make_trainer(Prefer(longer), model, rows or dataset(), trainer, **settings)

    return make


def own_images(rows: Dataset):
    """The model's image inputs of a prompt, looked up by its text and processed alone."""
    kit = tiny.processor()

    def look_up(prompt_ids):
        text = kit.tokenizer.decode(prompt_ids)
        (row,) = [row for row in rows if "".join(row["prompt"][0]["content"]) == _letters(text)]
        if not row["images"]:
            return {}
        seen = kit.image_processor(row["images"], return_tensors="pt", patch_size=8)
        return {"pixel_values": seen["pixel_values"], "image_sizes": seen["image_sizes"]}

    return look_up


def _letters(text: str) -> str:
    """One id a character: decoding puts a space between; three stand for a space of the text."""
    for special in ("<s>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "\n"):
        text = text.replace(special, "")
    return text.strip("\n ").replace("   ", "\0").replace(" ", "").replace("\0", " ")


def check(trainer, seeing, rows):
    loss, ours, buffered = gradients(trainer, trainer.args.gradient_accumulation_steps)
    frozen = AutoModelForImageTextToText.from_pretrained(seeing)
    reference = lambda *row, **images: log_probs(frozen, *row, **images)  # noqa: E731
    expected, theirs = by_hand(reference, trainer.model, buffered, images=own_images(rows))
    return loss, expected, ours, theirs


@pytest.mark.parametrize("missing", [[], None])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_of_every_rows_own_images(make_seeing, seeing, form, missing):
    rows = dataset(missing=missing)
    trainer = make_seeing(rows, **FORMS[form])
    loss, expected, ours, theirs = check(trainer, seeing, rows)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert distance(ours, theirs) < 1e-4
    assert any("projector" in name for name in ours) and not any("vision_tower" in name for name in ours)


def test_images_of_another_row_would_show(make_seeing, seeing, monkeypatch):
    rows = dataset([1] * 8)
    loss, expected, ours, theirs = check(make_seeing(rows, **FORMS["pair"]), seeing, rows)
    assert distance(ours, theirs) < 1e-4
    split = module.split_pixel_values_by_grid

    def rotated(batch):
        batch = split(batch)
        return {**batch, "pixel_values": batch["pixel_values"][2:] + batch["pixel_values"][:2]}

    monkeypatch.setattr(module, "split_pixel_values_by_grid", rotated)
    loss, expected, ours, theirs = check(make_seeing(rows, **FORMS["pair"]), seeing, rows)
    assert distance(ours, theirs) > 1e-2


@pytest.mark.parametrize("missing", [[], None])
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_without_any_image(make_seeing, seeing, form, missing):
    rows = dataset([0] * 8, missing)
    loss, expected, ours, theirs = check(make_seeing(rows, **FORMS[form]), seeing, rows)
    assert distance({name: ours[name] for name in theirs}, theirs) < 1e-4


def test_training_leaves_the_tower_and_evaluates(make_seeing, seeing, tmp_path):
    trainer = make_seeing(
        trainer={"eval_dataset": dataset([2, 0, 0, 1])},
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        learning_rate=1e-1,
        weight_decay=0.5,
        log_completions=True,
    )
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    found = trainer.evaluate()
    assert 0 <= found["eval_odpo/win_rate"] <= 1
    written = len(trainer.start._written)
    trainer.train()
    trainer.evaluate()
    assert len(trainer.start._written) == written == 8  # the key of a row with images is the same again
    moved = {name for name, weight in trainer.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert any("projector" in name for name in moved) and any("language_model" in name for name in moved)
    assert not any("vision_tower" in name for name in moved)

    trainer.save_model(str(tmp_path / "saved"))
    assert load_file(tmp_path / "saved" / "model.safetensors")
    saved, original = (load_processor(str(folder)) for folder in (tmp_path / "saved", seeing))
    assert saved.text_kwargs == original.text_kwargs == {"return_tensors": "pt"}
    assert saved.to_dict() == original.to_dict() and saved.chat_template == original.chat_template
    AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
