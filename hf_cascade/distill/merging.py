"""A trained adapter and the model it belongs to as one: a folder that `from_pretrained` opens without PEFT."""

import shutil
from pathlib import Path

from peft import PeftConfig, PeftModel
from transformers import PreTrainedConfig, PreTrainedModel
from trl import ModelConfig, get_peft_config

from hf_cascade.anatomy import TOWER, WRAPPERS
from hf_cascade.loading import copy_companions, load_model

ADAPTER = "adapter"
FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")  # the card says `library_name: peft`


def open_adapter(model_args: ModelConfig, config: PreTrainedConfig) -> PeftConfig | None:
    """
    The adapter that TRL's flags describe, if any; it leaves a vision tower alone.

    Raises:
        ValueError: quantized weights are asked for.
    """
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise ValueError(
            "load_in_4bit and load_in_8bit are not supported: train an adapter on 16-bit or 32-bit weights"
        )
    adapter = get_peft_config(model_args)
    if adapter is not None:
        spare_vision_tower(adapter, config)
    return adapter


def complete_folder(trainer, student: str, folder: str | Path, dtype: str, config: PreTrainedConfig) -> None:
    """
    Add what a trainer does not save: an adapter merged, and the files the trained model had beside its weights.

    Args:
        trainer (`Trainer`): has saved itself in `folder`; its model becomes the merged one.
        student, folder, dtype, config: as of [`merge_adapter`].
    """
    if hasattr(trainer.model, "peft_config"):
        trainer.model = merge_adapter(student, folder, dtype, config)  # the manifest describes this one
    copy_companions(student, folder)


def spare_vision_tower(adapter: PeftConfig, config: PreTrainedConfig) -> None:
    """
    Leave the vision tower out of `adapter`: its layers have the decoder's names (`q_proj`), and it stays as it is.

    Args:
        adapter (`PeftConfig`): changed in place, unless it excludes modules already.
        config (`PreTrainedConfig`): the student's.
    """
    if config.model_type in WRAPPERS and not getattr(adapter, "exclude_modules", None):
        adapter.exclude_modules = rf".*{TOWER.rstrip('.').rpartition('.')[2]}\..*"


def merge_adapter(student: str, folder: str | Path, dtype: str, config: PreTrainedConfig) -> PreTrainedModel:
    """
    Move the adapter that the trainer saved in `folder` to `folder/adapter`, and save student and adapter merged.

    From the files rather than from the trainer's model, which an engine may have sharded. Takes the student's size in
    CPU memory.

    Args:
        student (`str`): folder or Hub id the adapter was trained on.
        folder (`str` or `Path`): holds `FILES`.
        dtype (`str`): type in which the student was trained, and is saved.
        config (`PreTrainedConfig`): the student's.

    Returns:
        `PreTrainedModel`: the merged model.
    """
    folder = Path(folder)
    (folder / ADAPTER).mkdir(exist_ok=True)
    for file in FILES:
        shutil.move(folder / file, folder / ADAPTER / file)
    model = PeftModel.from_pretrained(load_model(student, dtype, config), str(folder / ADAPTER))
    merged = model.merge_and_unload()  # `safe_merge` would round the adapter to `dtype` before the sum
    merged.save_pretrained(folder)
    return merged
