"""A trained adapter and the model it belongs to as one: a folder that `from_pretrained` opens without PEFT."""

import shutil
from pathlib import Path

from peft import PeftConfig, PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from hf_cascade.anatomy import TOWER, WRAPPERS
from hf_cascade.loading import load_model

ADAPTER = "adapter"
FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")  # the card says `library_name: peft`


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
