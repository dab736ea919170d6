"""Images of a calibration batch through the parent's vision tower and projector (Mistral3)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_cascade.anatomy import TOWER
from hf_cascade.prune.layers import bypassed
from hf_cascade.prune.parent import Parent
from hf_cascade.prune.projector import parent_projector

# I image tokens of a batch, D hidden size


@dataclass
class ProjectedImages:
    """
    Images as the decoder sees them.

    Attributes:
        features (`dict[int, Tensor]`): batch number to [I, D], in the order of the image tokens.
        inner (`list[Tensor]`): what the projector's last layer read, [I, D] each.
    """

    features: dict[int, Tensor] = field(default_factory=dict)
    inner: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def project_images(parent: Parent, batches: dict[int, Mapping]) -> ProjectedImages:
    """
    Run tower and projector, the only other parts of the parent that are ever in memory whole.

    Args:
        parent (`Parent`): a Mistral3.
        batches (`dict[int, Mapping]`): batch number to a processor's output: `input_ids`, `pixel_values`,
            `image_sizes`.

    Raises:
        ValueError: the model has no vision tower, or the images do not fit their tokens.
    """
    if parent.parts.projector is None:
        raise ValueError(f"{type(parent.model).__name__} reads no images: give text alone as calibration")
    model = copy.deepcopy(parent.model.model).requires_grad_(False)
    tower = model.vision_tower
    names = tower.state_dict().keys()
    tower.load_state_dict({name: parent.weight(TOWER + name) for name in names}, assign=True)
    for name, part in tower.named_modules():  # positions are computed, not stored
        if any(buffer.is_meta for buffer in part.buffers(recurse=False)):
            owner, _, last = name.rpartition(".")
            setattr(tower.get_submodule(owner), last, type(part)(config=parent.config.vision_config))
    model.multi_modal_projector = projector = parent_projector(parent)
    found = ProjectedImages()
    for number, batch in batches.items():
        pixels = batch["pixel_values"].to(parent.device, parent.dtype)
        with bypassed(projector, "linear_2") as last:
            inner = model.get_image_features(pixel_values=pixels, image_sizes=batch["image_sizes"]).pooler_output
        inner_ID = torch.cat(list(inner))
        found.inner.append(inner_ID)
        found.features[number] = last(inner_ID).to(parent.storage)
        tokens = int((batch["input_ids"] == parent.config.image_token_index).sum())
        if tokens != len(inner_ID):
            raise ValueError(
                f"calibration batch {number} has {tokens} image tokens and images that make {len(inner_ID)}: do not "
                "cut what the processor returned"
            )
    return found
