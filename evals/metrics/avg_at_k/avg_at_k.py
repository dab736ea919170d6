"""avg@k: the mean verdict over a problem's responses, and over problems."""

from statistics import fmean

import datasets
import evaluate

from hf_cascade.evaluate import metrics

FEATURES = datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))})
INPUTS = "predictions: for each problem the verdicts about its responses, 1 right, 0 wrong."


class AvgAtK(evaluate.Metric):
    """The module that `evaluate.load` opens."""

    def _info(self):
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=FEATURES)

    def _compute(self, predictions):
        scores = [metrics.avg_at_k(verdicts) for verdicts in predictions]
        low, high = metrics.mean_interval(scores) if len(scores) > 1 else (None, None)
        error = metrics.within_problem_error(predictions)
        return {"avg_at_k": fmean(scores), "low": low, "high": high, "within_problem_error": error}
