"""What to change about a training stage that does not fit a GPU: settings first, more GPUs last."""

import math
from collections.abc import Callable, Iterator

from hf_cascade.machines import CARDS, Machine
from hf_cascade.memory import Setup

MORE_GPUS = 64  # advice ends at so many times the GPUs


def advise(setup: Setup, machine: Machine, totals: dict[str, Callable[[Setup, Machine], float]]) -> Iterator[str]:
    """
    [`remedies`] on a machine; where none is a setting alone, also the smallest larger card that is enough.

    Args:
        setup (`Setup`): how the stage trains.
        machine (`Machine`): where it does not fit.
        totals (`dict[str, Callable]`): words of what is changed beforehand, `""` for nothing, to the bytes that a setup
            takes on a machine then. Each is tried until a setting alone is enough.
    """
    room, found = machine.memory_bytes, []
    for before, total in totals.items():
        if before and total(setup, machine) <= room:
            found.append(f"{before} ({total(setup, machine) / 1e9:,.0f} GB)")
        else:
            changes = remedies(setup, room, lambda other, of=total: of(other, machine))
            found += [f"{before} and {words}" if before else words for words in changes]
        if any("--gpus" not in words for words in found):
            break
    yield from found
    if any("--gpus" not in words for words in found):
        return
    cards = sorted((card for card in CARDS.values() if card.memory_gb * 1e9 > room), key=lambda card: card.memory_gb)
    for before, total in totals.items():
        for other in (Machine(card.name, card, machine.gpus) for card in cards):
            if total(setup, other) <= other.memory_bytes:
                words = f"--machine {machine.gpus}x{other.name} ({total(setup, other) / 1e9:,.0f} GB)"
                yield f"{before} and {words}" if before else words
                return


def remedies(setup: Setup, room: float, total: Callable[[Setup], float]) -> Iterator[str]:
    """
    Changes with which a training stage would fit, in words: each that is enough alone, cheapest first; where none is,
    the first few that are enough together.

    Args:
        setup (`Setup`): how the stage trains.
        room (`float`): bytes of a GPU.
        total (`Callable`): bytes that a setup takes.
    """
    most = MORE_GPUS * setup.gpus
    alone = [(words, other) for words, other in _changes(setup, most) if total(other) <= room]
    seen = set()
    for words, other in alone:
        kind = words.split()[0]
        if kind not in seen:  # the smallest number of GPUs is enough
            seen.add(kind)
            yield f"{words} ({total(other) / 1e9:,.0f} GB)"
    if alone:
        return
    together, current = [], setup
    while True:
        better = [(words, other) for words, other in _changes(current, most) if total(other) < total(current)]
        if not better:
            return
        words, current = better[0]
        together = [old for old in together if old.split()[0] != words.split()[0]] + [words]
        if total(current) <= room:
            yield f"{' and '.join(together)} ({total(current) / 1e9:,.0f} GB)"
            return


def _changes(setup: Setup, most_gpus: int) -> Iterator[tuple[str, Setup]]:
    """What may be changed about a setup, what costs nothing first."""
    if setup.keeps_whole_gradients:
        words = "accelerator_config: {gradient_accumulation_kwargs: {sync_each_batch: true}}"
        yield words, setup.changed(sync_each_batch=True)
    if setup.masked:
        rows = " with padding_free: true" if setup.rows > 1 and setup.packed else ""
        yield f"attn_implementation: flash_attention_2{rows}", setup.changed(attention="flash_attention_2")
    if not setup.checkpointing:
        yield "gradient_checkpointing: true", setup.changed(checkpointing=True)
    if setup.sharding == "none" and setup.gpus > 1:
        yield "--sharding fsdp2", setup.changed(sharding="fsdp2")
    if setup.rows > setup.fewest_rows:
        rows = setup.fewest_rows
        accumulation = setup.accumulation * setup.rows // rows
        words = f"per_device_train_batch_size: {rows} with gradient_accumulation_steps: {accumulation}"
        yield words, setup.changed(rows=rows, accumulation=accumulation)
    shared = 2 * setup.sequence_parallel
    while setup.packed and setup.gpus % shared == 0:
        yield _shared_rows(setup, shared)
        shared *= 2
    gpus = 2 * setup.gpus
    while gpus <= most_gpus:
        sharding = setup.sharding if setup.gpus > 1 and setup.sharding != "none" else "fsdp2"
        yield f"--gpus {gpus}", setup.changed(gpus=gpus, sharding=sharding)
        gpus *= 2


def _shared_rows(setup: Setup, shared: int) -> tuple[str, Setup]:
    """Rows of packed text over `shared` GPUs, with what the trainers ask for then."""
    accumulation = setup.accumulation * setup.rows
    if setup.gpus > shared:
        accumulation = math.ceil(accumulation / shared) * shared
    asked = ["attn_implementation: flash_attention_2"] if setup.masked else []
    asked += ["per_device_train_batch_size: 1"] if setup.rows > 1 else []
    asked += [f"gradient_accumulation_steps: {accumulation}"] if accumulation != setup.accumulation else []
    words = f"--sequence_parallel {shared}" + (f" with {', '.join(asked)}" if asked else "")
    attention = "flash_attention_2" if setup.masked else setup.attention
    changes = {"rows": 1, "accumulation": accumulation, "attention": attention, "sharding": "zero3"}
    return words, setup.changed(sequence_parallel=shared, **changes)
