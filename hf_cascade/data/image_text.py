"""Image-text samples for calibration, as a vision-language model's own processor makes them."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datasets import Image, List, load_dataset
from transformers import AutoProcessor, ProcessorMixin
from transformers.utils import is_torchvision_available

from hf_cascade import assets
from hf_cascade.data.pixtral import PixtralProcessor
from hf_cascade.data.text_files import BUILDERS

IMAGE_COLUMNS, TEXT_COLUMNS = ("images", "image"), ("messages", "text")


def load_processor(model: str) -> ProcessorMixin:
    """
    The processor of a folder or Hub id. Where torchvision is missing, Pixtral's runs on Pillow (`data/pixtral.py`):
    the same tokens, and pixels that differ by at most one of 255 steps.

    Raises:
        ValueError: there is none, or it cannot run here.
    """
    opener = AutoProcessor if is_torchvision_available() else PixtralProcessor
    try:
        processor = opener.from_pretrained(assets.locate(model), trust_remote_code=False)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{model} has no processor for images that opens here ({' '.join(str(error).split())[:200]}): images need "
            "the model's preprocessor files and pillow; without images text alone will do"
        ) from error
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(f"{model} has no image processor: leave the images out to use text alone")
    return processor


def load_image_text(model: str, source: str, split: str, count: int, longest: int) -> list[dict]:
    """
    Samples with their images, one batch each: `input_ids` [1, T], `pixel_values`, `image_sizes`.

    Args:
        model (`str`): folder or Hub id with the processor.
        source (`str`): a `.jsonl`, `.json` or `.parquet` file, or a dataset's Hub id. Columns: `images` (or `image`),
            pictures or paths of files, and `messages`, or `text` with the processor's image token in it.
        split (`str`): of a Hub dataset.
        count (`int`): samples at most.
        longest (`int`): tokens; longer samples are left out, since cutting one may cut an image.

    Raises:
        ValueError, FileNotFoundError: no file, columns, processor or sample.
    """
    rows = _rows(source, split)
    columns = rows.column_names or list(next(iter(rows)))
    pictures = next((name for name in IMAGE_COLUMNS if name in columns), None)
    words = next((name for name in TEXT_COLUMNS if name in columns), None)
    if pictures is None or words is None:
        raise ValueError(f"{source} has the columns {sorted(columns)}: image-text needs images and messages, or text")
    feature = Image() if pictures == "image" else List(Image())
    processor = load_processor(model)
    rows = rows.cast_column(pictures, feature)
    samples = list(islice(_processed(processor, rows, pictures, words, longest), count))
    if not samples:
        raise ValueError(f"{source} holds no sample of at most {longest:,} tokens with images")
    return samples


def _rows(source: str, split: str):
    place = Path(assets.locate(source))
    if place.is_file():
        kind = BUILDERS.get(place.suffix)
        if kind not in ("json", "parquet"):
            raise ValueError(f"{source}: image-text may be in .jsonl, .json or .parquet files")
        return load_dataset(kind, data_files=str(place), split="train")
    if place.suffix in BUILDERS or place.is_dir():
        raise FileNotFoundError(f"{source} is no file: give a .jsonl or .parquet file or a dataset's Hub id")
    return load_dataset(source, split=split, streaming=True)


def _processed(processor, rows, pictures: str, words: str, longest: int) -> Iterator[dict]:
    for row in rows:
        images = row[pictures] if isinstance(row[pictures], list) else [row[pictures]]
        if not images or images[0] is None:
            continue
        text, rendered = row[words], words == "messages"
        if rendered:
            text = processor.apply_chat_template(text, tokenize=False)
        # a chat template writes its special tokens itself
        sample = processor(text=text, images=images, return_tensors="pt", add_special_tokens=not rendered)
        if sample["input_ids"].shape[1] <= longest:
            yield dict(sample)
