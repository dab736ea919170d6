"""The fused linear divergence: two language-model heads and their divergence, chunk by chunk, gradient with the loss.

Loss of the paper's section 2, on the logits alone: sum over tokens of KL(teacher || student). Neither model's
[tokens, vocabulary] logits ever exist: a chunk of rows is computed in fp32, turned into its loss and its gradient in
place, and forgotten. So memory does not grow with the number of tokens, and the backward pass only scales.

N tokens, C tokens of a chunk, V vocabulary, D student hidden, E teacher hidden, K tokens a cached teacher kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_cascade.distill.divergences import (
    KERNELS,
    Objective,
    add_next_token_,
    bucketed_kl_,
    forward_kl_,
    generalized_jsd_,
)
from hf_cascade.distill.teacher import HiddenTargets, Targets, TopKTargets

# One fp32 [C, V] buffer. On a CPU larger ones gained nothing; a GPU's products want about a thousand rows: ours.
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}


class Parts(NamedTuple):
    """
    What the loss is made of, divided by `num_items` like the loss, detached.

    Attributes:
        divergence (`Tensor`): of all tokens that count, times the temperature's square.
        next_token (`Tensor`): next-token loss of the same tokens; 0 where the objective does not read it.
        routed (`Tensor`): share of tokens that learn from the next token alone.
    """

    divergence: Tensor
    next_token: Tensor
    routed: Tensor


def chunk_tokens(vocabulary: int, device: str = "cpu") -> int:
    """Rows of fp32 logits over `vocabulary` that fit `CHUNK_BYTES`, at least one."""
    return max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (4 * vocabulary))


def head_logits(
    hidden_CD: Tensor, head_VD: Tensor, softcap: float | None = None, out_CV: Tensor | None = None
) -> Tensor:
    """fp32 logits [C, V] of a linear head; `softcap` is the `final_logit_softcapping` some families have."""
    if hidden_CD.is_cuda and hidden_CD.dtype != torch.float32 and hidden_CD.dtype == head_VD.dtype:
        logits_CV = torch.mm(hidden_CD, head_VD.t(), out_dtype=torch.float32)
    else:
        exact = torch.promote_types(hidden_CD.dtype, torch.float32)
        logits_CV = torch.mm(hidden_CD.to(exact), head_VD.to(exact).t(), out=out_CV)
    return logits_CV if softcap is None else logits_CV.div_(softcap).tanh_().mul_(softcap)


def _chunk_(student_CV, teacher, spare_CV, labels_C, scale, objective: Objective, softcap):
    """
    Weighted gradient [C, V] of a chunk by the student's logits, and its sums: loss, divergence, next token, routed.

    `teacher` is the teacher's logits [C, V], or (ids, log probabilities) of a cached one, each [C, K]. All buffers are
    destroyed.
    """
    temperature, share = objective.temperature, objective.next_token_weight
    counts_C1 = (labels_C != -100).unsqueeze(1)
    routed_C1 = torch.zeros_like(counts_C1)

    def weigh(entropy_C1):  # temperature^2 of the loss over the temperature of x
        if entropy_C1 is not None:
            torch.logical_and(entropy_C1 < objective.route_below_nats, counts_C1, out=routed_C1)
        return counts_C1 * ~routed_C1 * scale.to(student_CV.dtype) * (1 - share) * temperature

    if temperature != 1:
        student_CV.div_(temperature)
    peak_C1 = student_CV.amax(-1, keepdim=True)
    x_CV = student_CV.sub_(peak_C1)
    if isinstance(teacher, tuple):
        value_C1, grad_CV = bucketed_kl_(x_CV, *teacher, spare_CV, weigh(None))
        spare_CV = torch.empty_like(x_CV) if objective.reads_labels else None
    else:
        y_CV = teacher.div_(temperature) if temperature != 1 else teacher
        y_CV.sub_(y_CV.amax(-1, keepdim=True))
        ways = (x_CV, y_CV, spare_CV, weigh, objective.route_below_nats > 0)
        value_C1, grad_CV = forward_kl_(*ways) if objective.beta == 0 else generalized_jsd_(*ways, objective.beta)
    value_C1 = value_C1 * counts_C1 * temperature**2
    nll_C1 = torch.zeros_like(value_C1)
    if objective.reads_labels:
        hard_C1 = ((share + (1 - share) * routed_C1) * counts_C1 * scale).to(x_CV.dtype)
        target_C1 = labels_C.clamp(min=0).unsqueeze(1)
        nll_C1 = add_next_token_(grad_CV, x_CV, spare_CV, target_C1, hard_C1, temperature) * counts_C1
    if softcap is not None:  # the derivative of cap * tanh(z / cap) is 1 - (capped / cap)^2
        grad_CV.mul_(x_CV.add_(peak_C1).mul_(temperature / softcap).square_().neg_().add_(1))
    loss_C1 = torch.where(routed_C1, nll_C1, (1 - share) * value_C1 + share * nll_C1)
    return grad_CV, torch.stack([part.sum(dtype=torch.float64) for part in (loss_C1, value_C1, nll_C1, routed_C1)])


def fused_chunks(
    hidden_ND: Tensor,
    head_VD: Tensor,
    teacher_NE: Tensor,
    teacher_head_VE: Tensor | None,
    ids_NK: Tensor | None,
    labels_N: Tensor,
    scale: Tensor,
    wants_hidden: bool,
    wants_head: bool,
    chunk: int,
    objective: Objective,
    caps: tuple[float | None, float | None],
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums [4] in float64 times `scale`, the gradient of `hidden_ND` and that of `head_VD` (empty if not wanted)."""
    head_type, total_type = head_VD.dtype, torch.promote_types(head_VD.dtype, torch.float32)
    grad_hidden_ND = torch.zeros_like(hidden_ND) if wants_hidden else hidden_ND.new_empty(0)
    grad_head_VD = torch.zeros_like(head_VD, dtype=total_type) if wants_head else head_VD.new_empty(0)
    if not hidden_ND.is_cuda:  # one upcast for all chunks: a CPU's product of bf16 inputs cannot return fp32
        head_VD = head_VD.to(total_type)
        if teacher_head_VE is not None:
            teacher_head_VE = teacher_head_VE.to(torch.promote_types(teacher_head_VE.dtype, torch.float32))
    sums = torch.zeros(4, dtype=torch.float64, device=hidden_ND.device)
    # Three buffers for all chunks: a CPU spends as long on fresh pages as on the arithmetic.
    shape = (min(chunk, hidden_ND.shape[0]), head_VD.shape[0])
    buffers = [torch.empty(shape, dtype=total_type, device=hidden_ND.device) for _ in range(3)]
    for start in range(0, hidden_ND.shape[0], chunk):
        rows = slice(start, start + chunk)
        hidden_CD, labels_C = hidden_ND[rows].to(head_VD.dtype), labels_N[rows]
        student_CV, teacher_CV, spare_CV = (buffer[: labels_C.shape[0]] for buffer in buffers)
        if kernel == "triton":
            from hf_cascade.distill.triton_kernel import chunk_

            student_CV = head_logits(hidden_CD, head_VD, None, student_CV)
            teacher_CV = head_logits(teacher_NE[rows].to(teacher_head_VE.dtype), teacher_head_VE, None, teacher_CV)
            grad_CV, parts = chunk_(student_CV, teacher_CV, labels_C, scale, objective, caps)
        else:
            student_CV = head_logits(hidden_CD, head_VD, caps[0], student_CV)
            if teacher_head_VE is None:
                teacher = ids_NK[rows], teacher_NE[rows].to(total_type)
            else:
                teacher = head_logits(teacher_NE[rows].to(teacher_head_VE.dtype), teacher_head_VE, caps[1], teacher_CV)
            grad_CV, parts = _chunk_(student_CV, teacher, spare_CV, labels_C, scale, objective, caps[0])
        sums += parts
        if wants_hidden:
            grad_hidden_ND[rows] = (grad_CV.to(head_VD.dtype) @ head_VD).to(hidden_ND.dtype)
        if wants_head:
            _add_product_(grad_head_VD, grad_CV, hidden_CD)
    return sums * scale, grad_hidden_ND, grad_head_VD.to(head_type)


