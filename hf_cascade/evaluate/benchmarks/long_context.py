"""Retrieval from long contexts: one of several numbers hidden in prose, at a known depth and a known length in tokens.

After RULER's multi-key retrieval (arXiv 2404.06654), with rows of our own: the paper claims 256K tokens (section 3) and
shows no figure for it.
"""

import random
import re
from functools import cache

from hf_cascade.data.text_files import load_texts
from hf_cascade.evaluate.benchmarks.sampled import Verdict, once
from hf_cascade.evaluate.conformance.case import Case

HAYSTACK = "recipes/tiny/data/heldout.jsonl.gz"
ROWS, DEPTHS = 20, 5  # a row's number lies at 0, 1/4, 1/2, 3/4 or all of the text; ours
KEYS = 4  # numbers in the text; one is asked for; RULER's multi-key tasks have 4 and more
RESERVED_TOKENS = 64  # of the window for the answer and a chat template; ours
CHARACTERS_PER_TOKEN = 3.0  # where no tokenizer is named: few enough that English text of any tokenizer fits; ours
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072, 262144)  # to the released window (paper section 3)
ADJECTIVES = ("amber", "brisk", "calm", "dusty", "eager", "faint", "grand", "hollow", "idle", "jolly", "keen", "lively")
NOUNS = ("anchor", "bridge", "candle", "desert", "engine", "forest", "garden", "harbour", "island", "jacket", "kettle")
NEEDLE = "The registered number of the {key} is {number}."
HEAD = "Some registered numbers are hidden in the following text. Remember them.\n\n"
GROUPS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")  # 1,234,567
TAIL = "\n\nQuestion: What is the registered number of the {key}, as the text says?\nAnswer: The number is"


def load(tokens: int, tokenizer: str | None = None, pretrained: str | None = None, **metadata) -> dict:
    """
    The rows of one length, the same in every run.

    Args:
        tokens (`int`): length of the prompt and its answer, which a model must have as positions.
        tokenizer (`str`, *optional*), pretrained (`str`, *optional*): folder or Hub id of the tokenizer that counts
            them; lm-eval hands on its `--metadata` and model arguments. Unset, 3 characters count as a token.
        **metadata: the task's `metadata`.

    Returns:
        `dict[str, Dataset]`: one split, `test`: `context`, `question`, `number`, `others`, `depth`.
    """
    from datasets import Dataset

    name = tokenizer or pretrained
    return {"test": Dataset.from_list([_row(number, tokens, name) for number in range(ROWS)])}


def prompt(doc: dict) -> str:
    """The text with its question."""
    return HEAD + doc["context"] + doc["question"]


def score(doc: dict, results: list) -> dict:
    """lm-eval's `process_results`: right is the number asked for, and no other."""

    def verdict(answer: str) -> Verdict:
        found = set(re.findall(r"(?<!\d)\d{7}(?!\d)", GROUPS.sub("", answer)))
        return Verdict(float(found == {doc["number"]}), found.pop() if len(found) == 1 else None)

    return once(results, verdict)


def _row(row: int, tokens: int, tokenizer: str | None) -> dict:
    source = random.Random(f"{row}/{tokens}")
    keys = source.sample([f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS], KEYS)
    numbers = [str(number) for number in source.sample(range(1_000_000, 10_000_000), KEYS)]
    needles = [NEEDLE.format(key=key, number=number) for key, number in zip(keys, numbers, strict=True)]
    sentences = _haystack(source, tokens, needles, tokenizer)
    for needle in needles[1:]:
        sentences.insert(source.randrange(len(sentences) + 1), needle)
    depth = row % DEPTHS / (DEPTHS - 1)
    sentences.insert(round(depth * len(sentences)), needles[0])
    return {
        "context": " ".join(sentences),
        "question": TAIL.format(key=keys[0]),
        "number": numbers[0],
        "others": numbers[1:],
        "depth": depth,
    }


def _haystack(source: random.Random, tokens: int, needles: list[str], tokenizer: str | None) -> list[str]:
    """Sentences in random order that leave room for everything else."""
    count, lengths = _counter(tokenizer), _sentence_tokens(tokenizer)
    fixed = count(HEAD + TAIL.format(key="amber harbour") + " ".join(needles)) + 2 * len(needles) + RESERVED_TOKENS
    left, chosen = tokens - fixed, []
    if left < 0:
        raise ValueError(f"tokens={tokens}: question and numbers alone take {fixed}; give more")
    order = list(lengths)
    while True:
        source.shuffle(order)
        for sentence in order:
            if lengths[sentence] > left:
                return chosen
            chosen.append(sentence)
            left -= lengths[sentence]


@cache
def _counter(tokenizer: str | None):
    if tokenizer is None:
        return lambda text: round(len(text) / CHARACTERS_PER_TOKEN) + 1
    from hf_cascade.loading import load_tokenizer

    opened = load_tokenizer(tokenizer)
    return lambda text: len(opened(text, add_special_tokens=False)["input_ids"])


@cache
def _sentence_tokens(tokenizer: str | None) -> dict[str, int]:
    """Sentences of the prose, each with its tokens and those of a space; none has a number of seven digits."""
    count, prose = _counter(tokenizer), " ".join(load_texts(HAYSTACK))
    sentences = dict.fromkeys(" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", prose))
    plain = [text for text in sentences if 40 <= len(text) <= 400 and not re.search(r"\d{4}|[{}`|\\_#]", text)]
    return {text: count(f" {text}") + 1 for text in plain}


def _right(doc: dict) -> list[str]:
    number = doc["number"]
    forms = [f" {number}.", number, f"**{number}**", f" {int(number):,}.", f"\\boxed{{{number}}}"]
    return [*forms, f"It is {number}, as the text says."]


def _wrong(doc: dict) -> list[str]:
    number, other = doc["number"], doc["others"][0]
    hedges = [f"{other} or {number}", f"{number} or {other}", " ".join([number, *doc["others"]])]
    return [f" {other}.", *hedges, number[:6], number + "0", "The text does not say."]


_CASE = Case(right=_right, wrong=_wrong, real="cascade_retrieval")
CASES = {f"cascade_retrieval_{length // 1024}k": _CASE for length in LENGTHS}
