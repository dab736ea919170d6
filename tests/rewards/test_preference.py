"""`PairwisePreference` as a TRL reward function, and the Bradley-Terry model."""

import math

import pytest

from hf_cascade.rewards.preference import PairwisePreference, win_probability


class Recorder(PairwisePreference):
    """Prefers the longer text; no judgement on texts of one length."""

    def compare(self, prompts, first, second, **columns):
        self.seen = (prompts, first, second, columns)
        self.last_metrics = {"position_bias": 0.25}
        return [
            None if len(a) == len(b) else float(len(a) > len(b)) * 0.8 + 0.1 for a, b in zip(first, second, strict=True)
        ]


def test_rows_of_a_pair_get_p_and_its_complement():
    logged = {}
    judge = Recorder("judge")
    rewards = judge(
        prompts=["x", "x", "y", "y", "z", "z"],
        completions=["aaa", "b", "cc", "dd", "e", "<think>long long</think>ff"],
        log_metric=logged.__setitem__,
        source=[1, 1, 2, 2, 3, 3],
        trainer_state="one",
    )
    assert rewards[2:4] == [None, None]
    assert rewards[:2] + rewards[4:] == pytest.approx([0.9, 0.1, 0.1, 0.9])
    prompts, first, second, columns = judge.seen
    assert (prompts, first, second) == (["x", "y", "z"], ["aaa", "cc", "e"], ["b", "dd", "ff"])
    assert columns == {"source": [1, 2, 3], "trainer_state": "one"}
    assert logged == {"judge/position_bias": 0.25}


def test_without_a_name_it_is_the_class():
    assert Recorder().__name__ == "Recorder"
    with pytest.raises(TypeError):
        PairwisePreference()


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        (["x"], ["a"], "num_generations=2"),
        (["x", "x"], ["a"], "2 prompts and 1 completions"),
        (["x", "y"], ["a", "b"], "rows 0 and 1 have different prompts"),
    ],
)
def test_what_is_no_pair_is_refused(prompts, completions, message):
    with pytest.raises(ValueError, match=message):
        Recorder()(prompts, completions)


def test_win_probability_is_bradley_terry():
    assert win_probability(2.0, 0.5, 0.5) == pytest.approx(math.exp(4) / (math.exp(4) + math.exp(1)))
    assert win_probability(1e9, 0.0, 1.0) == 1.0 and win_probability(0.0, 1e9, 1.0) == 0.0
    assert win_probability(3.0, 3.0, 1.0) == 0.5
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="scale"):
            win_probability(1.0, 0.0, scale)
