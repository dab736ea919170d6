"""A trainer over the tiny policy of the ODPO tests."""

import pytest
from datasets import Dataset

from hf_cascade.grpo.config import CascadeGRPOConfig
from hf_cascade.grpo.trainer import CascadeGRPOTrainer
from tests.odpo.conftest import PROMPTS, count_a, policy  # noqa: F401 (a fixture)


@pytest.fixture
def make_trainer(policy, tmp_path):  # noqa: F811
    """Build a trainer: settings go to the config, `reward_funcs` and the rest to the trainer."""

    def make(reward_funcs=count_a, model=None, train_dataset=None, trainer=None, **settings):
        settings = {
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "max_completion_length": 8,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "loop_min_tokens": 6,
            "max_refill_rounds": 0,
            "length_penalty": 0.0,
            "shuffle_dataset": False,
            **settings,
        }
        dataset = train_dataset or Dataset.from_dict({"prompt": PROMPTS})
        args = CascadeGRPOConfig(output_dir=str(tmp_path / "out"), **settings)
        return CascadeGRPOTrainer(
            model or str(policy), reward_funcs, args=args, train_dataset=dataset, **(trainer or {})
        )

    return make
