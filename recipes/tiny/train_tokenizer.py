"""Train the tokenizer of the tiny family: byte-level BPE, 2,048 tokens, Mistral's special tokens.

python recipes/tiny/train_tokenizer.py --output_dir recipes/tiny/tokenizer
"""

import argparse
import gzip
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

# bos 1 and eos 2 as released (paper section 7); chat and thinking tokens by their released names, for post-training.
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
SPECIAL += ["[THINK]", "[/THINK]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[ARGS]"]
SPECIAL += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
DATA = Path(__file__).parent / "data"


def texts():
    """The training text shipped beside this file, without the held-out documents."""
    for name in ("openstax", "rust_book", "the_algorithms"):
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)


def train() -> PreTrainedTokenizerFast:
    """Train on the shipped text; takes seconds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=2048,  # ours: small enough that a 1.6M-parameter model is not all embedding
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", required=True)
    train().save_pretrained(parser.parse_args().output_dir)
