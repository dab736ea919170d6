"""What the tests of online training share: a tiny policy on disk, prompts, rewards, and a trainer over them."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, Ministral3Config, Ministral3ForCausalLM

from hf_cascade import assets

PROMPTS = ["The cell is", "Rust has", "def add(", "A force of", "Water and", "The sun", "In 1776", "Let x be"]
SETTINGS = {
    "max_completion_length": 8,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "logging_steps": 1,
    "save_strategy": "no",
    "loop_min_tokens": 6,
}
# a file of rewards for the scripts; where there is a file `stop`, the first is sent SIGTERM in the second step
REWARDS = """
import os, pathlib, signal

def count_a(completions, trainer_state, **columns):
    if trainer_state.global_step == 1 and pathlib.Path("stop").exists():
        pathlib.Path("stop").unlink()
        os.kill(os.getpid(), signal.SIGTERM)
    return [str(completion).count("a") / 2 for completion in completions]
"""


def count_a(completions, **kwargs):
    """A reward that can be counted: letters `a`, two a nat."""
    return [completion.count("a") / 2 for completion in completions]


@pytest.fixture(scope="session")
def policy(tmp_path_factory):
    """Folder of a random model of two layers with the tiny parent's tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = AutoTokenizer.from_pretrained(assets.find("recipes/tiny/tokenizer"))
    config = Ministral3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.4,  # far from uniform: samples differ in likelihood
        pad_token_id=tokenizer.pad_token_id,
    )
    Ministral3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def maker(trainer_class, config_class, policy, folder, **defaults):
    """Builds trainers: settings go to the config, `reward_funcs` and the rest to the trainer."""

    def make(reward_funcs=count_a, model=None, train_dataset=None, trainer=None, **settings):
        dataset = train_dataset or Dataset.from_dict({"prompt": PROMPTS})
        args = config_class(output_dir=str(folder), **{**SETTINGS, **defaults, **settings})
        return trainer_class(model or str(policy), reward_funcs, args=args, train_dataset=dataset, **(trainer or {}))

    return make
