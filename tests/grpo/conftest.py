"""A GRPO trainer over the tiny policy."""

import pytest

from hf_cascade.grpo.config import CascadeGRPOConfig
from hf_cascade.grpo.trainer import CascadeGRPOTrainer
from tests.online.scene import maker, policy  # noqa: F401 (a fixture)

SIZES = {"num_generations": 4, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
PLAIN = {"max_refill_rounds": 0, "length_penalty": 0.0, "shuffle_dataset": False}


@pytest.fixture
def make_trainer(policy, tmp_path):  # noqa: F811
    """Builds trainers, without refill and length penalty unless a test sets them."""
    return maker(CascadeGRPOTrainer, CascadeGRPOConfig, policy, tmp_path / "out", **SIZES, **PLAIN)
