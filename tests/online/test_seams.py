"""seams.py: the installed TRL is the one that was read, a changed one is named, and a real step has the keys."""

import inspect
import re
import tomllib
import types
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils

from hf_cascade.online import seams
from tests.data import tiny
from tests.prune import families


def test_the_installed_trl_is_the_one_that_was_read():
    assert seams.find_changes(GRPOTrainer, utils, GRPOConfig) == []
    seams.check_seams()


def test_versions_are_those_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"trl{seams.SUPPORTED}" in project["dependencies"]


def renamed_key(name: str, key: str) -> type:
    """The trainer, with another word for a key in one method's code."""

    def swap(value):
        return tuple(map(swap, value)) if isinstance(value, tuple) else "other" if value == key else value

    method = inspect.unwrap(getattr(GRPOTrainer, name))
    code = method.__code__.replace(co_consts=swap(method.__code__.co_consts))
    return type("Changed", (GRPOTrainer,), {name: types.FunctionType(code, {}, closure=method.__closure__)})


@pytest.mark.parametrize(("method", "key"), [(name, key) for name, keys in seams.KEYS.items() for key in keys])
def test_a_renamed_key_is_named(method, key):
    with pytest.raises(ValueError, match=re.escape(f"{method} knows no key '{key}'")) as caught:
        seams.check_seams(renamed_key(method, key))
    said = str(caught.value)
    assert f"trl {trl.__version__} is installed" in said and "trl>=1.16,<2" in said and 'pip install "trl==' in said


@pytest.mark.parametrize("method", seams.OVERRIDDEN)
def test_other_parameters_are_named(method):
    changed = type("Changed", (GRPOTrainer,), {method: lambda self, batch: None})
    change = seams.find_changes(changed, utils, GRPOConfig)[0]
    assert change.startswith(f"{method} takes (self, batch), not (self, {seams.OVERRIDDEN[method][1]}")


@pytest.mark.parametrize("method", [*seams.OVERRIDDEN, *list(seams.CALLED)[1:]])
def test_a_method_that_is_gone_is_named_once(method):
    gone = type("Changed", (GRPOTrainer,), {method: None})
    assert seams.find_changes(gone, utils, GRPOConfig) == [f"{method} is gone"]


def test_a_parameter_that_is_gone_from_a_call():
    class Changed(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **kwargs):
            pass

    changes = seams.find_changes(Changed, utils, GRPOConfig)
    assert "_get_per_token_logps_and_entropies takes no pixel_values" in changes and len(changes) == 5


def test_attributes_helpers_and_settings_that_are_gone():
    class Bare:
        def __init__(
            self, model, reward_funcs, args, train_dataset, eval_dataset, processing_class, peft_config, tools
        ):
            self._metrics = {}

    changes = seams.find_changes(Bare, types.ModuleType("empty"), type("Config", (), {}))
    assert "no attribute _metrics" not in changes and "no attribute _step" in changes
    assert "split_tensor_dict is gone" in changes and "Config has no beta" in changes

    class Inlined(GRPOTrainer):
        def _prepare_inputs(self, generation_batch):
            return utils.split_tensor_dict(generation_batch, 1)

    changes = seams.find_changes(Inlined, utils, GRPOConfig)
    assert changes == [f"_prepare_inputs does not call {name}" for name in list(seams.HELPERS)[1:]]


class Recorder(GRPOTrainer):
    """GRPO itself, which keeps what its methods gave and got."""

    def _generate(self, prompts):
        self.generated = super()._generate(prompts)
        return self.generated

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self.rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self.rewards

    def _generate_and_score_completions(self, inputs):
        self.scored = super()._generate_and_score_completions(inputs)
        return self.scored

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.log_probabilities = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self.log_probabilities

    def _compute_loss(self, model, inputs):
        self.read = set(inputs)
        return super()._compute_loss(model, inputs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Recorder:
    """One step of two pairs, with tokens that a tool wrote and a reference model."""
    folder = tmp_path_factory.mktemp("grpo")
    families.build("llama", seed=1, dtype=torch.float32, num_hidden_layers=1).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    settings = {"num_generations": 2, "per_device_train_batch_size": 4, "beta": 0.1, "max_completion_length": 4}
    settings |= {"max_steps": 1, "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    settings |= {"save_strategy": "no", "gradient_checkpointing": False, "scale_rewards": "none"}

    def rollout(prompts, trainer):
        count = len(prompts)
        told = {"prompt_ids": [[1, 5, 6]] * count, "completion_ids": [[7, 8, 9, 2]] * count}
        return told | {"logprobs": None, "env_mask": [[1, 0, 1, 1]] * count}

    trainer = Recorder(
        str(folder / "model"),
        reward_funcs=lambda completions, **columns: [float(row) for row in range(len(completions))],
        args=GRPOConfig(output_dir=str(folder / "out"), **settings),
        train_dataset=Dataset.from_dict({"prompt": ["ab", "cd"]}),
        rollout_func=rollout,
    )
    trainer.train()
    return trainer


def test_a_step_has_the_keys_and_shapes(trained):
    wanted = set(seams.SEQUENCE_KEYS) | {"num_items_in_batch"}
    assert wanted <= trained.scored.keys() and wanted <= trained.read
    for key in ("completion_ids", "completion_mask", "tool_mask", "ref_per_token_logps"):
        assert trained.scored[key].shape == (4, 4), key
    assert trained.scored["tool_mask"].tolist() == [[1, 0, 1, 1]] * 4
    assert trained.rewards.shape == (4, 1) and trained.rewards.flatten().tolist() == [0.0, 1.0, 2.0, 3.0]
    prompts, completions, tool_mask, texts, log_probabilities, extra, images, tool_images = trained.generated
    assert (len(prompts), len(completions), len(tool_mask), len(texts), images, tool_images) == (4, 4, 4, 4, None, [])
    values, entropies, _ = trained.log_probabilities
    assert values.shape == entropies.shape == (4, 4)


def test_a_trainer_has_the_attributes(trained):
    assert [name for name in seams.ATTRIBUTES if not hasattr(trained, name)] == []
    assert set(trained._metrics) == {"train", "eval"} and trained._step == 1 and len(trained._buffered_inputs) == 1
    assert {"prompt", "completion", "rewards", "advantages", "extra"} <= trained._logs.keys()
