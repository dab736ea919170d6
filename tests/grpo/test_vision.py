"""Prompts with images: each row is learned from with its own images, after groups were replaced too."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from hf_cascade.data.image_text import load_processor
from tests.grpo.reference import by_hand, generate, gradients, groups_of, unpadded
from tests.odpo.test_vision import dataset, own_images, seeing  # noqa: F401 (a fixture)
from tests.online.reference import distance, drifted


@pytest.mark.parametrize("dead", [(0, 2), (1, 3), (0, 1, 2, 3)])
def test_gradient_is_of_every_rows_own_images(make_trainer, seeing, dead):  # noqa: F811
    """Rows 1 and 4 have no images; what is drawn has any number."""

    def reward(completions, number, **columns):
        return [1.0 if n in dead else float(row % 4) for row, n in enumerate(number)]

    rows = dataset()
    trainer = make_trainer(
        reward,
        drifted(seeing, AutoModelForImageTextToText),
        rows,
        {"processing_class": load_processor(str(seeing))},
        max_refill_rounds=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
    )
    batches = generate(trainer)
    responses, metrics = unpadded(batches), trainer._metrics["train"]
    assert metrics["grpo/refill_rounds"][0] >= 1 and metrics["grpo/kept_groups"] == [4]
    assert [len(group) for group in groups_of(responses)] == [4] * 4
    assert sum(sum(batch["num_images"]) for batch in batches) == sum(len(batch["pixel_values"]) for batch in batches)
    loss, ours = gradients(trainer, batches)
    expected, theirs = by_hand(trainer.model, responses, images=own_images(rows))
    assert loss == pytest.approx(expected, abs=1e-5) and distance(ours, theirs) < 1e-4
    assert any("projector" in name for name in ours) and not any("vision_tower" in name for name in ours)
    assert torch.isfinite(torch.tensor(loss))
