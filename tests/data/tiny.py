"""A tokenizer of single characters and texts of all lengths, made in memory."""

import random
import string

from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_cascade.data.documents import Documents
from hf_cascade.data.packing import PackedText, document_tokens

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]  # ids 0 to 3, as in tests/prune/families.py


def tokenizer(characters: str = string.ascii_lowercase + " .\n") -> PreTrainedTokenizerFast:
    """One id a character, BOS in front."""
    names = [*SPECIAL, *characters]
    core = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def texts(count: int = 40, seed: int = 0, longest: int = 60) -> list[str]:
    """Documents of 0 to `longest` letters."""
    draw = random.Random(seed)
    return ["".join(draw.choices(string.ascii_lowercase, k=draw.randrange(longest + 1))) for _ in range(count)]


def documents(count: int = 40, seed: int = 0, longest: int = 60, **kwargs) -> Documents:
    """`texts` as `Documents`."""
    return Documents(Dataset.from_dict({"text": texts(count, seed, longest)}), **kwargs)


def packed(max_length: int = 16, start=(0, 0), **kwargs) -> PackedText:
    """Packed text of `documents(**kwargs)`."""
    return PackedText(documents(**kwargs), tokenizer(), max_length, start)


def all_tokens(docs: Documents) -> list[int]:
    """Every token of every document, in reading order."""
    kit = tokenizer()
    return [token for _, text in docs.read() for token in document_tokens(kit, text)]
