"""The flags of `trainers/pwrm.py` that are its own."""

from dataclasses import dataclass, field

from hf_cascade.rewards.comparison import LABELS, QUESTION


@dataclass
class PairwiseArguments:
    """
    Parameters that control what a pairwise reward model is asked.

    Args:
        labels (`list[str]`, *optional*, defaults to `["A", "B"]`):
            What it answers: the names of the first and the second response, each one token. Ours: paper silent.
        question (`str`, *optional*):
            What stands below the two responses; criteria go here. Ours: paper silent.
    """

    labels: list[str] = field(
        default_factory=lambda: list(LABELS),
        metadata={"help": "Names of the first and the second response, each one token."},
    )
    question: str = field(default=QUESTION, metadata={"help": "What is asked about the two responses."})
