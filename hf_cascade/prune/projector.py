"""The vision projector of a pruned vision-language model: pruned with the stream it writes to, or started anew."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_cascade.anatomy import PROJECTOR, dissect
from hf_cascade.prune.ends import narrow, set_parameter
from hf_cascade.prune.fit import LeastSquares
from hf_cascade.prune.parent import Parent
from hf_cascade.prune.plan import top

# D, k parent and child hidden size; the stock projector's inner width is the decoder's hidden size; I image tokens


def parent_projector(parent: Parent) -> nn.Module:
    """The parent's projector with its weights, in the working type."""
    module = copy.deepcopy(parent.parts.projector).requires_grad_(False)
    names = module.state_dict().keys()
    module.load_state_dict({name: parent.weight(PROJECTOR + name) for name in names}, assign=True)
    return module


def new_projector(child: PreTrainedModel, seed: int) -> nn.Module:
    """A projector as transformers starts one, the same for the same seed."""
    module = copy.deepcopy(dissect(child).projector).requires_grad_(False).to_empty(device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in module.modules():
            child._init_weights(part)
    return module


@torch.no_grad()
def prune_projector(
    source: nn.Module, child: PreTrainedModel, rotation_Dk: Tensor | None, seen: list[Tensor], ridge: float
) -> nn.Module:
    """
    The child's projector: everything before its MLP as it is, the MLP's inner width cut to k, its output rotated.

    Inner columns are kept by the product of the norms of the weights that make and use them. Where images were seen,
    the last layer is then re-fitted on what it reads of them, to the parent's rotated features.

    Args:
        source (`nn.Module`): the parent's: `linear_1` [D, vision], `linear_2` [D, D].
        child (`PreTrainedModel`): the child's skeleton; its projector has `linear_1` [k, vision], `linear_2` [k, k].
        rotation_Dk (`Tensor`, *optional*): Q; without it the projector is copied.
        seen (`list[Tensor]`): inner activations [I, D] of the parent's projector.
        ridge (`float`): as for every fit.
    """
    if rotation_Dk is None:
        return source
    target = copy.deepcopy(dissect(child).projector).requires_grad_(False)
    target = target.to_empty(device=rotation_Dk.device).to(source.linear_1.weight.dtype)
    rest = {name: value for name, value in source.state_dict().items() if not name.startswith(("linear_1", "linear_2"))}
    target.load_state_dict(rest, strict=False)
    first, second = source.linear_1, source.linear_2
    kept = top(first.weight.norm(dim=1) * second.weight.norm(dim=0), rotation_Dk.shape[1])
    set_parameter(target.linear_1, first.weight[kept])
    set_parameter(target.linear_2, narrow(second.weight[:, kept], rotation_Dk))
    if first.bias is not None:
        set_parameter(target.linear_1, first.bias[kept], "bias")
        set_parameter(target.linear_2, narrow(second.bias, rotation_Dk), "bias")
    if seen:
        fit = LeastSquares(len(kept), rotation_Dk.shape[1], rotation_Dk.device)
        for inner_ID in seen:
            fit.add(inner_ID[:, kept], nn.functional.linear(inner_ID, second.weight) @ rotation_Dk.to(inner_ID))
        set_parameter(target.linear_2, fit.solve(target.linear_2.weight, ridge))
    return target
