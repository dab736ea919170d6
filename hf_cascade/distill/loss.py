"""The fused linear forward KL: two language-model heads and their divergence, chunk by chunk, gradient with the loss.

Loss of the paper's section 2, on the logits alone: sum over tokens of KL(teacher || student). Neither model's
[tokens, vocabulary] logits ever exist: a chunk of rows is computed in fp32, turned into its loss and its gradient in
place, and forgotten. So memory does not grow with the number of tokens, and the backward pass only scales.

N tokens, C tokens of a chunk, V vocabulary, D student hidden, E teacher hidden.
"""

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20  # ours: one fp32 [C, V] buffer; larger ones gained nothing on a CPU


def chunk_tokens(vocabulary: int) -> int:
    """Rows of fp32 logits over `vocabulary` that fit `CHUNK_BYTES`, at least one."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


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


class _FusedForwardKL(torch.autograd.Function):
    """Forward computes the loss and the gradients of the student's hidden states and head; backward scales them."""

    @staticmethod
    def forward(ctx, hidden_ND, head_VD, teacher_NE, teacher_head_VE, labels_N, scale, training, mix, chunk, caps):
        # `needs_input_grad` is true for a head under `no_grad` too
        wants_hidden, wants_head = (training and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden_ND = torch.zeros_like(hidden_ND) if wants_hidden else None
        total_type = torch.promote_types(head_VD.dtype, torch.float32)
        grad_head_VD = torch.zeros_like(head_VD, dtype=total_type) if wants_head else None
        # One upcast for all chunks where a matrix product cannot return fp32 from bf16 inputs by itself.
        heads = [head_VD, teacher_head_VE]
        if not hidden_ND.is_cuda:
            heads = [head.to(torch.promote_types(head.dtype, torch.float32)) for head in heads]
        sums = torch.zeros(2, dtype=torch.float64, device=hidden_ND.device)  # KL, next-token loss
        # Three buffers for all chunks: a CPU spends as long on fresh pages as on the arithmetic.
        shape = (min(chunk, hidden_ND.shape[0]), head_VD.shape[0])
        buffers = [torch.empty(shape, dtype=total_type, device=hidden_ND.device) for _ in range(3)]
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            hidden_CD, labels_C = hidden_ND[rows], labels_N[rows]
            student_CV, teacher_CV, spare_CV = (buffer[: labels_C.shape[0]] for buffer in buffers)
            student_CV = head_logits(hidden_CD.to(heads[0].dtype), heads[0], caps[0], student_CV)
            teacher_CV = head_logits(teacher_NE[rows].to(heads[1].dtype), heads[1], caps[1], teacher_CV)
            grad_CV, *parts = _divergence_(student_CV, teacher_CV, spare_CV, labels_C, scale, *mix, caps[0])
            sums += torch.stack(parts)
            grad_low_CV = grad_CV.to(heads[0].dtype)
            if wants_hidden:
                grad_hidden_ND[rows] = (grad_low_CV @ heads[0]).to(hidden_ND.dtype)
            if wants_head:
                grad_head_VD.addmm_(grad_CV.t(), hidden_CD.to(total_type))
        ctx.save_for_backward(grad_hidden_ND, None if grad_head_VD is None else grad_head_VD.to(head_VD.dtype))
        sums *= scale
        parts = sums.to(total_type)
        ctx.mark_non_differentiable(parts)
        return ((1 - mix[1]) * sums[0] + mix[1] * sums[1]).to(total_type), parts

    @staticmethod
    def backward(ctx, grad, _):
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        return (
            None if grad_hidden_ND is None else grad_hidden_ND * grad.to(grad_hidden_ND.dtype),
            None if grad_head_VD is None else grad_head_VD * grad.to(grad_head_VD.dtype),
            *[None] * 8,
        )


def _divergence_(student_CV, teacher_CV, spare_CV, labels_C, scale, temperature, next_token, softcap):
    """
    Gradient [C, V] of the chunk's loss by the student's logits, and its sums of temperature^2 * KL and next-token loss.

    Works in place: all three buffers are destroyed, the teacher's becomes the gradient. With x and y the logits over
    the temperature less their largest, Q = sum exp(x) and P = sum exp(y):
    KL = sum exp(y) (y - x) / P + log Q - log P, and its gradient by x is exp(x) / Q - exp(y) / P.
    """
    counts_C1 = (labels_C != -100).unsqueeze(1)
    target_C1 = labels_C.clamp(min=0).unsqueeze(1)
    if temperature != 1:
        student_CV.div_(temperature)
        teacher_CV.div_(temperature)
    peak_C1 = student_CV.amax(-1, keepdim=True)
    student_CV.sub_(peak_C1)
    teacher_CV.sub_(teacher_CV.amax(-1, keepdim=True))
    p_CV = torch.exp(teacher_CV, out=spare_CV)
    p_sum_C1 = p_CV.sum(-1, keepdim=True)
    # Where p underflows to 0 the term is 0, whatever the student's logit.
    kl_C1 = teacher_CV.sub_(student_CV).mul_(p_CV).sum(-1, keepdim=True) / p_sum_C1 - p_sum_C1.log()
    q_CV = torch.exp(student_CV, out=teacher_CV)
    q_sum_C1 = q_CV.sum(-1, keepdim=True)
    kl = ((kl_C1 + q_sum_C1.log()) * counts_C1).sum(dtype=torch.float64) * temperature**2

    soft_C1 = counts_C1 * scale.to(q_sum_C1.dtype) * (1 - next_token) * temperature  # temperature^2 / temperature
    grad_CV = q_CV.mul_(soft_C1 / q_sum_C1).addcmul_(p_CV, soft_C1 / p_sum_C1, value=-1)
    nll = torch.zeros_like(kl)
    if next_token > 0:
        torch.mul(student_CV, temperature, out=spare_CV)  # the logits less their largest, at temperature 1
        target_logit_C1 = spare_CV.gather(1, target_C1)
        sum_C1 = spare_CV.exp_().sum(-1, keepdim=True)
        nll = ((sum_C1.log() - target_logit_C1) * counts_C1).sum(dtype=torch.float64)
        hard_C1 = counts_C1 * scale.to(sum_C1.dtype) * next_token
        grad_CV.addcmul_(spare_CV, hard_C1 / sum_C1).scatter_add_(1, target_C1, -hard_C1)
    if softcap is not None:  # the derivative of cap * tanh(z / cap) is 1 - (capped / cap)^2
        grad_CV.mul_(student_CV.add_(peak_C1).mul_(temperature / softcap).square_().neg_().add_(1))
    return grad_CV, kl, nll


def _check(hidden_ND, head_VD, teacher_NE, teacher_head_VE, labels_N, chunk) -> None:
    (tokens, width), (vocabulary, head_width) = hidden_ND.shape[-2:], head_VD.shape
    expected = [(tokens, width), (tokens, teacher_head_VE.shape[1]), (vocabulary, teacher_head_VE.shape[1]), (tokens,)]
    given = [tuple(part.shape) for part in (hidden_ND, teacher_NE, teacher_head_VE, labels_N)]
    if given != expected or width != head_width:
        raise ValueError(
            f"student {given[0]} x {tuple(head_VD.shape)}, teacher {given[1]} x {given[2]}, labels {given[3]}: allowed "
            "is [N, D] x [V, D], [N, E] x [V, E], [N]. If the vocabularies differ, the models have different tokenizers"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}: it must be at least 1, or unset")


def fused_forward_kl(
    hidden_ND: Tensor,
    head_VD: Tensor,
    teacher_hidden_NE: Tensor,
    teacher_head_VE: Tensor,
    labels_N: Tensor,
    *,
    num_items: Tensor | float,
    temperature: float = 1.0,
    next_token_weight: float = 0.0,
    chunk: int | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Forward KL between two linear heads, summed over the tokens that count and divided by `num_items`.

    Formula: T^2 / num_items * sum_n KL(softmax(teacher_n / T) || softmax(student_n / T)), mixed with the next-token
    loss as (1 - w) KL + w NLL when `next_token_weight` w is above 0.

    Args:
        hidden_ND (`Tensor`): the student's final hidden states, [N, D].
        head_VD (`Tensor`): the student's head, [V, D].
        teacher_hidden_NE (`Tensor`): the teacher's final hidden states, [N, E]. No gradient.
        teacher_head_VE (`Tensor`): the teacher's head, [V, E]. No gradient.
        labels_N (`Tensor`): the next token of each position, [N] int64; -100 leaves a position out.
        num_items (`Tensor` or `float`): what the sum is divided by: the number of labels in the whole batch.
        temperature (`float`, *optional*, defaults to `1.0`): T.
        next_token_weight (`float`, *optional*, defaults to `0.0`): w.
        chunk (`int`, *optional*): rows of logits at once; unset, as many as `CHUNK_BYTES` hold.
        softcap (`float`, *optional*): the student's final soft cap.
        teacher_softcap (`float`, *optional*): the teacher's.

    Returns:
        `tuple[Tensor, Tensor]`: the loss, a scalar in at least fp32, and [2] its parts (KL, NLL), detached. NLL is 0
        when its weight is.

    Raises:
        ValueError: the shapes do not fit together.
    """
    _check(hidden_ND, head_VD, teacher_hidden_NE, teacher_head_VE, labels_N, chunk)
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        # Inputs are rounded like those of any linear layer under autocast; the logits are not (see `head_logits`).
        low = torch.get_autocast_dtype(device)
        hidden_ND, head_VD = hidden_ND.to(low), head_VD.to(low)
        teacher_hidden_NE, teacher_head_VE = teacher_hidden_NE.to(low), teacher_head_VE.to(low)
    with torch.autocast(device, enabled=False):
        return _FusedForwardKL.apply(
            hidden_ND,
            head_VD,
            teacher_hidden_NE.detach(),
            teacher_head_VE.detach(),
            labels_N,
            1.0 / torch.as_tensor(num_items, dtype=torch.float64, device=hidden_ND.device).clamp(min=1),
            torch.is_grad_enabled(),
            (float(temperature), float(next_token_weight)),
            chunk or chunk_tokens(head_VD.shape[0]),
            (softcap, teacher_softcap),
        )
