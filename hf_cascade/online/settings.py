"""Settings that Online DPO and GRPO add to TRL's `GRPOConfig` alike, and how both refuse what they cannot do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from hf_cascade.completions import LoopRule


@dataclass
class OnlineConfig(GRPOConfig):
    """
    [`~trl.GRPOConfig`] with what `CascadeODPOConfig` and `CascadeGRPOConfig` share.

    Args:
        loop_min_repeats (`int`, *optional*, defaults to `4`), loop_min_tokens (`int`, *optional*, defaults to `64`):
            A response that never ends is an infinite loop when its last tokens repeat so often over so many. Ours.
        tool_seconds (`float`, *optional*, defaults to `30.0`):
            Time a tool call may take. Ours: paper silent.
        tool_max_characters (`int`, *optional*, defaults to `8192`):
            Of a tool's output, the rest is cut. Ours: paper silent.
        freeze_vision_tower (`bool`, *optional*, defaults to `True`):
            Whether a vision-language model's tower stays as it is (paper section 4 says so of SFT).
        max_barren_batches (`int`, *optional*, defaults to `10`):
            Stop with an error after so many generation batches in a row with nothing to learn from. Ours.
    """

    loop_min_repeats: int = field(
        default=4, metadata={"help": "Repeats that make an unfinished response an infinite loop."}
    )
    loop_min_tokens: int = field(default=64, metadata={"help": "Tokens that these repeats must cover."})
    tool_seconds: float = field(default=30.0, metadata={"help": "Seconds that a tool call may take."})
    tool_max_characters: int = field(default=8192, metadata={"help": "Characters of a tool's output that are kept."})
    freeze_vision_tower: bool = field(default=True, metadata={"help": "Leave a vision tower as it is."})
    max_barren_batches: int = field(
        default=10, metadata={"help": "Batches in a row that teach nothing, after which training ends with an error."}
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_positive("tool_seconds")
        self._check_least(tool_max_characters=1, max_barren_batches=1)

    def _check_fixed(self, fixed: dict[str, tuple[Any, str]]) -> None:
        """Refuse other values than these: name to value and why."""
        for name, (value, reason) in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be {value!r} here; {reason}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0")

    def _check_least(self, **lowest: float) -> None:
        for name, value in lowest.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {value}")

    def _check_choices(self, **allowed: Sequence[str]) -> None:
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(values)}")

    def _check_sampling(self, temperature: float, advice: str) -> None:
        """One place for the temperature of responses."""
        if (self.generation_kwargs or {}).get("temperature", temperature) != temperature:
            raise ValueError(f"generation_kwargs has a temperature: set {advice}")

    @property
    def loop_rule(self) -> LoopRule:
        """When a response that never ends is an infinite loop."""
        return LoopRule(min_repeats=self.loop_min_repeats, min_tokens=self.loop_min_tokens)
