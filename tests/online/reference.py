"""What losses written by hand are made of: log-probabilities without padding, gradients, and their distance."""

import torch
from transformers import AutoModelForCausalLM


def token_log_probs(model, prompt_ids, completion_ids, **images):
    """Log-probabilities of a completion's tokens, in float64, by a plain forward pass over one row without padding."""
    logits = model(torch.tensor([prompt_ids + completion_ids]), **images).logits[0, len(prompt_ids) - 1 : -1].double()
    return torch.log_softmax(logits, -1)[torch.arange(len(completion_ids)), torch.tensor(completion_ids)]


def log_probs(model, prompt_ids, completion_ids, counts=None, **images):
    """Their sum over the tokens that count."""
    found = token_log_probs(model, prompt_ids, completion_ids, **images)
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


def kept(model):
    """Gradients by name."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def distance(ours, theirs):
    """Relative distance of two gradients."""
    assert ours.keys() == theirs.keys()
    difference = sum((ours[name] - theirs[name]).double().pow(2).sum() for name in theirs)
    return (difference / sum(part.double().pow(2).sum() for part in theirs.values())).sqrt().item()
