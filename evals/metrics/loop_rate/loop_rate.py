"""Loop rate: the share of responses that end in an infinite loop."""

from collections.abc import Collection
from statistics import fmean

import datasets
import evaluate

from hf_cascade.completions import is_looping

FEATURES = datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))})
INPUTS = (
    "predictions: the tokens of each response, EOS at its end where the model ended it. eos_token_ids: "
    "tokens that end a response."
)


class LoopRate(evaluate.Metric):
    """The module that `evaluate.load` opens."""

    def _info(self):
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=FEATURES)

    def _compute(self, predictions, eos_token_ids: Collection[int] = ()):
        return {"loop_rate": fmean(is_looping(tokens, None, eos_token_ids) for tokens in predictions)}
