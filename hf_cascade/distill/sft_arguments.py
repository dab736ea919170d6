"""The flag of `trainers/sft.py` that is its own."""

from dataclasses import dataclass, field


@dataclass
class SFTArguments:
    """
    Parameters that control what `trainers/sft.py` learns from.

    Args:
        plain_sft (`bool`, *optional*, defaults to `False`):
            The next-token loss without a teacher, as a baseline. The paper's post-training begins with logits too
            (section 3).
    """

    plain_sft: bool = field(
        default=False, metadata={"help": "The next-token loss without a teacher, as a baseline for distillation."}
    )
