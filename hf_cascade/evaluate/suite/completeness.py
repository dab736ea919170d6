"""Whether a task's rows are the whole benchmark, from what [`benchmarks.data.used`] says of the splits it read."""


def shortfalls(data: dict[str, dict]) -> list[str]:
    """
    Datasets of which fewer rows were read than there are; a size that is not written down is not judged.

    Args:
        data (`dict[str, dict]`): `org/name[/config]/split` to `{"rows", "full_rows", ...}`.

    Returns:
        `list[str]`: as `openai/MMMLU test: 12 of 14,042 rows`.
    """
    short: dict[str, list[tuple[int, int]]] = {}
    for key, entry in data.items():
        if entry.get("full_rows") and entry["rows"] < entry["full_rows"]:
            org, name, *_, split = key.split("/")
            short.setdefault(f"{org}/{name} {split}", []).append((entry["rows"], entry["full_rows"]))
    return [
        f"{name}: {sum(r for r, _ in counts):,} of {sum(f for _, f in counts):,} rows" for name, counts in short.items()
    ]


def data_label(data: dict[str, dict]) -> str:
    """The data of a row for a table: of each split its revision, or else the start of its rows' hash."""
    labels = []
    for key, entry in data.items():
        mark = f"revision {entry['revision'][:8]}" if entry.get("revision") else f"sha256 {entry['sha256'][:8]}"
        labels.append(f"{key} ({mark})")
    if len(labels) > 3:
        return f"{labels[0]} and {len(labels) - 1} more splits"
    return ", ".join(labels)
