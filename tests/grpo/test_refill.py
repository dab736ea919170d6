"""refill.py: rows of two rounds in one batch, whatever their padding; prompts by key."""

import pytest
import torch

from hf_cascade.grpo.refill import draw_prompts, replace_groups

PAD = 9


def batch_of(prompts, completions, **more):
    """A padded batch like TRL's, from rows of ids."""
    width, length = max(map(len, prompts)), max(map(len, completions))
    rows = len(prompts)
    masks = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    counts = [[1] * len(c) + [0] * (length - len(c)) for c in completions]
    return {
        "prompt_ids": torch.tensor([[PAD] * (width - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor(masks),
        "completion_ids": torch.tensor([c + [PAD] * (length - len(c)) for c in completions]),
        "completion_mask": torch.tensor(counts),
        "old_per_token_logps": torch.tensor([[-float(i) for i in c] + [0.0] * (length - len(c)) for c in completions]),
        "token_type_ids": torch.tensor([[7] * (width + length)] * rows)
        * torch.tensor([m + c for m, c in zip(masks, counts, strict=True)]),
        "rewards": torch.arange(rows).float(),
        "num_items_in_batch": torch.tensor(sum(map(len, completions))),
        **more,
    }


FIRST = [[1], [1], [2, 2], [2, 2]], [[3], [4, 4], [5], [6]]
OTHER = [[3, 3, 3], [3, 3, 3], [4], [4]], [[7], [8, 8, 8, 8], [1, 1], [2]]


@pytest.mark.parametrize(
    ("dead", "live", "expected"),
    [
        ([True, False], [True, True], [4, 5, 2, 3]),
        ([False, True], [False, True], [0, 1, 6, 7]),
        ([True, True], [False, True], [6, 7, 2, 3]),
        ([True, True], [False, False], [0, 1, 2, 3]),
        ([False, False], [True, True], [0, 1, 2, 3]),
    ],
)
def test_rows_keep_their_tokens(dead, live, expected):
    merged = replace_groups(batch_of(*FIRST), batch_of(*OTHER), torch.tensor(dead), torch.tensor(live), PAD)
    for place, row in enumerate(expected):
        prompt, completion = (FIRST[part][row] if row < 4 else OTHER[part][row - 4] for part in (0, 1))
        assert merged["prompt_ids"][place][merged["prompt_mask"][place].bool()].tolist() == prompt
        mask = merged["completion_mask"][place].bool()
        assert merged["completion_ids"][place][mask].tolist() == completion
        assert merged["old_per_token_logps"][place][mask].tolist() == [-float(i) for i in completion]
        both = torch.cat([merged["prompt_mask"][place], merged["completion_mask"][place]])
        assert merged["token_type_ids"][place].tolist() == (7 * both).tolist()
        assert merged["rewards"][place] == row % 4
        filled = merged["completion_ids"][place][~mask]
        assert (filled == PAD).all()


def test_images_stay_with_their_rows():
    first = batch_of(*FIRST)
    pixels = torch.arange(8.0).view(8, 1, 1, 1)
    other = batch_of(*OTHER, pixel_values=pixels, num_images=[2, 2, 2, 2], image_sizes=torch.arange(16).view(8, 2))
    take = torch.tensor([True, False]), torch.tensor([False, True])
    merged = replace_groups(first, other, *take, PAD)  # the first round had no images
    assert merged["num_images"] == [2, 2, 0, 0] and merged["pixel_values"].flatten().tolist() == [4, 5, 6, 7]
    assert merged["image_sizes"].flatten().tolist() == list(range(8, 16))
    merged = replace_groups(other, first, torch.tensor([True, False]), torch.tensor([True, True]), PAD)
    assert merged["num_images"] == [0, 0, 2, 2] and merged["pixel_values"].flatten().tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("shape", [None, (4, 3)])
def test_what_cannot_stand_together_is_refused(shape):
    first = batch_of(*FIRST, pixel_values=torch.zeros(4, 2))
    other = batch_of(*OTHER, **({} if shape is None else {"pixel_values": torch.zeros(shape)}))
    with pytest.raises(ValueError, match="'pixel_values'.*set max_refill_rounds to 0"):
        replace_groups(first, other, torch.tensor([True, False]), torch.tensor([True, True]), PAD)


def test_a_steps_rounds_draw_different_prompts():
    rounds = [draw_prompts(10, first, 3, seed=42, step=7) for first in (0, 3, 6)]
    assert len({*sum(rounds, [])}) == 9 and rounds == [draw_prompts(10, first, 3, 42, 7) for first in (0, 3, 6)]
    assert draw_prompts(10, 9, 3, 42, 7)[1:] == rounds[0][:2]  # all were drawn: from the start
    assert draw_prompts(10, 0, 9, 42, 7) == sum(rounds, [])  # whatever the number of processes
    assert rounds[0] not in (draw_prompts(10, 0, 3, 42, 8), draw_prompts(10, 0, 3, 43, 7))
