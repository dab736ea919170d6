"""Texts for calibration and measurement from whatever holds them: a file, or a dataset of the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowInvalid

from hf_cascade import assets

# suffix -> builder of `datasets`; `.gz` is taken off first
BUILDERS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@contextmanager
def one_line_error(source) -> Iterator[None]:
    """
    What `datasets` raises for a file that it cannot read names no file, or is no `ValueError`.

    Raises:
        ValueError: a file is torn, or no JSON lines, CSV or Parquet.
    """
    try:
        yield
    except (DatasetGenerationError, ArrowInvalid) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"{source} cannot be read ({reason:.300}): see that it is whole, and of the kind that its name says"
        ) from error


def load_texts(source: str, field: str = "text", split: str = "train", limit: int | None = None) -> list[str]:
    """
    The texts of a file or dataset, one a document; a plain text file is one document.

    Args:
        source (`str`): a `.txt`, `.md`, `.jsonl`, `.json`, `.parquet` or `.csv` file (also `.gz`), or a Hub id, which
            is streamed.
        field (`str`, *optional*, defaults to `"text"`): the text column.
        split (`str`, *optional*, defaults to `"train"`): split of a Hub dataset.
        limit (`int`, *optional*): documents to read at most.

    Raises:
        FileNotFoundError: neither a file nor a Hub id.
        ValueError: an unknown kind of file, a missing column, or no text.
    """
    place = Path(assets.locate(source))
    if place.is_file():
        kind = place.with_suffix("").suffix if place.suffix == ".gz" else place.suffix
        if kind not in BUILDERS:
            raise ValueError(f"{source}: text files may end in {', '.join(BUILDERS)}, each also with .gz")
        if place.stat().st_size == 0:
            raise ValueError(f"{source} holds no text: the file is empty")
        options = {"sample_by": "document"} if BUILDERS[kind] == "text" else {}
        with one_line_error(source):
            rows = load_dataset(BUILDERS[kind], data_files=str(place), split="train", **options)
    elif place.suffix in BUILDERS or place.is_dir():
        raise FileNotFoundError(f"{source} is no file: give a text file ({', '.join(BUILDERS)}) or a dataset's Hub id")
    else:
        rows = load_dataset(source, split=split, streaming=True)
    if rows.column_names is not None and field not in rows.column_names:
        raise ValueError(f"{source} has no column {field!r}; it has {sorted(rows.column_names)}")
    texts = [row[field] for row in islice(rows, limit) if row[field]]
    if not texts:
        raise ValueError(f"{source} holds no text in {field!r}")
    return texts
