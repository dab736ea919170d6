"""fp8 matrix products, through torchao: for training (a launch file's choice) and for the teacher; refused elsewhere.

Both keep their weights in 16 or 32 bits and round weights and activations to fp8 for each product, so that everything
that shards or saves weights works as before. The head is never touched: the loss reads its weight.
"""

import os

import torch
from accelerate.utils import is_torchao_available
from transformers import PreTrainedModel, TrainingArguments

CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)
RECIPE = "rowwise"  # ours: one scale a token and a row of weights: outliers of one token cost the others nothing
MULTIPLE = 16  # the products need dimensions of it


def follow_launch_file(args: TrainingArguments) -> None:
    """
    Train in fp8 where the launch file says `mixed_precision: fp8`, with everything else in bf16.

    Transformers would let `bf16` in `args` win. And accelerate's default, weights that are gathered in fp8, makes
    weights without FSDP2 that cannot be saved.

    Args:
        args (`TrainingArguments`): changed in place.

    Raises:
        ValueError: as [`check_fp8`].
    """
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() != "fp8":
        return
    check_fp8("mixed_precision: fp8")
    args.mixed_precision = "fp8"
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        os.environ["ACCELERATE_FP8_ENABLE_FSDP_FLOAT8_ALL_GATHER"] = "false"


def check_fp8(setting: str) -> None:
    """
    Raise `ValueError` unless fp8 products can be had here.

    Args:
        setting (`str`): what asked for them, for the message.
    """
    if not torch.cuda.is_available():
        raise ValueError(f"{setting} needs a GPU of compute capability 8.9 or more, and there is no GPU: use bf16")
    if torch.cuda.get_device_capability() < CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        raise ValueError(
            f"{setting} needs a GPU of compute capability 8.9 or more, and {torch.cuda.get_device_name()} has {found}: "
            "use bf16"
        )
    if not is_torchao_available():
        raise ValueError(f"{setting} needs torchao: pip install 'hf-cascade[fp8]'")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError(f"{setting} with DeepSpeed has not been tried: use recipes/accelerate/fsdp2_fp8.yaml")
    backend = os.environ.get("ACCELERATE_FP8_BACKEND", "AO").upper()
    if backend not in ("AO", "NO"):
        raise ValueError(f"{setting} with fp8_backend={backend}: allowed is AO (torchao), which leaves the head alone")


def multiply_in_fp8(model: PreTrainedModel) -> PreTrainedModel:
    """
    Let the decoder of a frozen model multiply in fp8, in place; head, embeddings and vision tower stay as they are.

    Args:
        model (`PreTrainedModel`): with weights in bf16; before it is sharded.

    Returns:
        `PreTrainedModel`: the same model.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def fits(module: torch.nn.Module, name: str) -> bool:
        return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0

    config = Float8LinearConfig.from_recipe_name(RECIPE)
    convert_to_float8_training(model.get_decoder(), config=config, module_filter_fn=fits)
    return model
