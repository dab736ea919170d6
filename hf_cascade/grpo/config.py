"""Settings of GRPO with Magistral's changes: TRL's `GRPOConfig` with other defaults, and what the paper adds."""

from dataclasses import dataclass, field

from hf_cascade.online.settings import OnlineConfig

SCOPES = ("group", "batch")
BY_METRIC = ("reduce_lr_on_plateau", "greedy")  # learning rate schedules that follow a metric
CACHE_SHARE = 5  # the penalty grows over the last fifth: DAPO's 4096 of 20480 tokens (arXiv 2503.14476)


@dataclass
class CascadeGRPOConfig(OnlineConfig):
    """
    [`~trl.GRPOConfig`] with Magistral's recipe (paper section 5; arXiv 2506.10910). Generation (temperature 1, TRL's
    default), vLLM, PEFT and logging are set as there; loops, which are only logged here, tools and vision tower in
    [`~online.settings.OnlineConfig`].

    Args:
        epsilon_high (`float`, *optional*, defaults to `0.28`):
            Upper bound of the probability ratio, above `epsilon`: clip-higher. Magistral: 0.26 to 0.28; 0.3 from SFT.
        scale_rewards (`str`, *optional*, defaults to `"none"`):
            TRL's own scaling, which is replaced: advantages are divided by their standard deviation over the
            generation batch. That is Magistral's minibatch where `steps_per_generation` is
            `gradient_accumulation_steps`, the default.
        length_scope (`str`, *optional*, defaults to `"group"`):
            `"group"` divides the sum over a group's tokens by the group's length (Magistral), `"batch"` by the length
            of all groups (TRL's `dapo`).
        length_penalty (`float`, *optional*, defaults to `0.1`):
            Taken from the reward of a response that was cut off; 0 turns it off. Magistral's.
        length_cache (`int`, *optional*):
            Tokens before `max_completion_length` over which the penalty grows from 0. A fifth of it by default (DAPO's
            share; Magistral: silent).
        max_refill_rounds (`int`, *optional*, defaults to `3`):
            Groups whose rewards are all equal are replaced by groups of other prompts, so many times at most; then
            they stay out. 0 replaces none. Ours: paper silent.
        metric_for_best_model (`str`, *optional*):
            Where the best checkpoint is asked for, `"grpo/reward"` by default: the reward of held-out responses without
            their length penalty. `eval_loss` says nothing here.
    """

    epsilon_high: float | None = field(
        default=0.28, metadata={"help": "Probability ratios are clipped at 1 + this: clip-higher."}
    )
    scale_rewards: str = field(
        default="none", metadata={"help": "Replaced by scaling over the batch: none is the only value here."}
    )
    length_scope: str = field(
        default="group",
        metadata={
            "help": "A group's sum over tokens is divided by its own length, or by all groups'.",
            "choices": list(SCOPES),
        },
    )
    length_penalty: float = field(
        default=0.1, metadata={"help": "Taken from the reward of a response that was cut off; 0: nothing."}
    )
    length_cache: int | None = field(
        default=None, metadata={"help": "Tokens before the limit over which the penalty grows. Unset: a fifth of it."}
    )
    max_refill_rounds: int = field(
        default=3, metadata={"help": "Times that groups of equal rewards are replaced by other prompts; 0: never."}
    )

    def __post_init__(self):
        seeks_best = self.load_best_model_at_end or self.save_strategy == "best"
        if self.metric_for_best_model is None and (seeks_best or self.lr_scheduler_type in BY_METRIC):
            self.metric_for_best_model = "grpo/reward"  # transformers would take the loss
        super().__post_init__()
        self._check_fixed(self._fixed())
        self._check_choices(length_scope=SCOPES)
        self._check_least(length_penalty=0, max_refill_rounds=0)
        if self.epsilon_high is None or self.epsilon_high < self.epsilon:
            raise ValueError(
                f"epsilon_high={self.epsilon_high}: must not be below epsilon={self.epsilon}, the lower bound"
            )
        self._check_lengths()
        self._check_sampling(self.temperature, "temperature, log-probabilities are taken at it")
        rows = self.per_device_train_batch_size * self.steps_per_generation
        if self.max_refill_rounds and rows % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size times steps_per_generation is {rows}: must be a multiple of "
                f"num_generations={self.num_generations}, since a process refills whole groups; raise "
                "gradient_accumulation_steps (or steps_per_generation), or set max_refill_rounds to 0"
            )

    @staticmethod
    def _fixed() -> dict:
        """What Magistral's recipe is made of."""
        return {
            "beta": (0.0, "there is no reference"),
            "sync_ref_model": (False, "there is no reference"),
            "loss_type": ("dapo", "length_scope says what a sum over tokens is divided by"),
            "scale_rewards": ("none", "advantages are divided by their standard deviation over the generation batch"),
            "importance_sampling_level": ("token", "the loss is a sum over tokens"),
            "multi_objective_aggregation": ("sum_then_normalize", "a response has one reward, the sum"),
            "mask_truncated_completions": (False, "a response that was cut off counts, with its length penalty"),
        }

    def _check_lengths(self) -> None:
        limit = self.max_completion_length
        if not self.length_penalty:
            if self.length_cache is not None:
                raise ValueError(f"length_cache={self.length_cache} with length_penalty=0: leave one of them out")
            return
        if limit is None:
            raise ValueError("length_penalty needs max_completion_length, the limit it grows towards; or set it to 0")
        if self.length_cache is not None and not 1 <= self.length_cache <= limit:
            raise ValueError(f"length_cache={self.length_cache}: must be from 1 to max_completion_length={limit}")

    @property
    def penalty_tokens(self) -> int:
        """Tokens before the limit over which the length penalty grows."""
        return self.length_cache or max(1, self.max_completion_length // CACHE_SHARE)
