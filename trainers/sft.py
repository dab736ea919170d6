"""Train a child on conversations with a frozen teacher's logits: the first step of the instruct and reasoning stages.

    accelerate launch trainers/sft.py \
        --config sft.yaml \
        --model_name_or_path runs/tiny/14b-short --teacher_model_name_or_path TEACHER \
        --output_dir 14b-instruct

with, in `sft.yaml`, TRL's `datasets:` block and settings: `assistant_only_loss`, `packing`, `use_peft`. Rows hold
`messages`, `prompt` and `completion`, or `text`, and may have `tools` or `images`. Set `assistant_only_loss: true` with
`messages`: unset, as in TRL, the user's words and tools' results are learnt too. `chat_template_path: mistral` is
Mistral's template with tools and thinking, shipped here; a `.jinja` file is another; unset, the student's own stays.
`--plain_sft true` trains on the next token alone, without a teacher. An adapter is merged into the saved model, and
kept in `adapter/`. The same command resumes a stopped run.

Reasoning SFT (paper section 5): `filters: [format, repetition, language]` leaves rows out whose chain of thought fails
one, and `long_fraction: 0.5` mixes long and short ones; thinking in any notation is written as the student's template
writes it. What was left out, with examples, is in the folder's `reasoning_data.json`.
"""


def main(training_args, sft_args, model_args, mixture):
    from hf_cascade import stage
    from hf_cascade.data.chat import follow_chat_settings, holds_chat
    from hf_cascade.data.conversations import load_conversations
    from hf_cascade.data.image_documents import check_reads_images, image_column
    from hf_cascade.distill.config import TEACHER_FLAGS
    from hf_cascade.distill.freezing import check_same_images
    from hf_cascade.distill.merging import complete_folder, open_adapter
    from hf_cascade.distill.packed import CascadeSFTTrainer
    from hf_cascade.distill.reasoning import prepare_reasoning, save_report
    from hf_cascade.distill.trainer import CascadeDistillationTrainer, load_teacher
    from hf_cascade.loading import load_config, load_model, open_processing
    from hf_cascade.publish.draft import push_draft

    stage.check_output_dir(training_args.output_dir)
    student = model_args.model_name_or_path
    flags = {name: getattr(training_args, name) for name in TEACHER_FLAGS}
    teachers = {name: value for name, value in flags.items() if value is not None}
    if student is None:
        raise ValueError("give model_name_or_path (the student)")
    if sft_args.plain_sft == bool(teachers):
        raise ValueError(
            f"give either a teacher, one of {', '.join(TEACHER_FLAGS)}, or plain_sft: true, which is the next-token "
            "loss without one"
        )
    field = training_args.dataset_text_field
    train, held_out = (load_conversations(mixture, part, field) for part in ("train", "test"))
    if training_args.eval_strategy != "no" and held_out is None:
        raise ValueError(f"eval_strategy={training_args.eval_strategy.value} needs held-out rows: set test_split_size")
    config = load_config(student)
    if image_column(train) is not None:
        check_reads_images(config, "student")
        if training_args.teacher_model_name_or_path is not None:
            check_same_images(config, load_config(training_args.teacher_model_name_or_path))
    kit = open_processing(student, train)
    follow_chat_settings(kit, train, training_args)
    train, held_out, report = prepare_reasoning(train, held_out, kit, training_args, sft_args)
    adapter = open_adapter(model_args, config)

    dtype, attention = model_args.dtype or "float32", {"attn_implementation": model_args.attn_implementation}
    options = {"args": training_args, "train_dataset": train, "eval_dataset": held_out, "processing_class": kit}
    model = load_model(student, dtype, config, **attention)
    if sft_args.plain_sft:
        trainer = CascadeSFTTrainer(model=model, peft_config=adapter, **options)
    else:
        teacher = load_teacher(training_args, kit, **attention)
        trainer = CascadeDistillationTrainer(model, teacher, peft_config=adapter, **options)

    def complete(folder):
        """The student's files, but for what the settings changed."""
        complete_folder(trainer, student, folder, dtype, config)
        new_tokens = training_args.chat_template_path is not None or training_args.eos_token is not None
        if new_tokens or not holds_chat(folder, trainer.processing_class):
            trainer.processing_class.save_pretrained(folder)
        return save_report(report, folder)

    return push_draft(trainer, stage.train(trainer, {"model_name_or_path": student, **teachers}, companions=complete))


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from hf_cascade.distill.config import CascadeDistillationConfig
    from hf_cascade.distill.sft_arguments import SFTArguments

    return TrlParser((CascadeDistillationConfig, SFTArguments, ModelConfig, DatasetMixtureConfig))


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: make_parser().parse_args_and_config())
