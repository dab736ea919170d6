"""Settings of the cascade's trainers: TRL's `SFTConfig` plus what the paper adds."""

from dataclasses import dataclass, field

from trl import SFTConfig

from hf_cascade.distill.divergences import KERNELS, Objective
from hf_cascade.distill.fp8 import check_fp8, follow_launch_file
from hf_cascade.distill.parallel import row_processes

TEACHER_WINDOWS = ("mask", "extrapolate", "refuse")
TEACHER_FLAGS = ("teacher_model_name_or_path", "teacher_url", "teacher_cache")


@dataclass
class CascadeSFTConfig(SFTConfig):
    """
    [`~trl.SFTConfig`] for a stage that reads packed text once.

    Args:
        train_tokens (`int`, *optional*):
            Tokens this stage reads, all processes together. Sets `max_steps`: the nearest whole number of optimizer
            steps, at least one.
        freeze_vision_tower (`bool`, *optional*, defaults to `True`):
            Whether a vision-language model's tower stays as it is, while its projector is trained (paper sections 2
            and 4).
    """

    train_tokens: int | None = field(
        default=None, metadata={"help": "Tokens this stage reads, all processes together; sets max_steps."}
    )
    freeze_vision_tower: bool = field(
        default=True, metadata={"help": "Leave a vision tower as it is; its projector is trained."}
    )

    def __post_init__(self):
        super().__post_init__()
        follow_launch_file(self)
        if self.train_tokens is not None:
            if self.train_tokens < 1 or not self.max_length:
                raise ValueError(
                    f"train_tokens={self.train_tokens} with max_length={self.max_length}: both must be at least 1"
                )
            self.max_steps = max(1, round(self.train_tokens / self.tokens_per_step))

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * row_processes(self) * self.max_length


