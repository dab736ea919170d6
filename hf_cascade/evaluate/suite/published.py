"""What the paper reports (Ministral 3, arXiv 2601.08584, Tables 2 to 5), from `evals/published`, to set beside a model.

`value(("table3", "MMLU 5-shot"), "Ministral 3 8B")` is 76.1; `row_for(sizes)` names the model of exactly those sizes.
"""

from dataclasses import dataclass
from functools import cache

import yaml

from hf_cascade import assets

FOLDER = "evals/published"
# Name to layers, hidden size, FFN size and vocabulary: the released configs (paper section 1).
SIZES = {
    "Mistral Small 3.1 24B": (40, 5120, 32768, 131072),
    "Ministral 3 14B": (40, 5120, 16384, 131072),
    "Ministral 3 8B": (34, 4096, 14336, 131072),
    "Ministral 3 3B": (26, 3072, 9216, 131072),
}


@dataclass(frozen=True)
class Table:
    """
    One table of the paper.

    Attributes:
        name (`str`): `table2` ... `table5`.
        title (`str`): for reports.
        arxiv (`str`): the paper's id.
        protocol (`dict[str, dict]`): row to `{"shots", "metric"}`, `None` where the paper does not say.
        models (`dict[str, dict]`): model to row to value, as printed; `None` where the paper has n/a.
    """

    name: str
    title: str
    arxiv: str
    protocol: dict[str, dict]
    models: dict[str, dict]


def names() -> list[str]:
    """Tables that ship with the project."""
    return sorted(path.stem for path in assets.find(FOLDER).glob("*.yaml"))


@cache
def load(name: str) -> Table:
    """
    Read a table.

    Raises:
        ValueError: there is none of that name, or a model has not one value for each row.
    """
    if name not in names():
        raise ValueError(f"published table {name!r}: there is none; allowed are {', '.join(names())}")
    given = yaml.safe_load((assets.find(FOLDER) / f"{name}.yaml").read_text(encoding="utf-8"))
    rows = [row["row"] for row in given["rows"]]
    wrong = [model for model, values in given["models"].items() if len(values) != len(rows)]
    if wrong or len(set(rows)) < len(rows):
        raise ValueError(f"{FOLDER}/{name}.yaml: {', '.join(wrong) or 'a row is there twice'}: one value for each row")
    protocol = {row["row"]: {"shots": row["shots"], "metric": row["metric"]} for row in given["rows"]}
    models = {model: dict(zip(rows, values, strict=True)) for model, values in given["models"].items()}
    return Table(name, given["title"], given["arxiv"], protocol, models)


def check(table: str, row: str) -> None:
    """
    Raises:
        ValueError: the paper has no such row.
    """
    if row not in load(table).protocol:
        raise ValueError(f"published row {row!r} is not in {table}; it has {', '.join(load(table).protocol)}")


def check_model(model: str) -> None:
    """
    Raises:
        ValueError: no table has a model of that name.
    """
    known = list(dict.fromkeys(name for table in names() for name in load(table).models))
    if model not in known:
        raise ValueError(f"paper_row={model}: the paper's tables have no such model; they have {', '.join(known)}")


def value(place: tuple[str, str] | None, model: str | None) -> float | None:
    """The paper's figure for a model, in its own unit; `None` where it has none."""
    if place is None or model is None:
        return None
    table, row = place
    return load(table).models.get(model, {}).get(row)


def row_for(sizes: dict) -> str | None:
    """
    Which of the paper's models has exactly these sizes.

    Args:
        sizes (`dict`): `num_hidden_layers`, `hidden_size`, `intermediate_size` and `vocab_size`, as the manifest's
            `output` has them.

    Returns:
        `str` or `None`: its name in the tables.
    """
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    given = tuple(sizes.get(key) for key in keys)
    return next((name for name, known in SIZES.items() if known == given), None)
