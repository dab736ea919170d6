"""With vLLM: what it is told, when it gets weights, and its log-probabilities in the loss, in refilled groups too."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl.trainer import grpo_trainer

from tests.grpo.reference import by_hand, generate, gradients, groups_of, unpadded
from tests.grpo.test_trainer import DEAD, varied
from tests.online.reference import distance, drifted, token_log_probs
from tests.online.scene import PROMPTS
from tests.online.served import Server


@pytest.fixture
def make_served(make_trainer, policy, monkeypatch):
    """The server's weights are the policy's before it drifted: its log-probabilities are others."""
    served = AutoModelForCausalLM.from_pretrained(policy)

    def log_probs(server, prompt_ids, completion_ids):
        with torch.no_grad():
            return token_log_probs(served, prompt_ids, completion_ids).tolist()

    monkeypatch.setattr(Server, "log_probs", log_probs)
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Server)

    def make(**settings):
        rows = Dataset.from_dict({"prompt": [*PROMPTS, *(f"The number {n} is" for n in range(60))]})
        settings = {"use_vllm": True, "per_device_train_batch_size": 16, **settings}
        return make_trainer(varied, drifted(policy), rows, **settings), served

    return make


def by_sequence(served, most):
    """The ratio of a response's probabilities, here and at the server; 0 above `most`."""

    def correct(one, log_probs):
        with torch.no_grad():
            ratio = (log_probs - token_log_probs(served, one.prompt, one.completion)).sum().exp()
        return 0.0 if ratio > most else ratio

    return correct


def by_token(served, most):
    """The ratio of each token's; `most` at the most."""

    def correct(one, log_probs):
        with torch.no_grad():
            return (log_probs - token_log_probs(served, one.prompt, one.completion)).exp().clamp(max=most)

    return correct


@pytest.mark.parametrize(
    ("mode", "most", "by"), [("sequence_mask", 1.1, by_sequence), ("token_truncate", 1.05, by_token)]
)
@pytest.mark.parametrize("rounds", [0, 8])
def test_gradient_with_the_servers_log_probabilities(make_served, mode, most, by, rounds):
    settings = {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": most}
    trainer, served = make_served(
        vllm_mode="colocate",
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_refill_rounds=rounds,
        **settings,
    )
    batches = generate(trainer)
    responses, kept_groups = unpadded(batches), trainer._metrics["train"]["grpo/kept_groups"]
    prompts = {trainer.processing_class.decode(one.prompt, skip_special_tokens=True) for one in responses}
    assert (kept_groups == [4] and not prompts & {*DEAD}) if rounds else (kept_groups == [2] and {*DEAD} <= prompts)
    assert [len(group) for group in groups_of(responses)] == [4] * 4
    for batch in batches:
        sampled, mask = batch["sampling_per_token_logps"], batch["completion_mask"].bool()
        assert sampled.shape == batch["completion_ids"].shape and (sampled[mask] < 0).all()
        assert len(batch["importance_sampling_ratio"]) == len(batch["old_per_token_logps"]) == 8
    loss, ours = gradients(trainer, batches)
    expected, theirs = by_hand(trainer.model, responses, correct=by(served, most))
    assert loss == pytest.approx(expected, abs=1e-5) and distance(ours, theirs) < 1e-4
    _, uncorrected = by_hand(trainer.model, responses)
    assert distance(ours, uncorrected) > 1e-2
    assert Server.made[-1].counts == [4] * (1 + int(trainer._metrics["train"]["grpo/refill_rounds"][0]))


def test_what_a_colocated_engine_is_told(make_served):
    repetition = {"repetition_detection": {"max_pattern_size": 64, "min_count": 4}}
    make_served(
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=0.4,
        vllm_max_model_length=4096,
        vllm_enable_sleep_mode=True,
        generation_kwargs=repetition,
        top_p=0.9,
    )
    told = Server.made[-1].settings
    assert told["mode"] == "colocate" and told["gpu_memory_utilization"] == 0.4 and told["max_model_length"] == 4096
    assert told["enable_sleep_mode"] and told["top_p"] == 0.9 and told["temperature"] == 1.0
    assert told["max_completion_length"] == 8 and told["generation_kwargs"] == repetition


def test_a_server_gets_weights_once_a_step_however_often_it_is_asked(make_served):
    url = {"vllm_mode": "server", "vllm_server_base_url": "http://localhost:1"}
    trainer, _ = make_served(**url, max_steps=3, max_refill_rounds=4, num_generations=4)
    trainer.train()
    server = Server.made[-1]
    assert server.settings["server_base_url"] == "http://localhost:1" and server.syncs == 3
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    rounds = sum(entry["grpo/refill_rounds"] for entry in log)
    assert rounds > 0 and len(server.counts) == 3 + rounds
    assert all("sampling/importance_sampling_ratio/mean" in entry for entry in log)
