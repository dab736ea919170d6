"""Verbosity: output, thinking and answer tokens of a response."""

from statistics import fmean

import datasets
import evaluate
from transformers import AutoTokenizer

from hf_cascade.evaluate.verbosity import thinking_tokens

FEATURES = datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))})
INPUTS = (
    "predictions: the tokens of each response. tokenizer: a tokenizer, or the folder or Hub id of one. "
    "opened: the tag with which the prompt opened the thinking."
)


class Verbosity(evaluate.Metric):
    """The module that `evaluate.load` opens."""

    def _info(self):
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=FEATURES)

    def _compute(self, predictions, tokenizer, opened: str = ""):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer
        thinking = [thinking_tokens(list(tokens), tokenizer, opened) for tokens in predictions]
        output, thought = fmean(map(len, predictions)), fmean(tokens for tokens, _ in thinking)
        unfinished = fmean(never for _, never in thinking)
        means = {"output_tokens": output, "thinking_tokens": thought, "answer_tokens": output - thought}
        return {**means, "unfinished_thinking": unfinished}
