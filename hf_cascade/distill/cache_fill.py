"""From a trainer's own data to a cache, and back to see that it is right: the same rows, tokens and labels as training.

The data pipeline is the trainer's, with the teacher in the student's place, so nothing of it is written a second time.

B rows, T tokens of a row, N positions that count, K tokens kept, V vocabulary.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow.compute
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from hf_cascade import progress
from hf_cascade.distill.cache import CachedTeacher
from hf_cascade.distill.cache_format import sequences
from hf_cascade.distill.cache_writer import CacheWriter
from hf_cascade.distill.loss import chunk_tokens, head_logits
from hf_cascade.distill.packed import CascadeSFTTrainer
from hf_cascade.distill.teacher import Teacher

LARGEST_DISTANCE = 0.02  # ours: fp16's rounding makes 0.001, a bf16 teacher in other batches less than 0.01


@dataclass
class CacheArguments:
    """
    Parameters that control a cache of a teacher's logits, beside those of the stage that will read it.

    Args:
        top_k (`int`, *optional*, defaults to `50`):
            Tokens kept of each position. Ours: 209 bytes a position at a vocabulary of 131,072; 20 take 85.
        verify (`str`, *optional*):
            Folder of a cache to check instead of making one: every shard's hash, that all of this stage's sequences are
            in it, and what the teacher says of some.
        verify_batches (`int`, *optional*, defaults to `8`):
            Batches of which the teacher is asked again. Ours.
    """

    top_k: int = field(default=50, metadata={"help": "Tokens kept of each position."})
    verify: str | None = field(default=None, metadata={"help": "Folder of a cache to check instead of making one."})
    verify_batches: int = field(default=8, metadata={"help": "Batches of which the teacher is asked again."})


def trainer_batches(trainer: CascadeSFTTrainer) -> tuple[Iterator[tuple[dict, Tensor]], int | None]:
    """
    All rows a trainer would read in one epoch, once, in their own order: (inputs, counts_BT), and how many batches.

    Whatever `teacher_window` leaves out of the loss counts here, so that a cache serves any of its values.
    """
    args, dataset = trainer.args, trainer.train_dataset
    args.per_device_eval_batch_size, args.dataloader_drop_last = args.per_device_train_batch_size, False
    if isinstance(dataset, IterableDataset) and args.max_steps > 0:
        dataset = dataset.take(
            args.max_steps * args.gradient_accumulation_steps * args.train_batch_size * args.world_size
        )
    loader = trainer.get_eval_dataloader(dataset)

    def batches():
        for batch in loader:
            labels_BT = batch.pop("labels")
            inputs = {name: value for name, value in batch.items() if name not in ("cursor", "skipped")}
            yield inputs, functional.pad(labels_BT[:, 1:], (0, 1), value=-100) != -100

    return batches(), None if isinstance(dataset, IterableDataset) else len(loader)


def labels_of(dataset) -> int | None:
    """Labels of a prepared dataset; unknown where they are made batch by batch."""
    if not isinstance(dataset, Dataset) or "labels" not in dataset.column_names:
        return None
    tables = dataset.select_columns("labels").with_format("arrow").iter(batch_size=10_000)
    flat = (pyarrow.compute.list_flatten(table["labels"]) for table in tables)
    return sum(pyarrow.compute.sum(pyarrow.compute.not_equal(part, -100)).as_py() or 0 for part in flat)


def fill(writer: CacheWriter, trainer: CascadeSFTTrainer) -> int:
    """
    Put all of a trainer's data into a cache, shown as it goes; the last shard is written, the index is not.

    Returns:
        `int`: positions this process added.

    Raises:
        ValueError: the trainer's settings have given the teacher another vocabulary.
        OSError: the disk has no room for it.
    """
    vocabulary = trainer.model.get_output_embeddings().weight.shape[0]
    if vocabulary != writer.identity.vocabulary:  # TRL does so for the added tokens of a cloned chat template
        raise ValueError(
            f"the settings change the teacher's vocabulary from {writer.identity.vocabulary} to {vocabulary} tokens: "
            "take a chat_template_path without tokens of its own"
        )
    labels = labels_of(trainer.train_dataset)
    if labels is not None:
        there = sum(shard["tokens"] for shard in writer.shards)
        writer.check_room(max(0, labels - there) * writer.identity.bytes_per_token)
    batches, total = trainer_batches(trainer)
    added = 0
    with writer:
        for number, batch in enumerate(tqdm(batches, "caching", total, disable=_is_quiet(trainer)), 1):
            added += writer.add(*batch)
            if total is not None:
                progress.report(number, total, tokens=added, label="cached")
    return added


def verify(cached: CachedTeacher, teacher: Teacher, trainer: CascadeSFTTrainer, asked_batches: int) -> dict:
    """
    See to it that a cache has all of a trainer's data, and that it has what the teacher says.

    The difference is the total variation distance of the two distributions over K tokens and the tail.

    Args:
        cached (`CachedTeacher`): the cache, its shards already checked.
        teacher (`Teacher`): gives hidden states.
        trainer (`CascadeSFTTrainer`): its data.
        asked_batches (`int`): batches, chosen at random, of which the teacher is asked again.

    Returns:
        `dict`: `sequences` found, `positions` compared, `mean_distance` and `largest_distance`.

    Raises:
        ValueError: a sequence is missing, or the mean difference is above `LARGEST_DISTANCE`.
    """
    batches, total = trainer_batches(trainer)
    chosen = set(random.Random(0).sample(range(total), min(total, asked_batches)) if total else range(asked_batches))
    found, distances = 0, [torch.zeros(0)]
    for number, (inputs, counts_BT) in enumerate(tqdm(batches, "verifying", total, disable=_is_quiet(trainer))):
        if number in chosen:
            distances.append(distance(cached, teacher, inputs, counts_BT).cpu())
        here = sequences(inputs, counts_BT, cached.identity)
        for sequence in here:
            cached.check_holds(sequence, inputs, counts_BT)
        found += len(here)
    distance_N = torch.cat(distances)
    mean = float(distance_N.mean()) if len(distance_N) else 0.0
    if mean > LARGEST_DISTANCE:
        raise ValueError(
            f"the cache {cached.folder} says something else than the teacher (total variation {mean:.3f} on average, "
            f"at most {LARGEST_DISTANCE} is rounding): it was made by another teacher, type or kernel; make it again"
        )
    largest = float(distance_N.max()) if len(distance_N) else 0.0
    return {"sequences": found, "positions": len(distance_N), "mean_distance": mean, "largest_distance": largest}


@torch.no_grad()
def distance(cached: CachedTeacher, teacher: Teacher, inputs: dict, counts_BT: Tensor) -> Tensor:
    """Total variation distance of what the cache and what the teacher says of each position, [N]."""
    read, asked = cached.targets(inputs, counts_BT), teacher.targets(inputs, counts_BT)
    size = chunk_tokens(cached.vocabulary, asked.hidden_NE.device.type)
    parts = [torch.zeros(0, device=asked.hidden_NE.device)]
    for hidden_CE, ids_CK, log_probs_CK in zip(
        *(part.split(size) for part in (asked.hidden_NE, read.ids_NK, read.log_probs_NK)), strict=True
    ):
        logits_CV = head_logits(hidden_CE.to(asked.head_VE.dtype), asked.head_VE, asked.softcap)
        exact_CK = logits_CV.log_softmax(-1).gather(1, ids_CK).exp()
        difference_CK = exact_CK - log_probs_CK.exp()
        parts.append((difference_CK.abs().sum(-1) + difference_CK.sum(-1).abs()) / 2)
    return torch.cat(parts)


def _is_quiet(trainer: CascadeSFTTrainer) -> bool:
    return trainer.args.disable_tqdm or not trainer.accelerator.is_local_main_process
