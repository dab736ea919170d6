"""Packed rows of interleaved text and images: an image's tokens stay together, and its pixels are made in the batch."""

from collections.abc import Iterator

import torch
from datasets import Features, Image, List
from transformers import ProcessorMixin

from hf_cascade.data.image_documents import STORED, ImageDocuments, ImageTokens
from hf_cascade.data.packing import FEATURES, PackedCollator, PackedText

# T tokens of a window, B rows of a batch, M images of a batch
IMAGE_FEATURES = Features({**FEATURES, "images": List(STORED)})  # those whose tokens are in the row, in order


class PackedImageText(PackedText):
    """
    [`PackedText`] of documents with images, as rows of exactly `max_length` tokens.

    An image goes whole into one row, since the model reads all of its patches or none. Where it does not fit into what
    is left, the row ends early and is filled with padding, which is nobody's label and no part of any document; the
    image begins the next row. So no token is repeated or lost, and the cursor never stands inside an image.

    Args:
        documents (`ImageDocuments`): texts and images, in order.
        processor (`ProcessorMixin`): Pixtral's (`data/image_text.load_processor`).
        max_length (`int`): T, tokens in a row.
        start, min_document_tokens: as [`PackedText`].
    """

    features = IMAGE_FEATURES

    def __init__(
        self,
        documents: ImageDocuments,
        processor: ProcessorMixin,
        max_length: int,
        start: tuple[int, int] = (0, 0),
        min_document_tokens: int = 0,
    ):
        super().__init__(documents, processor.tokenizer, max_length, start, min_document_tokens)
        self.processor, self.tokens = processor, ImageTokens(processor)
        ids = [processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id, 0]
        self.pad_token_id = next(token for token in ids if token is not None)

    def rows_to_the_end(self) -> Iterator[dict]:
        """As the base; rows have `images` too."""
        row, lengths, pictures, skipped = [], [], [], [0, 0]
        document, skip = self.start
        for number, (text, images) in self.documents.read(document):
            ids, places = self.tokens(number, text, images)
            position = skip if number == document else 0
            if len(ids) < self.min_document_tokens:
                skipped = [skipped[0] + 1, skipped[1] + len(ids) - position]
                continue
            self._check(number, places, position)
            while position < len(ids):
                end = min(position + self.max_length - len(row), len(ids))
                cut = next((place.start for place in places if place.start < end < place.stop), None)
                end = end if cut is None else cut
                if end > position:
                    row, lengths = [*row, *ids[position:end]], [*lengths, end - position]
                pictures += [
                    image for image, place in zip(images, places, strict=True) if position <= place.start < end
                ]
                position = end
                if len(row) == self.max_length or cut is not None:
                    yield {
                        "input_ids": row + [self.pad_token_id] * (self.max_length - len(row)),
                        "seq_lengths": lengths,
                        "cursor": [number, position] if position < len(ids) else [number + 1, 0],
                        "skipped": skipped,
                        "images": pictures,
                    }
                    row, lengths, pictures, skipped = [], [], [], [0, 0]

    def _check(self, number: int, places: list[range], position: int) -> None:
        """Raise `ValueError` for an image longer than a row, and for a start inside one."""
        longest = max((len(place) for place in places), default=0)
        if longest > self.max_length:
            raise ValueError(
                f"document {number} has an image of {longest} tokens, and rows have {self.max_length}: raise "
                "max_length, or lower the image processor's longest_edge"
            )
        if any(place.start < position < place.stop for place in places):
            raise ValueError(
                f"token {position} of document {number} is inside an image: the place to go on from was reached with "
                "another processor"
            )

    def collator(self, padding_free: bool = False) -> "ImageCollator":
        """As the base, for rows with images."""
        return ImageCollator(padding_free, self.processor)


class ImageCollator(PackedCollator):
    """
    [`PackedCollator`] that also makes the images' `pixel_values` [M, 3, height, width] and `image_sizes` [M, 2].

    A batch without images has neither. Tokens of images are nobody's label: nothing predicts them, and a teacher's
    logits for them were never trained.

    Args:
        padding_free (`bool`, *optional*, defaults to `False`): as [`PackedCollator`].
        processor (`ProcessorMixin`): Pixtral's.
    """

    def __init__(self, padding_free: bool = False, processor: ProcessorMixin | None = None):
        super().__init__(padding_free)
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """
        Collate `rows` of equal length T.

        Raises:
            ValueError: the processor made other images than their tokens stand for.
        """
        padding = [len(row["input_ids"]) - sum(row["seq_lengths"]) for row in rows]
        whole = [
            {**row, "seq_lengths": [*row["seq_lengths"], *([pads] if pads else [])]}
            for row, pads in zip(rows, padding, strict=True)
        ]
        batch = super().__call__(whole)
        labels_BT = batch["labels"].view(len(rows), -1)
        for labels_T, pads in zip(labels_BT, padding, strict=True):
            labels_T[len(labels_T) - pads :] = -100
        kinds = torch.tensor(self.processor.image_token_ids)
        batch["labels"].masked_fill_(torch.isin(batch["input_ids"], kinds), -100)
        stored = [image for row in rows for image in row["images"]]
        if stored:
            batch.update(self._pixels(stored, int((batch["input_ids"] == self.processor.image_token_id).sum())))
        return batch

    def _pixels(self, stored: list[dict], tokens: int) -> dict[str, torch.Tensor]:
        made = self.processor(images=[Image().decode_example(image) for image in stored], return_tensors="pt")
        patch = self.processor.patch_size * self.processor.spatial_merge_size
        patches = int((torch.as_tensor(made["image_sizes"]) // patch).prod(-1).sum())
        if patches != tokens:
            raise ValueError(f"a batch has {tokens} image tokens, and the processor's images make {patches}")
        return {name: made[name] for name in ("pixel_values", "image_sizes")}
