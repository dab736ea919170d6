"""The two-sided preference loss of Online DPO (paper section 4), and the weights that give its gradient row by row.

P pairs. `difference_P` is D, the policy-to-reference log-ratio of a pair's first response less that of its second, in
nats; `probability_P` is p, the probability that the first is preferred.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_loss(difference_P: Tensor, probability_P: Tensor, beta: float, rescale: bool = True) -> Tensor:
    """
    Both directions of DPO's loss, weighted by the binomial probability: `-p log s(beta D) - (1-p) log s(-beta D)`.

    With `rescale` it is divided by beta, so that the gradient at D = 0 is 1/2 - p whatever beta, and beta alone decides
    where it vanishes: at D = logit(p) / beta. The paper names this rescaling and prints no formula: ours.

    Args:
        difference_P (`Tensor`): D.
        probability_P (`Tensor`): p, from 0 to 1. 0 and 1 give DPO's own loss.
        beta (`float`): strength of the reference.
        rescale (`bool`, *optional*, defaults to `True`): divide by beta.

    Returns:
        `Tensor`: a loss for each pair, in nats (divided by beta).
    """
    logits_P = beta * difference_P
    loss_P = -probability_P * F.logsigmoid(logits_P) - (1 - probability_P) * F.logsigmoid(-logits_P)
    return loss_P / beta if rescale else loss_P


def row_weights(difference_P: Tensor, probability_P: Tensor, beta: float, rescale: bool = True) -> Tensor:
    """
    What multiplies each response's log-probability so that the gradient of the sum is that of [`pair_loss`].

    The loss depends on the policy through D alone, and D is linear in the two log-probabilities: the derivative of the
    loss by D, computed beforehand, is all that one response must know of the other. So the two need not be in memory
    together.

    Returns:
        `Tensor`: [P, 2]; the first response's weight and the second's, which is its negative.
    """
    weight_P = torch.sigmoid(beta * difference_P) - probability_P
    if not rescale:
        weight_P = beta * weight_P
    return torch.stack([weight_P, -weight_P], dim=1)
