"""Magistral's loss written by hand: group by group, plain forward passes without padding, loops over responses."""

import statistics
from dataclasses import dataclass

import torch

from tests.online.reference import kept, rows, token_log_probs


@dataclass
class Response:
    """Ids without padding, the reward (`None`: none), and the number of the group."""

    prompt: list[int]
    completion: list[int]
    reward: float | None
    group: int


def unpadded(batches) -> list[Response]:
    """Responses of micro-batches from `generate`."""
    found = []
    for batch in batches:
        prompts, completions, _ = rows(batch)
        rewards = [None if reward != reward else reward for reward in batch["rewards"].tolist()]
        found += map(Response, prompts, completions, rewards, batch["group"].tolist())
    return found


def groups_of(responses) -> list[list[Response]]:
    """Responses by group."""
    groups = {}
    for one in responses:
        groups.setdefault(one.group, []).append(one)
    for group in groups.values():
        assert all(one.prompt == group[0].prompt for one in group)
    return [*groups.values()]


def by_hand(
    model,
    responses,
    scope="group",
    old=None,
    low=0.2,
    high=0.28,
    images=lambda prompt_ids: {},
    correct=lambda one, log_probs: 1.0,
):
    """
    Loss and gradient: 1/P sum_groups 1/length sum_tokens -min(r A, clip(r) A), A = (reward - mean) / std.

    Args:
        model: the policy.
        responses: from `unpadded`.
        scope: "batch" divides the sum over all groups by their length together.
        old: the policy that wrote the responses; the same by default.
        images: the images of a prompt, as keyword arguments of the model.
        correct: a factor of a response's tokens, from it and their log-probabilities.
    """
    live = []
    for group in groups_of(responses):
        judged = [one for one in group if one.reward is not None]
        if len({round(one.reward, 6) for one in judged}) > 1:
            mean = statistics.fmean(one.reward for one in judged)
            live.append([(one, one.reward - mean) for one in judged])
    std = statistics.fmean(centred**2 for group in live for _, centred in group) ** 0.5
    model.zero_grad()
    sums, lengths = [], []
    for group in live:
        total = 0.0
        for one, centred in group:
            row = (one.prompt, one.completion)
            new = token_log_probs(model, *row, **images(one.prompt))
            with torch.no_grad():
                before = token_log_probs(old, *row) if old is not None else new.detach()
            ratio = torch.exp(new - before)
            clipped = ratio.clamp(1 - low, 1 + high)
            lesser = torch.min(ratio * centred / std, clipped * centred / std)
            total = total - (lesser * correct(one, before)).sum()
        sums.append(total)
        lengths.append(sum(len(one.completion) for one, _ in group))
    if scope == "group":
        loss = sum(total / length for total, length in zip(sums, lengths, strict=True)) / len(sums)
    else:
        loss = sum(sums) / sum(lengths)
    loss.backward()
    return loss.item(), kept(model)


def generate(trainer):
    """The micro-batches of one generation batch: responses of unequal length, which know their group."""
    write, refill = trainer._generate_single_turn, trainer._refill

    def write_less(*args, **kwargs):
        completions, extra = write(*args, **kwargs)
        completions = [ids[: 2 + ids[0] % 7] for ids in completions]
        return completions, extra and [of[: len(ids)] for of, ids in zip(extra, completions, strict=True)]

    def refill_and_number(*args):
        batch = refill(*args)
        return {**batch, "group": torch.arange(len(batch["rewards"])) // trainer.num_generations}

    trainer._generate_single_turn, trainer._refill = write_less, refill_and_number
    trainer.model.train()
    trainer._step, trainer._buffered_inputs = 0, None
    torch.manual_seed(7)
    count = trainer.args.generation_batch_size // trainer.num_generations
    given = [trainer.train_dataset[number] for number in range(count)]
    trainer._prepare_inputs([dict(row) for row in given for _ in range(trainer.num_generations)])
    return trainer._buffered_inputs


def gradients(trainer, batches):
    """Loss and gradient of one optimizer step as the trainer accumulates it."""
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    total = 0.0
    for batch in batches:
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        total += loss.item()
    return total, kept(trainer.model)
