"""Tools in training: within limits, and their results' tokens in no sum and in no length."""

import pytest
import torch
from datasets import Dataset

from tests.grpo.reference import gradients
from tests.online.calling import CALL, chat_kit, hang, tell, triple
from tests.online.reference import distance, drifted, kept, log_probs, rows


@pytest.fixture
def make_calling(make_trainer, policy):
    """A trainer whose policy writes what it is told: each row's first turn, then of each turn after a tool."""

    def make(first, second, tools, rewards, **settings):
        trainer = make_trainer(
            lambda completions, **columns: rewards,
            drifted(policy),
            Dataset.from_list([{"prompt": [{"role": "user", "content": "Triple seven."}]}]),
            {"tools": tools, "processing_class": chat_kit(policy)},
            per_device_train_batch_size=len(first),
            max_completion_length=256,
            **settings,
        )
        tell(trainer, first, second)
        return trainer

    return make


def test_results_are_read_and_not_learned(make_calling):
    first = [CALL.format("triple"), "No tool.</s>", CALL.format("triple"), "It may be twenty-one.</s>"]
    rewards = [1.0, 0.0, 1.0, 0.5]
    trainer = make_calling(first, ["So it is 21.</s>", "Twenty-one</s>"], [triple], rewards)
    trainer.model.train()
    batch = trainer._prepare_inputs([dict(trainer.train_dataset[0]) for _ in range(4)])
    assert (batch["tool_mask"] == 0).any(1).sum() == 2
    counts = sum(sum(row) for row in list(rows(batch))[2])
    assert trainer.generated == {"grpo/generated_responses": 4, "grpo/generated_tokens": counts}
    loss, ours = gradients(trainer, [batch])
    trainer.model.zero_grad()
    mean = sum(rewards) / 4
    std = (sum((reward - mean) ** 2 for reward in rewards) / 4) ** 0.5
    total = 0.0
    for prompt, ids, own, reward in zip(*rows(batch), batch["rewards"].tolist(), strict=True):
        total = total - (reward - mean) / std * log_probs(trainer.model, prompt, ids, own)
    (total / counts).backward()
    assert distance(ours, kept(trainer.model)) < 1e-4
    assert torch.isfinite(torch.tensor(loss))


def test_tools_are_held_to_their_time(make_calling):
    settings = {"tool_seconds": 0.2, "max_steps": 1}
    trainer = make_calling(
        [CALL.format("hang")] * 2 + ["A.</s>", "B.</s>"], ["Well.</s>"] * 2, [hang], [0.0, 1.0, 0.0, 0.0], **settings
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "grpo/tool_timeouts" in entry]
    assert [entry["grpo/tool_timeouts"] for entry in log] == [2] and log[0]["grad_norm"] > 0
