"""Distil a child from a frozen teacher on packed text, read once (Cascade Distillation, paper section 2).

    accelerate launch trainers/distill.py \
        --config recipes/tiny/short.yaml \
        --model_name_or_path runs/tiny/14b-pruned --teacher_model_name_or_path recipes/tiny/parent \
        --output_dir runs/tiny/14b-short

The long stage adds `--context_length` and `--original_context_length`; `--data_after FOLDER` goes on in the text where
the stage in FOLDER stopped. The same command resumes a stopped run.
"""


def main(training_args, text_args, context_args, model_args, mixture):
    from dataclasses import replace

    from hf_cascade import assets, stage
    from hf_cascade.context import extend_context
    from hf_cascade.data.documents import load_mixture
    from hf_cascade.data.image_documents import image_column
    from hf_cascade.data.ledger import Ledger
    from hf_cascade.data.streams import open_stream, stream_sha256
    from hf_cascade.distill.config import TEACHER_FLAGS
    from hf_cascade.distill.freezing import check_same_images
    from hf_cascade.distill.hidden import kept_before
    from hf_cascade.distill.trainer import CascadeDistillationTrainer, load_teacher
    from hf_cascade.loading import copy_companions, load_config, load_model, load_tokenizer
    from hf_cascade.publish.draft import push_draft

    stage.check_output_dir(training_args.output_dir)
    student = model_args.model_name_or_path
    flags = {name: getattr(training_args, name) for name in TEACHER_FLAGS}
    teachers = {name: value for name, value in flags.items() if value is not None}
    if student is None or not teachers:
        raise ValueError(f"give model_name_or_path (the student) and a teacher: one of {', '.join(TEACHER_FLAGS)}")
    tokenizer = load_tokenizer(student)
    config = load_config(student)
    if context_args.context_length is not None:
        config = extend_context(
            config,
            context_args.context_length,
            context_args.original_context_length,
            context_args.llama_4_scaling_beta,
        )

    rows, teacher = load_mixture(mixture), training_args.teacher_model_name_or_path
    if image_column(rows) is not None and teacher is not None:
        check_same_images(config, load_config(teacher))
    field, length = training_args.dataset_text_field, training_args.max_length
    stream = open_stream(rows, text_args, field, length, tokenizer, student, config)
    held_out = None
    if training_args.eval_strategy != "no":
        test, once = open_held_out(training_args, mixture), replace(text_args, passes=1, min_document_tokens=0)
        held_out = open_stream(test, once, field, length, tokenizer, student, config)
    ledger = Ledger.after(text_args.data_after, stream_sha256(stream, mixture.datasets))
    stream.start = ledger.end
    if context_args.context_length is not None:
        stage.warn_of_short_text(stream, context_args.original_context_length)

    if training_args.hidden_weight > 0 and training_args.hidden_layers is None:
        training_args.hidden_layers = kept_before(assets.locate(student))
    attention = {"attn_implementation": model_args.attn_implementation}
    trainer = CascadeDistillationTrainer(
        load_model(student, model_args.dtype or "float32", config, **attention),
        load_teacher(training_args, tokenizer, **attention),
        args=training_args,
        train_dataset=stream,
        eval_dataset=held_out,
        processing_class=getattr(stream, "processor", tokenizer),
    )
    inputs = {"model_name_or_path": student, **teachers}
    if text_args.data_after is not None:
        inputs["data_after"] = text_args.data_after
    return push_draft(trainer, stage.train(trainer, inputs, ledger, lambda folder: copy_companions(student, folder)))


def open_held_out(training_args, mixture):
    """The rows that `test_split_size` splits off, which the stage does not train on."""
    from hf_cascade.data.documents import load_mixture

    test = load_mixture(mixture, "test")
    if test is None:
        raise ValueError(f"eval_strategy={training_args.eval_strategy.value} needs held-out rows: set test_split_size")
    return test


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from hf_cascade.context import ContextArguments
    from hf_cascade.data.config import TextArguments
    from hf_cascade.distill.config import CascadeDistillationConfig

    return TrlParser((CascadeDistillationConfig, TextArguments, ContextArguments, ModelConfig, DatasetMixtureConfig))


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: make_parser().parse_args_and_config())
