"""The vision projector of a pruned vision-language model: pruned with the stream it writes to, or started anew."""

import torch
from torch import Tensor, nn

from hf_cascade.prune.apply import narrow, set_parameter
from hf_cascade.prune.plan import top
from hf_cascade.prune.stream import working_copy

# D, k parent and child hidden size; the stock projector's inner width is the decoder's hidden size


@torch.no_grad()
def prune_projector(parent: nn.Module, child: nn.Module, rotation_Dk: Tensor | None) -> None:
    """
    Fill the child's projector: everything before its MLP as it is, the MLP's inner width cut to k, its output rotated.

    Inner columns are kept by the product of the norms of the weights that make and use them (there may be no images to
    measure with).

    Args:
        parent (`nn.Module`): `linear_1` [D, vision], `linear_2` [D, D].
        child (`nn.Module`): `linear_1` [k, vision], `linear_2` [k, k].
        rotation_Dk (`Tensor`, *optional*): Q [D, k]; without it the projector is copied.
    """
    mlp = ("linear_1.", "linear_2.")
    rest = {name: value for name, value in parent.state_dict().items() if not name.startswith(mlp)}
    child.load_state_dict(rest, strict=False)
    parent = working_copy(parent, child.linear_1.weight.dtype)
    first, second = parent.linear_1, parent.linear_2
    kept = torch.arange(first.weight.shape[0])
    if rotation_Dk is not None:
        kept = top(first.weight.data.norm(dim=1) * second.weight.data.norm(dim=0), rotation_Dk.shape[1])
    set_parameter(child.linear_1, first.weight.data[kept])
    set_parameter(child.linear_2, narrow(second.weight.data[:, kept], rotation_Dk))
    if first.bias is not None:
        set_parameter(child.linear_1, first.bias.data[kept], "bias")
        set_parameter(child.linear_2, narrow(second.bias.data, rotation_Dk), "bias")
