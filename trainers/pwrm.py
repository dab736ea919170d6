"""Train and calibrate a pairwise reward model (PWRM), which ranks the responses of online DPO (paper section 4).

    accelerate launch trainers/pwrm.py --config pwrm.yaml --model_name_or_path 14b-sft --output_dir 14b-pwrm

with, in `pwrm.yaml`, TRL's `datasets:` block, `test_split_size` and settings: `max_length`, `use_peft`. Rows hold
TRL's `chosen` and `rejected`, with or without `prompt`, or `prompt`, `first`, `second` and `probability` (a soft label,
P(first preferred)); text or messages. Of the held-out rows one half sets the temperature, and the other half measures
it: `reliability.png`, and `calibration` in cascade.json. Held-out prompts should not be those of online DPO. An adapter
is merged into the saved model, and kept in `adapter/`. The same command resumes a stopped run.
"""


def main(training_args, pairwise_args, model_args, mixture):
    from hf_cascade import stage
    from hf_cascade.data.documents import load_mixture
    from hf_cascade.distill.merging import complete_folder, open_adapter
    from hf_cascade.loading import load_config, load_model, load_tokenizer
    from hf_cascade.publish.draft import push_draft
    from hf_cascade.rewards.pairs import check_columns

    stage.check_output_dir(training_args.output_dir)
    student = model_args.model_name_or_path
    if student is None:
        raise ValueError("give model_name_or_path: what the reward model is made from")
    if training_args.train_tokens is not None:
        raise ValueError("train_tokens is for packed text: set num_train_epochs or max_steps")
    if mixture.test_split_size is None or mixture.streaming:
        raise ValueError("set test_split_size, and streaming: false: held-out pairs are what the temperature is set on")
    train, held_out = (load_mixture(mixture, part) for part in ("train", "test"))
    check_columns(train.column_names)
    fit, report = split_held_out(train, held_out)
    config = load_config(student)
    adapter = open_adapter(model_args, config)

    dtype = model_args.dtype or "float32"
    trainer = make_trainer_class()(
        load_model(student, dtype, config, attn_implementation=model_args.attn_implementation),
        args=training_args,
        train_dataset=train,
        eval_dataset=fit if training_args.eval_strategy != "no" else None,
        processing_class=load_tokenizer(student),
        labels=tuple(pairwise_args.labels),
        question=pairwise_args.question,
        peft_config=adapter,
    )

    def complete(folder):
        complete_folder(trainer, student, folder, dtype, config)
        trainer.comparison.save_pretrained(folder)  # a student that is a reward model has its own
        return {"calibration": {**calibrate(trainer, folder, fit, report), "trained": trainer.counts}}

    return push_draft(trainer, stage.train(trainer, {"model_name_or_path": student}, companions=complete))


def make_trainer_class():
    """[`CascadePairwiseTrainer`] that reports its progress and resumes as the cascade's other trainers do."""
    from hf_cascade.distill.packed import CascadeSFTTrainer
    from hf_cascade.rewards.trainer import CascadePairwiseTrainer

    class PairwiseTrainer(CascadePairwiseTrainer, CascadeSFTTrainer):
        pass

    return PairwiseTrainer


def split_held_out(train, held_out):
    """Two halves of the held-out rows; warns of prompts that are trained on."""
    import json
    import sys

    if len(held_out) < 2:
        raise ValueError(f"test_split_size leaves {len(held_out)} held-out rows: at least 2 are needed, better 500")
    if "prompt" in train.column_names:
        known = {json.dumps(prompt) for prompt in train["prompt"]}
        shared = sum(json.dumps(prompt) in known for prompt in held_out["prompt"])
        if shared:
            print(
                f"hf-cascade: warning: {shared} of {len(held_out)} held-out pairs have a prompt that is trained on: "
                "the calibration measured may be too good",
                file=sys.stderr,
            )
    half = len(held_out) // 2
    return held_out.select(range(half)), held_out.select(range(half, len(held_out)))


def calibrate(trainer, folder, fit, report):
    """Open what was saved, set its temperature and measure it."""
    from hf_cascade.rewards import calibration
    from hf_cascade.rewards.pairs import read_pair
    from hf_cascade.rewards.pairwise import PairwiseRewardModel

    device, batch_size = trainer.accelerator.device, trainer.args.per_device_eval_batch_size
    model = PairwiseRewardModel.from_pretrained(folder, device=device, batch_size=batch_size)
    pairs = [[read_pair(row, number) for number, row in enumerate(rows)] for rows in (fit, report)]
    different = [[pair for pair in part if pair.first != pair.second] for part in pairs]
    if not all(different):
        raise ValueError("the held-out pairs are of equal responses: hold out more")
    return calibration.calibrate(model, *different, folder)


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from hf_cascade.distill.config import CascadeSFTConfig
    from hf_cascade.rewards.config import PairwiseArguments

    return TrlParser((CascadeSFTConfig, PairwiseArguments, ModelConfig, DatasetMixtureConfig))


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: make_parser().parse_args_and_config())
