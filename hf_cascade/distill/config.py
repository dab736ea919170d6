"""Settings of the cascade's trainers: TRL's `SFTConfig` plus what the paper adds."""

from dataclasses import dataclass, field

from trl import SFTConfig

TEACHER_WINDOWS = ("mask", "extrapolate", "refuse")


@dataclass
class CascadeSFTConfig(SFTConfig):
    """
    [`~trl.SFTConfig`] for a stage that reads packed text once.

    Args:
        train_tokens (`int`, *optional*):
            Tokens this stage reads, all processes together. Sets `max_steps`: the nearest whole number of optimizer
            steps, at least one.
    """

    train_tokens: int | None = field(
        default=None, metadata={"help": "Tokens this stage reads, all processes together. Sets `max_steps`."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.train_tokens is not None:
            if self.train_tokens < 1 or not self.max_length:
                raise ValueError(
                    f"train_tokens={self.train_tokens} with max_length={self.max_length}: both must be at least 1"
                )
            self.max_steps = max(1, round(self.train_tokens / self.tokens_per_step))

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size * self.max_length


@dataclass
class CascadeDistillationConfig(CascadeSFTConfig):
    """
    [`CascadeSFTConfig`] for distillation on logits. The defaults are the paper's: forward KL(teacher || student) alone.

    Args:
        teacher_model_name_or_path (`str`, *optional*):
            The frozen teacher. The paper distils every size from the original parent (Algorithm 1).
        teacher_dtype (`str`, *optional*, defaults to `"auto"`):
            Type the teacher's weights are loaded in; `auto` is the checkpoint's own.
        temperature (`float`, *optional*, defaults to `1.0`):
            Softens both distributions; the loss is multiplied by its square, so that the gradient keeps its scale
            (Hinton et al., 2015). Ours: paper silent, 1 is the plain KL.
        next_token_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the next-token loss; the KL has one minus it. An ablation: the paper's section 2 finds KL alone
            better.
        teacher_window (`str`, *optional*, defaults to `"mask"`):
            What happens beyond the window the teacher was made for (`max_position_embeddings`), where the paper is
            silent: `"mask"` leaves those positions out of the loss, `"extrapolate"` trusts the teacher there, and
            `"refuse"` stops before training when `max_length` is longer.
        loss_chunk_tokens (`int`, *optional*):
            Rows of logits that exist at once. Unset, as many as 64 MiB of fp32 logits hold.
    """

    teacher_model_name_or_path: str | None = field(default=None, metadata={"help": "The frozen teacher."})
    teacher_dtype: str = field(default="auto", metadata={"help": "Type of the teacher's weights; `auto`: its own."})
    temperature: float = field(
        default=1.0, metadata={"help": "Softens both distributions; the loss is times its square."}
    )
    next_token_weight: float = field(
        default=0.0, metadata={"help": "Weight of the next-token loss; the KL has one minus it (an ablation)."}
    )
    teacher_window: str = field(
        default="mask",
        metadata={
            "help": "Beyond the teacher's window: leave out of the loss, trust the teacher, or stop before training.",
            "choices": list(TEACHER_WINDOWS),
        },
    )
    loss_chunk_tokens: int | None = field(
        default=None, metadata={"help": "Rows of logits that exist at once. Unset: as many as 64 MiB of fp32 hold."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.teacher_window not in TEACHER_WINDOWS:  # the parser checks choices of flags, not those of a YAML file
            raise ValueError(f"teacher_window={self.teacher_window!r}: allowed are {', '.join(TEACHER_WINDOWS)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: it must be above 0 (1 is the paper's plain KL)")
        if not 0 <= self.next_token_weight <= 1:
            raise ValueError(f"next_token_weight={self.next_token_weight}: it must lie between 0 (KL alone) and 1")
        if self.loss_chunk_tokens is not None and self.loss_chunk_tokens < 1:
            raise ValueError(f"loss_chunk_tokens={self.loss_chunk_tokens}: it must be at least 1, or unset")


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