def _add_product_(total_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """Add the head's gradient of a chunk in fp32; a GPU multiplies in the inputs' type, which is its fast one."""
    if hidden_CD.is_cuda and hidden_CD.dtype != total_VD.dtype:
        low_CV = grad_CV.to(hidden_CD.dtype)
        torch.ops.aten.addmm.dtype_out(total_VD, low_CV.t(), hidden_CD, total_VD.dtype, out=total_VD)
    else:
        total_VD.addmm_(grad_CV.t(), hidden_CD.to(total_VD.dtype))


@torch.library.custom_op("hf_cascade::fused_divergence", mutates_args=())
def _fused(
    hidden_ND: Tensor,
    head_VD: Tensor,
    teacher_NE: Tensor,
    teacher_head_VE: Tensor | None,
    ids_NK: Tensor | None,
    labels_N: Tensor,
    scale: Tensor,
    wants: list[bool],
    chunk: int,
    objective: list[float],
    softcap: float | None,
    teacher_softcap: float | None,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`fused_chunks` as one operator, which torch.compile takes whole instead of unrolling its chunks."""
    return fused_chunks(
        *(hidden_ND, head_VD, teacher_NE, teacher_head_VE, ids_NK, labels_N, scale, *wants),
        *(chunk, Objective(*objective), (softcap, teacher_softcap), kernel),
    )


@_fused.register_fake
def _(hidden_ND, head_VD, teacher_NE, teacher_head_VE, ids_NK, labels_N, scale, wants, *_):
    return (
        scale.new_empty(4, dtype=torch.float64),
        torch.empty_like(hidden_ND) if wants[0] else hidden_ND.new_empty(0),
        torch.empty_like(head_VD) if wants[1] else head_VD.new_empty(0),
    )


def _keep(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # else zeros of the head's size for an output nobody differentiates
    ctx.wants = inputs[7]
    ctx.save_for_backward(*output[1:])


def _scale_gradients(ctx, grad_sums, *_):
    if grad_sums is None:
        return (None,) * 13
    grad_hidden_ND, grad_head_VD = ctx.saved_tensors
    grad = grad_sums[0]
    return (
        grad_hidden_ND * grad.to(grad_hidden_ND.dtype) if ctx.wants[0] else None,
        grad_head_VD * grad.to(grad_head_VD.dtype) if ctx.wants[1] else None,
        *[None] * 11,
    )


_fused.register_autograd(_scale_gradients, setup_context=_keep)


def _check(hidden_ND, head_VD, targets: Targets, labels_N, chunk, objective: Objective, kernel) -> None:
    vocabulary, width = head_VD.shape
    tokens = hidden_ND.shape[0]
    if isinstance(targets, TopKTargets):
        kept = targets.ids_NK.shape[-1]
        given = [hidden_ND.shape, targets.ids_NK.shape, targets.log_probs_NK.shape, labels_N.shape]
        expected = [(tokens, width), (tokens, kept), (tokens, kept), (tokens,)]
        shapes = "[N, D] x [V, D], ids and log probabilities [N, K], labels [N]"
        if objective.beta != 0 or objective.temperature != 1 or objective.route_below_nats > 0:
            raise ValueError(
                f"{objective} with cached logits: a teacher's most likely tokens serve beta 0, temperature 1 and no "
                "routing; the others need all its logits, so use a model or a remote teacher"
            )
    else:
        their_width = targets.head_VE.shape[1]
        given = [hidden_ND.shape, targets.hidden_NE.shape, targets.head_VE.shape, labels_N.shape]
        expected = [(tokens, width), (tokens, their_width), (vocabulary, their_width), (tokens,)]
        shapes = "[N, D] x [V, D], teacher [N, E] x [V, E], labels [N]"
    if [tuple(shape) for shape in given] != expected:
        raise ValueError(
            f"student {tuple(given[0])} x {tuple(head_VD.shape)}, teacher {tuple(given[1])} x {tuple(given[2])}, "
            f"labels {tuple(given[3])}: allowed is {shapes}. If the vocabularies differ, so do "
            "the tokenizers"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}: it must be at least 1, or unset")
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r}: allowed are {', '.join(KERNELS)}")
    if kernel == "triton":
        from hf_cascade.distill.triton_kernel import check

        check(hidden_ND.device, objective, isinstance(targets, HiddenTargets))


def fused_divergence(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets: Targets,
    labels_N: Tensor,
    *,
    num_items: Tensor | float,
    objective: Objective = Objective(),  # noqa: B008 (frozen)
    chunk: int | None = None,
    softcap: float | None = None,
    kernel: str = "torch",
) -> tuple[Tensor, Parts]:
    """
    Divergence of a student from its teacher, summed over the tokens that count and divided by `num_items`.

    Formula: T^2 / num_items * sum_n KL(softmax(teacher_n / T) || softmax(student_n / T)) for the default objective;
    [`Objective`] has the others.

    Args:
        hidden_ND (`Tensor`): the student's final hidden states, [N, D].
        head_VD (`Tensor`): the student's head, [V, D].
        targets (`HiddenTargets` or `TopKTargets`): what the teacher says of the same N positions. No gradient.
        labels_N (`Tensor`): the next token of each position, [N] int64; -100 leaves a position out.
        num_items (`Tensor` or `float`): what the sum is divided by: the number of labels in the whole batch.
        objective (`Objective`, *optional*): the loss; the paper's by default.
        chunk (`int`, *optional*): rows of logits at once; unset, as many as `CHUNK_BYTES` hold.
        softcap (`float`, *optional*): the student's final soft cap.
        kernel (`str`, *optional*, defaults to `"torch"`): `"torch"` runs anywhere and is what `"triton"`, for the
            forward KL on a GPU, is tested against.

    Returns:
        `tuple[Tensor, Parts]`: the loss, a scalar in at least fp32, and what it is made of.

    Raises:
        ValueError: the shapes do not fit together, or the targets or the kernel do not serve the objective.
    """
    _check(hidden_ND, head_VD, targets, labels_N, chunk, objective, kernel)
    if isinstance(targets, TopKTargets):
        teacher, teacher_head, ids, teacher_softcap = targets.log_probs_NK, None, targets.ids_NK, None
    else:
        teacher, teacher_head, ids = targets.hidden_NE.detach(), targets.head_VE.detach(), None
        teacher_softcap = targets.softcap
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        # Inputs are rounded like those of any linear layer under autocast; the logits are not (see `head_logits`).
        low = torch.get_autocast_dtype(device)
        hidden_ND, head_VD = hidden_ND.to(low), head_VD.to(low)
        if teacher_head is not None:
            teacher, teacher_head = teacher.to(low), teacher_head.to(low)
    wants = [torch.is_grad_enabled() and part.requires_grad for part in (hidden_ND, head_VD)]
    with torch.autocast(device, enabled=False):
        sums, *_ = _fused(
            *(hidden_ND, head_VD, teacher, teacher_head, ids, labels_N),
            1.0 / torch.as_tensor(num_items, dtype=torch.float64, device=hidden_ND.device).clamp(min=1),
            wants,
            chunk or chunk_tokens(head_VD.shape[0], device),
            [objective.beta, objective.temperature, objective.next_token_weight, objective.route_below_nats],
            *(softcap, teacher_softcap, kernel),
        )
    sums = sums.to(torch.promote_types(head_VD.dtype, torch.float32))
    return sums[0].clone(), Parts(*sums[1:].detach())  # FSDP2 warns of views
