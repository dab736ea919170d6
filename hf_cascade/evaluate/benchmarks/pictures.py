"""Images of rows: where they stand in a prompt, and what a row keeps of them until they are asked for."""

import base64
import binascii
import hashlib
import io
import os
import re
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from hf_cascade.evaluate.benchmarks import data

MARK = "<image>"  # lm-eval's: each stands for the next image
NUMBERED = re.compile(r"<image\s*(\d{1,2})>")  # MMMU's, in questions and options
URI = re.compile(r"data:image/[\w.+-]+;base64,")


class Picture:
    """
    An encoded image, unopened: a thousand fit in memory, logs stay short, and hashes of rows are those of the last run.

    Args:
        content (`bytes`): a PNG, JPEG or other file.
        name (`str`): where it comes from, for messages.
    """

    def __init__(self, content: bytes, name: str):
        self.content, self.name = content, name

    def open(self) -> Image.Image:
        """
        The image, anew with each call.

        Raises:
            ValueError: this is no image.
        """
        try:
            return Image.open(io.BytesIO(self.content))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{self.name}: {len(self.content):,} bytes that are no image ({error})") from error

    def tobytes(self) -> bytes:
        """The encoded image, for hashes."""
        return self.content

    def __repr__(self) -> str:
        return f"<picture sha256:{hashlib.sha256(self.content).hexdigest()[:16]}>"


class Documents(list):
    """Rows as lm-eval takes a split: a list with `features`."""

    @property
    def features(self) -> dict:
        """Column names, as keys."""
        return dict.fromkeys(self[0]) if self else {}


def rows_of(
    repo: str,
    split: str,
    config: str | None,
    columns: tuple[str, ...],
    needed: tuple[str, ...],
    filled: tuple[str, ...],
) -> Documents:
    """
    One split, its images as [`Picture`]s.

    Args:
        repo (`str`), split (`str`), config (`str`, *optional*): see [`data.read`].
        columns (`tuple[str, ...]`): those with images: the Hub's `Image` feature, structs of `bytes` and `path`, or
            text: a path beside the rows' file, base64, or a data URI. One that is missing holds no images.
        needed (`tuple[str, ...]`), filled (`tuple[str, ...]`): columns that must be there, the first of them
            different in every row, and those of them that have a value in every row.

    Raises:
        MissingData, ValueError: no rows, no such column, or something in an image's place that is none.
    """
    from datasets import Image as Stored

    rows = data.read(repo, split, config)
    data.need(rows, f"{repo} ({config})" if config else repo, needed, filled, unique=needed[0])
    for column, feature in rows.features.items():
        if isinstance(feature, Stored):
            rows = rows.cast_column(column, Stored(decode=False))
    where = data.used["/".join(filter(None, (repo, config, split)))]["path"]
    folder = Path(where) if where else Path()
    folder = folder.parent if folder.is_file() else folder
    documents = Documents()
    for place, row in enumerate(rows):
        name = f"{repo}, {config or 'default'}, {split}, row {place}"
        pictures = {column: picture_of(row.get(column), folder, f"{name}, {column}") for column in columns}
        documents.append({**row, **pictures})
    return documents


def picture_of(value, folder: Path, name: str) -> Picture | None:
    """A row's image in any of its forms (see [`rows_of`]); `None` where there is none."""
    if isinstance(value, dict):
        inner = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        return picture_of(inner, folder, name)
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return Picture(value, name)
    if not isinstance(value, str):
        raise ValueError(f"{name}: {type(value).__name__} in place of an image; give bytes, a path or base64")
    if (uri := URI.match(value)) or len(value) > 1000:
        return Picture(_decoded(value[uri.end() :] if uri else value, name), name)
    path = folder / value  # an absolute path stays as it is
    if path.is_file():
        return Picture(path.read_bytes(), name)
    if re.search(r"\.\w{3,4}$", value) or os.sep in value[:1]:
        raise data.MissingData(f"{name}: no image {path}; put it there, or give the image's bytes")
    return Picture(_decoded(value, name), name)


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: {text[:40]!r} is neither a file nor base64 ({error})") from error


def inline(text: str, pictures: dict[int, Picture | None], name: str) -> tuple[str, list[Picture]]:
    """
    A text with `<image N>` in it as a prompt has it: with a mark for each, and the pictures in order.

    A picture that the text does not name goes before it. `<image>` without a number is text, and loses its brackets.

    Args:
        text (`str`): question and options.
        pictures (`dict[int, Picture | None]`): by number.
        name (`str`): the row, for messages.

    Raises:
        ValueError: the text names a picture that the row does not have.
    """
    numbers = [int(number) for number in NUMBERED.findall(text)]
    if missing := sorted({number for number in numbers if pictures.get(number) is None}):
        raise ValueError(f"{name}: its text names image {missing[0]}, but image_{missing[0]} is empty")
    unnamed = [number for number, picture in pictures.items() if picture is not None and number not in numbers]
    marked = NUMBERED.sub(MARK, unmarked(text))
    return f"{MARK}\n" * len(unnamed) + marked, [pictures[number] for number in unnamed + numbers]


def unmarked(text: str) -> str:
    """Text of a row in which nothing is a mark."""
    return text.replace(MARK, "image")
