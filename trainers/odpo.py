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
    from trl.data_utils import is_conversational

    from hf_cascade import stage
    from hf_cascade.data.chat import holds_chat, prepare_chat
    from hf_cascade.data.prompts import load_prompts
    from hf_cascade.distill.merging import complete_folder, open_adapter
    from hf_cascade.loading import load_config, load_model, open_processing
    from hf_cascade.odpo.report import write_report
    from hf_cascade.odpo.trainer import CascadeODPOTrainer
    from hf_cascade.rewards.verifiable import load_function

    stage.check_output_dir(training_args.output_dir)
    policy = model_args.model_name_or_path
    if policy is None:
        raise ValueError("give model_name_or_path (the policy)")
    inputs = {"model_name_or_path": policy, **check_judge(odpo_args)}
    train, held_out = (load_prompts(mixture, part) for part in ("train", "test"))
    if training_args.eval_strategy != "no" and held_out is None:
        raise ValueError(f"eval_strategy={training_args.eval_strategy.value} needs held-out rows: set test_split_size")
    config = load_config(policy)
    kit = open_processing(policy, train)
    if is_conversational(next(iter(train))):
        prepare_chat(kit, odpo_args.chat_template_path)
    adapter, judge = open_adapter(model_args, config), open_judge(odpo_args)
    tools = [load_function(name, "tool") for name in odpo_args.tools or []] or None
    dtype = model_args.dtype or "float32"
    trainer = CascadeODPOTrainer(
        load_model(policy, dtype, config, attn_implementation=model_args.attn_implementation),
        judge,
        args=training_args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=kit,
        peft_config=adapter,
        tools=tools,
    )

    def complete(folder):
        complete_folder(trainer, policy, folder, dtype, config)
        if not holds_chat(folder, kit):  # given, or completed by `prepare_chat`
            kit.save_pretrained(folder)
        return write_report(trainer.state.log_history, folder)

    return stage.train(trainer, inputs, companions=complete)


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

    from hf_cascade.odpo.config import CascadeODPOConfig, ODPOArguments

    return TrlParser((CascadeODPOConfig, ODPOArguments, ModelConfig, DatasetMixtureConfig))


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: make_parser().parse_args_and_config())
