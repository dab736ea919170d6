"""Rows of a benchmark: from the Hub at a pinned revision, or from a folder with the same schema (ours).

`HFC_EVAL_DATA` names a folder that holds a folder for each dataset: `<HFC_EVAL_DATA>/<org>/<name>`, made by
`hf download --repo-type dataset <org>/<name> --local-dir ...`, or by hand as `[<config>/]<split>.jsonl` (layouts:
[`dataset_folder`]); or the Hub's cache, `~/.cache/huggingface/hub`. Where it is set, nothing is asked of the Hub.
"""

import hashlib
import json
import logging
import os
import re
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import yaml

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import dataset_folder
from hf_cascade.evaluate.benchmarks.dataset_folder import MissingData, UnusableData

__all__ = ["MissingData", "UnusableData", "load", "need", "pinned", "read", "rows_sha256", "used", "warn_of_other"]

logger = logging.getLogger(__name__)

VARIABLE = "HFC_EVAL_DATA"
DATASETS = "evals/datasets.yaml"
PROBE_SECONDS = 10.0  # for the Hub to answer; `datasets` itself would try for half a minute, for every dataset
# "org/name/config/split" -> {"revision", "path", "rows", "full_rows", "sha256"} of every split that was read
used: dict[str, dict] = {}


def read(repo: str, split: str, config: str | None = None):
    """
    One split of a dataset.

    Args:
        repo (`str`): `org/name` on the Hub.
        split (`str`): as the Hub calls it.
        config (`str`, *optional*): as the Hub calls it.

    Returns:
        `datasets.Dataset`, with at least one row. [`used`] then has its `revision` (the commit that was read; `None`
        where it cannot be known), `path`, `rows`, `full_rows` (of the whole split; `None` where `evals/datasets.yaml`
        does not say) and `sha256` (of the rows, equal whatever the files' format).

    Raises:
        MissingData: the folder has no such rows, or the Hub does not give them.
        UnusableData: a file is there and cannot be read.
    """
    name = "/".join(filter(None, (repo, config, split)))
    entry = described(repo)
    rows, revision, path = (_local if os.environ.get(VARIABLE) else _hub)(repo, split, config, entry)
    if not len(rows):
        raise MissingData(f"{name}: {path or 'the Hub'} has no rows")
    warn_of_other(repo, revision)
    full = entry.get("splits") or {}
    used[name] = {
        "revision": revision,
        "path": path,
        "rows": len(rows),
        "full_rows": full.get(f"{config}/{split}", full.get(split)),
        "sha256": rows_sha256(rows),
    }
    return rows


def load(repo: str, split: str, config: str | None = None, **metadata) -> dict:
    """
    `custom_dataset: !function hf_cascade.evaluate.benchmarks.data.load`: for a task that needs its test rows alone.

    Args:
        repo (`str`), split (`str`), config (`str`, *optional*): see [`read`].
        **metadata: the task's `metadata`, which lm-eval hands to every loader.

    Returns:
        `dict[str, Dataset]`: one split, `test`.
    """
    return {"test": read(repo, split, config)}


def need(rows, repo: str, columns, filled=(), unique: str | None = None) -> None:
    """
    Check that rows have the columns a task reads.

    Args:
        rows (`Dataset` or `list[dict]`): of [`read`].
        repo (`str`): for the message; the dataset, with its config where it has several.
        columns (`Iterable[str]`): all that the task reads.
        filled (`Iterable[str]`): those of them that have a value in every row.
        unique (`str`, *optional*): the one by which rows are told apart.

    Raises:
        UnusableData: names the missing columns and those that are there, the first row without a value, or two rows
            that are one: a row that counts twice changes the figure.
    """
    here = list(getattr(rows, "column_names", None) or (rows[0] if len(rows) else ()))
    if missing := [column for column in columns if column not in here]:
        raise UnusableData(
            f"{repo}: no column {', '.join(missing)}; the columns are {', '.join(here) or 'none'}. The rows must have "
            f"the schema of {repo} on the Hub"
        )
    for column in filled:
        table = getattr(rows, "data", None)
        empty = table.column(column).is_null().to_pylist() if table else [row.get(column) is None for row in rows]
        if any(empty):
            raise UnusableData(
                f"{repo}: row {empty.index(True)} has no {column} (the first row is 0): mend it, or leave it out"
            )
    if unique:
        seen: dict = {}
        for place, value in enumerate([row[unique] for row in rows] if isinstance(rows, list) else rows[unique]):
            if seen.setdefault(value, place) != place:
                raise UnusableData(
                    f"{repo}: rows {seen[value]} and {place} have the same {unique}, {value!r}: leave one of them out"
                )


def described(repo: str) -> dict:
    """The entry of a dataset in `evals/datasets.yaml`; empty where there is none."""
    return _parsed(assets.find(DATASETS).read_text(encoding="utf-8")).get(repo) or {}


@cache
def _parsed(text: str) -> dict:
    """YAML; parsing takes longer than reading rows does."""
    return yaml.safe_load(text) or {}


