"""Documents in a fixed order to enter anywhere: TRL's `datasets:` mixture, shuffled by index once a pass."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from datasets import Dataset, IterableDataset
from trl import DatasetMixtureConfig, get_dataset

from hf_cascade import assets
from hf_cascade.data.text_files import one_line_error

SPLIT_SEED = 0  # ours
FILE_BUILDERS = ("json", "text", "parquet", "csv")  # builders of `datasets` that read local files


@dataclass(frozen=True)
class Documents:
    """
    A sequence of texts numbered 0, 1, 2, ... across `passes` readings of one dataset.

    A map-style dataset is permuted by index, with another order in every pass, so entering at document *n* is exact
    and costs nothing. A streamed dataset is read in its own order (a shuffle buffer cannot be resumed exactly: it
    repeated 4% and lost 10% of the tokens when measured; shuffle its shards beforehand) and in one pass only; of a
    streamed mixture, which TRL joins end to end, that means one dataset after another.

    Args:
        dataset (`Dataset` or `IterableDataset`): rows with a text column.
        field (`str`, *optional*, defaults to `"text"`): the text column.
        seed (`int`, *optional*, defaults to `0`): seed of the order.
        passes (`int`, *optional*, defaults to `1`): how often the dataset may be read.
    """

    dataset: Dataset | IterableDataset
    field: str = "text"
    seed: int = 0
    passes: int = 1

    def __post_init__(self):
        columns = self.dataset.column_names
        if columns is not None and self.field not in columns:
            raise ValueError(
                f"the text column {self.field!r} is not in the dataset, which has {sorted(columns)}: "
                "set dataset_text_field to one of these"
            )
        if self.passes < 1 or (self.passes > 1 and isinstance(self.dataset, IterableDataset)):
            raise ValueError(
                f"passes={self.passes}: allowed is 1 for a streamed dataset and 1 or more for one that is not streamed"
            )

    def __reduce__(self):
        # `IterableDataset.from_generator` hashes its arguments; the fields say everything.
        return (type(self), (self.dataset, self.field, self.seed, self.passes))

    def read(self, start: int = 0) -> Iterator[tuple[int, str]]:
        """
        Yield `(number, text)` from document number `start` on.

        Raises:
            ValueError: a row has no text.
        """
        for number, row in self._rows(start):
            if not isinstance(row[self.field], str):
                raise ValueError(
                    f"document {number} has {row[self.field]!r} in the column {self.field!r}: every row needs a text; "
                    "drop these rows beforehand"
                )
            yield number, row[self.field]

    def _rows(self, start: int) -> Iterator[tuple[int, dict]]:
        if isinstance(self.dataset, IterableDataset):
            # Not `__iter__`: in a data loader's second worker that would leave out the other workers' shards.
            for number, batch in enumerate(self.dataset.skip(start).iter(batch_size=1), start):
                yield number, {name: values[0] for name, values in batch.items()}
            return
        size = len(self.dataset)
        for reading in range(start // max(size, 1), self.passes):
            ordered = self.dataset.shuffle(seed=self.seed + reading)
            first = max(start - reading * size, 0)
            for offset, row in enumerate(ordered.select(range(first, size)), first):
                yield reading * size + offset, row


def load_mixture(mixture: DatasetMixtureConfig, part: str = "train") -> Dataset | IterableDataset | None:
    """
    Load TRL's `datasets:` block; file paths may name files shipped with hf-cascade (`recipes/tiny/data/...`).

    Args:
        mixture (`DatasetMixtureConfig`): the block. TRL splits off `test_split_size` with another seed in every
            process; here the seed is fixed, since a stage that resumes or continues must find the same rows.
        part (`str`, *optional*, defaults to `"train"`): or `"test"`, the rows split off: `None` without
            `test_split_size`.

    Raises:
        ValueError: no dataset is named, or a streamed one is to be split.
        FileNotFoundError: a local file is missing.
    """
    if not mixture.datasets:
        raise ValueError("no text is named: add a `datasets:` block, for instance [{path: json, data_files: FILE}]")
    for source in mixture.datasets:
        if source.path in FILE_BUILDERS and source.data_files is not None:
            source.data_files = _find(source.data_files)
    if mixture.test_split_size is None and part != "train":
        return None
    if mixture.streaming and mixture.test_split_size is not None:
        raise ValueError(
            f"test_split_size={mixture.test_split_size}: a streamed dataset cannot be split; set streaming: false, or "
            "keep held-out rows in a file of their own"
        )
    with one_line_error(", ".join(str(source.data_files or source.path) for source in mixture.datasets)):
        rows = get_dataset(replace(mixture, test_split_size=None))["train"]
    if mixture.test_split_size is None:
        return rows
    return rows.train_test_split(test_size=mixture.test_split_size, seed=SPLIT_SEED)[part]


def _find(files):
    """`data_files`, a path, or a list or dict of them, with every path found; patterns and addresses stay."""
    if isinstance(files, dict):
        return {split: _find(paths) for split, paths in files.items()}
    if not isinstance(files, str):
        return [_find(path) for path in files]
    return files if "://" in files or "*" in files else str(assets.find(files))
