"""What goes into a decoder's linear layers: their largest inputs over a text, and inputs rounded as an FP8 engine does.

Text of one window at a time, so there is no padding whose inputs would count.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from hf_cascade.anatomy import PROJECTOR, TOWER, WRAPPERS
from hf_cascade.publish import e4m3

HEAD = "lm_head"

# B windows of a batch, T tokens of a window, K inputs of a linear layer


def kept_modules(model_type: str) -> list[str]:
    """`modules_to_not_convert` of a model type's config.json: names of modules in memory (paper section 7)."""
    return [*([TOWER[:-1], PROJECTOR[:-1]] if model_type in WRAPPERS else []), HEAD]


def converted_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """
    Name to layer of all that become FP8: those that transformers replaces when it opens such a checkpoint.

    Raises:
        ValueError: the model has experts, whose scales another layout holds, or no linear layers.
    """
    experts = [name for name, _ in model.named_modules() if name.endswith(".experts")]
    if experts:
        raise ValueError(f"{type(model).__name__} is a mixture of experts ({experts[0]}), which is not converted")
    kept = kept_modules(model.config.model_type)
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, kept)
    }
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layers to convert")
    return found


@contextmanager
def _hooks(layers: dict[str, nn.Linear], make) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(make(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def input_maxima(model: PreTrainedModel, windows: list[Tensor], report=None) -> dict[str, Tensor]:
    """
    Largest magnitude of each converted layer's inputs.

    Args:
        model (`PreTrainedModel`): in eval mode.
        windows (`list[Tensor]`): [B, T] token ids, no padding.
        report (`Callable[[float], None]`, *optional*): called with the share that is done.

    Returns:
        `dict[str, Tensor]`: layer name to one fp32 number.

    Raises:
        ValueError: no text, a layer that is never called, or an input that is NaN or infinite.
    """
    if not windows:
        raise ValueError("no calibration text: scales of activations need some")
    layers = converted_layers(model)
    maxima: dict[str, Tensor] = {}

    def make(name: str):
        def hook(_, inputs):
            largest = inputs[0].detach().abs().amax().float()
            maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest

        return hook

    with _hooks(layers, make):
        for done, ids_BT in enumerate(windows, 1):
            model.base_model(input_ids=ids_BT.to(model.device), use_cache=False)
            if report is not None:
                report(done / len(windows))
    never = sorted(layers.keys() - maxima.keys())
    if never:
        raise ValueError(f"{len(never)} layers had no input from the calibration text, {never[0]} among them")
    broken = sorted(name for name, largest in maxima.items() if not largest.isfinite())
    if broken:
        raise ValueError(f"inputs of {len(broken)} layers are NaN or infinite, {broken[0]} among them")
    return {name: largest.cpu() for name, largest in maxima.items()}


class Saturation:
    """How many inputs lay beyond the range of their layer's scale."""

    def __init__(self):
        self.seen, self.beyond = 0, 0

    @property
    def share(self) -> float:
        """Of all inputs that were rounded."""
        return self.beyond / max(self.seen, 1)


@contextmanager
def static_inputs(model: PreTrainedModel, scales: dict[str, Tensor]) -> Iterator[Saturation]:
    """
    Round the inputs of the converted layers to e4m3 by static scales, as an engine with FP8 products does.

    The products themselves are then exact in fp32; an engine adds in fp32 too.

    Args:
        model (`PreTrainedModel`): with weights that e4m3 holds already (an FP8 folder, opened dequantised), or others.
        scales (`dict[str, Tensor]`): layer name to one fp32 number.
    """
    counted = Saturation()

    def make(name: str):
        scale = scales[name].to(model.device)

        def hook(_, inputs):
            values = inputs[0]
            counted.seen += values.numel()
            counted.beyond += int((values.abs() > scale * e4m3.LARGEST).sum())
            return (e4m3.decode(e4m3.encode(values, scale), scale).to(values.dtype), *inputs[1:])

        return hook

    with _hooks(converted_layers(model), make):
        yield counted
