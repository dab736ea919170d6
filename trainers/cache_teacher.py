"""Ask a teacher once for a data set that is read several times, and keep its most likely tokens on disk.

    accelerate launch trainers/cache_teacher.py \
        --config sft.yaml --teacher_model_name_or_path PARENT --model_name_or_path CHILD --top_k 50 --output_dir cache

The config is that of the stage which will read the cache, with `--teacher_cache cache` instead of a teacher. Order,
batch size, packing and epochs may be others there; tokens may not. A stopped run goes on with the same command, and a
finished cache takes more data in the same way. Several processes share the work, each with a whole teacher.
`--verify cache` instead checks every shard, that all of this data is there, and what the teacher says of some of it.
"""


def main(training_args, cache_args, sft_args, model_args, mixture):
    import json
    import time
    from pathlib import Path

    from hf_cascade.data.chat import follow_chat_settings
    from hf_cascade.data.conversations import load_conversations
    from hf_cascade.distill.cache import CachedTeacher
    from hf_cascade.distill.cache_fill import fill, verify
    from hf_cascade.distill.cache_format import CacheIdentity
    from hf_cascade.distill.cache_writer import CacheWriter, check_folder
    from hf_cascade.distill.packed import CascadeSFTTrainer
    from hf_cascade.distill.reasoning import prepare_reasoning
    from hf_cascade.distill.teacher import LocalTeacher
    from hf_cascade.distill.trainer import load_teacher
    from hf_cascade.loading import open_processing

    started = time.monotonic()
    folder, name = Path(training_args.output_dir), training_args.teacher_model_name_or_path
    if name is None:
        raise ValueError("give teacher_model_name_or_path: the teacher whose logits are kept")
    if cache_args.verify is None:
        check_folder(folder)
    else:
        training_args.output_dir = cache_args.verify  # the trainer makes this folder
    rows = load_conversations(mixture, field=training_args.dataset_text_field)
    kit = open_processing(model_args.model_name_or_path or name, rows)
    follow_chat_settings(kit, rows, training_args)
    rows, _, _ = prepare_reasoning(rows, None, kit, training_args, sft_args)  # the student trains on the same rows
    model = load_teacher(training_args, kit, attn_implementation=model_args.attn_implementation)
    identity = CacheIdentity.of(model, name, kit, cache_args.top_k)
    trainer = CascadeSFTTrainer(model, args=training_args, train_dataset=rows, processing_class=kit)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError("every process needs a whole teacher here: launch with recipes/accelerate/ddp.yaml")
    teacher = LocalTeacher(trainer.model)
    if cache_args.verify is not None:
        cached = CachedTeacher(cache_args.verify, kit, identity.teacher_sha256, verify=True)
        report = verify(cached, teacher, trainer, cache_args.verify_batches)  # of this process's share
        if trainer.accelerator.is_main_process:
            print(json.dumps(report))
        return 0
    fill(CacheWriter(folder, teacher, identity, process=trainer.accelerator.process_index), trainer)
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        inputs = {"teacher_model_name_or_path": name, "model_name_or_path": model_args.model_name_or_path}
        finish(folder, identity, inputs, time.monotonic() - started)
    trainer.accelerator.wait_for_everyone()
    return 0


def finish(folder, identity, inputs, seconds):
    """The index of all processes' shards, and the manifest."""
    import sys

    from hf_cascade import manifest, stage
    from hf_cascade.distill.cache_writer import write_index

    index = write_index(folder, identity)
    inputs = {flag: source for flag, source in inputs.items() if source is not None}
    settings = stage.given_settings(sys.argv[1:])
    manifest.write(
        folder,
        stage=folder.name,
        run="cache_teacher",
        config={flag: value for flag, value in settings.items() if flag not in inputs},
        inputs=inputs,
        metrics={name: index[name] for name in ("sequences", "tokens", "bytes", "bytes_per_token")}
        | {"seconds": seconds},
    )
    counts = f"{index['sequences']:,} sequences, {index['tokens']:,} positions, {index['bytes'] / 1e6:,.1f} MB"
    print(f"hf-cascade: {folder}: {counts}", file=sys.stderr)


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from hf_cascade.distill.cache_fill import CacheArguments
    from hf_cascade.distill.config import CascadeDistillationConfig
    from hf_cascade.distill.sft_arguments import SFTArguments

    return TrlParser((CascadeDistillationConfig, CacheArguments, SFTArguments, ModelConfig, DatasetMixtureConfig))


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: make_parser().parse_args_and_config())
