"""Rows split over processes: context parallelism (FSDP2, SDPA) and sequence parallelism (DeepSpeed Ulysses).

Both are accelerate's (`parallelism_config` in a launch file). Here is what they do not do for a second model and for a
loss over a whole batch: the teacher attends together with the student or not at all, a token counts once, and what
would be silently wrong is refused.
"""

import os

from accelerate import Accelerator, ParallelismConfig
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

LAUNCH_FILE = "recipes/accelerate/sp_zero3.yaml"
HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


def row_processes(args: TrainingArguments) -> int:
    """Processes that read rows of their own; those that share a row count once."""
    parallelism = args.parallelism_config
    if parallelism is None and os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true":
        parallelism = ParallelismConfig()  # from the launch file, by way of the environment
    return args.world_size // (1 if parallelism is None else parallelism.non_data_parallel_size)


def split_by(accelerator: Accelerator) -> tuple[int, int]:
    """Processes that share a row by context parallelism, and by sequence parallelism; 1 is without."""
    parallelism = accelerator.parallelism_config
    return (1, 1) if parallelism is None else (parallelism.cp_size, parallelism.sp_size)


def attend_together(teacher: nn.Module, training: bool) -> None:
    """
    Let the teacher's attention reach over the whole row under sequence parallelism.

    DeepSpeed's attention exchanges heads only in modules in training mode, since evaluation reads whole rows, and a
    teacher never is: each process would see its own part of the row as all of it. Nothing else of the teacher changes,
    and attention dropout stays off.

    Args:
        teacher (`nn.Module`): the frozen teacher.
        training (`bool`): whether the batch was split, which it is in training.
    """
    for module in teacher.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout, module.training = 0.0, training


def check_parallelism(
    accelerator: Accelerator,
    args: TrainingArguments,
    packed: bool,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
) -> None:
    """
    Refuse what splitting rows over processes would make silently wrong.

    Args:
        accelerator (`Accelerator`): the trainer's.
        args (`TrainingArguments`): its settings.
        packed (`bool`): whether a row holds several documents.
        student (`PreTrainedModel`): the student.
        teacher (`PreTrainedModel`, *optional*): the teacher, where this process holds it.

    Raises:
        ValueError: says what was given and what to do.
    """
    cp_size, sp_size = split_by(accelerator)
    if cp_size == sp_size == 1:
        return
    given = f"cp_size={cp_size}" if cp_size > 1 else f"sp_size={sp_size}"
    if teacher is None:
        raise ValueError(
            f"{given} splits rows, and a teacher elsewhere would see parts of them: use one in this process"
        )
    kernels = [str(model.config.get_text_config()._attn_implementation) for model in (student, teacher)]
    if kernels[0] != kernels[1]:
        raise ValueError(
            f"{given} with attn_implementation={kernels[0]} of the student and {kernels[1]} of the teacher: load both "
            "with the same one"
        )
    if cp_size > 1:
        if packed:
            raise ValueError(
                f"{given} with packed text: context parallelism knows full causal attention alone, so documents would "
                f"see each other: use sequence parallelism with FlashAttention ({LAUNCH_FILE})"
            )
        if kernels[0] != "sdpa":
            raise ValueError(f"{given} with attn_implementation={kernels[0]}: context parallelism needs sdpa")
    else:
        _check_sequence(given, accelerator, args, packed, student, teacher)


def _check_sequence(given: str, accelerator, args, packed: bool, student, teacher) -> None:
    stage = accelerator.state.deepspeed_plugin.zero_stage
    if stage != 3:  # DeepSpeed 0.19 averages gradients over all processes at stage 3 only
        raise ValueError(f"{given} with ZeRO stage {stage}: use stage 3, as {LAUNCH_FILE} does")
    configs = [model.config.get_text_config() for model in (student, teacher)]
    heads = [[getattr(config, name, None) for name in HEADS] for config in configs]
    if heads[0] != heads[1]:
        raise ValueError(
            f"{given} with {', '.join(HEADS)} of {heads[0]} in the student and {heads[1]} in the teacher: sequence "
            "parallelism exchanges heads of one shape only"
        )
    flash = "flash" in str(configs[0]._attn_implementation)
    if packed and not flash:
        raise ValueError(
            f"{given} with packed text and attn_implementation={configs[0]._attn_implementation}: its mask is left "
            "out, so documents would see each other: use flash_attention_2, or kernels-community/flash-attn2"
        )
    if not flash and any(_has_windows(config) for config in configs):
        raise ValueError(f"{given} with sliding-window attention needs FlashAttention: sdpa's mask is left out")
    if packed and args.per_device_train_batch_size != 1:
        raise ValueError(f"{given} with packed text: set per_device_train_batch_size: 1 (a row is split already)")
    sp_size = accelerator.parallelism_config.sp_size
    if packed and args.world_size > sp_size and args.gradient_accumulation_steps % sp_size:
        raise ValueError(
            f"{given} with gradient_accumulation_steps={args.gradient_accumulation_steps}: every process reads a row, "
            f"and {sp_size} rows are trained on in turn, so that steps end between rows only at multiples of {sp_size}"
        )


def _has_windows(config) -> bool:
    layers = getattr(config, "layer_types", None)
    if layers is None:
        return getattr(config, "sliding_window", None) is not None
    return any(layer != "full_attention" for layer in layers)
