"""Hidden-state matching: the student's stream beside the teacher's, for students that lost many layers.

N tokens that count, D hidden size of both.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

PRUNE_REPORT = "prune_report.json"


def paired_layers(student_layers: int, teacher_layers: int, given: list[int] | None = None) -> list[int]:
    """
    The teacher's layer (1 is the first) whose output each student layer but the last is to resemble.

    The last is left out: its output is what the divergence of the logits is about.

    Args:
        student_layers (`int`): decoder layers of the student.
        teacher_layers (`int`): of the teacher.
        given (`list[int]`, *optional*): a choice to check; unset, layers of the same relative depth.

    Raises:
        ValueError: `given` has another length, or names layers that do not rise from 1 to the teacher's last but one.
    """
    if given is None:
        return [max(1, round(layer * teacher_layers / student_layers)) for layer in range(1, student_layers)]
    rising = all(one < other for one, other in zip(given, given[1:], strict=False))
    if len(given) != student_layers - 1 or not rising or (given and not 1 <= given[0] <= given[-1] < teacher_layers):
        raise ValueError(
            f"hidden_layers={given}: allowed are {student_layers - 1} rising numbers from 1 to {teacher_layers - 1}, "
            "one for each student layer but the last"
        )
    return given


def kept_before(student: str | Path) -> list[int] | None:
    """
    For `hidden_layers`: the parent's layer that each student layer but the last stands for, from its pruning's report.

    A student layer is followed by the next layer that was kept, so what it leaves is what the parent left before that
    one, the work of removed layers between them included.

    Args:
        student (`str` or `Path`): folder of a pruned model.

    Returns:
        `list[int]`, *optional*: None where the folder holds no report, or no layer was removed.
    """
    file = Path(student) / PRUNE_REPORT
    kept = json.loads(file.read_text()).get("kept_layers") if file.is_file() else None
    return kept[1:] if kept and kept[-1] >= len(kept) else None


def relative_distance(student_ND: list[Tensor], teacher_ND: list[Tensor]) -> Tensor:
    """
    Sum over tokens of the mean over layers of ||s - t||^2 / ||t||^2, a scalar in at least fp32.

    Relative token by token, so that the few tokens with enormous states do not outweigh all others, and no batch or
    accumulation changes it.

    Args:
        student_ND (`list[Tensor]`): the student's states of N tokens, [N, D] a layer.
        teacher_ND (`list[Tensor]`): the teacher's, detached.
    """
    total = torch.zeros((), device=student_ND[0].device)
    for ours_ND, theirs_ND in zip(student_ND, teacher_ND, strict=True):
        exact = torch.promote_types(ours_ND.dtype, torch.float32)
        theirs_ND = theirs_ND.detach().to(exact)
        distance_N = (ours_ND.to(exact) - theirs_ND).square().sum(-1)
        total = total + (distance_N / theirs_ND.square().sum(-1)).sum()
    return total / len(student_ND)
