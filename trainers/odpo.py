"""Online DPO (paper section 4): two responses to a prompt by the current policy, ranked; the better made likelier.

    accelerate launch trainers/odpo.py \
        --config odpo.yaml \
        --model_name_or_path runs/instruct/sft --reward_model runs/instruct/pwrm \
        --output_dir runs/instruct/odpo

with, in `odpo.yaml`, TRL's `datasets:` block (rows with `prompt`, and columns that reward functions ask for) and the
settings of `GRPOConfig` and `CascadeODPOConfig`. Instead of a pairwise reward model a judge elsewhere (`--judge_url`,
`--judge_model`) or any TRL reward (`--reward_funcs`) ranks. `--sample_from reference` is offline DPO on the same
prompts and judge. Rows of `test_split_size` are held out: the win-rate against the starting policy is measured on them
at every evaluation. An adapter is merged into the saved model, and kept in `adapter/`.
"""


def main(training_args, odpo_args, model_args, mixture):
    from hf_cascade import stage
    from hf_cascade.odpo.report import REPORT
    from hf_cascade.odpo.trainer import CascadeODPOTrainer
    from hf_cascade.online.opening import Opening
    from hf_cascade.publish.draft import push_draft

    stage.check_output_dir(training_args.output_dir)
    inputs = {"model_name_or_path": model_args.model_name_or_path, **check_judge(odpo_args)}
    opening = Opening(training_args, odpo_args, model_args, mixture)
    judge = open_judge(odpo_args)
    opening.check_rewards(judge if isinstance(judge, list) else [judge])
    trainer = CascadeODPOTrainer(reward_funcs=judge, args=training_args, **opening.trainer_arguments())

    def complete(folder):
        opening.complete(trainer, folder)
        return {**REPORT.write(trainer.state.log_history, folder), **trainer.generated}

    return push_draft(trainer, stage.train(trainer, inputs, companions=complete))


def check_judge(odpo_args) -> dict[str, str]:
    """Exactly one judge; a reward model is an input that the manifest names."""
    given = [name for name in ("reward_model", "judge_url", "reward_funcs") if getattr(odpo_args, name)]
    if len(given) != 1:
        raise ValueError(
            f"{' and '.join(given) or 'nothing'} given to rank responses: set one of reward_model, judge_url, "
            "reward_funcs"
        )
    if odpo_args.judge_url and not odpo_args.judge_model:
        raise ValueError(f"judge_url={odpo_args.judge_url} without judge_model: name the model that judges there")
    return {"reward_model": odpo_args.reward_model} if odpo_args.reward_model else {}


def open_judge(odpo_args):
    """The pairwise reward model, the judge at an endpoint, or TRL reward functions."""
    if odpo_args.reward_model:
        from hf_cascade.rewards.pairwise import PairwiseRewardModel

        return PairwiseRewardModel.from_pretrained(odpo_args.reward_model, dtype=odpo_args.reward_model_dtype)
    if odpo_args.judge_url:
        from hf_cascade.rewards.judge import GenerativeJudge

        return GenerativeJudge(odpo_args.judge_url, odpo_args.judge_model)
    from hf_cascade.rewards.verifiable import load_reward

    return [load_reward(name) for name in odpo_args.reward_funcs]


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from hf_cascade.odpo.arguments import ODPOArguments
    from hf_cascade.odpo.config import CascadeODPOConfig

    return TrlParser((CascadeODPOConfig, ODPOArguments, ModelConfig, DatasetMixtureConfig))


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: make_parser().parse_args_and_config())
