"""Train a model from a random start on packed text: the embedded parent, and from-scratch baselines.

    accelerate launch trainers/pretrain.py \
        --config recipes/tiny/parent_short.yaml \
        --model_config recipes/tiny/pretrain_config.json --tokenizer recipes/tiny/tokenizer \
        --output_dir parent-short

With `--model_name_or_path` instead of `--model_config` an existing model goes on, for instance at a longer window.
"""


def main(training_args, pretraining_args, text_args, model_args, mixture):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    from hf_cascade import assets, stage
    from hf_cascade.data.documents import Documents, load_mixture
    from hf_cascade.data.ledger import Ledger, text_sha256
    from hf_cascade.data.packing import PackedText
    from hf_cascade.distill.packed import CascadeSFTTrainer
    from hf_cascade.loading import load_model, load_tokenizer
    from hf_cascade.publish.draft import push_draft

    stage.check_output_dir(training_args.output_dir)
    if (pretraining_args.model_config is None) == (model_args.model_name_or_path is None):
        raise ValueError("give one of model_config (a random start) and model_name_or_path (an existing model)")
    set_seed(training_args.seed)
    if pretraining_args.model_config is not None:
        if pretraining_args.tokenizer is None:
            raise ValueError("model_config starts a model at random and needs a tokenizer: add --tokenizer")
        source = pretraining_args.tokenizer
        config = AutoConfig.from_pretrained(assets.find(pretraining_args.model_config), trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    else:
        source = model_args.model_name_or_path
        model = load_model(source, dtype="float32")
    tokenizer = load_tokenizer(source)

    documents = Documents(
        load_mixture(mixture), training_args.dataset_text_field, text_args.document_seed, text_args.passes
    )
    stream = PackedText(
        documents, tokenizer, training_args.max_length, min_document_tokens=text_args.min_document_tokens
    )
    ledger = Ledger.after(text_args.data_after, text_sha256(stream, mixture.datasets))
    stream.start = ledger.end

    trainer = CascadeSFTTrainer(model=model, args=training_args, train_dataset=stream, processing_class=tokenizer)
    inputs = {name: value for name, value in vars(text_args).items() if name == "data_after" and value}
    inputs["model_name_or_path" if pretraining_args.model_config is None else "tokenizer"] = source
    return push_draft(trainer, stage.train(trainer, inputs, ledger))


def make_parser():
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from hf_cascade.data.config import TextArguments
    from hf_cascade.distill.config import CascadeSFTConfig, PretrainingArguments

    return TrlParser((CascadeSFTConfig, PretrainingArguments, TextArguments, ModelConfig, DatasetMixtureConfig))


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: make_parser().parse_args_and_config())