def pinned(repo: str) -> str | None:
    """The commit of a dataset in `evals/datasets.yaml`; `None` where none is written down."""
    return described(repo).get("revision")


def warn_of_other(repo: str, revision: str | None) -> None:
    """Warn, once, where the rows are of another commit than the one written down: a cache may have no other."""
    wanted = pinned(repo)
    if wanted and revision and revision != wanted:
        _warn(repo, revision, wanted)


@cache
def _warn(repo: str, revision: str, wanted: str) -> None:
    logger.warning(
        f"{repo}: read at the commit {revision}, as {wanted}, which {DATASETS} names, is not here. Its rows may be "
        f"others; `hf download --repo-type dataset {repo} --revision {wanted}` fetches those that are meant"
    )


def rows_sha256(rows) -> str:
    """SHA-256 over all rows as sorted JSON, a line each; images and bytes count by their own hash."""
    digest = hashlib.sha256()
    images = [name for name, kind in getattr(rows, "features", {}).items() if type(kind).__name__ == "Image"]
    for row in _undecoded(rows):
        for name in images:
            row[name] = row[name] and _hash(row[name]["bytes"] or row[name]["path"])
        digest.update((json.dumps(row, sort_keys=True, ensure_ascii=False, default=_hash) + "\n").encode())
    return digest.hexdigest()


def _undecoded(rows):
    """Rows as dictionaries; images stay bytes. Arrow batches, as one row at a time takes ten times as long."""
    if isinstance(rows, list):
        yield from rows
    else:
        for table in rows.with_format("arrow").iter(batch_size=1000):
            yield from table.to_pylist()


def _hash(value) -> str:
    data = value if isinstance(value, bytes) else value.tobytes() if hasattr(value, "tobytes") else str(value).encode()
    return hashlib.sha256(data).hexdigest()


def _local(repo: str, split: str, config: str | None, entry: dict):
    """(rows, commit or `None`, path) from the folder that `HFC_EVAL_DATA` names."""
    folder = folder_of(repo)
    try:
        return _in_folder(folder, split, config, entry)
    except MissingData as error:
        raise MissingData(f"{repo}: {error}") from error


def _in_folder(folder: Path, split: str, config: str | None, entry: dict):
    """(rows, commit or `None`, path) from a dataset's folder."""
    files = dataset_folder.find(folder, split, config)
    path = str(files[0]) if len(files) == 1 else os.path.commonpath(files)
    return dataset_folder.load(files, entry.get("reader")), dataset_folder.commit(folder, files), path


def folder_of(repo: str) -> Path:
    """
    The folder of a dataset in the one that `HFC_EVAL_DATA` names.

    Raises:
        MissingData: it is not there.
    """
    given = os.environ[VARIABLE]
    try:
        folder = assets.find(Path(given).expanduser())
    except FileNotFoundError as error:
        raise MissingData(f"{VARIABLE}={given}: {error}") from error
    try:
        return dataset_folder.of_dataset(folder, repo, pinned(repo))
    except MissingData as error:
        raise MissingData(f"{repo}: {error}") from error


def _hub(repo: str, split: str, config: str | None, entry: dict):
    """(rows, commit, `None`) from the Hub; where it cannot be reached, from the cache of `datasets` or of downloads."""
    from datasets import config as settings
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.constants import HF_HUB_CACHE

    revision = entry.get("revision")
    reached = not settings.HF_HUB_OFFLINE and _reaches_hub()
    try:
        with _offline(settings, not reached):
            rows = load_dataset(repo, config, split=split, revision=revision, **(entry.get("reader") or {}))
    except (OSError, ValueError, DatasetsError) as error:
        if not reached:
            with suppress(MissingData):
                return _in_folder(dataset_folder.of_dataset(Path(HF_HUB_CACHE), repo, revision), split, config, entry)
        why = f"{type(error).__name__}: {error}" if reached else "the Hub cannot be reached, and its cache has no copy"
        raise MissingData(
            f"{repo} ({config or 'default'}, {split}): {why}. Set {VARIABLE} to a folder with its rows, or log in to "
            f"the Hub (`hf auth login`) with an account that has access to https://huggingface.co/datasets/{repo}"
        ) from error
    return rows, _commit(rows) or (revision if reached else None), None


@cache
def _reaches_hub() -> bool:
    """Whether the Hub answers at all; asked once a process."""
    from datasets import config as settings

    try:
        urlopen(Request(settings.HF_ENDPOINT, method="HEAD"), timeout=PROBE_SECONDS).close()
    except HTTPError:
        return True  # it answers, if not to this
    except OSError:
        return False
    return True


@contextmanager
def _offline(settings, wanted: bool):
    """`HF_HUB_OFFLINE` for `datasets`, which reads the variable at import only."""
    before = settings.HF_HUB_OFFLINE
    settings.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE = before


def _commit(rows) -> str | None:
    """The commit in the path of the cached file: `datasets` keeps the Hub's rows in a folder named by it."""
    for file in rows.cache_files:
        for part in Path(file["filename"]).parts:
            if re.fullmatch(r"[0-9a-f]{40}", part):
                return part
    return None
