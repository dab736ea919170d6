"""The forward KL of a chunk as one Triton kernel: both models' logits are read twice, and the gradient written once.

The torch path passes over the [C, V] buffers about ten times, which on a GPU costs as much as the products. Chosen by
`loss_kernel="triton"`; the torch path is the oracle (`tests/distill/test_triton.py`, also without a GPU through
Triton's interpreter).

C tokens of a chunk, V vocabulary.
"""

import os

import torch
from torch import Tensor

from hf_cascade.distill.divergences import Objective

try:
    import triton
    import triton.language as tl
except ImportError:  # `check` says so before any work
    triton = None

BLOCK = 4096  # logits of a row at once: ours, 16 KB of each model in registers over 8 warps
WARPS = 8


def check(device: torch.device, objective: Objective, has_hidden: bool) -> None:
    """
    Raise `ValueError` where the kernel does not serve: no Triton, no GPU, another divergence, or cached targets.

    Triton's interpreter (`TRITON_INTERPRET=1`) counts as a GPU.
    """
    if triton is None:
        raise ValueError("loss_kernel='triton' needs Triton, which GPU builds of torch bring: use 'torch' here")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"loss_kernel='triton' runs on GPUs, and the model is on {device.type}: use 'torch'")
    if objective.beta != 0 or not has_hidden:
        raise ValueError(
            f"loss_kernel='triton' computes the forward KL to a teacher's hidden states; beta={objective.beta} and "
            "cached teachers need loss_kernel='torch'"
        )


def chunk_(
    student_CV: Tensor,
    teacher_CV: Tensor,
    labels_C: Tensor,
    scale: Tensor,
    objective: Objective,
    caps: tuple[float | None, float | None],
) -> tuple[Tensor, Tensor]:
    """
    Weighted gradient of a chunk by the student's uncapped logits, in their place, and the sums of `loss._chunk_`.

    Args:
        student_CV (`Tensor`): fp32 logits [C, V] without soft cap; becomes the gradient.
        teacher_CV (`Tensor`): the teacher's.
        labels_C (`Tensor`): next tokens, -100 where a position does not count.
        scale (`Tensor`): one over the number of items, a scalar.
        objective (`Objective`): with beta 0.
        caps (`tuple`): final soft caps of student and teacher.
    """
    tokens, vocabulary = student_CV.shape
    parts_C4 = torch.empty(tokens, 4, dtype=torch.float32, device=student_CV.device)
    _forward_kl[(tokens,)](
        *(student_CV, teacher_CV, labels_C, parts_C4, scale.to(torch.float32)),
        *(student_CV.stride(0), teacher_CV.stride(0), vocabulary),
        *(1.0 / objective.temperature, objective.temperature, objective.next_token_weight, objective.route_below_nats),
        *(caps[0] or 1.0, caps[1] or 1.0),
        READS_LABELS=objective.reads_labels,
        ROUTES=objective.route_below_nats > 0,
        SOFT=objective.temperature != 1,
        CAPPED=caps[0] is not None,
        TEACHER_CAPPED=caps[1] is not None,
        BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)),
        num_warps=WARPS,
    )
    return student_CV, parts_C4.sum(0, dtype=torch.float64)


