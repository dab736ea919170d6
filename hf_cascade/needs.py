"""What each kind of stage needs before it can run, by its flags alone: planning checks it without importing torch."""

import re

# These belong to `inputs`: only there is a stage's name its folder, and are shapes and fingerprints followed.
INPUT_FLAGS = ("model", "model_name_or_path", "teacher", "teacher_model_name_or_path", "data_after")
INPUT_FLAGS += ("reward_model", "baseline", "prompts_from", "judge_model_name_or_path")
TEACHER_FLAGS = ("teacher_model_name_or_path", "teacher_url", "teacher_cache")  # one of them
JUDGE_FLAGS = ("reward_model", "judge_url", "reward_funcs")  # one of them
RUBRIC_REWARD, RUBRIC_JUDGES = "rubric_reward", ("judge_url", "judge_model_name_or_path")  # one of them
REWARD_FLAGS = {"odpo": "reward_funcs", "difficulty": "reward", "evaluate": "reward"}  # where no flag names a judge
REQUIRED_INPUTS = {
    "prune": ("model",),
    "pretrain": (),
    "distill": ("model_name_or_path",),
    "sft": ("model_name_or_path",),
    "pwrm": ("model_name_or_path",),
    "odpo": ("model_name_or_path",),
    "difficulty": (),
    "grpo": ("model_name_or_path",),
    "evaluate": ("model",),
}
ROWS = {
    "pretrain": "text",
    "distill": "text",
    "sft": "text",
    "pwrm": "pairs (prompt, chosen, rejected)",
    "odpo": "prompts",
    "grpo": "prompts",
}


def check(run: str, settings: dict, inputs: dict, where: str) -> list[str]:
    """
    Inputs given in the wrong place, and what without which the stage could only fail; one line each.

    Args:
        run (`str`): what runs.
        settings (`dict`): its flags.
        inputs (`dict`): flags to earlier stages, paths or Hub ids.
        where (`str`): the stage's place, for the lines.
    """
    problems = [f"{where}.{flag}: name it under `inputs`" for flag in INPUT_FLAGS if flag in settings]
    missing = [flag for flag in REQUIRED_INPUTS[run] if flag not in inputs and flag not in settings]
    problems += [f"{where}.inputs.{flag}: missing, and {run} needs it" for flag in missing]
    if run == "pretrain" and ("model_config" in settings) == ("model_name_or_path" in inputs):
        problems.append(f"{where}: pretrain needs one of set.model_config and inputs.model_name_or_path")
    teachers = [flag for flag in TEACHER_FLAGS if flag in inputs or settings.get(flag) is not None]
    if run == "distill" and not teachers or run == "sft" and bool(teachers) == bool(settings.get("plain_sft")):
        or_not = " or set.plain_sft" if run == "sft" else ""
        problems.append(
            f"{where}: {run} needs one of inputs.teacher_model_name_or_path, set.teacher_url, set.teacher_cache{or_not}"
        )
    judges = [flag for flag in JUDGE_FLAGS if flag in inputs or settings.get(flag)]
    if run == "grpo":
        problems += _check_grpo(settings, inputs, where)
    if run == "difficulty":
        problems += _check_difficulty(settings, inputs, where)
    if run == "odpo" and len(judges) != 1:
        given = " and ".join(judges) or "none"
        problems.append(
            f"{where}: odpo needs one of inputs.reward_model, set.judge_url, set.reward_funcs, and has {given}"
        )
    if run in REWARD_FLAGS and _names_rubrics(settings.get(REWARD_FLAGS[run])):
        problems.append(
            f"{where}.set.{REWARD_FLAGS[run]}: {RUBRIC_REWARD} has no judge in {run}: name, as file.py:name, a "
            "RubricReward of yours with its grader"
        )
    if run == "pwrm" and settings.get("test_split_size") is None:
        problems.append(f"{where}.set.test_split_size: missing, and pwrm sets its temperature on held-out pairs")
    if run in ROWS and not settings.get("datasets") and "prompts_from" not in inputs:
        problems.append(
            f"{where}.set.datasets: missing, and {run} needs {ROWS[run]}, as [{{path: json, data_files: FILE}}]"
        )
    return problems


def _check_grpo(settings: dict, inputs: dict, where: str) -> list[str]:
    """What trainers/grpo.py would refuse of its rewards, their judge and its prompts."""
    problems, rewards = [], settings.get("reward_funcs")
    if not rewards:
        problems.append(f"{where}.set.reward_funcs: missing, and grpo needs rewards")
    if settings.get("datasets") and "prompts_from" in inputs:
        problems.append(f"{where}: set.datasets and inputs.prompts_from are both given: leave one of them out")
    judges = [flag for flag in RUBRIC_JUDGES if flag in inputs or settings.get(flag)]
    grades = _names_rubrics(rewards)
    flags = [flag for flag in {**settings, **inputs} if flag.startswith("judge_")]
    if grades and len(judges) != 1:
        given = " and ".join(judges) or "none"
        problems.append(
            f"{where}: {RUBRIC_REWARD} needs one of set.judge_url (with set.judge_model) and "
            f"inputs.judge_model_name_or_path, and has {given}"
        )
    elif judges == ["judge_url"] and not settings.get("judge_model"):
        problems.append(f"{where}.set.judge_model: missing: the name of the model that judges at judge_url")
    endpoints = [flag for flag in flags if flag not in (*RUBRIC_JUDGES, "judge_template", "judge_chat_template_kwargs")]
    if judges == ["judge_model_name_or_path"] and endpoints:
        problems.append(f"{where}: {' and '.join(endpoints)} without judge_url: they are an endpoint's")
    if flags and not grades:
        problems.append(f"{where}: {' and '.join(flags)} without {RUBRIC_REWARD} in reward_funcs: nothing is judged")
    return problems


def _names_rubrics(rewards) -> bool:
    """Whether the rubric reward that scripts give a judge is among the rewards of a recipe, given as a list or one."""
    names = [str(name) for name in (rewards if isinstance(rewards, list) else [rewards])]
    return any(re.fullmatch(rf"(hf_cascade\..*\.)?{RUBRIC_REWARD}", name) for name in names)


def _check_difficulty(settings: dict, inputs: dict, where: str) -> list[str]:
    """What `hf-cascade difficulty` would refuse."""
    problems = [
        f"{where}.set.{flag}: missing, and difficulty needs it"
        for flag in ("prompts", "reward")
        if not settings.get(flag)
    ]
    if ("model" in inputs) == bool(settings.get("url")):
        problems.append(f"{where}: difficulty needs one of inputs.model and set.url (with set.served_model)")
    elif bool(settings.get("url")) != bool(settings.get("served_model")):
        problems.append(f"{where}: set.url and set.served_model, the model's name there, go together")
    return problems
