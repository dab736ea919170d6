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
    from hf_cascade.grpo.judge import check_judge, open_judge
    from hf_cascade.grpo.report import REPORT
    from hf_cascade.grpo.scoring import check_programs, open_rewards
    from hf_cascade.grpo.trainer import CascadeGRPOTrainer
    from hf_cascade.online.opening import Opening
    from hf_cascade.publish.draft import push_draft
    from hf_cascade.rewards.form import format_reward
    from hf_cascade.rewards.rubric import rubric_reward

    stage.check_output_dir(training_args.output_dir)
    rewards = open_rewards(grpo_args)
    inputs = {"model_name_or_path": model_args.model_name_or_path, **check_judge(grpo_args, rewards)}
    inputs |= {"prompts_from": grpo_args.prompts_from} if grpo_args.prompts_from else {}
    opening = Opening(training_args, grpo_args, model_args, mixture, grpo_args.prompts_from)
    opening.check_rewards([reward for reward in rewards if reward is not rubric_reward])  # it has no judge yet
    check_programs(rewards, opening.train, opening.held_out)
    open_judge(grpo_args, rewards, opening.train, opening.held_out)
    format_reward.tokenizer = getattr(opening.kit, "tokenizer", opening.kit)  # parsing hides a second thinking block
    trainer = CascadeGRPOTrainer(reward_funcs=rewards, args=training_args, **opening.trainer_arguments())

    def complete(folder):
        opening.complete(trainer, folder)
        return {**REPORT.write(trainer.state.log_history, folder), **trainer.generated}

    return push_draft(trainer, stage.train(trainer, inputs, companions=complete))


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from hf_cascade.grpo.arguments import GRPOArguments
    from hf_cascade.grpo.config import CascadeGRPOConfig

    return TrlParser((CascadeGRPOConfig, GRPOArguments, ModelConfig, DatasetMixtureConfig))


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: make_parser().parse_args_and_config())
