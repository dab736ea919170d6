"""Rows split over processes: context parallelism (FSDP2, SDPA) and sequence parallelism (DeepSpeed Ulysses).

Both are accelerate's (`parallelism_config` in a launch file). Here is what they do not do for a second model and for a
loss over a whole batch: the teacher attends together with the student or not at all, a token counts once, and what
would be silently wrong is refused.
"""

import os
from collections.abc import Callable

from accelerate import Accelerator, ParallelismConfig
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from hf_cascade.data.lengths import sequence_lengths

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


class PlainNumbers:
    """
    A collator of packed text whose account of a batch is plain numbers, for every tensor of a batch is split.

    Beside `cursor` and `skipped` there are `lengths`, of the sequences before they are split.

    Args:
        collator (`Callable`): gives tensors.
    """

    def __init__(self, collator: Callable[[list[dict]], dict]):
        self.collator = collator

    def __call__(self, rows: list[dict]) -> dict:
        batch = self.collator(rows)
        batch["lengths"] = sequence_lengths(batch["position_ids"])
        return batch | {name: batch[name].tolist() for name in ("cursor", "skipped", "lengths")}


def check_rows(accelerator: Accelerator, args: TrainingArguments, model: PreTrainedModel, packed: bool, images: bool):
    """
    Refuse rows that would be silently wrong when they are split over processes.

    Args:
        accelerator (`Accelerator`): the trainer's.
        args (`TrainingArguments`): its settings.
        model (`PreTrainedModel`): the model that is trained.
        packed (`bool`): whether a row holds several documents.
        images (`bool`): whether rows have images.

    Raises:
        ValueError: says what was given and what to do.
    """
    given, config = _given(accelerator), model.config.get_text_config()
    if given is None:
        return
    kernel = str(config._attn_implementation)
    if images:
        raise ValueError(f"{given} splits rows, but not their images: train on images without it")
    if accelerator.parallelism_config.cp_enabled:
        if packed:
            raise ValueError(
                f"{given} with packed text: context parallelism knows full causal attention alone, so documents would "
                f"see each other: use sequence parallelism with FlashAttention ({LAUNCH_FILE})"
            )
        if kernel != "sdpa":
            raise ValueError(f"{given} with attn_implementation={kernel}: context parallelism needs sdpa")
        return
    stage = accelerator.state.deepspeed_plugin.zero_stage
    if stage != 3:  # DeepSpeed 0.19 averages gradients over all processes at stage 3 only
        raise ValueError(f"{given} with ZeRO stage {stage}: use stage 3, as {LAUNCH_FILE} does")
    if "flash" not in kernel and (packed or _has_windows(config)):
        what = "packed text" if packed else "sliding windows"
        raise ValueError(
            f"{given} with {what} and attn_implementation={kernel}: its mask is left out, so tokens would see "
            "what they must not: use flash_attention_2, or kernels-community/flash-attn2"
        )
    if packed:
        _check_steps(given, accelerator.parallelism_config.sp_size, args)


def _check_steps(given: str, sp_size: int, args: TrainingArguments) -> None:
    if args.per_device_train_batch_size != 1:
        raise ValueError(f"{given} with packed text: set per_device_train_batch_size: 1 (a row is split already)")
    accumulation = args.gradient_accumulation_steps
    if args.world_size > sp_size and accumulation % sp_size:
        raise ValueError(
            f"{given} with gradient_accumulation_steps={accumulation}: every process reads a row, and {sp_size} rows "
            f"are trained on in turn, so steps of several groups end between rows only at multiples of {sp_size}"
        )


def check_teacher(accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
    """
    Refuse a teacher that would not attend over rows which are split over processes as the student does.

    Args:
        accelerator (`Accelerator`): the trainer's.
        student (`PreTrainedModel`): the student.
        teacher (`PreTrainedModel`, *optional*): the teacher, where this process holds it.

    Raises:
        ValueError: says what was given and what to do.
    """
    given = _given(accelerator)
    if given is None:
        return
    if teacher is None:
        raise ValueError(
            f"{given} splits rows, and a teacher elsewhere would see parts of them: use one in this process"
        )
    configs = [model.config.get_text_config() for model in (student, teacher)]
    kernels = [str(config._attn_implementation) for config in configs]
    if kernels[0] != kernels[1]:
        raise ValueError(
            f"{given} with attn_implementation={kernels[0]} of the student and {kernels[1]} of the teacher: load both "
            "with the same one"
        )
    heads = [[getattr(config, name, None) for name in HEADS] for config in configs]
    if accelerator.parallelism_config.sp_enabled and heads[0] != heads[1]:
        raise ValueError(
            f"{given} with {', '.join(HEADS)} of {heads[0]} in the student and {heads[1]} in the teacher: sequence "
            "parallelism exchanges heads of one shape only"
        )


def _given(accelerator: Accelerator) -> str | None:
    """The setting that splits rows, for messages."""
    cp_size, sp_size = split_by(accelerator)
    return f"cp_size={cp_size}" if cp_size > 1 else f"sp_size={sp_size}" if sp_size > 1 else None


def _has_windows(config) -> bool:
    layers = getattr(config, "layer_types", None)
    if layers is None:
        return getattr(config, "sliding_window", None) is not None
    return any(layer != "full_attention" for layer in layers)
