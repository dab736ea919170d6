"""Rewards by the flags of `trainers/grpo.py`: weights, another sandbox, and tests that cannot be read."""

import pytest
from datasets import Dataset

from hf_cascade.grpo.arguments import GRPOArguments
from hf_cascade.grpo.scoring import check_programs, open_rewards
from hf_cascade.rewards.fusion import SandboxFusion
from hf_cascade.rewards.programs import program_reward
from hf_cascade.rewards.stem import stem_reward

RIGHT = "[THINK]so[/THINK]\\boxed{5}"


@pytest.fixture(autouse=True)
def as_before():
    backend = program_reward.backend
    yield
    program_reward.backend = backend
    stem_reward.weigh()


@pytest.mark.parametrize("given", [{"correct": 0.5}, '{"correct": 0.5}'])
def test_weights_from_yaml_and_from_the_command_line(given):
    (reward,) = open_rewards(GRPOArguments(reward_funcs=["stem_reward"], stem_weights=given))
    assert reward(prompts=["2+3?"], completions=[RIGHT], answer=["5"]) == [pytest.approx(0.1 + 0.5 + 0.1)]


def test_another_sandbox():
    open_rewards(GRPOArguments(reward_funcs=["program_reward"], sandbox_url="http://localhost:8080"))
    assert isinstance(program_reward.backend, SandboxFusion)


@pytest.mark.parametrize(
    "flags, said",
    [
        ({}, "set reward_funcs"),
        ({"reward_funcs": ["maths_reward"], "stem_weights": {"form": 1}}, "without stem_reward"),
        ({"reward_funcs": ["stem_reward"], "stem_weights": {"shape": 1}}, "no 'shape'; allowed are form, correct"),
        ({"reward_funcs": ["stem_reward"], "stem_weights": {"form": -1}}, "give 0 or more"),
        ({"reward_funcs": ["stem_reward"], "stem_weights": "0.5"}, "give a mapping"),
        ({"reward_funcs": ["maths_reward"], "sandbox_url": "http://localhost"}, "nothing would run"),
        ({"reward_funcs": ["stem_reward"], "sandbox_url": "localhost"}, "http://"),
    ],
)
def test_what_is_refused(flags, said):
    with pytest.raises(ValueError, match=said):
        open_rewards(GRPOArguments(**flags))


def test_tests_that_cannot_be_read_are_told_before_training():
    rows = Dataset.from_list([{"prompt": "p", "tests": ["assert f(1) == 2"]}, {"prompt": "q", "tests": ["f(1) =="]}])
    check_programs([stem_reward], rows.select([0]), None)
    check_programs([], rows)
    with pytest.raises(ValueError, match="row 1: a test or its setup is no Python"):
        check_programs([stem_reward], None, rows)