@dataclass
class CascadeDistillationConfig(CascadeSFTConfig):
    """
    [`CascadeSFTConfig`] for distillation on logits. The defaults are the paper's: forward KL(teacher || student) alone.

    Args:
        > Parameters that control the teacher

        teacher_model_name_or_path (`str`, *optional*):
            The frozen teacher. The paper distils every size from the original parent (Algorithm 1).
        teacher_dtype (`str`, *optional*, defaults to `"auto"`):
            Type the teacher's weights are loaded in; `auto` is the checkpoint's own. With `fp8` they are in bf16, and
            multiplied in fp8 (the head is not); on a GPU that cannot it is refused.
        teacher_url (`str`, *optional*):
            Address of a teacher that `trainers/serve_teacher.py` serves, instead of one in this process.
        teacher_cache (`str`, *optional*):
            Folder of a teacher's most likely tokens, made by `trainers/cache_teacher.py`, instead of a teacher.
        teacher_window (`str`, *optional*, defaults to `"mask"`):
            What happens beyond the window the teacher was made for (`max_position_embeddings`), where the paper is
            silent: `"mask"` leaves those positions out of the loss, `"extrapolate"` trusts the teacher there, and
            `"refuse"` stops before training when `max_length` is longer.

        > Parameters that control the loss

        temperature (`float`, *optional*, defaults to `1.0`):
            Softens both distributions; the loss is multiplied by its square, so that the gradient keeps its scale
            (Hinton et al., 2015). Ours: paper silent, 1 is the plain KL.
        beta (`float`, *optional*, defaults to `0.0`):
            As in TRL's GKD: 0 is the forward KL, 1 the reverse KL, between them the generalized Jensen-Shannon
            divergence. An ablation.
        next_token_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the next-token loss; the KL has one minus it. An ablation: the paper's section 2 finds KL alone
            better.
        route_below_nats (`float`, *optional*, defaults to `0.0`):
            Tokens at which the teacher's entropy is lower learn from the next token alone, which is meant to mend
            copying from the context (arXiv 2509.01649). Ours: paper silent, none.
        hidden_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the distance between hidden states, relative to the teacher's, beside the KL. For students of the
            teacher's width that lost many layers. Ours: paper silent, none.
        hidden_layers (`list[int]`, *optional*):
            The teacher's layer (1 is the first) that each student layer but the last is to resemble. Unset,
            `trainers/distill.py` takes them from the student's pruning report, and else those of the same relative
            depth are meant.
        loss_chunk_tokens (`int`, *optional*):
            Rows of logits that exist at once. Unset, as many as 64 MiB of fp32 logits hold (a GPU: 512 MiB).
        loss_kernel (`str`, *optional*, defaults to `"torch"`):
            `"torch"` runs anywhere; `"triton"` is a fused kernel for GPUs, for the forward KL.
    """

    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The frozen teacher: folder or Hub id."}
    )
    teacher_dtype: str = field(
        default="auto",
        metadata={"help": "Type of the teacher's weights: auto (its own), a dtype, or fp8 where the device can."},
    )
    teacher_url: str | None = field(
        default=None, metadata={"help": "Address of a teacher served by trainers/serve_teacher.py."}
    )
    teacher_cache: str | None = field(
        default=None, metadata={"help": "Folder of a teacher's likeliest tokens, made by trainers/cache_teacher.py."}
    )
    teacher_window: str = field(
        default="mask",
        metadata={
            "help": "Beyond the teacher's window: leave out of the loss, trust the teacher, or stop before training.",
            "choices": list(TEACHER_WINDOWS),
        },
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Softens both distributions; the loss is times its square."}
    )
    beta: float = field(
        default=0.0, metadata={"help": "0: forward KL, 1: reverse KL, between: generalized JSD (an ablation)."}
    )
    next_token_weight: float = field(
        default=0.0, metadata={"help": "Weight of the next-token loss; the KL has one minus it (an ablation)."}
    )
    route_below_nats: float = field(
        default=0.0,
        metadata={"help": "Where the teacher's entropy is lower, the next token alone is learnt. 0: nowhere."},
    )
    hidden_weight: float = field(
        default=0.0, metadata={"help": "Weight of the relative distance between hidden states, beside the KL."}
    )
    hidden_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Teacher layer (from 1) for each student layer but the last. Unset: by prune_report.json, or depth."
        },
    )
    loss_chunk_tokens: int | None = field(
        default=None, metadata={"help": "Rows of logits at once. Unset: 64 MiB of fp32, 512 MiB on a GPU."}
    )
    loss_kernel: str = field(
        default="torch",
        metadata={"help": "torch runs anywhere; triton is a fused kernel for GPUs.", "choices": ["torch", "triton"]},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.teacher_dtype == "fp8":
            check_fp8("teacher_dtype: fp8")
        for name, allowed in (("teacher_window", TEACHER_WINDOWS), ("loss_kernel", KERNELS)):
            if getattr(self, name) not in allowed:  # the parser checks choices of flags, not those of a YAML file
                raise ValueError(f"{name}={getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: it must be above 0 (1 is the paper's plain KL)")
        for name in ("beta", "next_token_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must lie between 0 (the forward KL alone) and 1")
        for name in ("route_below_nats", "hidden_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 0, which is without")
        if self.loss_chunk_tokens is not None and self.loss_chunk_tokens < 1:
            raise ValueError(f"loss_chunk_tokens={self.loss_chunk_tokens}: it must be at least 1, or unset")
        teachers = [name for name in TEACHER_FLAGS if getattr(self, name) is not None]
        if len(teachers) > 1:
            raise ValueError(f"{' and '.join(teachers)} are set: there is one teacher, so keep one of them")

    @property
    def objective(self) -> Objective:
        """What the fused loss sums."""
        return Objective(self.beta, self.temperature, self.next_token_weight, self.route_below_nats)


@dataclass
class PretrainingArguments:
    """
    Parameters that control which model `trainers/pretrain.py` starts: a random one of a named shape, or an existing
    one.

    Args:
        model_config (`str`, *optional*):
            A `config.json` whose model is started at random.
        tokenizer (`str`, *optional*):
            Folder or Hub id of its tokenizer. Needed with `model_config`.
    """

    model_config: str | None = field(default=None, metadata={"help": "A config.json; its model starts at random."})
    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub id of the tokenizer."})
