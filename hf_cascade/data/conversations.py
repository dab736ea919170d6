"""Conversations for SFT: rows as TRL reads them, checked before a model is opened, with images where they have some."""

from datasets import Dataset, IterableDataset
from trl import DatasetMixtureConfig

from hf_cascade.data.documents import load_mixture
from hf_cascade.data.image_documents import decode_images

# columns of which a row needs one set: TRL's dataset types
KINDS = (("messages",), ("conversations",), ("prompt", "completion"), ("input_ids",))


def load_conversations(
    mixture: DatasetMixtureConfig, part: str = "train", field: str = "text"
) -> Dataset | IterableDataset | None:
    """
    Rows of TRL's `datasets:` block: `messages`, `prompt` and `completion`, or text; beside them `images` or `image`.

    Args:
        mixture (`DatasetMixtureConfig`): the block.
        part (`str`, *optional*, defaults to `"train"`): or `"test"`: the rows split off, `None` without
            `test_split_size`.
        field (`str`, *optional*, defaults to `"text"`): the text column.

    Raises:
        ValueError, FileNotFoundError: no rows, or none of the columns.
    """
    rows = load_mixture(mixture, part)
    if rows is None:
        return None
    columns = rows.column_names or list(next(iter(rows), {}))
    kinds = (*KINDS, (field,))
    if not any(set(kind) <= set(columns) for kind in kinds):
        allowed = "; ".join(" and ".join(kind) for kind in kinds)
        raise ValueError(
            f"the dataset has the columns {sorted(columns)}, and one of these is needed: {allowed}. Rename yours, or "
            "set dataset_text_field"
        )
    return decode_images(rows)
