"""Divergences of a chunk of logits and their gradients, row by row, worked out in the buffers the logits came in.

C tokens of a chunk, V vocabulary, K tokens a cached teacher kept. x and y are the student's and the teacher's logits
over the temperature, less their largest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Maps a row's teacher entropy [C, 1] in nats (None where nobody asks) to the weight of its divergence [C, 1].
Weigh = Callable[[Tensor | None], Tensor]
KERNELS = ("torch", "triton")  # how a chunk is computed
SMALLEST = 1e-8  # least probability of a tail bucket: rounded log probabilities may sum to 1


@dataclass(frozen=True)
class Objective:
    """
    What the fused loss sums over the tokens that count. The defaults are the paper's (section 2): forward KL alone.

    Attributes:
        beta (`float`): 0 is KL(teacher || student), 1 KL(student || teacher), between them the generalized JSD of
            Agarwal et al. (2024), arXiv 2306.13649, as in TRL.
        temperature (`float`): softens both distributions; the divergence is times its square (Hinton et al., 2015).
        next_token_weight (`float`): weight of the next-token loss; the divergence has one minus it.
        route_below_nats (`float`): tokens at which the teacher's entropy is lower learn from the next token alone.
    """

    beta: float = 0.0
    temperature: float = 1.0
    next_token_weight: float = 0.0
    route_below_nats: float = 0.0

    @property
    def reads_labels(self) -> bool:
        """Whether the next token plays a part."""
        return self.next_token_weight > 0 or self.route_below_nats > 0


def forward_kl_(x_CV: Tensor, y_CV: Tensor, spare_CV: Tensor, weigh: Weigh, entropy: bool) -> tuple[Tensor, Tensor]:
    """
    KL(teacher || student) of each row, [C, 1], and its weighted gradient by x in `y_CV`; `spare_CV` is destroyed.

    With Q = sum exp(x) and P = sum exp(y): KL = sum exp(y) (y - x) / P + log Q - log P, and its gradient by x is
    exp(x) / Q - exp(y) / P.
    """
    p_CV = torch.exp(y_CV, out=spare_CV)
    p_sum_C1 = p_CV.sum(-1, keepdim=True)
    entropy_C1 = None
    if entropy:  # a batched product, since (p * y).sum would make one more [C, V]
        entropy_C1 = p_sum_C1.log() - torch.bmm(p_CV.unsqueeze(1), y_CV.unsqueeze(2)).squeeze(2) / p_sum_C1
    # Where p underflows to 0 the term is 0, whatever the student's logit.
    kl_C1 = y_CV.sub_(x_CV).mul_(p_CV).sum(-1, keepdim=True) / p_sum_C1 - p_sum_C1.log()
    q_CV = torch.exp(x_CV, out=y_CV)
    q_sum_C1 = q_CV.sum(-1, keepdim=True)
    weight_C1 = weigh(entropy_C1)
    grad_CV = q_CV.mul_(weight_C1 / q_sum_C1).addcmul_(p_CV, weight_C1 / p_sum_C1, value=-1)
    return kl_C1 + q_sum_C1.log(), grad_CV


def generalized_jsd_(
    x_CV: Tensor, y_CV: Tensor, spare_CV: Tensor, weigh: Weigh, entropy: bool, beta: float
) -> tuple[Tensor, Tensor]:
    """
    beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q; at beta 1 KL(q || p). As `forward_kl_`.

    Its derivative by q is (1 - beta) log(q / m), at beta 1 log(q / p) + 1, and by x the softmax of it. An ablation, so
    a few more chunks of memory are spent on plain code.
    """
    log_p_CV = y_CV.log_softmax(-1)
    log_q_CV = x_CV.log_softmax(-1)
    p_CV, q_CV = torch.softmax(y_CV, -1, out=spare_CV), x_CV.softmax(-1)  # exp(log_softmax) is less exact
    entropy_C1 = -(p_CV * log_p_CV).sum(-1, keepdim=True) if entropy else None
    if beta == 1:
        slope_CV = log_q_CV - log_p_CV
        value_C1 = (q_CV * slope_CV).sum(-1, keepdim=True)
    else:
        log_m_CV = torch.logaddexp(log_p_CV + math.log(beta), log_q_CV + math.log1p(-beta))
        slope_CV = (log_q_CV - log_m_CV).mul_(1 - beta)
        value_C1 = (q_CV * slope_CV).sum(-1, keepdim=True)
        value_C1 += beta * (p_CV * (log_p_CV - log_m_CV)).sum(-1, keepdim=True)
    mean_C1 = (q_CV * slope_CV).sum(-1, keepdim=True)
    torch.mul(slope_CV.sub_(mean_C1), q_CV, out=y_CV)
    return value_C1, y_CV.mul_(weigh(entropy_C1))


def bucketed_kl_(
    x_CV: Tensor, ids_CK: Tensor, log_probs_CK: Tensor, spare_CV: Tensor, weight_C1: Tensor
) -> tuple[Tensor, Tensor]:
    """
    KL(teacher || student) over K tokens and one bucket for all others, and its weighted gradient in `spare_CV`.

    With r the teacher's and s the student's probability of the bucket, the gradient by x is q - p at the K tokens and
    q (1 - r / s) at the others. It is a lower bound of the full KL, equal where the bucket has no mass.
    """
    p_CK = log_probs_CK.exp()
    tail_C1 = (1 - p_CK.sum(-1, keepdim=True)).clamp(min=SMALLEST)
    total_C1 = p_CK.sum(-1, keepdim=True) + tail_C1  # rounding may have made it more than 1
    p_CK, tail_C1 = p_CK / total_C1, tail_C1 / total_C1
    q_CV = torch.exp(x_CV, out=spare_CV)
    kept_CK = q_CV.gather(1, ids_CK)
    # The tail's sum is taken without the K tokens: 1 minus theirs would cancel.
    rest_C1 = q_CV.scatter_(1, ids_CK, 0.0).sum(-1, keepdim=True).clamp(min=torch.finfo(x_CV.dtype).tiny)
    sum_C1 = kept_CK.sum(-1, keepdim=True) + rest_C1
    log_q_CK = x_CV.gather(1, ids_CK) - sum_C1.log()
    value_C1 = (torch.xlogy(p_CK, p_CK) - p_CK * log_q_CK).sum(-1, keepdim=True)
    value_C1 += tail_C1 * (tail_C1.log() - rest_C1.log() + sum_C1.log())
    grad_CV = q_CV.mul_(weight_C1 * (1 / sum_C1 - tail_C1 / rest_C1))
    return value_C1, grad_CV.scatter_(1, ids_CK, weight_C1 * (kept_CK / sum_C1 - p_CK))


def add_next_token_(
    grad_CV: Tensor, x_CV: Tensor, spare_CV: Tensor, target_C1: Tensor, weight_C1: Tensor, temperature: float
) -> Tensor:
    """The next-token loss of each row, [C, 1]; adds its weighted gradient by the logits (not by x) to `grad_CV`."""
    torch.mul(x_CV, temperature, out=spare_CV)  # the logits less their largest, at temperature 1
    target_logit_C1 = spare_CV.gather(1, target_C1)
    sum_C1 = spare_CV.exp_().sum(-1, keepdim=True)
    grad_CV.addcmul_(spare_CV, weight_C1 / sum_C1).scatter_add_(1, target_C1, -weight_C1)
    return sum_C1.log() - target_logit_C1
