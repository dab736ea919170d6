"""Opening models and tokenizers for every stage: whole or not at all, and nothing executed from a checkpoint."""

import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from hf_cascade import assets
from hf_cascade.anatomy import WRAPPERS

# Everything a model folder has beside its config and weights; a stage passes it on unchanged.
COMPANIONS = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "tekken.json", "*.jinja")
VOCABULARIES = ("tokenizer.json", "tokenizer.model*", "vocab.*", "tekken.json", "*.spm", "spiece.model")
COMPANIONS += (
    "added_tokens.json",
    "chat_template*",
    "video_preprocessor_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


def load_config(model: str) -> PreTrainedConfig:
    """
    The config of a folder or Hub id.

    Raises:
        ValueError: it cannot be opened; says why.
    """
    try:
        return AutoConfig.from_pretrained(assets.locate(model), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model} cannot be opened as a model: {str(error).splitlines()[0]}") from error


def load_model(model: str, dtype: str = "auto", config: PreTrainedConfig | None = None, **kwargs) -> PreTrainedModel:
    """
    Load a language model, or a vision-language model of a supported wrapper.

    Args:
        model (`str`): folder or Hub id.
        dtype (`str`, *optional*, defaults to `"auto"`): type of the weights; `auto` is the checkpoint's own.
        config (`PreTrainedConfig`, *optional*): instead of the checkpoint's own.
        kwargs: to `from_pretrained`.

    Raises:
        ValueError: files or weights are missing, damaged or of another shape (they would silently be random), or the
            checkpoint has weights the model has no place for (they would silently be left out).
    """
    config = config or load_config(model)
    quantised = getattr(config, "quantization_config", None) is not None  # transformers takes it away
    auto = AutoModelForImageTextToText if config.model_type in WRAPPERS else AutoModelForCausalLM
    try:
        loaded, info = auto.from_pretrained(
            assets.locate(model),
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below
            **kwargs,
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{model} cannot be opened as a model: {str(error).splitlines()[0]}") from error
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    unexpected = sorted(name for name in info["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq"))
    if mismatched:
        name, found, expected = mismatched[0]
        raise ValueError(
            f"{model} does not fit its config: {len(mismatched)} weights have another shape, {name} among them "
            f"({list(found)} in the checkpoint, {list(expected)} by the config)"
        )
    if missing:
        raise ValueError(f"{model} lacks {len(missing)} weights, {missing[0]} among them: the checkpoint is not whole")
    if unexpected:
        raise ValueError(
            f"{model} holds {len(unexpected)} weights that its config has no place for, {unexpected[0]} among them: "
            "config.json and the weights are not of one model"
        )
    if quantised and dtype != "auto" and not getattr(loaded, "is_quantized", False):
        # dequantised; what is not in FP8 stays as stored, whatever dtype says (transformers 5.23)
        loaded.to(dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))
    return loaded


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a folder or Hub id.

    Raises:
        ValueError: there is none.
    """
    folder = Path(assets.locate(model))
    if folder.is_dir() and not any(file for pattern in VOCABULARIES for file in folder.glob(pattern)):
        # transformers makes an empty one of the config's family
        raise ValueError(f"{model} has no tokenizer that opens: no {', '.join(VOCABULARIES)} in its folder")
    try:
        return AutoTokenizer.from_pretrained(assets.locate(model), trust_remote_code=False)
    except Exception as error:  # tokenizers' Rust raises that itself, of a tokenizer.json that it cannot parse
        if not isinstance(error, OSError | ValueError) and type(error) is not Exception:
            raise
        raise ValueError(f"{model} has no tokenizer that opens: {str(error).splitlines()[0]}") from error


def open_processing(model: str, rows) -> PreTrainedTokenizerBase | ProcessorMixin:
    """
    What turns `rows` to tokens for a model: its tokenizer, or its processor where the rows have images.

    Args:
        model (`str`): folder or Hub id.
        rows (`Dataset` or `IterableDataset`): conversations or text.

    Raises:
        ValueError: there is none, or the model does not read the rows' images.
    """
    from hf_cascade.data.image_documents import check_processor, check_reads_images, image_column
    from hf_cascade.data.image_text import load_processor

    if image_column(rows) is None:
        return load_tokenizer(model)
    config = load_config(model)
    check_reads_images(config, model)
    processor = load_processor(model)
    check_processor(processor, config)
    return processor


def local_weights(model: str) -> Path:
    """The folder that holds a model's safetensors and config; those of a Hub id are downloaded first."""
    folder = Path(assets.locate(model))
    if folder.is_dir():
        return folder
    # not "*.safetensors": some repositories hold the weights a second time, in another format
    wanted = ["model*.safetensors", "model.safetensors.index.json", "config.json"]
    return Path(snapshot_download(model, allow_patterns=wanted))


def copy_companions(model: str, folder: Path) -> None:
    """Copy tokenizer, processor, chat template and generation config of `model` to `folder` as they are."""
    source = Path(assets.locate(model))
    if not source.is_dir():
        source = Path(snapshot_download(model, allow_patterns=list(COMPANIONS)))
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def check_same_tokenizer(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, names: tuple[str, str] = ("student", "teacher")
) -> None:
    """
    Raise `ValueError` unless both map the same tokens to the same ids; lists the first that differ.

    Logits are compared id by id, so any difference makes distillation, and the KL of an evaluation, meaningless.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    shown = ", ".join(f"{token!r}: {ours.get(token)} and {theirs.get(token)}" for token in differing[:5])
    raise ValueError(
        f"{names[0]} and {names[1]} have different tokenizers: {len(differing)} tokens differ ({shown}). "
        "Distil from a teacher with the student's tokenizer."
    )
