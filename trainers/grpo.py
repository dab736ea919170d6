"""GRPO (paper section 5, Magistral's recipe): groups of responses to a prompt, those with more reward made likelier.

    accelerate launch trainers/grpo.py \
        --config grpo.yaml --model_name_or_path runs/reasoning/sft --output_dir runs/reasoning/stem

with, in `grpo.yaml`, TRL's `datasets:` block (rows with `prompt`, and columns that reward functions ask for), the
settings of `GRPOConfig` and `CascadeGRPOConfig`, and `reward_funcs`, by name. An adapter is merged into the saved
model, and kept in `adapter/`. The same command resumes a stopped run.
"""


def main(training_args, grpo_args, model_args, mixture):
    from trl.data_utils import is_conversational

    from hf_cascade import stage
    from hf_cascade.data.chat import holds_chat, prepare_chat
    from hf_cascade.data.prompts import load_prompts
    from hf_cascade.distill.merging import complete_folder, open_adapter
    from hf_cascade.grpo.trainer import CascadeGRPOTrainer
    from hf_cascade.loading import load_config, load_model, open_processing
    from hf_cascade.rewards.form import format_reward
    from hf_cascade.rewards.verifiable import load_function, load_reward

    stage.check_output_dir(training_args.output_dir)
    policy = model_args.model_name_or_path
    if policy is None:
        raise ValueError("give model_name_or_path (the policy)")
    if not grpo_args.reward_funcs:
        raise ValueError("nothing given to score responses: set reward_funcs")
    rewards = [load_reward(name) for name in grpo_args.reward_funcs]
    tools = [load_function(name, "tool") for name in grpo_args.tools or []] or None
    train, held_out = (load_prompts(mixture, part) for part in ("train", "test"))
    if training_args.eval_strategy != "no" and held_out is None:
        raise ValueError(f"eval_strategy={training_args.eval_strategy.value} needs held-out rows: set test_split_size")
    config = load_config(policy)
    kit = open_processing(policy, train)
    if is_conversational(next(iter(train))):
        prepare_chat(kit, grpo_args.chat_template_path)
    format_reward.tokenizer = getattr(kit, "tokenizer", kit)  # a parsed message hides a second thinking block
    dtype = model_args.dtype or "float32"
    trainer = CascadeGRPOTrainer(
        load_model(policy, dtype, config, attn_implementation=model_args.attn_implementation),
        rewards,
        args=training_args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=kit,
        peft_config=open_adapter(model_args, config),
        tools=tools,
    )

    def complete(folder):
        complete_folder(trainer, policy, folder, dtype, config)
        if not holds_chat(folder, kit):  # given, or completed by `prepare_chat`
            kit.save_pretrained(folder)

    return stage.train(trainer, {"model_name_or_path": policy}, companions=complete)


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from hf_cascade.grpo.arguments import GRPOArguments
    from hf_cascade.grpo.config import CascadeGRPOConfig

    return TrlParser((CascadeGRPOConfig, GRPOArguments, ModelConfig, DatasetMixtureConfig))


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: make_parser().parse_args_and_config())
