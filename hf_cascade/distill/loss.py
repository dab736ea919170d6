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


def head_logits(hidden_CD: Tensor, head_VD: Tensor, softcap: float | None = None) -> Tensor:
    """fp32 logits [C, V] of a linear head; `softcap` is the `final_logit_softcapping` some families have."""
    if hidden_CD.is_cuda and hidden_CD.dtype != torch.float32 and hidden_CD.dtype == head_VD.dtype:
        logits_CV = torch.mm(hidden_CD, head_VD.t(), out_dtype=torch.float32)
    else:
        exact = torch.promote_types(hidden_CD.dtype, torch.float32)
        logits_CV = hidden_CD.to(exact) @ head_VD.to(exact).t()
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
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            hidden_CD, labels_C = hidden_ND[rows], labels_N[rows]
            student_CV = head_logits(hidden_CD.to(heads[0].dtype), heads[0], caps[0])
            teacher_CV = head_logits(teacher_NE[rows].to(heads[1].dtype), heads[1], caps[1])
            slope_CV = None if caps[0] is None or not training else 1 - (student_CV / caps[0]).square()
            grad_CV, *parts = _divergence_(student_CV, teacher_CV, labels_C, *mix)
            sums += torch.stack(parts)
            if not (wants_hidden or wants_head):
                continue
            grad_CV.mul_(scale * (labels_C != -100).unsqueeze(1))
            if slope_CV is not None:
                grad_CV.mul_(slope_CV)
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


def _divergence_(student_CV, teacher_CV, labels_C, temperature, next_token):
    """
    Gradient [C, V] by the student's logits, and the chunk's sums of temperature^2 * KL and of the next-token loss.

    Works in place: both inputs are destroyed, the student's becomes the gradient, one [C, V] is added. The gradient
    is also there for rows whose label is -100; the sums leave them out.
    """
    counts_C1 = (labels_C != -100).unsqueeze(1)
    target_C1 = labels_C.clamp(min=0).unsqueeze(1)
    nll = student_CV.new_zeros((), dtype=torch.float64)
    hard_CV = None
    if next_token > 0:
        log_CV = student_CV.log_softmax(-1)
        nll = -(log_CV.gather(1, target_C1) * counts_C1).sum(dtype=torch.float64)
        hard_CV = log_CV.exp_().scatter_add_(1, target_C1, -torch.ones_like(target_C1, dtype=log_CV.dtype))
    if temperature != 1:
        student_CV.div_(temperature)
        teacher_CV.div_(temperature)
    student_CV.sub_(student_CV.logsumexp(-1, keepdim=True))  # log q
    teacher_CV.sub_(teacher_CV.logsumexp(-1, keepdim=True))  # log p
    p_CV = teacher_CV.exp()
    # KL = sum p (log p - log q); where p underflows to 0 the term is 0, whatever log q.
    kl_C1 = teacher_CV.sub_(student_CV).mul_(p_CV).sum(-1, keepdim=True)
    kl = (kl_C1 * counts_C1).sum(dtype=torch.float64) * temperature**2
    grad_CV = student_CV.exp_().sub_(p_CV)  # q - p, times temperature^2 / temperature
    if temperature != 1:
        grad_CV.mul_(temperature)
    if hard_CV is not None:
        grad_CV.mul_(1 - next_token).add_(hard_CV, alpha=next_token)
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
