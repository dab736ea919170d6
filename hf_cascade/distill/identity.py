"""Which teacher this is: fingerprints of a model and of a tokenizer, for teachers that are not in this process."""

import hashlib
import json

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

SAMPLE = 4096  # ours: elements hashed of each tensor; training moves nearly all of them
# Config entries that say where a model came from or how it runs, not what it computes.
VOLATILE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")


def model_sha256(model: PreTrainedModel) -> str:
    """
    Fingerprint of a model: config, every tensor's name, shape and type, all bytes of the head, a sample of the rest.

    The sample is `SAMPLE` evenly spaced elements of each tensor, the first and the last among them, so a 24B model
    takes seconds. Any training, merging, pruning or other type of the weights changes it; a change of a few single
    elements outside the sample does not. Folder, device, attention kernel and buffers that are not saved do not count.

    Args:
        model (`PreTrainedModel`): whole, that is before FSDP or DeepSpeed shards it.

    Returns:
        `str`: 64 hexadecimal digits.

    Raises:
        ValueError: the model is sharded.
    """
    digest = hashlib.sha256(json.dumps(_lasting(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, DTensor) or hasattr(tensor, "ds_id"):
            raise ValueError(f"{name} is sharded: take the fingerprint of a model before it is distributed")
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        if flat.numel() > SAMPLE:
            # whole numbers: float steps would round above 2^24 elements
            steps = torch.arange(SAMPLE, device=flat.device) * (flat.numel() - 1) // (SAMPLE - 1)
            flat = flat[steps]
        digest.update(_bytes(flat))
    head = model.get_output_embeddings()
    if head is not None:
        digest.update(_bytes(head.weight))
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> str:
    """
    Fingerprint of a tokenizer's map from tokens to ids, which is what [`check_same_tokenizer`] compares.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): of a processor, its tokenizer counts.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    if isinstance(tokenizer, ProcessorMixin):
        tokenizer = tokenizer.tokenizer
    vocabulary = tokenizer.get_vocab()
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())


def _lasting(entry):
    """A config's dictionary, nested ones too, without `VOLATILE`."""
    if not isinstance(entry, dict):
        return entry
    return {name: _lasting(value) for name, value in entry.items() if name not in VOLATILE}
