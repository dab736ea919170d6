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
    def _grow(peak, total, values, inside):
        """Largest and sum of exp(value - largest) of a row, with a block more; and how much older sums shrink."""
        grown = tl.maximum(peak, tl.max(tl.where(inside, values, -float("inf")), axis=0))
        shrink = tl.exp(peak - grown)
        weights = tl.where(inside, tl.exp(values - grown), 0.0)
        return grown, total * shrink + tl.sum(weights, axis=0), shrink, weights

    @triton.jit
    def _read(row, columns, inside, cap, CAPPED: tl.constexpr):
        logits = tl.load(row + columns, mask=inside, other=0.0)
        if CAPPED:
            logits = _cap(logits, cap)
        return logits

    @triton.jit
    def _statistics(
        student,
        teacher,
        label,
        vocabulary,
        inverse_temperature,
        cap,
        teacher_cap,
        CAPPED: tl.constexpr,
        TEACHER_CAPPED: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """Log-sums of x, y, z; KL without the temperature's square; the teacher's entropy; the label's logit."""
        # x student, y teacher, z the student at temperature 1
        x_peak, y_peak, z_peak = -float("inf"), -float("inf"), -float("inf")
        x_sum, y_sum, z_sum = 0.0, 0.0, 0.0
        gap_sum, energy_sum, label_logit = 0.0, 0.0, 0.0
        for start in range(0, vocabulary, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocabulary
            z = _read(student, columns, inside, cap, CAPPED)
            x = z * inverse_temperature
            y = _read(teacher, columns, inside, teacher_cap, TEACHER_CAPPED) * inverse_temperature
            x_peak, x_sum, _, _ = _grow(x_peak, x_sum, x, inside)
            z_peak, z_sum, _, _ = _grow(z_peak, z_sum, z, inside)
            y_peak, y_sum, shrink, p = _grow(y_peak, y_sum, y, inside)
            gap_sum = gap_sum * shrink + tl.sum(p * (y - x), axis=0)
            energy_sum = energy_sum * shrink + tl.sum(p * y, axis=0)
            label_logit += tl.sum(tl.where(columns == label, z, 0.0), axis=0)
        log_q = tl.log(x_sum) + x_peak
        log_p = tl.log(y_sum) + y_peak
        kl = gap_sum / y_sum - log_p + log_q
        return log_q, log_p, tl.log(z_sum) + z_peak, kl, log_p - energy_sum / y_sum, label_logit

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
        CAPPED: tl.constexpr,
        TEACHER_CAPPED: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """One program a token: statistics of both rows in one pass, the gradient in a second."""
        row = tl.program_id(0).to(tl.int64)
        student = student_ptr + row * student_stride
        teacher = teacher_ptr + row * teacher_stride
        label = tl.load(label_ptr + row)
        kept = tl.where(label >= 0, 1.0, 0.0)
        log_q, log_p, log_z, kl, entropy, label_logit = _statistics(
            student, teacher, label, vocabulary, inverse_temperature, cap, teacher_cap, CAPPED, TEACHER_CAPPED, BLOCK
        )
        kl = kl * temperature * temperature
        routed = tl.where(entropy < route_below, 1.0, 0.0)
        soft = (1.0 - routed) * (1.0 - share)
        hard = routed + (1.0 - routed) * share
        nll = tl.where(READS_LABELS, log_z - label_logit, 0.0)
        tl.store(part_ptr + row * 4, kept * (soft * kl + hard * nll))
        tl.store(part_ptr + row * 4 + 1, kept * kl)
        tl.store(part_ptr + row * 4 + 2, kept * nll)
        tl.store(part_ptr + row * 4 + 3, kept * routed)

        scale = tl.load(scale_ptr) * kept
        for start in range(0, vocabulary, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocabulary
            z = _read(student, columns, inside, cap, CAPPED)
            y = _read(teacher, columns, inside, teacher_cap, TEACHER_CAPPED)
            grad = tl.exp(z * inverse_temperature - log_q) - tl.exp(y * inverse_temperature - log_p)
            grad = grad * (scale * soft * temperature)
            if READS_LABELS:
                grad += scale * hard * (tl.exp(z - log_z) - tl.where(columns == label, 1.0, 0.0))
            if CAPPED:
                grad = grad * (1.0 - (z / cap) * (z / cap))
            tl.store(student + columns, grad, mask=inside)
