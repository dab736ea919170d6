"""A fixed number of distillation steps from the parent, the same for every pruned child.

N windows, T tokens of a window
"""

import copy
import math

import torch
from prune_measure import HeldOut, divergence, hidden
from torch import Tensor

from hf_cascade.data.packing import blocks
from hf_cascade.data.text_files import load_texts

FLOOR = 0.1  # of the learning rate, where the cosine ends


def training_windows(tokenizer, files: list[str], length: int, count: int) -> Tensor:
    """
    `count` windows, an equal share of each file: [N, T].

    Raises:
        ValueError: a file is too short.
    """
    share = -(-count // len(files))
    parts = [blocks(tokenizer, load_texts(source), length, share) for source in files]
    for source, part in zip(files, parts, strict=True):
        if len(part) < share:
            raise ValueError(f"{source} has {len(part)} windows of {length} tokens and the steps need {share}")
    return torch.cat(parts)[:count]


@torch.no_grad()
def teacher_states(parent, windows_NT: Tensor, batch: int) -> Tensor:
    """The parent's final hidden states on all windows, computed once for all seeds: [N, T, hidden]."""
    return torch.cat([hidden(parent, part) for part in windows_NT.split(batch)])


def distil(child, parent, windows_NT: Tensor, states_NTE: Tensor, batch: int, rate: float, seed: int):
    """A copy of `child` after one pass over the windows in the seed's order: AdamW, forward KL, cosine rate."""
    student = copy.deepcopy(child).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    steps = torch.randperm(len(windows_NT), generator=torch.Generator().manual_seed(seed)).split(batch)
    for number, rows in enumerate(steps):
        cosine = (1 + math.cos(math.pi * number / len(steps))) / 2
        optimizer.param_groups[0]["lr"] = rate * (FLOOR + (1 - FLOOR) * cosine)
        ids_NT = windows_NT[rows]
        loss, _ = divergence(student, hidden(student, ids_NT), parent, states_NTE[rows], ids_NT)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    return student.eval()


def recover(child, held_out: HeldOut, tokenizer, arguments) -> list[dict]:
    """KL and loss after `arguments.steps` steps, one entry a seed."""
    batch = max(1, arguments.step_tokens // arguments.length)
    windows_NT = training_windows(tokenizer, arguments.train, arguments.length, batch * arguments.steps)
    states_NTE = teacher_states(held_out.parent, windows_NT, batch)
    return [
        held_out(distil(child, held_out.parent, windows_NT, states_NTE, batch, arguments.lr, seed))
        for seed in range(arguments.seeds)
    ]


def spread(after: list[dict], name: str) -> str:
    """Mean and half the range over seeds of one entry of what `recover` returns."""
    values = [part[name] for part in after]
    return f"{sum(values) / len(values):.3f} ± {(max(values) - min(values)) / 2:.3f}" if values else ""
