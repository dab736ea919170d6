"""Magistral's arithmetic on rewards (arXiv 2506.10910, sections 2.1 and 2.2), as functions of tensors.

P groups of G responses to one prompt each, N = P * G responses, F reward functions. A reward of NaN is none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EQUAL = 1e-6  # rewards nearer than this are equal (ours): rounding must not become an advantage


@dataclass(frozen=True)
class Lesson:
    """
    What a batch of groups teaches.

    Attributes:
        advantages_PG (`Tensor`): normalised; 0 where a response teaches nothing.
        weights_PG (`Tensor`): what a token of a response counts; 1 on average over the tokens that count.
        tokens (`Tensor`): how many tokens count, a scalar: the sum over tokens is divided by it.
        live_P (`Tensor`): boolean, which groups teach something.
        std (`Tensor`): the standard deviation that was divided by, a scalar; 0 without a live group.
    """

    advantages_PG: Tensor
    weights_PG: Tensor
    tokens: Tensor
    live_P: Tensor
    std: Tensor


def length_penalties(lengths_N: Tensor, limit: int, cache: int, most: float) -> Tensor:
    """
    Magistral's soft length penalty (equation 1): 0 up to `limit - cache` tokens, then linear to `-most` at `limit`.

    Args:
        lengths_N (`Tensor`): tokens of each response.
        limit (`int`): tokens at which responses are cut off (l_max).
        cache (`int`): tokens before it over which the penalty grows (l_cache).
        most (`float`): the penalty of a response that was cut off.

    Returns:
        `Tensor`: [N], from `-most` to 0.
    """
    return -most * ((lengths_N - (limit - cache)) / cache).clamp(0, 1)


def drop_unjudged(rewards_NF: Tensor, group_size: int) -> Tensor:
    """
    Rewards with NaN throughout where a response was not judged by all functions that judge its group (ours).

    A function that gave no reward in the whole group does not apply to it (answers of code, of mathematics) and is
    no lack; one that gave some of the group a reward has failed on the others, and a missing reward is not a 0.

    Args:
        rewards_NF (`Tensor`): rewards by each function.
        group_size (`int`): responses to a prompt, G.
    """
    given_PGF = ~rewards_NF.isnan().view(-1, group_size, rewards_NF.size(1))
    applies_P1F = given_PGF.any(1, keepdim=True)
    judged_PG = (given_PGF | ~applies_P1F).all(2) & applies_P1F.any(2)
    return torch.where(judged_PG.view(-1, 1), rewards_NF, torch.nan)


def total_rewards(rewards_NF: Tensor, weights_F: Tensor) -> Tensor:
    """Weighted sum over the functions that gave a reward [N]; NaN where none did."""
    totals_N = (rewards_NF * weights_F.to(rewards_NF)).nansum(1)
    return torch.where(rewards_NF.isnan().all(1), torch.nan, totals_N)


def live_groups(rewards_PG: Tensor) -> Tensor:
    """Boolean [P]: whether a group's rewards differ; the others have no advantage and are dropped (section 2.1)."""
    judged_PG = ~rewards_PG.isnan()
    highest_P = torch.where(judged_PG, rewards_PG, -torch.inf).amax(1)
    lowest_P = torch.where(judged_PG, rewards_PG, torch.inf).amin(1)
    return highest_P - lowest_P > EQUAL  # -inf - inf where nothing was judged


def learn(rewards_PG: Tensor, tokens_PG: Tensor, scope: str = "group") -> Lesson:
    """
    Advantages and token weights of a minibatch, as Magistral has them (section 2.1).

    The advantage is the reward minus its group's mean, divided by the standard deviation of such differences over the
    minibatch's live groups (their mean is 0; population standard deviation: ours, paper silent). The loss of a prompt
    is the sum over its group's tokens divided by the group's total length, and the loss the mean over live groups:

        1 / P  *  sum over groups  1 / length(group)  *  sum over the group's tokens

    A token's weight is therefore `tokens / (P * length(group))`, and the sum is divided by `tokens`.

    Args:
        rewards_PG (`Tensor`): total reward of each response.
        tokens_PG (`Tensor`): tokens of each response that the policy wrote.
        scope (`str`, *optional*, defaults to `"group"`): `"batch"` divides by the length of all live groups together,
            as DAPO does (arXiv 2503.14476): every token counts the same, and long groups more.

    Returns:
        `Lesson`: of dead groups and responses without a reward nothing counts, in no mean and no length.
    """
    live_P, judged_PG = live_groups(rewards_PG), ~rewards_PG.isnan()
    counted_PG = judged_PG & live_P[:, None]
    means_P1 = rewards_PG.nanmean(1, keepdim=True)
    centred_PG = torch.where(counted_PG, rewards_PG - means_P1, 0.0)
    std = (centred_PG.square().sum() / counted_PG.sum().clamp(min=1)).sqrt()
    advantages_PG = centred_PG / torch.where(std > 0, std, 1.0)
    lengths_P1 = (tokens_PG * counted_PG).sum(1, keepdim=True)
    tokens = lengths_P1.sum()
    weights_PG = counted_PG.to(rewards_PG)
    if scope == "group":
        weights_PG = weights_PG * tokens / (live_P.sum() * lengths_P1).clamp(min=1)
    return Lesson(advantages_PG, weights_PG, tokens, live_P, std)
