"""Tokens of images are nobody's label, in batches of TRL's collator too; rows without an image need no empty list."""

from dataclasses import dataclass

import torch
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling


@dataclass
class WithoutImageLabels:
    """
    TRL's collator for images, which lets every token of an image count as one to predict unless it is in a prompt.

    Nothing predicts them, and a teacher's logits for them were never trained. Ours: paper silent.

    Args:
        collator (`DataCollatorForVisionLanguageModeling`): TRL's.
    """

    collator: DataCollatorForVisionLanguageModeling

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """As TRL's, less the labels of image tokens. `images: null`, as mixtures have it, is no image."""
        examples = [{**row, "images": row["images"] or []} if "images" in row else row for row in examples]
        batch = self.collator(examples)
        kinds = torch.tensor(self.collator.processor.image_token_ids)
        batch["labels"].masked_fill_(torch.isin(batch["input_ids"], kinds), -100)
        return batch


def without_image_labels(collator):
    """`collator` wrapped, if it is TRL's for images; any other knows itself what counts."""
    return WithoutImageLabels(collator) if isinstance(collator, DataCollatorForVisionLanguageModeling) else collator
