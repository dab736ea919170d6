"""Within-problem error: the standard error of avg@k from sampling alone, the problems being fixed."""

import datasets
import evaluate

from hf_cascade.evaluate import metrics

FEATURES = datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))})
INPUTS = "predictions: for each problem the verdicts about its responses, 1 right, 0 wrong."


class WithinProblemError(evaluate.Metric):
    """The module that `evaluate.load` opens."""

    def _info(self):
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=FEATURES)

    def _compute(self, predictions):
        return {"within_problem_error": metrics.within_problem_error(predictions)}
