"""`sha256_of_text`: hashes of the local files of text that a stage's settings name, so that a report can be bound to
what was read, and not to a name."""

import glob
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hf_cascade import assets

FLAGS = ("calibration", "prompts")  # flags beside `datasets` that name a file or dataset of text


def sha256_of_text(config: dict) -> dict[str, str]:
    """
    Hashes of all local files that the settings name as text; a data set of the Hub has its revision, and no hash here.

    Reads the files whole, by up to 8 threads (ours).

    Args:
        config (`dict`): of a manifest: a `datasets:` block, `calibration`, `prompts`.

    Returns:
        `dict`: the file as it is named, of a pattern or folder the file's own path, to its SHA-256.
    """
    named: list[str] = []
    for part in config.get("datasets") or []:
        named += _names(part.get("data_files") or part.get("path"))
    named += [config[flag] for flag in FLAGS if isinstance(config.get(flag), str)]
    files = {name: place for one in named for name, place in _files(one)}
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(files, pool.map(_sha256, files.values()), strict=True))


def _names(value) -> list[str]:
    """The paths of a `data_files`: one, a list, or a list for each split."""
    if isinstance(value, dict):
        return [name for one in value.values() for name in _names(one)]
    return [value] if isinstance(value, str) else [name for one in value or () for name in _names(one)]


def _files(name: str) -> list[tuple[str, Path]]:
    """What a path stands for; nothing for a Hub id, an address or a builder of `datasets`."""
    if "://" in name:
        return []
    if glob.has_magic(name) and not Path(name).exists():
        return [(path, Path(path)) for path in sorted(glob.glob(name, recursive=True)) if Path(path).is_file()]
    try:
        place = assets.find(name)
    except FileNotFoundError:
        return []
    if place.is_file():
        return [(name, place)]
    return [(str(path), path) for path in sorted(place.rglob("*")) if path.is_file()]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
