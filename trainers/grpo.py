"""GRPO (paper section 5, Magistral's recipe): groups of responses to a prompt, those with more reward made likelier.

    accelerate launch trainers/grpo.py \
        --config grpo.yaml --model_name_or_path runs/reasoning/sft --output_dir runs/reasoning/stem

with, in `grpo.yaml`, TRL's `datasets:` block (rows with `prompt`, and columns that reward functions ask for), the
settings of `GRPOConfig` and `CascadeGRPOConfig`, and `reward_funcs`, by name. General RL: `rubric_reward`, which reads
the column `rubric`, and its judge: `judge_url` and `judge_model`, or `judge_model_name_or_path`. An adapter is merged
into the saved model, and kept in `adapter/`. The same command resumes a stopped run.
"""


def main(training_args, grpo_args, model_args, mixture):
    from hf_cascade import stage
    from hf_cascade.grpo.report import REPORT
    from hf_cascade.grpo.trainer import CascadeGRPOTrainer
    from hf_cascade.online.opening import Opening
    from hf_cascade.rewards.form import format_reward
    from hf_cascade.rewards.rubric import check_rubrics, rubric_reward
    from hf_cascade.rewards.verifiable import load_reward

    stage.check_output_dir(training_args.output_dir)
    if not grpo_args.reward_funcs:
        raise ValueError("nothing given to score responses: set reward_funcs")
    rewards = [load_reward(name) for name in grpo_args.reward_funcs]
    grades = rubric_reward in rewards
    inputs = {"model_name_or_path": model_args.model_name_or_path, **check_judge(grpo_args, grades)}
    inputs |= {"prompts_from": grpo_args.prompts_from} if grpo_args.prompts_from else {}
    opening = Opening(training_args, grpo_args, model_args, mixture, grpo_args.prompts_from)
    if grades:
        for rows in filter(None, (opening.train, opening.held_out)):
            check_rubrics(rows.column_names, rows["rubric"] if "rubric" in rows.column_names else ())
    format_reward.tokenizer = getattr(opening.kit, "tokenizer", opening.kit)  # parsing hides a second thinking block
    if grades:
        rubric_reward.grader, rubric_reward.template = open_judge(grpo_args)
    trainer = CascadeGRPOTrainer(reward_funcs=rewards, args=training_args, **opening.trainer_arguments())

    def complete(folder):
        opening.complete(trainer, folder)
        return {**REPORT.write(trainer.state.log_history, folder), **trainer.generated}

    return stage.train(trainer, inputs, companions=complete)


def check_judge(grpo_args, grades: bool) -> dict[str, str]:
    """One judge where rubrics are graded, and none elsewhere; a model of this process is an input for the manifest."""
    given = {name: value for name, value in vars(grpo_args).items() if name.startswith("judge_") and value is not None}
    if given and not grades:
        raise ValueError(f"{' and '.join(given)} without rubric_reward among reward_funcs: nothing would be judged")
    if not grades:
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
        from hf_cascade.rewards.rubric import check_template

        check_template(grpo_args.judge_template)
    return {name: given[name] for name in judges if name != "judge_url"}


def open_judge(grpo_args):
    """The grader of rubrics, and the question it is asked."""
    import os

    from hf_cascade.rewards.endpoint import ChatEndpoint
    from hf_cascade.rewards.graders import MAX_TOKENS, EndpointGrader, LocalGrader
    from hf_cascade.rewards.rubric import QUESTION

    template = grpo_args.judge_template or QUESTION
    settings = grpo_args.judge_chat_template_kwargs
    if grpo_args.judge_model_name_or_path:
        return LocalGrader.from_pretrained(grpo_args.judge_model_name_or_path, chat_template_kwargs=settings), template
    most = grpo_args.judge_max_requests
    if most is not None:
        most = max(1, most // int(os.environ.get("WORLD_SIZE", "1")))
    endpoint = ChatEndpoint(grpo_args.judge_url, grpo_args.judge_model, cache=grpo_args.judge_cache, max_requests=most)
    given = grpo_args.judge_max_tokens
    return EndpointGrader(endpoint, MAX_TOKENS if given is None else given, settings), template


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from hf_cascade.grpo.arguments import GRPOArguments
    from hf_cascade.grpo.config import CascadeGRPOConfig

    return TrlParser((CascadeGRPOConfig, GRPOArguments, ModelConfig, DatasetMixtureConfig))


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: make_parser().parse_args_and_config())
