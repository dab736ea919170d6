"""With vLLM: what it is told, the loss at temperature 1 all the same, and the win-rate without a second model."""

import pytest
from datasets import Dataset
from trl.trainer import grpo_trainer

from tests.odpo.reference import Prefer, by_hand, gradients, longer
from tests.online.reference import distance, drifted
from tests.online.scene import PROMPTS
from tests.online.served import Server


@pytest.fixture
def make_served(make_trainer, policy, monkeypatch):
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Server)

    def make(**settings):
        settings = {"use_vllm": True, "per_device_train_batch_size": 8, **settings}
        held_out = {"eval_dataset": Dataset.from_dict({"prompt": PROMPTS[:2]})}
        return make_trainer(Prefer(longer), drifted(policy), trainer=held_out, **settings)

    return make


@pytest.mark.parametrize("form", ["pair", "weight"])
def test_sampled_at_one_temperature_and_learned_at_another(make_served, policy, form):
    repetition = {"repetition_detection": {"max_pattern_size": 64, "min_count": 4}}
    trainer = make_served(vllm_mode="colocate", loss_form=form, generation_kwargs=repetition, top_p=0.9)
    settings = Server.made[-1].settings
    assert settings["generation_kwargs"] == {"temperature": 0.7, **repetition}
    assert settings["mode"] == "colocate" and settings["top_p"] == 0.9 and settings["max_completion_length"] == 8
    loss, ours, buffered = gradients(trainer)
    expected, theirs = by_hand(policy, trainer.model, buffered)
    assert loss == pytest.approx(expected, rel=1e-4) and distance(ours, theirs) < 1e-4
    assert Server.made[-1].counts == [2]


def test_weights_are_sent_before_every_generation(make_served):
    trainer = make_served(vllm_mode="server", vllm_server_base_url="http://localhost:1", max_steps=3)
    trainer.train()
    assert Server.made[-1].settings["server_base_url"] == "http://localhost:1" and Server.made[-1].syncs == 3


@pytest.mark.parametrize("at_start", [True, False])
def test_win_rate_needs_an_evaluation_at_the_start(make_served, at_start, caplog):
    trainer = make_served(eval_strategy="steps", eval_steps=1, eval_on_start=at_start, max_steps=2)
    with caplog.at_level("WARNING"):
        trainer.train()
    found = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(found) == 2 + at_start
    assert [entry.get("eval_odpo/win_rate") is not None for entry in found] == [at_start] * len(found)
    if at_start:
        assert found[0]["eval_odpo/length_drift_tokens"] == 0 != found[1]["eval_odpo/length_drift_tokens"]
    assert caplog.text.count("No win-rate against the starting policy") == (not at_start)


def test_the_reference_cannot_write(make_served):
    with pytest.raises(ValueError, match="vLLM holds the policy alone"):
        make_served(sample_from="reference")
