"""maj@k: how often the answer given most often among k responses is right."""

from statistics import fmean

import datasets
import evaluate

from hf_cascade.evaluate import metrics

FEATURES = datasets.Features(
    {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
)
INPUTS = (
    'predictions: for each problem the answers of its responses, in one notation, "" where there is none. '
    "references: the right answers. k: all of them by default."
)


class MajAtK(evaluate.Metric):
    """The module that `evaluate.load` opens."""

    def _info(self):
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=FEATURES)

    def _compute(self, predictions, references, k: int | None = None):
        scores = []
        for answers, right in zip(predictions, references, strict=True):
            verdicts = [float(answer == right) for answer in answers]
            scores.append(metrics.maj_at_k([answer or None for answer in answers], verdicts, k))
        return {"maj_at_k": fmean(scores)}
