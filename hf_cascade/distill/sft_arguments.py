"""The flags of `trainers/sft.py` that are its own."""

from dataclasses import dataclass, field

FILTERS = ("format", "repetition", "language")
LONG_MIN_TOKENS = 1024  # ours: paper silent


@dataclass
class SFTArguments:
    """
    Parameters that control what `trainers/sft.py` learns from.

    Args:
        plain_sft (`bool`, *optional*, defaults to `False`):
            The next-token loss without a teacher, as a baseline. The paper's post-training begins with logits too
            (section 3).

        > Parameters that control the data of reasoning SFT (paper section 5)

        filters (`list[str]`, *optional*):
            Rows that fail one are left out: `format` (one thinking block, first, closed; then an answer), `repetition`
            (loops, or most of a text said again) and `language` (thinking or answer in another than the user's).
        long_fraction (`float`, *optional*):
            Share of the training rows whose chain of thought is long; the fewest rows that it takes are left out. The
            paper mixes short and long, and does not give the share.
        long_min_tokens (`int`, *optional*, defaults to `1024`):
            Thinking of so many tokens is long. Ours: paper silent.

    Raises:
        ValueError: no such filter, a share outside 0 to 1, or fewer than one token.
    """

    plain_sft: bool = field(
        default=False, metadata={"help": "The next-token loss without a teacher, as a baseline for distillation."}
    )
    filters: list[str] | None = field(
        default=None, metadata={"help": "Rows that fail one of these are left out: format, repetition, language."}
    )
    long_fraction: float | None = field(
        default=None, metadata={"help": "Share of rows with a long chain of thought, 0 to 1. Unset: as in the data."}
    )
    long_min_tokens: int = field(
        default=LONG_MIN_TOKENS, metadata={"help": "Tokens of thinking from which on it is long."}
    )

    def __post_init__(self):
        check_filters(self.filters or [])
        check_long_fraction(0.0 if self.long_fraction is None else self.long_fraction, self.long_min_tokens)

    @property
    def chooses_rows(self) -> bool:
        """Whether the rows are reasoning data, to be filtered or mixed."""
        return bool(self.filters) or self.long_fraction is not None


def check_filters(filters: list[str]) -> None:
    """Raise `ValueError` for a filter that does not exist."""
    unknown = [name for name in filters if name not in FILTERS]
    if unknown:
        raise ValueError(f"filters={list(filters)}: there is no {unknown[0]!r}; allowed are {', '.join(FILTERS)}")


def check_long_fraction(long_fraction: float, long_min_tokens: int) -> None:
    """Raise `ValueError` for a share that is none, or a limit that everything reaches."""
    if not 0 <= long_fraction <= 1:
        raise ValueError(f"long_fraction={long_fraction}: give a share of the rows, 0 to 1")
    if long_min_tokens < 1:
        raise ValueError(f"long_min_tokens={long_min_tokens}: give 1 token or more")
