"""One pruning measured: its time beside a forward pass, its memory, and what held-out text says of the child.

N windows, T tokens of a window, E hidden size of the parent
"""

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from prune_methods import BATCH, Method
from torch import Tensor
from torch.nn import functional

from hf_cascade.data.packing import blocks
from hf_cascade.data.text_files import load_texts
from hf_cascade.distill.divergences import Objective
from hf_cascade.distill.loss import fused_divergence
from hf_cascade.distill.teacher import HiddenTargets, final_softcap
from hf_cascade.loading import load_model, load_tokenizer


def hidden(model, ids_NT: Tensor) -> Tensor:
    """What the head reads: [N, T, hidden]."""
    return model.base_model(input_ids=ids_NT, use_cache=False).last_hidden_state


def divergence(child, states_NTD: Tensor, parent, states_NTE: Tensor, labels_NT: Tensor, **options):
    """The loss of `fused_divergence` between two models' hidden states, a labelled token, and its parts."""
    student_head, teacher_head = (model.get_output_embeddings().weight for model in (child, parent))
    return fused_divergence(
        states_NTD.flatten(0, 1),
        student_head,
        HiddenTargets(states_NTE.flatten(0, 1), teacher_head, final_softcap(parent)),
        labels_NT.flatten(),
        num_items=(labels_NT != -100).sum(),
        softcap=final_softcap(child),
        objective=Objective(**options),
    )


@dataclass
class HeldOut:
    """
    Held-out windows and the parent's hidden states on them.

    Attributes:
        parent: the model.
        ids_NT (`Tensor`): token ids.
    """

    parent: torch.nn.Module
    ids_NT: Tensor

    @torch.no_grad()
    def __post_init__(self):
        self.states = [hidden(self.parent, part) for part in self.ids_NT.split(BATCH)]

    @torch.no_grad()
    def __call__(self, child) -> dict:
        """KL(parent || child) and next-token loss of `child`, in nats a predicted token."""
        sums, windows = torch.zeros(2, dtype=torch.float64), len(self.ids_NT)
        for ids_NT, states_NTE in zip(self.ids_NT.split(BATCH), self.states, strict=True):
            labels_NT = functional.pad(ids_NT[:, 1:], (0, 1), value=-100)
            own_NTD = hidden(child, ids_NT)
            _, parts = divergence(child, own_NTD, self.parent, states_NTE, labels_NT, next_token_weight=0.5)
            sums += torch.stack(parts[:2]).double() * len(ids_NT) / windows
        return {"kl": float(sums[0]), "nll": float(sums[1])}


@dataclass
class Subject:
    """A parent with the text it is calibrated and measured on."""

    parent: torch.nn.Module
    tokenizer: object
    calibration_NT: Tensor
    heldout_NT: Tensor

    @classmethod
    def load(cls, folder: str, arguments) -> "Subject":
        """Open a folder and cut the text that `arguments` name."""
        parent, tokenizer = load_model(folder, dtype="float32").eval(), load_tokenizer(folder)
        windows = [
            blocks(tokenizer, load_texts(source), arguments.length, count)
            for source, count in (
                (arguments.calibration, arguments.windows),
                (arguments.heldout, arguments.heldout_windows),
            )
        ]
        return cls(parent, tokenizer, *windows)


@torch.no_grad()
def forward_seconds(parent, calibration_NT: Tensor) -> float:
    """Seconds of one pass of the parent's decoder over the calibration text."""
    started = time.perf_counter()
    for part in calibration_NT.split(BATCH):
        hidden(parent, part)
    return time.perf_counter() - started


def timed(method: Method, parent, shape: dict, calibration_NT: Tensor) -> tuple[torch.nn.Module, dict]:
    """The child; seconds of its pruning and of a forward pass just before."""
    forward = forward_seconds(parent, calibration_NT)
    started = time.perf_counter()
    child = method.prune(parent, shape, calibration_NT)
    return child, {"seconds": time.perf_counter() - started, "forward": forward}


class Memory:
    """Growth of this process's resident set since the object was made, in 10^6 bytes. Linux."""

    def __init__(self):
        self.before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def peak(self) -> float:
        """The most there was, not what there is."""
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.before) / 1e6
