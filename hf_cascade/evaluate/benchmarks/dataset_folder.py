"""Which files of a dataset's folder hold a split, and their rows; the layouts are those of the Hub and of hand (ours).

In this order, with `<config>` left out where none is asked for:
1. what the `configs` in the front matter of `README.md` say (a folder of `hf download --local-dir`);
2. `<config>/<split>.jsonl`, then `<split>.jsonl`, which is the split whatever the config; other suffixes likewise;
3. shards `<split>-00000-of-00002.parquet` in `<config>/`, `<config>/data/`, `data/<config>/`, `data/` or the folder;
4. files in `<config>/<split>/`, or files in `<split>/` whose names hold the config (`test/mmlu_DE-DE.csv`);
5. `<config>/data-00000-of-00001.arrow`, which `save_to_disk` writes for a dataset of one split.
"""

import gzip
import json
import re
from pathlib import Path

import yaml

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".json", ".json.gz", ".csv", ".csv.gz", ".arrow")
NOTES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of `datasets`, not rows
LISTED = 20  # files named in an error
COMMIT = re.compile(r"[0-9a-f]{40}")


class MissingData(FileNotFoundError):
    """A benchmark's rows are not here: its task is "not run", never 0. The message says what to do."""


def find(folder: Path, split: str, config: str | None) -> list[Path]:
    """
    The files of a split, in order.

    Raises:
        MissingData: there is no such folder or split, or some of its shards; the message lists what is there.
    """
    if not folder.is_dir():
        raise MissingData(f"there is no folder {folder}")
    files = _by_readme(folder, split, config) or _by_layout(folder, split, config)
    if not files:
        there = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if _is_data(path)]
        more = f" and {len(there) - LISTED} more" * (len(there) > LISTED)
        wanted = f"split {split!r}" + f" of config {config!r}" * bool(config)
        raise MissingData(
            f"{folder} has no {wanted}; the files there are {', '.join(there[:LISTED]) or 'none'}{more}. Put the rows "
            f"in {Path(config or '') / split}.jsonl (or .parquet, .csv)"
        )
    _all_shards(files)
    return files


def load(files: list[Path], reader: dict | None = None):
    """
    The rows of files of one split.

    Args:
        files (`list[Path]`): of [`find`]; all of one suffix.
        reader (`dict`, *optional*): settings for `pandas.read_csv`; of CSV files only.

    Returns:
        `datasets.Dataset`.

    Raises:
        MissingData: a file is a Git LFS pointer.
        ValueError: a file cannot be read.
    """
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetGenerationError

    for path in files:
        with path.open("rb") as file:
            if file.read(24) == b"version https://git-lfs.":
                raise MissingData(f"{path} is a Git LFS pointer, not data: run `git lfs pull`, or `hf download`")
    kind = files[0].name.removesuffix(".gz").rsplit(".", 1)[1]
    try:
        if kind in ("json", "jsonl"):
            rows = [row for path in files for row in _json_rows(path)]
            columns = dict.fromkeys(name for row in rows for name in row)
            return Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns})
        settings = reader or {} if kind == "csv" else {}
        return load_dataset(kind, data_files={"rows": [str(path) for path in files]}, split="rows", **settings)
    except (ValueError, TypeError, DatasetGenerationError) as error:  # pyarrow's and json's errors are ValueErrors
        raise ValueError(f"cannot read {', '.join(map(str, files))}: {error.__cause__ or error}") from error


def commit(folder: Path, files: list[Path]) -> str | None:
    """The commit from which `hf download --local-dir` fetched the files, unless one was changed since."""
    commits = set()
    for path in files:
        note = folder / ".cache/huggingface/download" / f"{path.relative_to(folder)}.metadata"
        lines = note.read_text(encoding="utf-8").split() if note.is_file() else []
        known = len(lines) == 3 and path.stat().st_mtime <= float(lines[2]) + 1  # huggingface_hub's own second of grace
        commits.add(lines[0] if known and COMMIT.fullmatch(lines[0]) else None)
    return commits.pop() if len(commits) == 1 else None


def _json_rows(path: Path) -> list[dict]:
    """Rows of JSON lines or of one JSON array. Not pyarrow's reader: it turns strings such as 2011-03-04 into dates."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        text = file.read()
    if text.lstrip()[:1] == "[":
        rows = json.loads(text)
    else:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("each row must be a JSON object")
    return rows


def _is_data(path: Path) -> bool:
    hidden = path.name.startswith(".") or ".cache" in path.parts
    return path.name.endswith(SUFFIXES) and path.name not in NOTES and not hidden


def _by_readme(folder: Path, split: str, config: str | None) -> list[Path]:
    """Files that the front matter of `README.md` names for the split; none where it has no such config."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.S)
    try:
        described = (yaml.safe_load(front[1]) if front else None) or {}
    except yaml.YAMLError:
        return []  # then the layout of the files decides
    configs = described.get("configs") or []
    names = [one.get("config_name", "default") for one in configs]
    default = next((one["config_name"] for one in configs if one.get("default")), "default")
    wanted = config or (names[0] if len(names) == 1 else default)
    patterns = []
    for one in configs:
        if one.get("config_name", "default") == wanted:
            given = one.get("data_files") or []
            given = given if isinstance(given, list) else [given]
            given = [part if isinstance(part, dict) else {"split": "train", "path": part} for part in given]
            for part in (part for part in given if part.get("split") == split):
                paths = part["path"] if isinstance(part["path"], list) else [part["path"]]
                patterns += [f"{one.get('data_dir') or ''}/{path}".lstrip("/") for path in paths]
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if _is_data(path)})


def _by_layout(folder: Path, split: str, config: str | None) -> list[Path]:
    """Layouts 2 to 5 of the module's docstring."""
    own = [folder / config] if config else []
    for place in [*own, folder]:
        for suffix in SUFFIXES:
            if (place / f"{split}{suffix}").is_file():
                return [place / f"{split}{suffix}"]
    shard = re.compile(rf"{re.escape(split)}[-_.]\d+.*")
    data = [folder / config / "data", folder / "data" / config] if config else []
    for place in [*own, *data, folder / "data", folder]:
        if files := _in(place, lambda path: shard.fullmatch(path.name)):
            return files
    for place in own:
        if files := _in(place / split, lambda path: True):
            return files
    named = re.compile(rf"(?:.*[_.])?{re.escape(_plain(config))}[_.].*") if config else re.compile(".*")
    if files := _in(folder / split, lambda path: named.fullmatch(_plain(path.name))):
        return files
    for place in own:
        if files := _in(place, lambda path: re.fullmatch(r"data-\d+-of-\d+\.arrow", path.name)):
            return files
    return []


def _in(place: Path, is_wanted) -> list[Path]:
    """Data files of one suffix in a folder: where there are several, that which comes first in `SUFFIXES`."""
    files = [path for path in sorted(place.iterdir()) if _is_data(path) and is_wanted(path)] if place.is_dir() else []
    for suffix in SUFFIXES:
        if chosen := [path for path in files if path.name.endswith(suffix)]:
            return chosen
    return []


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _all_shards(files: list[Path]) -> None:
    counts = {int(found[1]) for path in files if (found := re.search(r"-\d+-of-(\d+)", path.name))}
    if len(counts) == 1 and len(files) < max(counts):
        names = ", ".join(path.name for path in files)
        raise MissingData(f"{files[0].parent} has {len(files)} of {max(counts)} shards ({names}): download the rest")
