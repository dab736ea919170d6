"""`prune_model`: a `PreTrainedModel` in, a smaller one of the same stock class out."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_cascade.anatomy import dissect
from hf_cascade.prune.child import check_target
from hf_cascade.prune.config import PruneConfig
from hf_cascade.prune.images import project_images
from hf_cascade.prune.parent import Parent, skeleton
from hf_cascade.prune.pipeline import prune
from hf_cascade.prune.weights import MemoryWriter


def prune_model(
    model: PreTrainedModel,
    config: PruneConfig,
    calibration: Tensor | list | None = None,
    *,
    batch_size: int = 8,
) -> PreTrainedModel:
    """
    Prune `model` to the shape in `config` (paper section 2).

    ```python
    child = prune_model(model, PruneConfig(num_hidden_layers=26, hidden_size=3072), calibration=token_ids)
    child.save_pretrained("child")  # opens with from_pretrained, vLLM, lm-eval, ...
    ```

    Args:
        model (`PreTrainedModel`): the parent; not changed. Of a family in `hf_cascade.anatomy`, or Mistral3 around one
            (its vision tower is copied as it is). One on the meta device gives a child there: its exact shape and
            size, without weights or calibration.
        config (`PruneConfig`): target and method.
        calibration (`Tensor` or `list`, *optional*): token ids [windows, tokens], without padding; or a list of
            batches, each such ids or what a Mistral3 processor returns for one or more samples of equal length
            (`input_ids`, `pixel_values`, `image_sizes`). Only the parent's own shape needs none.
        batch_size (`int`, *optional*, defaults to `8`): windows at once.

    Returns:
        `PreTrainedModel`: a new model of the parent's class, in its type, on its device, in evaluation mode.

    Raises:
        ValueError: unsupported model, impossible shape, missing or broken calibration, weights that are not finite.
    """
    return prune_with_report(model, config, calibration, batch_size=batch_size)[0]


@torch.no_grad()
def prune_with_report(
    model: PreTrainedModel, config: PruneConfig, calibration=None, *, batch_size: int = 8, held_out=None
) -> tuple[PreTrainedModel, dict]:
    """
    As [`prune_model`]; returns the report too (see `prune.pipeline.prune`).

    Args:
        held_out (`Tensor` or `list`, *optional*): as `calibration`: text on which the report's divergences are
            measured and nothing is fitted. Unset, they are not measured.
    """
    dissect(model)
    check_target(model.config, config)
    if model.device.type == "meta":
        from hf_cascade.prune.child import child_config, target_shape

        layers = list(range(target_shape(model.config, config)["num_hidden_layers"]))
        return skeleton(child_config(model.config, config, layers), type(model)), {}
    parent = Parent.from_model(model)
    writer = MemoryWriter(lambda name: model.dtype, model.device)
    batches, images = as_batches(calibration, batch_size)
    held, held_images = as_batches(held_out, batch_size)
    images |= {len(batches) + number: value for number, value in held_images.items()}
    projected = project_images(parent, images) if images else None
    child, report = prune(parent, config, [*batches, *held], len(held), lambda _: writer, images=projected)
    return build(model, child.config, writer), report


def build(model: PreTrainedModel, config, writer: MemoryWriter) -> PreTrainedModel:
    """The child in memory, beside its parent."""
    with torch.random.fork_rng():
        child = type(model)._from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    child.generation_config = copy.deepcopy(model.generation_config)
    return writer.fill(child.to(model.device))


def as_batches(calibration, batch_size: int) -> tuple[list[Tensor], dict[int, Mapping]]:
    """
    Batches of token ids, and the number of each that comes with images, to those.

    Raises:
        ValueError: it is neither token ids nor a list of batches of them.
    """
    if calibration is None:
        return [], {}
    if torch.is_tensor(calibration):
        _check_ids(calibration)
        return list(calibration.cpu().split(batch_size)), {}
    batches, images = [], {}
    for number, part in enumerate(calibration):
        if isinstance(part, Mapping):
            if part.get("pixel_values") is not None:
                images[number] = part
            part = part["input_ids"]
        _check_ids(part)
        batches.append(part.cpu())
    return batches, images


def _check_ids(ids) -> None:
    if not torch.is_tensor(ids) or ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        found = f"{tuple(ids.shape)} {ids.dtype}" if torch.is_tensor(ids) else type(ids).__name__
        raise ValueError(f"calibration is {found}: it must be token ids [windows, tokens]")
