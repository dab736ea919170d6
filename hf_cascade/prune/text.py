"""Calibration text for a command: windows to fit on and windows that only measure, from files or datasets."""

import hashlib
import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_cascade.anatomy import WRAPPERS
from hf_cascade.data.image_text import load_image_text
from hf_cascade.data.packing import blocks
from hf_cascade.data.text_files import load_texts
from hf_cascade.loading import load_tokenizer
from hf_cascade.prune.calibration import Calibration
from hf_cascade.prune.config import PruneArguments
from hf_cascade.prune.images import ProjectedImages, project_images
from hf_cascade.prune.parent import Parent

LENGTH = 1024  # ours: paper silent
HELD_OUT = 16  # windows at most that only measure; ours
ENOUGH = 4  # tokens a column of the widest Gram matrix before a fit is trusted; ours

# N windows, T tokens of a window


@dataclass
class CalibrationText:
    """
    What a pruning reads.

    Attributes:
        fitted_NT (`Tensor`): token ids to fit on.
        held_out_NT (`Tensor`, *optional*): token ids to measure on.
        samples (`list[dict]`): image-text samples to fit on, as their processor returned them, each a batch of its own.
    """

    fitted_NT: Tensor
    held_out_NT: Tensor | None = None
    samples: list[dict] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens that are fitted on."""
        return self.fitted_NT.numel() + sum(sample["input_ids"].numel() for sample in self.samples)

    @property
    def all_tokens(self) -> int:
        """Held-out ones too."""
        return self.tokens + (0 if self.held_out_NT is None else self.held_out_NT.numel())

    @property
    def sha256(self) -> str:
        """Hash of all token ids."""
        parts = [self.fitted_NT, *(sample["input_ids"] for sample in self.samples)]
        parts += [] if self.held_out_NT is None else [self.held_out_NT]
        return hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()

    def batches(self, batch_size: int) -> tuple[list[Tensor], int]:
        """Batches of ids, and how many of them, the last, are held out."""
        fitted = [*(sample["input_ids"] for sample in self.samples), *self.fitted_NT.split(batch_size)]
        held_out = [] if self.held_out_NT is None else list(self.held_out_NT.split(batch_size))
        return fitted + held_out, len(held_out)

    def calibration(self, parent: Parent, batch_size: int) -> Calibration:
        """The text without images, as a pruning sees it."""
        batches, held_out = self.batches(batch_size)
        return Calibration(parent, batches[len(self.samples) :], held_out)

    def project(self, parent: Parent) -> ProjectedImages | None:
        """The samples' images through the parent's tower."""
        return project_images(parent, dict(enumerate(self.samples))) if self.samples else None


def read_text(arguments: PruneArguments, parent: PreTrainedConfig) -> CalibrationText:
    """
    Read and cut the text; warns where it is too short for good fits.

    Raises:
        ValueError, FileNotFoundError: no text, or settings that cannot be.
    """
    if arguments.calibration is None:
        raise ValueError("pruning to a smaller shape needs text: give --calibration FILE_OR_DATASET")
    if arguments.calibration_samples < 1 or arguments.batch_size < 1:
        raise ValueError("calibration_samples and batch_size must be at least 1")
    decoder, length = parent.get_text_config(), arguments.calibration_length
    window = decoder.max_position_embeddings
    if length is not None and not 2 <= length <= window:
        raise ValueError(f"calibration_length={length}: allowed is 2 to {window}, the model's window")
    if arguments.calibration_images is not None and parent.model_type not in WRAPPERS:
        raise ValueError(f"calibration_images={arguments.calibration_images}: a {parent.model_type} reads no images")
    tokenizer = load_tokenizer(arguments.model)

    def windows(source: str, count: int) -> Tensor:
        # 16 documents a window: enough for short ones, and a streamed dataset is not read to its end
        texts = load_texts(source, arguments.calibration_field, arguments.calibration_split, limit=count * 16)
        return blocks(tokenizer, texts, length or min(LENGTH, window), count, not length)

    samples = arguments.calibration_samples
    found_NT = windows(arguments.calibration, samples + (0 if arguments.heldout else HELD_OUT))
    if arguments.heldout:
        text = CalibrationText(found_NT, windows(arguments.heldout, HELD_OUT))
    else:
        spare = min(max(len(found_NT) - samples, len(found_NT) // 8), HELD_OUT)
        # from all over the text, which comes in the order of its sources
        aside = torch.arange(spare) * len(found_NT) // max(spare, 1)
        fitted = torch.ones(len(found_NT), dtype=torch.bool).index_fill(0, aside, False)
        text = CalibrationText(found_NT[fitted], found_NT[aside] if spare else None)
    if arguments.calibration_images is not None:
        text.samples = load_image_text(
            arguments.model, arguments.calibration_images, arguments.calibration_split, samples, window
        )
    width = max(decoder.hidden_size, decoder.intermediate_size)
    if text.tokens < ENOUGH * width:
        print(
            f"hf-cascade: warning: {text.tokens:,} tokens of calibration text are few for matrices {width:,} wide; "
            f"{ENOUGH * width:,} or more give better fits",
            file=sys.stderr,
        )
    return text
