"""Which files of a dataset's folder hold a split, and their rows; the layouts are those of the Hub and of hand (ours).

In this order; `<config>` is `default` where none is asked for:
1. what the `configs` in the front matter of `README.md` say (a folder of `hf download --local-dir`);
2. `<config>/<split>.jsonl`, then `<split>.jsonl`, which is the split whatever the config; other suffixes likewise;
3. shards `<split>-00000-of-00002.parquet` in `<config>/`, `<config>/data/`, `data/<config>/`, `data/` or the folder;
4. files in `<config>/<split>/`, or files in `<split>/` whose names hold the config (`test/mmlu_DE-DE.csv`);
5. `data-00000-of-00001.arrow` of `save_to_disk`, of one split or of several, in `<config>/` or the folder.
"""

import glob
import gzip
import json
import re
import shlex
import zlib
from pathlib import Path

import yaml

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".arrow")
NOTES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of `datasets`, not rows
PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".zst", ".xz", ".bz2")
SAVED = re.compile(r"data-\d+-of-\d+\.arrow")  # of `save_to_disk`
LISTED = 20  # files named in an error
COMMIT = re.compile(r"[0-9a-f]{40}")


class MissingData(FileNotFoundError):
    """A benchmark's rows are not here: its task is "not run", never 0. The message says what to do."""


class UnusableData(ValueError):
    """A benchmark's rows are here and cannot be used as they are. The message names the file or the row."""


def of_dataset(given: Path, repo: str, revision: str | None = None) -> Path:
    """
    The folder of a dataset in a folder that holds several.

    Args:
        given (`Path`): with `<org>/<name>`, upper or lower case, or the Hub's cache, `datasets--<org>--<name>`.
        repo (`str`): `org/name`.
        revision (`str`, *optional*): the commit that is wanted of the cache; where it is not there, what `main` was.

    Raises:
        MissingData: neither is there.
    """
    org, name = repo.split("/")
    if (folder := _named(_named(given, org), name)).is_dir():
        return folder
    cached = _named(given, f"datasets--{org}--{name}")
    main = cached / "refs/main"
    commits = [revision, main.read_text(encoding="utf-8").strip() if main.is_file() else None]
    commits += [path.name for path in sorted(cached.glob("snapshots/*"))]
    for commit in filter(None, commits):
        if (cached / "snapshots" / commit).is_dir():
            return cached / "snapshots" / commit
    place = shlex.quote(str(given / repo))
    raise MissingData(
        f"there is no folder {given / repo}: make it with `hf download --repo-type dataset {repo} --local-dir {place}` "
        "where the Hub can be reached"
    )


def find(folder: Path, split: str, config: str | None) -> list[Path]:
    """
    The files of a split, in order.

    Raises:
        MissingData: there is no such folder or split, or some of its shards; the message lists what is there.
    """
    files = _by_readme(folder, split, config) or _by_layout(folder, split, config)
    if not files:
        there = sorted(str(path) for path in _visible(folder))
        more = f" and {len(there) - LISTED} more" * (len(there) > LISTED)
        wanted = f"split {split!r}" + f" of config {config!r}" * bool(config)
        packed = next((f"Unpack {name}, or put" for name in there if name.endswith(PACKED)), "Put")
        raise MissingData(
            f"{folder} has no {wanted}; the files there are {', '.join(there[:LISTED]) or 'none'}{more}. {packed} the "
            f"rows in {Path(config or '') / split}.jsonl (or .parquet, .csv)"
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
        MissingData: a file is a Git LFS pointer, or cannot be opened.
        UnusableData: a file cannot be read; the message names it and, in JSON lines, the line.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    for path in files:
        check_fetched(path)
    kind = files[0].name.removesuffix(".gz").rsplit(".", 1)[1]
    try:
        if kind in ("json", "jsonl"):
            return _as_columns([row for path in files for row in json_rows(path)])
        settings = {**(reader or {})} if kind in ("csv", "tsv") else {}
        settings |= {"sep": "\t"} if kind == "tsv" else {}
        names = [glob.escape(str(path)) for path in files]
        return load_dataset(kind.replace("tsv", "csv"), data_files={"rows": names}, split="rows", **settings)
    except (ValueError, TypeError, DatasetGenerationError) as error:  # pyarrow's and json's errors are ValueErrors
        why = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise UnusableData(f"cannot read {', '.join(map(str, files))}: {why}") from error


def check_fetched(path: Path) -> None:
    """
    Raises:
        MissingData: the file is a Git LFS pointer, or cannot be opened.
    """
    try:
        with path.open("rb") as file:
            start = file.read(24)
    except OSError as error:
        raise MissingData(
            f"{path} cannot be opened ({error.strerror}): see where it links to, and who may read"
        ) from error
    if start == b"version https://git-lfs.":
        raise MissingData(f"{path} is a Git LFS pointer, not data: run `git lfs pull`, or `hf download`")


def commit(folder: Path, files: list[Path]) -> str | None:
    """The commit from which `hf download` fetched the files, unless one was changed since."""
    if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name):
        return folder.name  # the Hub's cache
    commits = set()
    for path in files:
        note = folder / ".cache/huggingface/download" / f"{path.relative_to(folder)}.metadata"
        lines = note.read_text(encoding="utf-8").split() if note.is_file() else []
        known = len(lines) == 3 and path.stat().st_mtime <= float(lines[2]) + 1  # huggingface_hub's own second of grace
        commits.add(lines[0] if known and COMMIT.fullmatch(lines[0]) else None)
    return commits.pop() if len(commits) == 1 else None


