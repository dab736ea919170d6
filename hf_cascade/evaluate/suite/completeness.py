"""Whether a task's rows are the whole benchmark, from what [`benchmarks.data.used`] says of the splits it read."""

from hf_cascade.evaluate.benchmarks.data import described

NAMED = 3  # of a row's datasets; the others are counted


def shortfalls(data: dict[str, dict]) -> list[str]:
    """
    Datasets of which fewer rows or configs were read than there are; a size that is not written down is not judged.

    Args:
        data (`dict[str, dict]`): `org/name[/config]/split` to `{"rows", "full_rows", ...}`, of one task.

    Returns:
        `list[str]`: as `openai/MMMLU test: 12 of 14,042 rows`.
    """
    entries: dict[tuple[str, str], list[dict]] = {}
    for key, entry in data.items():
        org, name, *_, split = key.split("/")
        entries.setdefault((f"{org}/{name}", split), []).append(entry)
    found = []
    for (repo, split), parts in entries.items():
        short = [part for part in parts if part.get("full_rows") and part["rows"] < part["full_rows"]]
        configs = described(repo).get("configs")
        if configs and len(parts) < configs:
            found.append(f"{repo} {split}: {len(parts)} of {configs} configs")
        elif short:
            rows, full = (sum(part[name] for part in short) for name in ("rows", "full_rows"))
            found.append(f"{repo} {split}: {rows:,} of {full:,} rows")
    return found


def data_label(data: dict[str, dict]) -> str:
    """The data of a row for a table: of each split its revision, or else the start of its rows' hash."""
    labels = []
    for key, entry in data.items():
        mark = f"revision {entry['revision'][:8]}" if entry.get("revision") else f"sha256 {entry['sha256'][:8]}"
        labels.append(f"{key} ({mark})")
    return joined(labels, ", ", "splits")


def joined(parts: list[str], between: str, kind: str) -> str:
    """The first few of many, and how many more."""
    more = [f"{len(parts) - NAMED + 1} more {kind}"] if len(parts) > NAMED else []
    return between.join([*(parts[: NAMED - 1] if more else parts), *more])
