"""Where the teacher lives: on the student's devices, sharded when the student is; and how sharded weights are read.

A sharded model has its weights whole only in the forward of its modules, so everything that reads a weight runs there.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.models.utils import _ForwardRedirection, prepare_deepspeed

_redirect = _ForwardRedirection()


def place_teacher(model: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """
    The frozen teacher on the student's devices, sharded when the student is.

    Alone or under DDP it is moved. Under FSDP2 each of its layers is a unit of its own, as accelerate makes them for
    the student; weights that only the first process holds (`fsdp_cpu_ram_efficient_loading`) go to all. Under DeepSpeed
    ZeRO-3 it is an engine without optimizer; below stage 3 weights are not sharded, and it is moved.

    Args:
        model (`PreTrainedModel`): the teacher, frozen.
        accelerator (`Accelerator`): the trainer's.

    Returns:
        `nn.Module`: the model itself, or what wraps it.

    Raises:
        ValueError: FSDP of version 1.
    """
    parallelism = accelerator.parallelism_config
    if parallelism is not None and parallelism.cp_enabled:
        from accelerate.big_modeling import _attach_context_parallel_hooks

        _attach_context_parallel_hooks(model)  # accelerate does it to what it prepares, the student
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if accelerator.state.deepspeed_plugin.zero_stage == 3:
            return prepare_deepspeed(model, accelerator)
    elif accelerator.distributed_type == DistributedType.FSDP:
        return _shard(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)


def _shard(model: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import FSDPModule

    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version={plugin.fsdp_version}: a teacher beside the student needs FSDP2: set fsdp_version: 2, as "
            "recipes/accelerate/fsdp2.yaml does"
        )
    # accelerate keeps the names of the first model's layers for all: the student would be wrapped by the teacher's.
    policy, names = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    plugin.transformer_cls_names_to_wrap = None
    try:
        model = fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = policy, names
    head = model.get_output_embeddings()
    # The loss reads the head after the teacher's forward: freed there, it would have to be gathered again.
    (head if isinstance(head, FSDPModule) else model).set_reshard_after_forward(False, recurse=False)
    return model


def head_rows(model: PreTrainedModel) -> int:
    """The vocabulary, from the head's rows; those of a weight that ZeRO-3 took apart are in `ds_shape`."""
    weight = model.get_output_embeddings().weight
    return getattr(weight, "ds_shape", weight.shape)[0]


def in_forward(wrapper: nn.Module, model: nn.Module, method: Callable, *inputs: Tensor):
    """
    Call `method(*inputs)` in the forward of `wrapper`, where DDP, FSDP2 and ZeRO-3 act and weights are whole.

    FSDP2 casts what goes into and comes out of a forward to its compute type. What must keep its precision (a count of
    tokens in bf16 is up to 0.4% wrong) belongs into a closure, and what comes out has the value that `method` gave it;
    only the gradient takes the way through the wrapper.

    Args:
        wrapper (`nn.Module`): `model`, or what an engine wrapped it in.
        model (`nn.Module`): the module whose forward is stood in for.
        method (`Callable`): what to call. It returns a loss, alone or first of a tuple, or anything without gradient.
        inputs (`Tensor`): hidden states that carry a gradient: ZeRO-3 frees the weights once it has come to them.

    Returns:
        what `method` returned.
    """
    kept = []

    def call(*inputs):
        kept.append(method(*inputs))
        loss = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
        # Hooks see the loss alone: they do not look into objects, and would cast whatever else they find.
        return loss if isinstance(loss, Tensor) and loss.requires_grad else torch.zeros(())

    output = _redirect(wrapper, model, call, *inputs)
    if not output.requires_grad:
        return kept[0]
    loss, *rest = kept[0] if isinstance(kept[0], tuple) else kept
    if output.dtype != loss.dtype:  # the value of the one with the gradient of the other
        output = output + (loss.detach() - output.detach())
    return (output, *rest) if isinstance(kept[0], tuple) else output
