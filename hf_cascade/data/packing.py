"""Carry-over packing: documents cut into full windows, no token repeated, lost or padded, and a cursor in every row.

What was left out: TRL's best-fit packing, which works on batches of 1,000 documents and leaves short rows, and cannot
say which tokens a stopped run has seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from hf_cascade.data.documents import Documents

# T tokens of a window, B rows of a batch
FEATURES = Features(
    {
        "input_ids": List(Value("int32")),  # [T]
        "seq_lengths": List(Value("int32")),  # lengths of the row's documents, summing to T
        "cursor": List(Value("int64")),  # [2]: document and token that follow this row
        "skipped": List(Value("int64")),  # [2]: documents and tokens passed over on the way to this row's end
    }
)


def document_tokens(tokenizer: PreTrainedTokenizerBase, text: str, **kwargs) -> list[int]:
    """
    Token ids of one document as a language model reads it: what the tokenizer adds in front, the text, one EOS.
    `kwargs` go to the tokenizer.
    """
    ids = tokenizer(text, **kwargs)["input_ids"]
    if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
        ids = [*ids, tokenizer.eos_token_id]
    return ids


@dataclass
class PackedText:
    """
    Documents as rows of exactly `max_length` tokens.

    A row is filled with as many documents as it takes; what does not fit goes on in the next row as a sequence of its
    own. Documents keep apart: positions start again at each, so that attention does not cross (see `PackedCollator`).

    Args:
        documents (`Documents`): the texts, in order.
        tokenizer (`PreTrainedTokenizerBase`): turns them into ids.
        max_length (`int`): T, tokens in a row.
        start (`tuple[int, int]`, *optional*, defaults to `(0, 0)`): document number and token within it to begin at.
        min_document_tokens (`int`, *optional*, defaults to `0`): documents of fewer tokens, counted whole, are passed
            over. They keep their numbers, so that places in the text mean the same with and without it.
    """

    documents: Documents
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    start: tuple[int, int] = field(default=(0, 0))
    min_document_tokens: int = 0
    features = FEATURES

    def __post_init__(self):
        if self.max_length is None or self.max_length < 2:
            raise ValueError(f"max_length={self.max_length}: packed text needs a window of at least 2 tokens")

    def rows(self, count: int | None = None) -> Iterator[dict[str, list[int]]]:
        """
        Yield `count` rows, `{"input_ids": [T], "seq_lengths": [documents in the row], "cursor": [document, token],
        "skipped": [documents, tokens]}`.

        Raises:
            ValueError: the text ends before (always, without `count`).
        """
        number = 0
        for number, row in enumerate(self.rows_to_the_end(), 1):
            yield row
            if number == count:  # a reader that looks ahead must not meet the end of text that suffices
                return
        raise ValueError(
            f"the text ended {number * self.max_length} tokens after document {self.start[0]}, token {self.start[1]}, "
            "and the stage asks for more: add text to `datasets:`, lower `train_tokens` or `min_document_tokens`, or "
            "allow repetition with `passes`"
        )

    def rows_to_the_end(self) -> Iterator[dict[str, list[int]]]:
        """All full rows, as `rows` gives them; the end of the text is no error."""
        row: list[int] = []
        lengths: list[int] = []
        skipped = [0, 0]
        document, skip = self.start
        for number, text in self.documents.read(document):
            ids = document_tokens(self.tokenizer, text)
            position = skip if number == document else 0
            if len(ids) < self.min_document_tokens:
                skipped = [skipped[0] + 1, skipped[1] + len(ids) - position]
                continue
            while position < len(ids):
                piece = ids[position : position + self.max_length - len(row)]
                position += len(piece)
                row += piece
                lengths.append(len(piece))
                if len(row) == self.max_length:
                    cursor = [number, position] if position < len(ids) else [number + 1, 0]
                    yield {"input_ids": row, "seq_lengths": lengths, "cursor": cursor, "skipped": skipped}
                    row, lengths, skipped = [], [], [0, 0]

    def dataset(self, count: int | None = None) -> IterableDataset:
        """`count` rows as a streamed dataset; it is exact from `start` on, without a shuffle buffer."""
        return IterableDataset.from_generator(self.rows, gen_kwargs={"count": count}, features=self.features)

    def held_out(self) -> Dataset:
        """All full rows up to the end of the text, in memory: for evaluation."""
        rows = list(self.rows_to_the_end())
        columns = {name: [row[name] for row in rows] for name in self.features}
        return Dataset.from_dict(columns, features=self.features)

    def collator(self, padding_free: bool = False) -> "PackedCollator":
        """What turns rows into batches; `padding_free` as [`PackedCollator`]."""
        return PackedCollator(padding_free)


@dataclass
class PackedCollator:
    """
    Rows of `PackedText` to a batch in which documents keep apart.

    Returns `input_ids`, `labels` and `position_ids`, each [B, T], `cursor` [2], the place after the batch's last row,
    and `skipped` [2], documents and tokens passed over on the way there. There is no attention mask: transformers
    builds the block-diagonal one from positions that start again. The first token of a document is nobody's label
    (-100).

    Args:
        padding_free (`bool`, *optional*, defaults to `False`):
            One row [1, B * T] instead, which the FlashAttention kernels need to see documents.
    """

    padding_free: bool = False

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Collate `rows` of equal length T."""
        input_ids_BT = torch.tensor([row["input_ids"] for row in rows])
        position_ids_BT = torch.stack(
            [torch.cat([torch.arange(length) for length in row["seq_lengths"]]) for row in rows]
        )
        labels_BT = input_ids_BT.masked_fill(position_ids_BT == 0, -100)
        batch = {"input_ids": input_ids_BT, "labels": labels_BT, "position_ids": position_ids_BT}
        if self.padding_free:
            batch = {name: tensor.reshape(1, -1) for name, tensor in batch.items()}
        batch["cursor"] = torch.tensor(rows[-1]["cursor"])
        batch["skipped"] = torch.tensor([row["skipped"] for row in rows]).sum(0)
        return batch


def blocks(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int, count: int, shorter: bool = False
) -> torch.Tensor:
    """
    The first `count` windows of `length` tokens of `texts`, documents joined by EOS: [count, length] int64.

    Calibration text is used like this (paper section 2: "a large calibration batch"). Fewer windows come back when
    the text is short; with `shorter`, a text that does not fill one window becomes one window of its own length.

    Raises:
        ValueError: the text does not fill one window.
    """
    ids: list[int] = []
    for text in texts:
        if len(ids) >= count * length:
            break
        ids += document_tokens(tokenizer, text)
    if shorter and 1 < len(ids) < length:
        length = len(ids)
    rows = min(count, len(ids) // length)
    if rows == 0:
        raise ValueError(
            f"the text has {len(ids)} tokens and one window needs {length}: give more text or shorter windows"
        )
    return torch.tensor(ids[: rows * length]).view(rows, length)
