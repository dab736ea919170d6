"""`sha256_of_text`: hashes of the local files of text that a stage's settings name, so that a report can be bound to
what was read, and not to a name."""

import glob
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

from hf_cascade import assets

FLAGS = ("calibration", "prompts")  # flags beside `datasets` that name a file or dataset of text
# `path` of an entry that is no folder and no Hub id: as datasets.packaged_modules of 5.2 has them
BUILDERS = """arrow audiofolder conll csv eval fasta fastq genbank harbor hdf5 iceberg imagefolder json lance meshfolder
mmcif niftifolder pandas parquet pdb pdffolder text tsfile videofolder vortex webdataset xml""".split()


def sha256_of_text(config: dict) -> dict[str, str]:
    """
    Hashes of all local files that the settings name as text; a data set of the Hub has its revision, and no hash here.

    Reads the files whole, by up to 8 threads (ours).

    Args:
        config (`dict`): of a manifest: a `datasets:` block, `calibration`, `prompts`.

    Returns:
        `dict`: the file as it is named, below the `data_dir` or folder of its entry, and of a pattern or folder
        the file's own path, to its SHA-256.
    """
    named: list[str] = []
    for part in config.get("datasets") or []:
        named += _places(part)
    named += [config[flag] for flag in FLAGS if isinstance(config.get(flag), str)]
    files = {name: place for one in named for name, place in _files(one)}
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(files, pool.map(_sha256, files.values()), strict=True))


def has_no_hash(part: dict, recorded: dict[str, str]) -> bool:
    """Whether an entry of a `datasets:` block names a local file, pattern or folder of which no hash is recorded."""
    return not all(name in recorded or any(_is_of(file, name) for file in recorded) for name in _places(part))


def _is_of(file: str, name: str) -> bool:
    """Whether a recorded file is what a name stands for: one of a pattern, in a folder, or itself."""
    if glob.has_magic(name) and fnmatchcase(os.path.normpath(file), _flat(name)):
        return True
    return bool(name) and any(Path(file).is_relative_to(place) for place in (name, assets.root() / name))


def _flat(pattern: str) -> str:
    """A pattern for `fnmatch`, whose `*` takes folders too."""
    return os.path.normpath(pattern).replace("**/", "*")


def _places(part: dict) -> list[str]:
    """
    What an entry of a `datasets:` block names on this machine, as `datasets.load.dataset_module_factory` resolves it:
    a builder reads `data_files` below `data_dir`; a folder is read whole, or its `data_dir`, or `data_files` below
    these; of a Hub id nothing is here. `""`, which no file is, for a builder with neither.
    """
    path, folder = part.get("path") or "", part.get("data_dir") or ""
    files = [name for name in _names(part.get("data_files")) if "://" not in name]
    if path not in BUILDERS and not _is_folder(path):
        return [name for name in files if os.path.isabs(name)]
    below = os.path.expanduser(folder if path in BUILDERS else os.path.join(path, folder) if folder else path)
    return [below] if part.get("data_files") is None else [os.path.join(below, name) for name in files]


def _is_folder(path: str) -> bool:
    """Whether it is a folder here, or, being elsewhere now, can be no Hub id."""
    if os.path.isdir(path):
        return True
    return "://" not in path and (path.startswith(("/", ".", "~")) or path.count("/") > 1 and path[:8] != "buckets/")


def _names(value) -> list[str]:
    """The paths of a `data_files`: one, a list, or a list for each split."""
    if isinstance(value, dict):
        return [name for one in value.values() for name in _names(one)]
    return [value] if isinstance(value, str) else [name for one in value or () for name in _names(one)]


def _files(name: str) -> list[tuple[str, Path]]:
    """What a path stands for; nothing for a Hub id, an address or a builder of `datasets`."""
    if not name or "://" in name:
        return []
    if glob.has_magic(name) and not Path(name).exists():
        return [(path, Path(path)) for path in sorted(glob.glob(name, recursive=True)) if Path(path).is_file()]
    try:
        place = assets.find(name)
    except FileNotFoundError:
        return []
    if place.is_file():
        return [(name, place)]
    return [(str(path), path) for path in sorted(place.rglob("*")) if path.is_file() and not _hidden(path, place)]


def _hidden(path: Path, folder: Path) -> bool:
    """Whether `datasets` passes it over: a hidden or `__special__` file or folder, as .git and .cache."""
    return any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
