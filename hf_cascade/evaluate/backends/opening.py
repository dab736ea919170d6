"""`open_backend`: from a model's name to what answers requests: `hf`, `vllm` or `openai`."""

import logging
import os

import torch
from lm_eval.api.model import LM
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from hf_cascade import assets, manifest
from hf_cascade.anatomy import WRAPPERS
from hf_cascade.loading import load_config, load_model, load_tokenizer, local_weights

BACKENDS = ("hf", "vllm", "openai")
logger = logging.getLogger(__name__)


def open_backend(
    model: str,
    backend: str = "hf",
    *,
    url: str | None = None,
    batch_size: int = 8,
    dtype: str = "auto",
    **options,
) -> LM:
    """
    Open what answers.

    Args:
        model (`str`): folder or Hub id; for `openai` the model's name at the server.
        backend (`str`): one of `BACKENDS`.
        url (`str`, *optional*): for `openai`: the server's base, which ends in `/v1`.
        batch_size (`int`, *optional*, defaults to `8`): for `hf`: requests at once.
        dtype (`str`, *optional*, defaults to `"auto"`): of the weights; `auto` is the checkpoint's own, `float32` on a
            CPU.
        options: of `VLLMBackend` or `OpenAIBackend`.

    Raises:
        ValueError: no such back end, a model that does not open, or options that it does not have.
        ImportError: vLLM is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: allowed are {', '.join(BACKENDS)}")
    if (url is not None) != (backend == "openai"):
        raise ValueError("backend openai needs the server's url (http://host:port/v1), and only it takes one")
    if backend == "openai":
        from hf_cascade.evaluate.backends.openai import OpenAIBackend

        return OpenAIBackend(url, model, **options)
    if backend == "vllm":
        from hf_cascade.evaluate.backends.vllm import VLLMBackend

        return VLLMBackend(assets.locate(model), manifest.weights_sha256(local_weights(model)), dtype=dtype, **options)
    if options:
        raise ValueError(f"backend hf has no option {', '.join(options)}")
    return _open_hf(model, batch_size, dtype)


def _open_hf(model: str, batch_size: int, dtype: str) -> LM:
    from hf_cascade.evaluate.backends.hf import HFBackend

    device = _device()
    config = load_config(model)
    loaded = _load(model, config, "float32" if dtype == "auto" and device.type == "cpu" else dtype).to(device)
    processor = None
    if reads_images(config):
        from hf_cascade.data.image_text import load_processor

        try:
            processor = load_processor(model)
        except ValueError as error:  # text alone will do; tasks with images say that they were not run
            logger.warning("%s", error)
    identity = manifest.weights_sha256(local_weights(model))
    return HFBackend(loaded, load_tokenizer(model), processor, batch_size, identity)


def reads_images(config: PreTrainedConfig) -> bool:
    """Whether a config is one of a vision-language model."""
    return getattr(config, "vision_config", None) is not None


def _load(model: str, config: PreTrainedConfig, dtype: str) -> PreTrainedModel:
    if config.model_type in WRAPPERS or not reads_images(config):
        return load_model(model, dtype=dtype, config=config)
    return AutoModelForImageTextToText.from_pretrained(assets.locate(model), dtype=dtype, trust_remote_code=False)


def _device() -> torch.device:
    """The accelerator of this process, one of several under `accelerate launch`; else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator().type
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)))
    torch.accelerator.set_device_index(device.index)
    return device
