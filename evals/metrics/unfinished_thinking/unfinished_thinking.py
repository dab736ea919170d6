"""Unfinished thinking: the share of responses that open their thinking and never close it."""

from statistics import fmean

import datasets
import evaluate

from hf_cascade.evaluate.benchmarks.answers import is_unfinished

FEATURES = datasets.Features({"predictions": datasets.Value("string")})
INPUTS = "predictions: responses, with the opening tag where the prompt has it."


class UnfinishedThinking(evaluate.Metric):
    """The module that `evaluate.load` opens."""

    def _info(self):
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=FEATURES)

    def _compute(self, predictions):
        return {"unfinished_thinking": fmean(map(is_unfinished, predictions))}
