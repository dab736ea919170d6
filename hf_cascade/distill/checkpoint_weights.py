"""Weights of a checkpoint back into the model they are of, under the names that `save_pretrained` gave them.

The Trainer loads a checkpoint by the model's own names. Of models that are saved under others (Mistral3:
`language_model.model.layers` for `model.language_model.layers`) it finds nothing, says so in its log, and trains on
from the weights it was started with (huggingface/transformers#43701).
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion


def saved_names(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """The model's own tensors by the names `save_pretrained` gives them; None where those are the model's."""
    state = model.state_dict()
    named = revert_weight_conversion(model, state)
    return named if named.keys() != state.keys() else None


@torch.no_grad()
def load_saved(named: dict[str, Tensor], checkpoint: str | Path) -> None:
    """
    Copy the safetensors of `checkpoint` into `named`, one tensor at a time.

    Args:
        named (`dict[str, Tensor]`): of `saved_names`.
        checkpoint (`str` or `Path`): folder with `model*.safetensors`.

    Raises:
        ValueError: the checkpoint lacks a tensor, or has one that the model has no place for.
    """
    found = set()
    for file in sorted(Path(checkpoint).glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if name not in named:
                    raise ValueError(f"{checkpoint} holds {name}, which the model lacks: it is another model's")
                named[name].copy_(tensors.get_tensor(name))
                found.add(name)
    # of tied tensors one is saved
    places = {named[name].data_ptr() for name in found}
    missing = [name for name, tensor in named.items() if tensor.data_ptr() not in places]
    if missing:
        raise ValueError(f"{checkpoint} lacks {len(missing)} weights, {missing[0]} among them: it is not whole")
