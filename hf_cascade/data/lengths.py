"""How long the sequences are that a stage reads: counted in powers of two, and how much lies beyond a window.

Positions start again at every document, so only long documents train a long window and its position temperature.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice

import torch
from torch import Tensor

BINS = 40  # sequences of up to 2^40 - 1 tokens
LEAST_BEYOND = 0.1  # ours: paper silent; a smaller share of tokens in the new part of a window is warned of
FIRST_ROWS = 8  # ours: rows that are looked at before training; 2M tokens at 262,144


def sequence_lengths(position_ids: Tensor) -> Tensor:
    """Lengths [sequences] of what rows [B, T] hold, whose positions start at 0 in every row and document."""
    positions_N = position_ids.flatten()
    last_N = torch.cat([positions_N[1:] == 0, positions_N.new_ones(1, dtype=torch.bool)])
    return positions_N[last_N] + 1


def tally(lengths: Tensor, window: int | None = None) -> Tensor:
    """
    Sums over sequences that may be added up over processes: int64 [2 * BINS + 1].

    Args:
        lengths (`LongTensor[sequences]`): tokens of each.
        window (`int`, *optional*): see [`LengthCounter`].

    Returns:
        `LongTensor`: sequences of each power of two, their tokens, and the tokens at positions of `window` or more.
    """
    powers_P = 2 ** torch.arange(BINS + 1, device=lengths.device)
    in_bin_SP = (lengths[:, None] >= powers_P[:-1]) & (lengths[:, None] < powers_P[1:])
    beyond = (lengths - window).clamp(min=0) if window is not None else torch.zeros_like(lengths)
    return torch.cat([in_bin_SP.sum(0), (in_bin_SP * lengths[:, None]).sum(0), beyond.sum().view(1)])


@dataclass
class LengthCounter:
    """
    Sequences and their tokens by length. What `as_dict` gives can be written as JSON and counted on from.

    Args:
        window (`int`, *optional*): tokens of the window before it was extended, `original_max_position_embeddings`.
        sequences (`dict[str, int]`): sequences of at least so many tokens, and fewer than twice as many.
        tokens (`dict[str, int]`): the tokens in these.
        beyond (`int`): tokens at positions of `window` or more: the first such token is the `window` + 1st.
        longest (`int`): tokens of the longest sequence.
    """

    window: int | None = None
    sequences: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    beyond: int = 0
    longest: int = 0

    def add(self, lengths: Tensor | list[int]) -> None:
        """Count sequences of these lengths."""
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        if len(lengths):
            self.add_tally(tally(lengths, self.window).tolist(), int(lengths.max()))

    def add_tally(self, sums: list[int], longest: int) -> None:
        """Count what [`tally`] summed, of this or of many processes; `longest` is their longest sequence."""
        for counts, found in ((self.sequences, sums[:BINS]), (self.tokens, sums[BINS : 2 * BINS])):
            present = {2**power: count for power, count in enumerate(found) if count}
            merged = {int(least): count for least, count in counts.items()}
            for least, count in present.items():
                merged[least] = merged.get(least, 0) + count
            counts.clear()
            counts.update((str(least), merged[least]) for least in sorted(merged))
        self.beyond += sums[-1]
        self.longest = max(self.longest, longest)

    def merge(self, other: "LengthCounter") -> None:
        """
        Count what `other` counted.

        Raises:
            ValueError: the two looked at different windows.
        """
        if self.window != other.window:
            raise ValueError(f"lengths beyond {self.window} and beyond {other.window} tokens cannot be added up")
        powers = [str(2**power) for power in range(BINS)]
        sums = [counts.get(power, 0) for counts in (other.sequences, other.tokens) for power in powers]
        self.add_tally([*sums, other.beyond], other.longest)

    def as_dict(self) -> dict:
        """Plain numbers and texts; `LengthCounter(**...)` counts on."""
        return asdict(self)

    @property
    def count(self) -> int:
        """Sequences."""
        return sum(self.sequences.values())

    @property
    def total_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(self.tokens.values())

    @property
    def share_beyond(self) -> float:
        """Share of tokens at positions of `window` or more, 0 to 1."""
        return self.beyond / max(self.total_tokens, 1)

    def table(self, title: str) -> str:
        """The counts as text for people."""
        total = max(self.total_tokens, 1)
        mean = self.total_tokens / max(self.count, 1)
        lines = [
            f"{title}: {self.count:,}, {self.total_tokens:,} tokens, mean {mean:,.0f}, longest {self.longest:,}",
            f"{'length':>23} {'number':>12} {'tokens':>16} {'share':>7}",
        ]
        for least, number in self.sequences.items():
            span = f"{int(least):,} to {2 * int(least) - 1:,}"
            lines.append(f"{span:>23} {number:>12,} {self.tokens[least]:>16,} {self.tokens[least] / total:>7.1%}")
        if self.window is not None:
            span = f"position >= {self.window:,}"
            lines.append(f"{span:>23} {'':>12} {self.beyond:>16,} {self.share_beyond:>7.1%}")
        return "\n".join(lines)


def of_rows(rows: Iterable[dict], window: int | None = None, count: int | None = None) -> LengthCounter:
    """Lengths in the first `count` rows of packed text (all without), as the model will see them."""
    counter = LengthCounter(window)
    for row in islice(rows, count):
        counter.add(row["seq_lengths"])
    return counter


def short_text_warning(counter: LengthCounter) -> str | None:
    """What to tell someone whose long stage would read short documents; `None` where enough lies beyond the window."""
    if counter.window is None or counter.total_tokens == 0 or counter.share_beyond >= LEAST_BEYOND:
        return None
    return (
        f"only {counter.share_beyond:.1%} of the first {counter.total_tokens:,} tokens lie at positions of "
        f"{counter.window:,} (original_context_length) or more, the part of the window that is new: the documents are "
        f"short (the longest piece has {counter.longest:,} tokens). Give this stage longer documents, or pass over "
        f"short ones with min_document_tokens (for instance {2 * counter.window})"
    )
