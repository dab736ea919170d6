"""From rewards to what a pair teaches: the win probability, infinite loops, and which pairs are kept.

N responses (rows 2i and 2i + 1 are a pair), P pairs, F reward functions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Judgement:
    """
    What P pairs teach.

    Attributes:
        probability_P (`Tensor`): P(the first is preferred); 0.5 where there is nothing to learn.
        keep_P (`Tensor`): boolean, whether the pair is learned from.
        metrics (`dict[str, float]`): rates over the pairs.
    """

    probability_P: Tensor
    keep_P: Tensor
    metrics: dict[str, float]


def win_probabilities(rewards_NF: Tensor, weights_F: Tensor, pairwise_F: Tensor, scale: float) -> Tensor:
    """
    P(first preferred) of every pair: the weighted mean over the reward functions that gave one.

    A pairwise reward model's reward of the first response is that probability itself; two scalar rewards give
    sigmoid((first - second) / scale), as Bradley and Terry have it.

    Args:
        rewards_NF (`Tensor`): a reward of each response by each function; NaN is none.
        weights_F (`Tensor`): weights of the functions.
        pairwise_F (`Tensor`): boolean, which functions compare pairs.
        scale (`float`): reward difference at which the odds are e to 1.

    Returns:
        `Tensor`: [P]; NaN where no function judged both responses.
    """
    first_PF, second_PF = rewards_NF[0::2], rewards_NF[1::2]
    scored_PF = torch.sigmoid((first_PF - second_PF) / scale)
    probability_PF = torch.where(pairwise_F, first_PF, scored_PF)
    weight_PF = weights_F.to(rewards_NF).expand_as(probability_PF) * ~probability_PF.isnan()
    return (probability_PF.nan_to_num() * weight_PF).sum(1) / weight_PF.sum(1)  # 0 / 0: no judgement


def judge(probability_P: Tensor, looping_N: Tensor, identical_P: Tensor, soft: bool = True) -> Judgement:
    """
    The paper's rule for loops (section 4), and which pairs are left.

    A response in an infinite loop loses to one that is not, whatever the reward model says. A pair is dropped when both
    loop, when nobody could judge it, or when its responses are the same.

    Args:
        probability_P (`Tensor`): from [`win_probabilities`].
        looping_N (`Tensor`): boolean, of each response.
        identical_P (`Tensor`): boolean, whether both responses are the same tokens.
        soft (`bool`, *optional*, defaults to `True`): keep probabilities; `False` makes them 0, 0.5 or 1.

    Returns:
        `Judgement`: of every pair.
    """
    first_P, second_P = looping_N[0::2], looping_N[1::2]
    judged_P = torch.where(first_P, 0.0, torch.where(second_P, 1.0, probability_P))
    both_P, unjudged_P = first_P & second_P, judged_P.isnan()
    keep_P = ~(both_P | unjudged_P | identical_P)
    if not soft:
        judged_P = 0.5 + 0.5 * torch.sign(judged_P - 0.5)
    judged_P = torch.where(keep_P, judged_P, 0.5)
    kept_P = (judged_P - 0.5).abs()[keep_P]
    metrics = {
        "loop_rate": looping_N.float().mean().item(),
        "loop_both_rate": both_P.float().mean().item(),
        "unjudged_rate": unjudged_P.float().mean().item(),
        "identical_rate": identical_P.float().mean().item(),
        "dropped_rate": 1 - keep_P.float().mean().item(),
    }
    if len(kept_P):
        metrics["preference_strength"] = 2 * kept_P.mean().item()  # 0: as good as equal, 1: certain
    return Judgement(judged_P, keep_P, metrics)


def win_rate(probability_P: Tensor, looping_N: Tensor) -> float:
    """How often the first responses win, loops counted as in [`judge`]; two loops are a tie. NaN: nothing judged."""
    first_P, second_P = looping_N[0::2], looping_N[1::2]
    won_P = torch.where(first_P, 0.0, torch.where(second_P, 1.0, probability_P))
    won_P = torch.where(first_P & second_P, 0.5, won_P)
    return won_P.nanmean().item()
