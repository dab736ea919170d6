"""Online DPO written by hand: Rafailov et al.'s loss pair by pair."""

import torch
from transformers import AutoModelForCausalLM

from hf_cascade.rewards.preference import PairwisePreference
from tests.online.reference import kept, log_probs, rows


class Prefer(PairwisePreference):
    """P(first) by a rule on the two texts."""

    def __init__(self, rule):
        super().__init__("prefer")
        self.rule = rule

    def compare(self, prompts, first, second, **columns):
        return [self.rule(a, b) for a, b in zip(first, second, strict=True)]


def longer(a, b):
    """Of two texts, or lists of messages."""
    a, b = (len(str(one)) for one in (a, b))
    return 0.9 if a > b else 0.1 if a < b else 0.5


def gradients(trainer, micro_batches=1):
    """Loss and gradient of one optimizer step as the trainer accumulates it, and the generation batch it is of."""
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = micro_batches
    torch.manual_seed(7)
    given = trainer.train_dataset.select(range(trainer.args.generation_batch_size // 2))
    generation_batch = [dict(row) for row in given for _ in range(2)]
    total = 0.0
    for step in range(micro_batches):
        trainer._step = step
        inputs = trainer._prepare_inputs(generation_batch)
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        total += loss.item()
    return total, kept(trainer.model), trainer._buffered_inputs


def by_hand(reference, model, buffered, beta=0.1, rescale=True, images=lambda prompt_ids: {}):
    """
    Loss and gradient of the same pairs, pair by pair, both ways round.

    Args:
        reference: folder of the reference, or a function that computes with it.
        images: the images of a prompt, as keyword arguments of the model.
    """
    if not callable(reference):
        frozen = AutoModelForCausalLM.from_pretrained(reference)

        def reference(*args, **kwargs):
            return log_probs(frozen, *args, **kwargs)

    model.zero_grad()
    prompts, completions, counts = (sum(parts, []) for parts in zip(*map(rows, buffered), strict=True))
    keep, probability = (sum((batch[name].tolist() for batch in buffered), []) for name in ("keep", "win_probability"))
    losses = []
    for i in range(0, len(prompts), 2):
        assert prompts[i] == prompts[i + 1]
        if not keep[i]:
            continue
        ratios = []
        for j in (i, i + 1):
            row = (prompts[j], completions[j], counts[j])
            with torch.no_grad():
                theirs = reference(*row, **images(prompts[j]))
            ratios.append(log_probs(model, *row, **images(prompts[j])) - theirs)
        forward = -torch.log(torch.sigmoid(beta * (ratios[0] - ratios[1])))
        backward = -torch.log(torch.sigmoid(beta * (ratios[1] - ratios[0])))
        losses.append((probability[i] * forward + (1 - probability[i]) * backward) / (beta if rescale else 1))
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), kept(model)
