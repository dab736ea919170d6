"""The same modules run on every rank, with images or without: what FSDP and ZeRO-3 wait for.

A sharded layer gathers its weights from all ranks when it runs. Where one rank's batch has an image and another's has
none, the first waits in the vision tower for ever. A blank image, whose features are multiplied by 0, keeps both in
step, and gives the projector a gradient of 0 on the rank without images.
"""

import torch
from torch import Tensor, nn

from hf_cascade.anatomy import WRAPPERS

PATCHES = (1, 2)  # merged patches of the blank image, down and across; transformers 5.23 fails on a single one


def keep_ranks_in_step(model: nn.Module) -> None:
    """
    Run the tower and the projector of `model` on a blank image wherever a batch has none. The outputs stay the same.

    Args:
        model (`PreTrainedModel` or `PeftModel`): student or teacher that reads images, before or after it is sharded.
            A text model is left alone.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config.model_type not in WRAPPERS:
        return
    base.model.register_forward_pre_hook(_see_a_blank, with_kwargs=True)
    base.model.register_forward_hook(_add_nothing)


def _see_a_blank(module: nn.Module, args: tuple, kwargs: dict) -> None:
    # before the decoder, as with an image: ranks must gather in the same order
    module.blank_features = None
    if kwargs.get("pixel_values") is None:
        side = module.config.vision_config.patch_size * module.config.spatial_merge_size
        height, width = (side * count for count in PATCHES)
        some = next(module.parameters())
        pixels = torch.zeros(1, module.config.vision_config.num_channels, height, width, device=some.device)
        sizes = torch.tensor([[height, width]], device=some.device)
        module.blank_features = module.get_image_features(pixel_values=pixels, image_sizes=sizes).pooler_output


def _add_nothing(module: nn.Module, args: tuple, output) -> None:
    features: tuple[Tensor, ...] | None = module.__dict__.pop("blank_features")
    if features is not None:
        nothing = 0 * torch.cat(list(features)).sum()
        output.last_hidden_state = output.last_hidden_state + nothing.to(output.last_hidden_state.dtype)
