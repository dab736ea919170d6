"""Opening models and tokenizers for every stage: whole or not at all, and nothing executed from a checkpoint."""

import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_cascade import assets
from hf_cascade.anatomy import WRAPPERS

# Everything a model folder has beside its config and weights; a stage passes it on unchanged.
COMPANIONS = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "tekken.json", "*.jinja")
COMPANIONS += ("chat_template*", "preprocessor_config.json", "processor_config.json", "generation_config.json")


def load_config(model: str) -> PreTrainedConfig:
    """
    The config of a folder or Hub id.

    Raises:
        ValueError: it cannot be opened; says why.
    """
    try:
        return AutoConfig.from_pretrained(assets.locate(model), trust_remote_code=False)
    except OSError as error:
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
        ValueError: files or weights are missing; a missing weight would silently be random.
    """
    config = config or load_config(model)
    auto = AutoModelForImageTextToText if config.model_type in WRAPPERS else AutoModelForCausalLM
    try:
        loaded, info = auto.from_pretrained(
            assets.locate(model),
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            **kwargs,
        )
    except OSError as error:
        raise ValueError(f"{model} cannot be opened as a model: {str(error).splitlines()[0]}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{model} lacks {len(missing)} weights, {missing[0]} among them: the checkpoint is not whole")
    return loaded


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a folder or Hub id.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(assets.locate(model), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model} has no tokenizer that opens: {str(error).splitlines()[0]}") from error


def copy_companions(model: str, folder: Path) -> None:
    """Copy tokenizer, processor, chat template and generation config of `model` to `folder` as they are."""
    source = Path(assets.locate(model))
    if not source.is_dir():
        source = Path(snapshot_download(model, allow_patterns=list(COMPANIONS)))
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
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
