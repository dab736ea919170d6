"""Accuracy of mathematics: the boxed or stated answer equals the right one in value."""

from statistics import fmean

import datasets
import evaluate

from hf_cascade.evaluate.benchmarks.answers import answer_of
from hf_cascade.evaluate.benchmarks.maths import Judge

FEATURES = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
INPUTS = "predictions: responses. references: right answers, LaTeX or plain."


class MathsVerify(evaluate.Metric):
    """The module that `evaluate.load` opens."""

    def _info(self):
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=FEATURES)

    def _compute(self, predictions, references):
        pairs = zip(predictions, references, strict=True)
        verdicts = [Judge(right)(answer_of(response)) for response, right in pairs]
        unparsed = fmean(verdict.parsed is None for verdict in verdicts)
        return {"accuracy": fmean(verdict.correct for verdict in verdicts), "unparsed": unparsed}
