"""Tiny models, a tokenizer and manifests: a family of folders that a cascade would leave."""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Ministral3Config, Ministral3ForCausalLM, PreTrainedTokenizerFast

from hf_cascade import assets, manifest
from hf_cascade.data.text_files import load_texts

HELDOUT = "recipes/tiny/data/heldout.jsonl.gz"


def train_tokenizer(texts, size: int = 320, bos: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_model(seed: int = 0, **sizes) -> Ministral3ForCausalLM:
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": 1e4}
    rope |= {"original_max_position_embeddings": 512, "llama_4_scaling_beta": 0.0}
    fixed = {"vocab_size": 320, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    fixed |= {"rope_parameters": rope, "initializer_range": 0.3}
    free = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": False}
    free["max_position_embeddings"] = 512
    return Ministral3ForCausalLM(Ministral3Config(**fixed, **(free | sizes))).eval()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [text[:900] for text in load_texts(str(assets.find(HELDOUT)))[::7]]


@pytest.fixture(scope="session")
def tokenizer(texts):
    return train_tokenizer(texts)


@pytest.fixture(scope="session")
def _family(tmp_path_factory, tokenizer):
    """`parent`, and of the child `small` three stages; of `tiny`, pruned from `small-short`, one."""
    run = tmp_path_factory.mktemp("run")

    def stage(name, run_word, seed, inputs, tokens=None, **sizes):
        folder = run / name
        model = tiny_model(seed, **sizes)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if run_word:
            data = tokens and {"cursor": {"document": 0, "token": 0}, "tokens": tokens, "ledger": []}
            output = manifest.describe(folder, model.num_parameters())
            inputs = {flag: str(run / source) for flag, source in inputs.items()}
            settings = {"config": {}, "inputs": inputs, "metrics": {"seconds": 10.0}, "data": data, "output": output}
            manifest.write(folder, stage=name, run=run_word, **settings)

    stage("parent", None, 0, {})
    stage("small-pruned", "prune", 1, {"model": "parent"}, intermediate_size=16)
    stage("small-short", "distill", 2, {"model_name_or_path": "small-pruned"}, 1000, intermediate_size=16)
    stage("small", "distill", 3, {"model_name_or_path": "small-short"}, 100, intermediate_size=16)
    stage("tiny-pruned", "prune", 4, {"model": "small-short"}, num_hidden_layers=1, tie_word_embeddings=True)
    stage("tiny", "distill", 5, {"model_name_or_path": "tiny-pruned"}, 2000, num_hidden_layers=1)
    return run


@pytest.fixture
def family(_family, tmp_path):
    """A fresh copy: evaluation writes into these folders."""
    return shutil.copytree(_family, tmp_path / "run")
