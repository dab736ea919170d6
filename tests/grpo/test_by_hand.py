"""Magistral's loss on one sheet of paper: log-probabilities, lengths and rewards are given, and so is the number."""

import math

import pytest
import torch

# of each response: group, tokens, reward by the function, ratio to the policy that wrote it
ROWS = [
    ("A", 1, 1.0, 1.5),  # better, and likelier by more than 1.28: clipped there
    ("A", 3, 0.0, 0.5),  # worse, and less likely by more than 0.8: clipped there
    ("B", 5, 1.0, 9.0),  # both right, and as long: a dead group
    ("B", 5, 1.0, 9.0),
    ("C", 2, 3.0, 1.1),  # within the bounds
    ("C", 6, 1.0, 1.4),  # worse, and likelier: never clipped
]
FIRST = 20  # ids of row n are all FIRST + n
PENALTY = 0.1 * (6 - 4) / 4  # of the last: 6 tokens, where it grows from 4 to 0.1 at 8
A, C = 0.5, (3 - (1 - PENALTY)) / 2  # what the two differ from their group's mean
STD = math.sqrt((2 * A**2 + 2 * C**2) / 4)  # over the live groups
SUM_A = -(1 * 1.28 * A) + 3 * 0.8 * A
SUM_C = -(2 * 1.1 * C) + 6 * 1.4 * C
LOSS = (SUM_A / (1 + 3) + SUM_C / (2 + 6)) / 2 / STD


@pytest.fixture
def told(make_trainer):
    """A trainer that is told what it writes, how likely that was, and how likely it is now; the calls it makes."""

    def reward(completion_ids, **columns):
        return [ROWS[ids[0] - FIRST][2] for ids in completion_ids]

    trainer = make_trainer(
        reward,
        num_generations=2,
        per_device_train_batch_size=6,
        num_iterations=2,  # what was written may be of an older policy
        length_penalty=0.1,
        length_cache=4,
    )
    written = [[FIRST + number] * tokens for number, (_, tokens, _, _) in enumerate(ROWS)]
    trainer._generate_single_turn = lambda *args, **kwargs: (written, None)
    calls = []

    def log_probs(model, input_ids, attention_mask, logits_to_keep, compute_entropy=False, **kwargs):
        calls.append(model)
        ids = input_ids[:, -logits_to_keep:]
        before = torch.full(ids.shape, -2.0)
        ratios = torch.tensor([[ROWS[row[0] - FIRST][3]] for row in ids.tolist()])
        now = (before + ratios.log()).requires_grad_() if compute_entropy else before
        return now, torch.ones(ids.shape), None

    trainer._get_per_token_logps_and_entropies = log_probs
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    prompts = [{"prompt": prompt} for prompt in "ABC" for _ in range(2)]
    return trainer, trainer._prepare_inputs(prompts), calls


def test_the_loss_is_the_number(told):
    trainer, batch, _ = told
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(LOSS, rel=1e-6)
    assert pytest.approx(0.579336, abs=1e-6) == LOSS


def test_advantages_and_lengths_are_those_on_paper(told):
    trainer, batch, _ = told
    assert batch["num_items_in_batch"] == 12  # the dead group's 10 tokens are in no length
    numbers = (batch["completion_ids"][:, 0] - FIRST).tolist()
    found = dict(zip(numbers, batch["advantages"].tolist(), strict=True))
    weight_A, weight_C = 12 / (2 * 4), 12 / (2 * 8)  # a token's: the sum is divided by 12
    expected = [A * weight_A, -A * weight_A, 0, 0, C * weight_C, -C * weight_C]
    assert [found[number] * STD for number in range(6)] == pytest.approx(expected, rel=1e-5)
    metrics = trainer._metrics["train"]
    assert metrics["grpo/kept_groups"] == [2] and metrics["grpo/advantage_std"][0] == pytest.approx(STD)
    assert metrics["grpo/dead_rate"] == [pytest.approx(1 / 3)]


def test_no_reference_is_asked_and_no_kl_is_taken(told):
    trainer, batch, calls = told
    trainer._compute_loss(trainer.model, batch)
    assert trainer.ref_model is None and "ref_per_token_logps" not in batch and trainer.beta == 0
    assert calls == [trainer.model, trainer.model]  # what was written, and what is learned: both the policy's
    assert "kl" not in trainer._metrics["train"]


def test_clipped_shares_are_those_on_paper(told):
    trainer, batch, _ = told
    trainer._compute_loss(trainer.model, batch)
    metrics = trainer._metrics["train"]
    assert metrics["clip_ratio/high_mean"] == [pytest.approx(1 / 22)]  # of all tokens, the dead group's too
    assert metrics["clip_ratio/low_mean"] == [pytest.approx(3 / 22)]
