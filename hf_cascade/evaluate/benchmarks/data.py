"""Rows of a benchmark: from the Hub at a pinned revision, or from a folder with the same schema (ours).

`HFC_EVAL_DATA` names a folder that holds a folder for each dataset: `<HFC_EVAL_DATA>/<org>/<name>`, made by
`hf download --repo-type dataset <org>/<name> --local-dir ...`, or by hand as `[<config>/]<split>.jsonl` (also
`.parquet`, `.json`, `.csv`, and `.gz`). Where it is set, nothing is asked of the Hub.
"""

import hashlib
import json
import os
from pathlib import Path

import yaml

from hf_cascade import assets

VARIABLE = "HFC_EVAL_DATA"
DATASETS = "evals/datasets.yaml"
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".json", ".json.gz", ".csv", ".csv.gz")
LOADERS = {"jsonl": "json", "json": "json", "parquet": "parquet", "csv": "csv"}
used: dict[
    str, dict
] = {}  # "org/name/config/split" -> {"revision", "rows", "sha256", "path"} of every split that was read


class MissingData(FileNotFoundError):
    """A benchmark's rows are not here: its task is "not run", never 0. The message says what to do."""


def read(repo: str, split: str, config: str | None = None):
    """
    One split of a dataset.

    Args:
        repo (`str`): `org/name` on the Hub.
        split (`str`): as the Hub calls it.
        config (`str`, *optional*): as the Hub calls it.

    Returns:
        `datasets.Dataset`; its revision and a hash of its rows are in [`used`].

    Raises:
        MissingData: the folder has no such rows, or the Hub does not give them.
    """
    from datasets import load_dataset

    revision, path = pinned(repo), None
    if folder := os.environ.get(VARIABLE):
        path = _file(Path(folder) / repo, split, config)
        revision = None
    try:
        if path is None:
            rows = load_dataset(repo, config, split=split, revision=revision)
        elif path.is_dir():
            rows = load_dataset(str(path), config, split=split)
        else:
            kind = LOADERS[path.name.removesuffix(".gz").rsplit(".", 1)[1]]
            rows = load_dataset(kind, data_files={split: str(path)}, split=split)
    except (OSError, ValueError, ConnectionError) as error:
        raise MissingData(
            f"{repo} ({config or 'default'}, {split}): {error}; set {VARIABLE} to a folder with its rows, or log in to "
            "the Hub with access to it"
        ) from error
    used["/".join(filter(None, (repo, config, split)))] = {
        "revision": revision,
        "path": path and str(path),
        "rows": len(rows),
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


def pinned(repo: str) -> str | None:
    """The commit of a dataset in `evals/datasets.yaml`; `None` where none is written down."""
    entry = yaml.safe_load(assets.find(DATASETS).read_text(encoding="utf-8")).get(repo) or {}
    return entry.get("revision")


def rows_sha256(rows) -> str:
    """SHA-256 over all rows as sorted JSON, a line each; images and bytes count by their own hash."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update((json.dumps(row, sort_keys=True, ensure_ascii=False, default=_hash) + "\n").encode())
    return digest.hexdigest()


def _hash(value) -> str:
    data = value if isinstance(value, bytes) else value.tobytes() if hasattr(value, "tobytes") else str(value).encode()
    return hashlib.sha256(data).hexdigest()


def _file(folder: Path, split: str, config: str | None) -> Path:
    """The file of a split, or the folder for `datasets` to read as it reads a dataset's repository."""
    if not folder.is_dir():
        raise MissingData(f"{VARIABLE}={os.environ[VARIABLE]} has no folder {folder}: put the dataset's files there")
    for place in [folder / config] * bool(config) + [folder]:
        for suffix in SUFFIXES:
            if (place / f"{split}{suffix}").is_file():
                return place / f"{split}{suffix}"
    return folder
