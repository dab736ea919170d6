"""Online DPO written by hand: sums of log-probabilities without padding, and Rafailov et al.'s loss pair by pair."""

import torch
from transformers import AutoModelForCausalLM

from hf_cascade.rewards.preference import PairwisePreference


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


def log_probs(model, prompt_ids, completion_ids, counts=None, **images):
    """Sum of a completion's log-probabilities over the tokens that count, by a plain forward pass without padding."""
    logits = model(torch.tensor([prompt_ids + completion_ids]), **images).logits
    logits = logits[0, len(prompt_ids) - 1 : -1].double()
    found = torch.log_softmax(logits, -1)[torch.arange(len(completion_ids)), torch.tensor(completion_ids)]
    return found.sum() if counts is None else found[torch.tensor(counts).bool()].sum()


def rows(batch):
    """Prompts and completions of a batch without padding, and which tokens of the latter count."""
    completion = batch["completion_mask"]
    counts = batch.get("tool_mask", torch.ones_like(completion))
    pairs = (
        (batch["prompt_ids"], batch["prompt_mask"]),
        (batch["completion_ids"], completion),
        (counts, completion),
    )
    for values, mask in pairs:
        yield [row[keep.bool()].tolist() for row, keep in zip(values, mask, strict=True)]


def drifted(folder, auto=AutoModelForCausalLM, scale=0.02):
    """The policy a few steps on: D is not 0."""
    model = auto.from_pretrained(folder)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += scale * torch.randn_like(weight)
    return model


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


def kept(model):
    """Gradients by name."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


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


def distance(ours, theirs):
    """Relative distance of two gradients."""
    assert ours.keys() == theirs.keys()
    difference = sum((ours[name] - theirs[name]).double().pow(2).sum() for name in theirs)
    return (difference / sum(part.double().pow(2).sum() for part in theirs.values())).sqrt().item()