def json_rows(path: Path) -> list[dict]:
    """
    Rows of JSON lines or of one JSON array. Not pyarrow's reader: it turns strings such as 2011-03-04 into dates.

    Raises:
        ValueError: something is not JSON, with its line, or a row is no object; a packed file is torn.
    """
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig") as file:
            text = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"it is no whole gzip file ({error})") from error
    if text.lstrip()[:1] == "[":
        rows = json.loads(text)
    else:
        rows = [_json_row(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("each row must be a JSON object")
    return rows


def _json_row(line: str, number: int):
    try:
        return json.loads(line)
    except ValueError as error:
        shown = line if len(line) <= 80 else line[:77] + "..."
        raise ValueError(f"line {number} is no JSON ({error}): {shown}") from error


def _as_columns(rows: list[dict]):
    """Rows as a dataset; a column that a row lacks is empty there."""
    from datasets import Dataset

    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    try:
        return Dataset.from_dict(columns)
    except (ValueError, TypeError) as error:
        for name, values in columns.items():
            try:
                Dataset.from_dict({name: values})
            except (ValueError, TypeError):
                raise ValueError(f"the values of {name!r} are not all of one type ({error})") from error
        raise


def _is_data(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) and path.name not in NOTES and not path.name.startswith(".")


def _visible(folder: Path) -> list[Path]:
    """Files that an error names, relative to the folder: all but notes, and what git and `hf download` keep there."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    return [path for path in paths if path.name not in ("README.md", *NOTES) and not str(path).startswith(".")]


def _named(folder: Path, name: str) -> Path:
    """A file or folder by its name, or by the only one that differs in upper and lower case alone."""
    if (folder / name).exists() or not folder.is_dir():
        return folder / name
    same = [path for path in folder.iterdir() if path.name.casefold() == name.casefold()]
    return same[0] if len(same) == 1 else folder / name


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
    own = folder / (config or "default")
    for place in (own, folder):
        for suffix in SUFFIXES:
            if (place / f"{split}{suffix}").is_file():
                return [place / f"{split}{suffix}"]
    shard = re.compile(rf"{re.escape(split)}[-_.]\d+.*")
    for place in (own, own / "data", folder / "data" / own.name, folder / "data", folder):
        if files := _in(place, lambda path: shard.fullmatch(path.name)):
            return files
    if files := _in(own / split, lambda path: True):
        return files
    named = re.compile(rf"(?:.*[_.])?{re.escape(_plain(config))}[_.].*") if config else re.compile(".*")
    if files := _in(folder / split, lambda path: named.fullmatch(_plain(path.name))):
        return files
    for place in (folder / split, own, folder):
        if _was_saved(place, split, config) and (files := _in(place, lambda path: SAVED.fullmatch(path.name))):
            return files
    return []


def _was_saved(place: Path, split: str, config: str | None) -> bool:
    """Whether `save_to_disk` made a folder, of this split and config or of ones that it does not say."""
    said = []
    for note, key in (("state.json", "_split"), ("dataset_info.json", "config_name")):
        path = place / note
        said.append(json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None)
    return said[0] in (None, split) and (config is None or said[1] in (None, "default", config))


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
    """Raise [`MissingData`] where shards are missing, or are there twice: rows that count twice change the figures."""
    groups: dict[tuple, list[tuple[str, str]]] = {}
    for path in files:
        if found := re.search(r"-(\d+)-of-(\d+)", path.name):
            groups.setdefault((path.parent, path.name[: found.start()]), []).append(found.groups())
    for (place, name), shards in groups.items():
        numbers, counts = zip(*shards, strict=True)
        if len(set(counts)) > 1 or len(set(numbers)) < len(numbers):
            raise MissingData(f"{place} has shards of {name} from more than one download: keep those of one")
        if len(shards) < int(counts[0]):
            have = ", ".join(path.name for path in files if path.parent == place)
            raise MissingData(f"{place} has {len(shards)} of {int(counts[0])} shards ({have}): download the rest")
