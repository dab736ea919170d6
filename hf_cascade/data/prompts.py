"""Prompts for online training: rows as TRL's GRPO trainer reads them, checked before anything else is opened."""

from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from trl import DatasetMixtureConfig
from trl.scripts.utils import DatasetConfig

from hf_cascade.data.documents import load_mixture
from hf_cascade.data.image_documents import decode_images

SOLUTION = "solution"  # what TRL's rewards, and data sets made for them, call the right answer
PROMPTS = "prompts.jsonl"  # what `hf-cascade difficulty` leaves in its folder


def load_prompts(mixture: DatasetMixtureConfig, part: str = "train", prompts_from: str | None = None) -> Dataset | None:
    """
    Rows of TRL's `datasets:` block with `prompt`, text or messages; beside it `images` or `image`, and columns for
    rewards. TRL's `solution` is an `answer` too, where there is none.

    Args:
        mixture (`DatasetMixtureConfig`): the block.
        part (`str`, *optional*, defaults to `"train"`): or `"test"`: the rows split off, `None` without
            `test_split_size`.
        prompts_from (`str`, *optional*): a folder that `hf-cascade difficulty` made, whose rows stand for `datasets`.

    Raises:
        ValueError, FileNotFoundError: no rows, no prompt, an empty prompt, or messages that end with an answer; rows of
            both kinds.
    """
    if prompts_from is not None:
        if mixture.datasets:
            raise ValueError(f"prompts_from={prompts_from} and `datasets` are both given: leave one of them out")
        file = Path(prompts_from) / PROMPTS
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: name a folder that `hf-cascade difficulty` made")
        mixture = replace(mixture, datasets=[DatasetConfig(path="json", data_files=str(file))])
    rows = load_mixture(mixture, part)
    if rows is None:
        return None
    columns = rows.column_names or list(next(iter(rows), {}))
    if "prompt" not in columns:
        raise ValueError(f"the dataset has the columns {sorted(columns)}, and `prompt` is needed: rename yours")
    for number, prompt in enumerate(rows["prompt"] if isinstance(rows, Dataset) else []):
        if not prompt:
            raise ValueError(f"row {number} has an empty prompt: leave it out")
        if isinstance(prompt, list) and prompt[-1].get("role") not in ("user", "tool"):
            raise ValueError(
                f"row {number}: the prompt ends with the role {prompt[-1].get('role')!r}: it must end with what is to "
                "be answered, the role user or tool"
            )
    if SOLUTION in columns and "answer" not in columns:
        rows = rows.map(lambda solution: {"answer": solution}, input_columns=SOLUTION)
    return decode_images(rows)
