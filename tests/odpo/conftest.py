"""An ODPO trainer over the tiny policy."""

import pytest

from hf_cascade.odpo.config import CascadeODPOConfig
from hf_cascade.odpo.trainer import CascadeODPOTrainer
from tests.online.scene import PROMPTS, count_a, maker, policy  # noqa: F401 (a fixture, and names for the tests)

SIZES = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}


@pytest.fixture
def make_trainer(policy, tmp_path):  # noqa: F811
    """Builds trainers."""
    return maker(CascadeODPOTrainer, CascadeODPOConfig, policy, tmp_path / "out", **SIZES)
