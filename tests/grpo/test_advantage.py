"""advantage.py: every formula of Magistral's recipe against numbers computed by hand."""

import math

import pytest
import torch

from hf_cascade.grpo.advantage import drop_unjudged, learn, length_penalties, live_groups, total_rewards

NAN = math.nan


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), equal_nan=True)


def test_length_penalty_is_linear_in_the_cache():
    lengths_N = torch.tensor([0.0, 16.0, 17.0, 18.0, 20.0, 25.0])
    close(length_penalties(lengths_N, limit=20, cache=4, most=0.1), [0.0, 0.0, -0.025, -0.05, -0.1, -0.1])
    close(length_penalties(lengths_N, limit=20, cache=20, most=0.5), [0.0, -0.4, -0.425, -0.45, -0.5, -0.5])


def test_a_function_applies_to_whole_groups():
    rewards_NF = torch.tensor([[1.0, NAN], [0.0, NAN], [NAN, 2.0], [3.0, NAN], [NAN, NAN], [NAN, NAN]])
    found = drop_unjudged(rewards_NF, 2)
    close(found, [[1.0, NAN], [0.0, NAN], [NAN, NAN], [NAN, NAN], [NAN, NAN], [NAN, NAN]])
    close(total_rewards(found, torch.tensor([2.0, 1.0])), [2.0, 0.0, NAN, NAN, NAN, NAN])
    close(total_rewards(torch.tensor([[1.0, 2.0]]), torch.tensor([2.0, 0.5])), [3.0])


def test_groups_whose_rewards_differ_are_live():
    rewards_PG = torch.tensor([[1, 1, 1], [0, 0, 1], [1, 1 + 1e-7, 1], [NAN, 1, 1], [NAN, NAN, 1], [NAN, NAN, NAN]])
    assert live_groups(rewards_PG).tolist() == [False, True, False, False, False, False]
    assert live_groups(torch.tensor([[NAN, 1.0, 0.9]])).tolist() == [True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_lesson_by_hand(dtype):
    """Group 0: centred -.5 .5 (third unjudged); group 1 dead; group 2: centred -1 -1 2. Squares 6.5 over 5."""
    rewards_PG = torch.tensor([[0, 1, NAN], [1, 1, 1], [0, 0, 3]], dtype=dtype)
    tokens_PG = torch.tensor([[2, 4, 50], [7, 7, 7], [1, 1, 10]])
    lesson, std = learn(rewards_PG, tokens_PG), math.sqrt(6.5 / 5)
    close(lesson.advantages_PG, [[-0.5 / std, 0.5 / std, 0], [0, 0, 0], [-1 / std, -1 / std, 2 / std]])
    close(lesson.std, std)
    assert lesson.live_P.tolist() == [True, False, True] and lesson.tokens == 18
    close(lesson.weights_PG, [[1.5, 1.5, 0], [0, 0, 0], [0.75, 0.75, 0.75]])  # 18 / (2 * 6), 18 / (2 * 12)
    close((lesson.weights_PG * tokens_PG).sum(), 18.0)
    together = learn(rewards_PG, tokens_PG, "batch")
    close(together.weights_PG, [[1, 1, 0], [0, 0, 0], [1, 1, 1]])
    close(together.advantages_PG, lesson.advantages_PG.tolist())


def test_a_lesson_does_not_depend_on_dead_groups_shift_or_scale():
    torch.manual_seed(0)
    rewards_PG, tokens_PG = torch.rand(3, 4), torch.randint(1, 9, (3, 4))
    lesson = learn(rewards_PG, tokens_PG)
    close(lesson.advantages_PG.square().mean(), 1.0)
    close(lesson.advantages_PG.sum(1), [0.0] * 3)
    for other in (2 * rewards_PG, rewards_PG + torch.tensor([[0.5], [-1.0], [2.0]])):
        torch.testing.assert_close(learn(other, tokens_PG).advantages_PG, lesson.advantages_PG, atol=1e-5, rtol=1e-5)
    more = learn(torch.cat([rewards_PG, torch.ones(2, 4)]), torch.cat([tokens_PG, torch.full((2, 4), 90)]))
    torch.testing.assert_close(more.advantages_PG[:3], lesson.advantages_PG)
    torch.testing.assert_close(more.weights_PG[:3], lesson.weights_PG)
    assert more.tokens == lesson.tokens and not more.advantages_PG[3:].any()


def test_nothing_to_learn_is_all_zero():
    lesson = learn(torch.tensor([[1.0, 1.0], [NAN, NAN]]), torch.ones(2, 2, dtype=torch.long))
    assert not lesson.advantages_PG.any() and not lesson.weights_PG.any() and lesson.tokens == 0 and lesson.std == 0