if triton is not None:

    @triton.jit
    def _cap(z, cap):
        """cap * tanh(z / cap), through exp, which every Triton has."""
        decay = tl.exp(-2.0 * tl.abs(z / cap))
        return cap * tl.where(z < 0, -1.0, 1.0) * (1.0 - decay) / (1.0 + decay)

    @triton.jit
    def _forward_kl(
        student_ptr,
        teacher_ptr,
        label_ptr,
        part_ptr,
        scale_ptr,
        student_stride,
        teacher_stride,
        vocabulary,
        inverse_temperature,
        temperature,
        share,
        route_below,
        cap,
        teacher_cap,
        READS_LABELS: tl.constexpr,
        ROUTES: tl.constexpr,
        SOFT: tl.constexpr,
        CAPPED: tl.constexpr,
        TEACHER_CAPPED: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """One program a token: statistics of both rows in one pass, the gradient in a second."""
        row = tl.program_id(0).to(tl.int64)
        student = student_ptr + row * student_stride
        teacher = teacher_ptr + row * teacher_stride
        label = tl.load(label_ptr + row)
        counts = label >= 0
        # running largest and sums: x student, y teacher, z the student at temperature 1
        x_peak, y_peak, z_peak = -float("inf"), -float("inf"), -float("inf")
        x_sum, y_sum, z_sum = 0.0, 0.0, 0.0
        gap_sum, energy_sum, label_logit = 0.0, 0.0, 0.0
        for start in range(0, vocabulary, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocabulary
            z = tl.load(student + columns, mask=inside, other=0.0)
            y = tl.load(teacher + columns, mask=inside, other=0.0)
            if CAPPED:
                z = _cap(z, cap)
            if TEACHER_CAPPED:
                y = _cap(y, teacher_cap)
            x = z * inverse_temperature
            y = y * inverse_temperature
            peak = tl.maximum(x_peak, tl.max(tl.where(inside, x, -float("inf")), axis=0))
            x_sum = x_sum * tl.exp(x_peak - peak) + tl.sum(tl.where(inside, tl.exp(x - peak), 0.0), axis=0)
            x_peak = peak
            peak = tl.maximum(y_peak, tl.max(tl.where(inside, y, -float("inf")), axis=0))
            shrink = tl.exp(y_peak - peak)
            p = tl.where(inside, tl.exp(y - peak), 0.0)
            y_sum = y_sum * shrink + tl.sum(p, axis=0)
            gap_sum = gap_sum * shrink + tl.sum(p * (y - x), axis=0)
            if ROUTES:
                energy_sum = energy_sum * shrink + tl.sum(p * y, axis=0)
            y_peak = peak
            if READS_LABELS:
                label_logit += tl.sum(tl.where(columns == label, z, 0.0), axis=0)
                if SOFT:
                    peak = tl.maximum(z_peak, tl.max(tl.where(inside, z, -float("inf")), axis=0))
                    z_sum = z_sum * tl.exp(z_peak - peak) + tl.sum(tl.where(inside, tl.exp(z - peak), 0.0), axis=0)
                    z_peak = peak
        log_q = tl.log(x_sum) + x_peak
        log_p = tl.log(y_sum) + y_peak
        kl = (gap_sum / y_sum - log_p + log_q) * temperature * temperature
        routed = 0.0
        if ROUTES:
            routed = tl.where(log_p - energy_sum / y_sum < route_below, 1.0, 0.0)
        nll = 0.0
        log_z = log_q
        if READS_LABELS:
            if SOFT:
                log_z = tl.log(z_sum) + z_peak
            nll = log_z - label_logit
        soft = (1.0 - routed) * (1.0 - share)
        hard = routed + (1.0 - routed) * share
        kept = tl.where(counts, 1.0, 0.0)
        tl.store(part_ptr + row * 4, kept * (soft * kl + hard * nll))
        tl.store(part_ptr + row * 4 + 1, kept * kl)
        tl.store(part_ptr + row * 4 + 2, kept * nll)
        tl.store(part_ptr + row * 4 + 3, kept * routed)

        scale = tl.load(scale_ptr) * kept
        soft_scale = scale * soft * temperature
        hard_scale = scale * hard
        for start in range(0, vocabulary, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocabulary
            z = tl.load(student + columns, mask=inside, other=0.0)
            y = tl.load(teacher + columns, mask=inside, other=0.0)
            if CAPPED:
                z = _cap(z, cap)
            if TEACHER_CAPPED:
                y = _cap(y, teacher_cap)
            grad = tl.exp(z * inverse_temperature - log_q) - tl.exp(y * inverse_temperature - log_p)
            grad = grad * soft_scale
            if READS_LABELS:
                grad += hard_scale * (tl.exp(z - log_z) - tl.where(columns == label, 1.0, 0.0))
            if CAPPED:
                grad = grad * (1.0 - (z / cap) * (z / cap))
            tl.store(student + columns, grad, mask=inside)
