"""A parent one tensor at a time: the same reading serves a model in memory and a checkpoint larger than memory.

Its skeleton, a model on the meta device, knows shapes and code and no weights; a decoder layer gets its weights when it
is asked for and is forgotten afterwards.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_cascade.anatomy import EMBEDDING, FINAL_NORM, HEAD, WRAPPERS, Anatomy, dissect, family, is_tied
from hf_cascade.prune.checkpoint import Checkpoint

# V vocabulary, D hidden size


def skeleton(config: PreTrainedConfig, model_class: type | None = None, attention: str = "sdpa") -> PreTrainedModel:
    """A model of this config on the meta device, of the stock class that a language model of it has."""
    auto = AutoModelForImageTextToText if config.model_type in WRAPPERS else AutoModelForCausalLM
    model_class = model_class or auto._model_mapping[type(config)]
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what there is to say of a config was said when it was loaded
    try:
        with torch.device("meta"):
            model = model_class._from_config(copy.deepcopy(config), dtype=torch.float32, attn_implementation=attention)
        backbone = dissect(model).backbone
        backbone.rotary_emb = type(backbone.rotary_emb)(config=backbone.config)  # what it computes from is no weight
    finally:
        logging.set_verbosity(verbosity)
    return model.eval()


@dataclass(frozen=True)
class Parent:
    """
    The model to prune.

    Args:
        model (`PreTrainedModel`): its skeleton.
        read (`Callable[[str], Tensor]`): a weight by its name in the state dict, as stored.
        device (`torch.device`): where to compute.
        dtype (`torch.dtype`): type to compute in, at least fp32.
        stored (`torch.dtype`): type of the stored weights.
        storage (`torch.device`): where streams wait between layers.
        stored_dtype (`Callable[[str], torch.dtype]`): a weight's stored type by its name.
        scratch (`Path`, *optional*): folder for streams that need not be in memory.
    """

    model: PreTrainedModel
    read: Callable[[str], Tensor]
    device: torch.device
    dtype: torch.dtype
    stored: torch.dtype
    storage: torch.device
    stored_dtype: Callable[[str], torch.dtype]
    scratch: Path | None = None

    @classmethod
    def from_model(cls, model: PreTrainedModel) -> "Parent":
        """A model in memory; computes where it is."""
        empty = skeleton(model.config, type(model), model.config._attn_implementation)
        weights = model.state_dict()
        dtype = torch.promote_types(model.dtype, torch.float32)
        return cls(
            empty, weights.__getitem__, model.device, dtype, model.dtype, model.device, lambda name: weights[name].dtype
        )

    @classmethod
    def from_checkpoint(cls, folder: str, config: PreTrainedConfig, device: torch.device) -> "Parent":
        """
        A folder of safetensors.

        Raises:
            ValueError: files or weights are missing, damaged, quantised, or not of this config.
        """
        empty = skeleton(config)
        checkpoint = Checkpoint(folder, empty)
        stored = checkpoint.dtype(dissect(empty).prefix + EMBEDDING)
        dtype = torch.promote_types(stored, torch.float32)
        return cls(
            empty,
            checkpoint.read,
            device,
            dtype,
            stored,
            torch.device("cpu"),
            lambda name: checkpoint.dtype(name, stored),
        )

    @property
    def config(self) -> PreTrainedConfig:
        """The parent's config."""
        return self.model.config

    @property
    def parts(self) -> Anatomy:
        """The skeleton's parts."""
        return dissect(self.model)

    @property
    def epsilon(self) -> float:
        """Of every norm."""
        return self.config.get_text_config().rms_norm_eps

    def stored_weight(self, name: str) -> Tensor:
        """
        A weight in its own type.

        Raises:
            ValueError: it holds NaN or infinite values.
        """
        value = self.read(name)
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values: the parent's weights are broken")
        return value

    def weight(self, name: str) -> Tensor:
        """A weight to compute with; as [`Parent.stored_weight`]."""
        return self.stored_weight(name).to(self.device, self.dtype)

    def embedding_VD(self) -> Tensor:
        """The embedding's weight, in its own type."""
        return self.stored_weight(self.parts.prefix + EMBEDDING)

    def head_VD(self) -> Tensor:
        """The output head's weight, in its own type."""
        return self.embedding_VD() if is_tied(self.config) else self.stored_weight(HEAD)

    def final_gain_D(self) -> Tensor:
        """What the final norm multiplies by."""
        return self.weight(self.parts.prefix + FINAL_NORM) + family(self.config).gain_offset

    def gain_D(self, layer: nn.Module, norm: str) -> Tensor:
        """What a norm of one of its layers multiplies by."""
        return layer.get_submodule(norm).weight.data + family(self.config).gain_offset

    def layer(self, number: int) -> nn.Module:
        """Decoder layer `number` with its weights in the working type; for reading only."""
        prefix = f"{self.parts.prefix}layers.{number}."
        layer = copy.deepcopy(self.parts.layers[number]).requires_grad_(False)
        names = layer.state_dict().keys()
        layer.load_state_dict({name: self.weight(prefix + name) for name in names}, assign=True)
        return layer
