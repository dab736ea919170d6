"""Settings of Online DPO: TRL's `GRPOConfig`, of which it uses everything around the loss, plus what the paper adds."""

from dataclasses import dataclass, field, fields

from trl import GRPOConfig

from hf_cascade.online.settings import OnlineConfig

LOSS_FORMS = ("pair", "weight")
SOURCES = ("policy", "reference")
# GRPO's alone: they would be ignored here, so another value than TRL's default is refused.
WITHOUT_EFFECT = (
    "loss_type",
    "epsilon",
    "epsilon_high",
    "delta",
    "importance_sampling_level",
    "multi_objective_aggregation",
    "top_entropy_quantile",
    "off_policy_mask_threshold",
    "entropy_coef",
    "use_adaptive_entropy",
    "router_aux_loss_coef",
)


@dataclass
class CascadeODPOConfig(OnlineConfig):
    """
    [`~trl.GRPOConfig`] for Online DPO, where generation, vLLM, PEFT and logging are set; loops, tools and vision tower
    are set in [`~online.settings.OnlineConfig`].

    Args:
        beta (`float`, *optional*, defaults to `0.1`):
            Strength of the reference, above 0. Ours: paper silent (DPO's, arXiv 2305.18290).
        sampling_temperature (`float`, *optional*, defaults to `0.7`):
            Temperature of the responses (paper section 4); that of the log-probabilities, `temperature`, stays 1.
        sample_from (`str`, *optional*, defaults to `"policy"`):
            `"reference"` lets the policy that training started from write every response: offline DPO, a baseline.
        soft_labels (`bool`, *optional*, defaults to `True`):
            Weight both directions of the loss by the reward model's probability (paper section 4); `False` takes the
            likelier winner for certain, as DPO does.
        rescale_beta (`bool`, *optional*, defaults to `True`):
            Divide the loss by beta, so that steps keep their size when beta changes (paper section 4 names it).
        reward_scale (`float`, *optional*, defaults to `1.0`):
            For reward functions that score one response: P(a over b) = sigmoid((r_a - r_b) / scale). Ours.
        loss_form (`str`, *optional*, defaults to `"pair"`):
            `"pair"` takes both responses in one micro-batch; `"weight"` has the same gradient, one response at a time,
            for very long ones, and costs a forward pass more.
        strip_thinking (`bool`, *optional*, defaults to `True`):
            Take the thinking out of responses before they are scored (paper section 5).
    """

    num_generations: int | None = field(default=2, metadata={"help": "Responses to a prompt: 2 (paper section 4)."})
    beta: float = field(default=0.1, metadata={"help": "Strength of the pull to the reference policy, above 0."})
    scale_rewards: str = field(default="none", metadata={"help": "Of GRPO alone: none is the only value here."})
    vllm_importance_sampling_correction: bool = field(
        default=False, metadata={"help": "Of GRPO alone: false is the only value here."}
    )
    sampling_temperature: float = field(default=0.7, metadata={"help": "Temperature at which responses are written."})
    sample_from: str = field(
        default="policy",
        metadata={"help": "Who writes the responses; with reference it is offline DPO.", "choices": list(SOURCES)},
    )
    soft_labels: bool = field(
        default=True,
        metadata={"help": "Weight both directions of the loss by the win probability; false: the winner's alone."},
    )
    rescale_beta: bool = field(
        default=True, metadata={"help": "Divide the loss by beta, so that steps keep their size."}
    )
    reward_scale: float = field(
        default=1.0, metadata={"help": "Of reward_funcs: the difference in reward that wins with sigmoid(1) = 73%%."}
    )
    loss_form: str = field(
        default="pair",
        metadata={
            "help": "Both responses in one micro-batch, or one at a time for very long ones.",
            "choices": list(LOSS_FORMS),
        },
    )
    strip_thinking: bool = field(
        default=True, metadata={"help": "Take thinking out of responses before they are scored."}
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_fixed(self._fixed())
        self._check_values()
        self._check_batches()
        self._check_sampling(self.sampling_temperature, "sampling_temperature instead")

    def _fixed(self) -> dict:
        """What Online DPO is made of, and what only GRPO has."""
        fixed = {
            "num_generations": (2, "a pair is two responses"),
            "temperature": (1.0, "log-probabilities are taken at 1: set sampling_temperature"),
            "scale_rewards": ("none", "there are no advantages"),
            "mask_truncated_completions": (False, "it would spare the response that loops"),
            "vllm_importance_sampling_correction": (False, "the loss has no importance ratio"),
            "num_iterations": (1, "pairs are of the current policy"),
        }
        defaults = {part.name: part.default for part in fields(GRPOConfig)}
        fixed |= {name: (defaults[name], "Online DPO does not use it") for name in WITHOUT_EFFECT}
        if self.num_generations_eval is not None:
            fixed["num_generations_eval"] = (2, "a pair is two responses")
        return fixed

    def _check_values(self) -> None:
        self._check_positive("beta", "sampling_temperature", "reward_scale")
        self._check_choices(loss_form=LOSS_FORMS, sample_from=SOURCES)
        if any(weight < 0 for weight in self.reward_weights or []):
            raise ValueError(
                f"reward_weights={self.reward_weights}: must not be negative, win probabilities are averaged"
            )
        if self.sample_from == "reference" and self.use_vllm:
            raise ValueError("sample_from=reference with use_vllm: vLLM holds the policy alone; leave one of them out")

    def _check_batches(self) -> None:
        """Both responses of a pair on one process, and in pair form in one micro-batch."""
        rows, spg = self.per_device_train_batch_size, self.steps_per_generation
        if self.loss_form == "pair" and rows % 2:
            raise ValueError(
                f"per_device_train_batch_size={rows}: must be even, since the two responses of a pair share a "
                "micro-batch; or set loss_form: weight"
            )
        if rows * spg % 2:
            raise ValueError(
                f"per_device_train_batch_size={rows} times steps_per_generation={spg}: must be even, since one process "
                "scores both responses of a pair; set gradient_accumulation_steps (or steps_per_generation) to 2"
            )
        if self.loss_form == "weight" and self.gradient_accumulation_steps % spg:
            raise ValueError(
                f"loss_form=weight with steps_per_generation={spg} and gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps}: the weights are those of the policy that wrote the responses, so "
                "the second must be a multiple of the first"
            )
        if self.per_device_eval_batch_size % 2:
            raise ValueError(f"per_device_eval_batch_size={self.per_device_eval_batch_size}: must be even")
