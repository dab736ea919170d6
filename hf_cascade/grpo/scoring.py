"""What scores responses, by the flags of `trainers/grpo.py`: rewards, their weights, where programs run."""

from collections.abc import Callable

from datasets import Dataset

from hf_cascade.grpo.arguments import GRPOArguments
from hf_cascade.rewards.fusion import SandboxFusion
from hf_cascade.rewards.programs import check_tests, program_reward
from hf_cascade.rewards.stem import stem_reward
from hf_cascade.rewards.verifiable import load_reward

RUNS_PROGRAMS = (program_reward, stem_reward)


def open_rewards(grpo_args: GRPOArguments) -> list[Callable]:
    """
    The rewards by their names; `stem_weights` and `sandbox_url` change them in this process.

    Args:
        grpo_args (`GRPOArguments`): with `reward_funcs`.

    Raises:
        ValueError: none, one that there is not, or a flag for a reward that is not among them.
    """
    if not grpo_args.reward_funcs:
        raise ValueError("nothing given to score responses: set reward_funcs")
    rewards = [load_reward(name) for name in grpo_args.reward_funcs]
    if grpo_args.stem_weights is not None:
        if stem_reward not in rewards:
            raise ValueError(
                "stem_weights without stem_reward among reward_funcs: they are its own; see reward_weights"
            )
        stem_reward.weigh(**grpo_args.stem_weights)
    if grpo_args.sandbox_url is not None:
        if not any(reward in rewards for reward in RUNS_PROGRAMS):
            raise ValueError("sandbox_url without program_reward or stem_reward among reward_funcs: nothing would run")
        program_reward.backend = SandboxFusion(grpo_args.sandbox_url)
    return rewards


def check_programs(rewards: list[Callable], *splits: Dataset | None) -> None:
    """
    Refuse tests that cannot be read before training begins, not when their row is drawn.

    Args:
        rewards (`list[Callable]`): as [`open_rewards`] gives them.
        splits (`Dataset`, *optional*): rows to train on, and held-out ones if there are any.

    Raises:
        ValueError: tests of another form; names the row.
    """
    if not any(reward in rewards for reward in RUNS_PROGRAMS):
        return
    for rows in splits:
        if rows is None or "tests" not in (rows.column_names or ()):
            continue
        setups = rows["setup"] if "setup" in rows.column_names else [None] * len(rows)
        for number, (tests, setup) in enumerate(zip(rows["tests"], setups, strict=True)):
            try:
                check_tests(tests or [], setup or "")
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
