"""Refill: groups without an advantage are replaced by groups of other prompts (dynamic sampling)."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

PROMPT = ("prompt_ids", "prompt_mask")  # padded on the left
BOTH = ("token_type_ids", "mm_token_type_ids")  # of prompt and completion, padded on both sides
# padded on the right; what padding holds is masked out
COMPLETION = (
    *("completion_ids", "completion_mask", "tool_mask"),
    *("old_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio"),
)


def draw_prompts(prompts: int, first: int, count: int, seed: int, step: int) -> list[int]:
    """
    Part of a training set in an order of this step's own: its rounds draw different prompts while there are any.

    Args:
        prompts (`int`): rows of the training set.
        first (`int`): prompts that were drawn in this step before.
        count (`int`): prompts to draw.
        seed (`int`), step (`int`): the order, the same in any process and in a resumed run.

    Returns:
        `list[int]`: indices of rows.
    """
    random = torch.Generator().manual_seed(seed * 1_000_003 + step)
    order = torch.randperm(prompts, generator=random)
    return order[torch.arange(first, first + count) % prompts].tolist()


def replace_groups(batch: dict, fresh: dict, dead_P: Tensor, live_Q: Tensor, pad_token_id: int) -> dict:
    """
    A generation batch whose dead groups are replaced by the live ones of another, as far as those go.

    Args:
        batch (`dict`): P groups, as TRL's `_generate_and_score_completions` returns them.
        fresh (`dict`): Q groups, likewise.
        dead_P (`Tensor`): boolean, which groups of `batch` may go.
        live_Q (`Tensor`): boolean, which groups of `fresh` may take their place.
        pad_token_id (`int`): fills up shorter prompts and completions.

    Returns:
        `dict`: P groups in the places they had.

    Raises:
        ValueError: the batches cannot stand in one, as images in a layout of unequal sizes.
    """
    rows = len(batch["completion_ids"])
    size = rows // len(dead_P)
    chosen_PG = torch.arange(rows).view(-1, size)
    places, found = dead_P.cpu().nonzero().flatten(), live_Q.cpu().nonzero().flatten()
    count = min(len(places), len(found))
    chosen_PG[places[:count]] = rows + found[:count, None] * size + torch.arange(size)
    first, second = split_pixel_values_by_grid(batch), split_pixel_values_by_grid(fresh)
    merged = {}
    for name in {**first, **second}:
        pair = [part.get(name) for part in (first, second)]
        merged[name] = _choose(name, pair, (first, second), chosen_PG.flatten(), pad_token_id)
    return unsplit_pixel_values_by_grid(merged)


def _choose(name: str, pair: list, batches: tuple[dict, dict], chosen: Tensor, pad_token_id: int):
    """Chosen rows of one entry of two batches."""
    if any(isinstance(value, list) for value in pair):  # images row by row
        given = next(value for value in pair if value is not None)
        none = given[0][:0] if isinstance(given[0], Tensor) else 0
        sizes = [len(batch["completion_ids"]) for batch in batches]
        rows = [row for value, size in zip(pair, sizes, strict=True) for row in (value or [none] * size)]
        return [rows[number] for number in chosen]
    if any(value is None for value in pair):
        raise ValueError(f"one round of generation has {name!r} and another has not: set max_refill_rounds to 0")
    if pair[0].ndim == 0:
        return pair[0]  # of the whole batch, which the trainer counts anew
    fill = {"prompt_ids": pad_token_id, "completion_ids": pad_token_id, "tool_mask": 1}.get(name, 0)
    if name in PROMPT + COMPLETION:
        width = max(value.size(1) for value in pair)
        sides = [(width - value.size(1), 0) if name in PROMPT else (0, width - value.size(1)) for value in pair]
    elif name in BOTH:
        left = max(batch["prompt_ids"].size(1) for batch in batches)
        right = max(batch["completion_ids"].size(1) for batch in batches)
        sides = [(left - batch["prompt_ids"].size(1), right - batch["completion_ids"].size(1)) for batch in batches]
    elif pair[0].shape[1:] != pair[1].shape[1:]:
        raise ValueError(f"{name!r} has other shapes in another round of generation: set max_refill_rounds to 0")
    else:
        sides = [None, None]
    padded = [value if side is None else pad(value, side, value=fill) for value, side in zip(pair, sides, strict=True)]
    return torch.cat(padded)[chosen.to(padded[0].device)]
