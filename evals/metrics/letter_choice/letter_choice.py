"""Accuracy of multiple choice in words: the letter that a response names as its answer."""

from statistics import fmean

import datasets
import evaluate

from hf_cascade.evaluate.benchmarks.answers import answer_of
from hf_cascade.evaluate.benchmarks.letters import letter_of

FEATURES = datasets.Features(
    {
        "predictions": datasets.Value("string"),
        "references": datasets.Value("string"),
        "options": datasets.Sequence(datasets.Value("string")),
    }
)
INPUTS = "predictions: responses. references: right letters. options: the options' texts, the first of which is A."


class LetterChoice(evaluate.Metric):
    """The module that `evaluate.load` opens."""

    def _info(self):
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=FEATURES)

    def _compute(self, predictions, references, options):
        given = [letter_of(answer_of(response), texts) for response, texts in zip(predictions, options, strict=True)]
        right = fmean(letter == reference for letter, reference in zip(given, references, strict=True))
        return {"accuracy": right, "unparsed": fmean(letter is None for letter in given)}
