"""pass@k: the chance that one of k responses is right, unbiased."""

from collections.abc import Sequence
from statistics import fmean

import datasets
import evaluate

from hf_cascade.evaluate import metrics

FEATURES = datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))})
INPUTS = "predictions: for each problem the verdicts about its responses, 1 right, 0 wrong. k: one number or several."


class PassAtK(evaluate.Metric):
    """The module that `evaluate.load` opens."""

    def _info(self):
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=FEATURES)

    def _compute(self, predictions, k: int | Sequence[int] = 1):
        right = [(len(verdicts), sum(verdict > metrics.RIGHT for verdict in verdicts)) for verdicts in predictions]
        ks = [k] if isinstance(k, int) else k
        return {f"pass_at_{k}": fmean(metrics.pass_at_k(samples, correct, k) for samples, correct in right) for k in ks}
