"""Documents of text and images, and their tokens: an image's come from its size alone, its pixels from the collator.

Interleaved image-text is part of the paper's mix (section 2). A stage reads every document in every process, so images
travel as they are stored, and only the process that trains on them decodes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import PIL.Image
from datasets import Dataset, Image, IterableDataset, List
from transformers import PreTrainedConfig, ProcessorMixin
from transformers.image_utils import ChannelDimension
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size
from trl.data_utils import prepare_multimodal_messages

from hf_cascade.anatomy import WRAPPERS
from hf_cascade.data.documents import Documents
from hf_cascade.data.packing import document_tokens

IMAGE_COLUMNS = ("images", "image")
STORED = Image(decode=False)  # {"bytes", "path"}
SIDEWAYS = (5, 6, 7, 8)  # Exif orientations that swap height and width


def image_column(rows: Dataset | IterableDataset) -> str | None:
    """The column of `rows` that holds images, if there is one."""
    columns = rows.column_names or list(next(iter(rows), {}))
    return next((name for name in IMAGE_COLUMNS if name in columns), None)


def decode_images(rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """`rows` whose images, if there are any, come out as pictures: JSON has them as paths."""
    column = image_column(rows)
    decoded = Image() if column == "image" else List(Image())
    if column is not None and (rows.features is None or rows.features[column] != decoded):
        rows = rows.cast_column(column, decoded)
    return rows


class ImageDocuments(Documents):
    """
    [`Documents`] whose rows may hold images: `images` (a list) or `image`, as files, bytes or paths.

    A row's text has the processor's image token where each image goes. Rows of a dataset without the text column may
    have `messages` instead.

    Args:
        dataset (`Dataset` or `IterableDataset`): rows; as [`Documents`].
        field, seed, passes: as [`Documents`].

    Raises:
        ValueError: there is no column of images.
    """

    def __init__(self, dataset, field: str = "text", seed: int = 0, passes: int = 1):
        column = image_column(dataset)
        if column is None:
            raise ValueError(f"the dataset has no column of images ({', '.join(IMAGE_COLUMNS)})")
        columns = dataset.column_names or list(next(iter(dataset)))
        if field not in columns and "messages" in columns:
            field = "messages"
        object.__setattr__(self, "images", column)
        if isinstance(dataset, IterableDataset):
            dataset = dataset.cast_column(column, STORED if column == "image" else List(STORED))
        else:  # a cast would copy every image on the disk
            dataset = dataset.with_format("arrow")
        super().__init__(dataset, field, seed, passes)

    def read(self, start: int = 0) -> Iterator[tuple[int, tuple[str | list, list[dict]]]]:
        """
        Yield `(number, (text or messages, images))` from document number `start` on.

        Raises:
            ValueError: a row has no text.
        """
        for number, row in self._rows(start):
            row = row if isinstance(row, dict) else row.to_pylist()[0]
            if row[self.field] is None:
                raise ValueError(f"document {number} has no {self.field!r}: every row needs one; drop the others")
            images = row[self.images] or []
            images = images if isinstance(images, list) else [images]
            yield number, (row[self.field], [STORED.encode_example(image) for image in images])


def stored_size(image: dict) -> tuple[int, int]:
    """Height and width in pixels of a stored image, as it will be seen; its pixels are not decoded."""
    with PIL.Image.open(BytesIO(image["bytes"]) if image["bytes"] else image["path"]) as picture:
        width, height = picture.size
        sideways = picture.getexif().get(PIL.Image.ExifTags.Base.Orientation) in SIDEWAYS
    return (width, height) if sideways else (height, width)


@dataclass
class ImageTokens:
    """
    Ids of a document as the processor would give them, and where its images stand in them.

    Args:
        processor (`ProcessorMixin`): Pixtral's (`data/image_text.load_processor`).
    """

    processor: ProcessorMixin

    def __call__(self, number: int, text: str | list, images: list[dict]) -> tuple[list[int], list[range]]:
        """
        Token ids of document `number`, and a range of positions for each image.

        Raises:
            ValueError: as many images as image tokens are needed; an image does not open.
        """
        processor, special = self.processor, True
        if not isinstance(text, str):
            text, special = self._rendered(number, text, images), False  # a template writes its own BOS
        parts = text.split(processor.image_token)
        if len(parts) - 1 != len(images):
            raise ValueError(
                f"document {number} has {len(images)} images and {len(parts) - 1} times {processor.image_token} in its "
                "text: put one where each image goes"
            )
        replaced = [self._image(number, image) for image in images]
        text = parts[0] + "".join(image + part for image, part in zip(replaced, parts[1:], strict=True))
        ids = document_tokens(processor.tokenizer, text, add_special_tokens=special)
        return ids, self._places(number, ids, len(images))

    def _rendered(self, number: int, messages: list, images: list[dict]) -> str:
        try:
            messages = prepare_multimodal_messages(messages, images)
        except ValueError as error:
            raise ValueError(f"document {number}: {error}") from error
        return self.processor.apply_chat_template(messages, tokenize=False)

    def _image(self, number: int, image: dict) -> str:
        try:
            size = stored_size(image)
        except OSError as error:  # a missing file too
            raise ValueError(f"document {number}: an image does not open ({error})") from error
        resized = self.resized(*size)
        if 0 in resized:
            raise ValueError(
                f"document {number} has an image of {size[0]} x {size[1]} pixels, of which nothing is left when its "
                "longer side is resized to the processor's longest_edge: drop it"
            )
        return self.processor.replace_image_token({"image_sizes": [resized]}, 0)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, in pixels, to which the processor brings an image."""
        processor = self.processor
        longest = dict(processor.image_processor.size)["longest_edge"]
        patch = processor.patch_size * processor.spatial_merge_size
        blank = np.broadcast_to(np.uint8(0), (3, height, width))
        return get_resize_output_image_size(blank, longest, patch, ChannelDimension.FIRST)

    def _places(self, number: int, ids: list[int], count: int) -> list[range]:
        kinds, end = set(self.processor.image_token_ids), self.processor.image_end_token_id
        places, start = [], None
        for position, token in enumerate(ids):
            if token in kinds:
                start = position if start is None else start
                if token == end:
                    places.append(range(start, position + 1))
                    start = None
            elif start is not None:
                break
        if len(places) != count or start is not None:
            raise ValueError(f"document {number} has tokens of images in its text that belong to none: remove them")
        return places


def check_reads_images(config: PreTrainedConfig, role: str = "model") -> None:
    """Raise `ValueError` unless a model of `config` reads images as Mistral3 does; `role` names it in the message."""
    if config.model_type not in WRAPPERS:
        raise ValueError(
            f"the data has images, and the {role} ({config.model_type}) reads none: supported are "
            f"{', '.join(WRAPPERS)}; or select the text column alone (`columns: [text]` in `datasets:`)"
        )


def check_processor(processor: ProcessorMixin, config: PreTrainedConfig) -> None:
    """
    Raise `ValueError` unless `processor` makes the image tokens that a model of `config` reads.

    Args:
        processor (`ProcessorMixin`): of the model's folder.
        config (`PreTrainedConfig`): the model's.
    """
    found = (processor.image_token_id, processor.patch_size, processor.spatial_merge_size)
    wanted = (config.image_token_id, config.vision_config.patch_size, config.spatial_merge_size)
    if found != wanted:
        raise ValueError(
            f"the processor has image token, patch size and merge size {found}, and the model {wanted}: they are not "
            "of one model"
        )
