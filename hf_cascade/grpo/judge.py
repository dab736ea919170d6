"""The judge of `rubric_reward`, from the flags of `trainers/grpo.py`: checked first, opened when the rows are read."""

import os
from collections.abc import Callable

from datasets import Dataset

from hf_cascade.grpo.arguments import GRPOArguments
from hf_cascade.rewards.endpoint import ChatEndpoint
from hf_cascade.rewards.graders import MAX_TOKENS, EndpointGrader, LocalGrader
from hf_cascade.rewards.rubric import QUESTION, Grader, check_rubrics, check_template, rubric_reward


def check_judge(grpo_args: GRPOArguments, rewards: list[Callable]) -> dict[str, str]:
    """
    One judge where rubrics are graded, and none elsewhere.

    Args:
        grpo_args (`GRPOArguments`): with the flags `judge_*`.
        rewards (`list[Callable]`): of the script.

    Returns:
        `dict[str, str]`: a judge of this process, which is an input for the manifest.

    Raises:
        ValueError: none or two, flags that go with another judge, or a bad template.
    """
    given = {name: value for name, value in vars(grpo_args).items() if name.startswith("judge_") and value is not None}
    if rubric_reward not in rewards:
        if given:
            raise ValueError(f"{' and '.join(given)} without rubric_reward among reward_funcs: nothing would be judged")
        return {}
    judges = [name for name in ("judge_url", "judge_model_name_or_path") if name in given]
    if len(judges) != 1:
        raise ValueError(
            f"rubric_reward has {' and '.join(judges) or 'no judge'}: set judge_url and judge_model, or "
            "judge_model_name_or_path"
        )
    if judges == ["judge_url"] and "judge_model" not in given:
        raise ValueError(f"judge_url={grpo_args.judge_url} without judge_model: name the model that judges there")
    remote = [name for name in given if name not in (*judges, "judge_template", "judge_chat_template_kwargs")]
    if judges != ["judge_url"] and remote:
        raise ValueError(f"{' and '.join(remote)} without judge_url: they are an endpoint's")
    if given.get("judge_max_requests", 1) < 1:
        raise ValueError(f"judge_max_requests={grpo_args.judge_max_requests}: give 1 or more, or leave it out")
    if "judge_template" in given:
        check_template(grpo_args.judge_template)
    return {name: given[name] for name in judges if name != "judge_url"}


def open_judge(grpo_args: GRPOArguments, rewards: list[Callable], *splits: Dataset | None) -> None:
    """
    Give `rubric_reward` its judge, where it is among the rewards and each split has rubrics.

    Args:
        grpo_args (`GRPOArguments`): checked.
        rewards (`list[Callable]`): of the script.
        splits (`Dataset`, *optional*): rows to train on, and held-out ones if there are any.

    Raises:
        ValueError: rows without rubrics; a judge that does not open.
    """
    if rubric_reward not in rewards:
        return
    for rows in filter(None, splits):
        check_rubrics(rows.column_names, rows["rubric"] if "rubric" in rows.column_names else ())
    rubric_reward.grader = make_grader(grpo_args)
    rubric_reward.template = grpo_args.judge_template or QUESTION


def make_grader(grpo_args: GRPOArguments) -> Grader:
    """Who grades: a model of this process, or this process's share of an endpoint."""
    settings = grpo_args.judge_chat_template_kwargs
    if grpo_args.judge_model_name_or_path:
        return LocalGrader.from_pretrained(grpo_args.judge_model_name_or_path, chat_template_kwargs=settings)
    most = grpo_args.judge_max_requests
    if most is not None:
        most = max(1, most // int(os.environ.get("WORLD_SIZE", "1")))
    endpoint = ChatEndpoint(grpo_args.judge_url, grpo_args.judge_model, cache=grpo_args.judge_cache, max_requests=most)
    given = grpo_args.judge_max_tokens
    return EndpointGrader(endpoint, MAX_TOKENS if given is None else given, settings)
