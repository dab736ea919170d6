"""The training text of a model, by the manifests of its lineage, or named one by one."""

from collections.abc import Iterator
from pathlib import Path

from trl import DatasetMixtureConfig
from trl.scripts.utils import DatasetConfig

from hf_cascade import manifest
from hf_cascade.data import contents
from hf_cascade.data.documents import load_mixture
from hf_cascade.evaluate.contamination.overlap import texts_of

# Inputs of a stage whose own text went into its weights; a teacher's did not pass through here.
ANCESTORS = ("model", "model_name_or_path", "prompts_from")
WHOLE = ("columns", "fraction")  # settings of an entry that leave out text: here every text counts
BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text", ".md": "text"}


def of_model(folder: str) -> tuple[dict[str, dict], list[str]]:
    """
    All text that the stages of a model read.

    Args:
        folder (`str`): a stage's folder.

    Returns:
        `tuple`: name of a source to its settings as in a `datasets:` block; and the inputs whose own text is not known
        here: Hub ids, foreign folders, and ancestors that were moved or deleted.

    Raises:
        FileNotFoundError: the folder has no cascade.json.
    """
    sources: dict[str, dict] = {}
    records, unknown = _line(folder)
    for record in records:
        for name, part in _of_record(record):
            sources.setdefault(name, part)
    return sources, unknown


def without_hash(folder: str) -> list[str]:
    """
    Names of the sources with local files of which the stage that read them recorded no hash.

    Raises:
        FileNotFoundError: the folder has no cascade.json.
    """
    records, _ = _line(folder)
    found = [
        name
        for record in records
        for name, part in _of_record(record)
        if contents.has_no_hash(part, record.get("text_sha256") or {})
    ]
    return list(dict.fromkeys(found))


def _of_record(record: dict) -> Iterator[tuple[str, dict]]:
    """Name and settings of each source of a stage."""
    for part in record["config"].get("datasets") or []:
        part = {key: value for key, value in part.items() if key not in WHOLE}
        yield _label(part), part
    for flag in contents.FLAGS:
        if name := record["config"].get(flag):
            yield name, of_file(name, record["config"].get(f"{flag}_split", "train"))


def contents_of_model(folder: str) -> dict[str, tuple[str, str]]:
    """
    SHA-256 of every local file of text that the stages of a model read, as they recorded it, to (file, stage).

    Raises:
        FileNotFoundError: the folder has no cascade.json.
    """
    records, _ = _line(folder)
    told = [(record["stage"], record.get("text_sha256") or {}) for record in records]
    return {sha256: (name, stage) for stage, files in told for name, sha256 in files.items()}


def _line(folder: str) -> tuple[list[dict], list[str]]:
    """The manifests of a model and of all that its text came through, and the inputs that have none here."""
    records: list[dict] = []
    unknown: list[str] = []
    left, seen = [(folder, Path(folder))], set()
    manifest.read(folder)
    while left:
        given, place = left.pop()
        if (place or given) in seen:
            continue
        seen.add(place or given)
        if place is None:
            unknown.append(given)
            continue
        record = manifest.read(place)
        records.append(record)
        for source in [source for flag in ANCESTORS for source in manifest.named(record, flag)]:
            found = manifest.beside(source, place)
            left.append((source, found and found.resolve()))
    return records, unknown


def of_file(name: str, split: str = "train") -> dict:
    """
    Settings, as of a `datasets:` block, of a file or a dataset's Hub id.

    Raises:
        ValueError: a file of an unknown kind.
    """
    path = Path(name.removesuffix(".gz"))
    if path.suffix in BUILDERS:
        return {"path": BUILDERS[path.suffix], "data_files": name, "split": split}
    if Path(name).is_file():
        raise ValueError(f"train={name}: text files may end in {', '.join(BUILDERS)}, each also with .gz")
    return {"path": name, "split": split}


def read(source: dict) -> Iterator[str]:
    """
    The documents of a source: all texts of a row, in one.

    Args:
        source (`dict`): settings of one entry of a `datasets:` block.

    Raises:
        FileNotFoundError, ValueError: it cannot be read.
    """
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(**source)], streaming=True)
    for row in load_mixture(mixture):
        yield "\n".join(texts_of(row))


def _label(part: dict) -> str:
    """A source's name: another folder, file, configuration, split or revision is another source."""
    given = (part.get("data_dir"), part.get("data_files") and str(part["data_files"]))
    path = None if any(given) and part["path"] in contents.BUILDERS else part["path"]
    revision = part.get("revision") and f"revision {part['revision']}"
    return ", ".join(filter(None, (path, *given, part.get("name"), part.get("split"), revision)))
