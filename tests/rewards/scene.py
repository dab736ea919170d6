"""A tiny reward model's tokenizer, weights and texts, for the tests of this folder."""

import string

import torch

from hf_cascade.rewards.comparison import Comparison
from hf_cascade.rewards.pairwise import PairwiseRewardModel
from tests.data import tiny
from tests.prune import families

CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
TEXTS = [
    ("what is it", "a stone", "no idea at all, sorry"),
    ("say</s> a word", "yes <s>", "no"),
    ("", "a", "abc " * 9),
    ("the same", "one", "one"),
    ("list of " * 6, "b", "a"),
]


def tokenizer(chat: bool = False):
    """One id a character; only letters, digits and some signs."""
    kit = tiny.tokenizer(string.ascii_letters + string.digits + ' .\n:,?[]()</>-{}"')
    kit.chat_template = CHAT if chat else None
    return kit


def model(family: str = "llama", dtype=torch.float64, **changes):
    """Two layers, and a window that comparisons fit."""
    shape = {"num_hidden_layers": 2, "max_position_embeddings": 512, **changes}
    return families.build(family, seed=1, dtype=dtype, **shape)


def scorer(family: str = "llama", chat: bool = False, temperature: float = 1.0, **options) -> PairwiseRewardModel:
    """An untrained reward model."""
    comparison = Comparison.new(tokenizer(chat))
    comparison.temperature = temperature
    return PairwiseRewardModel(model(family), comparison, **options)


def save(folder, chat: bool = False, temperature: float = 1.0, dtype=torch.float32) -> None:
    """An untrained reward model's folder."""
    kit, comparison = tokenizer(chat), Comparison.new(tokenizer(chat), max_length=300)
    comparison.temperature = temperature
    model(dtype=dtype).save_pretrained(folder)
    kit.save_pretrained(folder)
    comparison.save_pretrained(folder)
