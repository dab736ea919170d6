"""Generation with transformers, row by row of a batch: each row has its own random numbers, stop strings and length."""

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_cascade.completions import THINKING_TAGS
from hf_cascade.evaluate.backends.asking import Decoding, cut_at


class Draw(LogitsProcessor):
    """
    Sampling by one uniform number a row and step: the first token at which the summed probability passes it.

    Equal in distribution to `torch.multinomial`, but a row's tokens do not depend on the rows beside it (up to the
    model's own rounding), so that neither another batch size nor a resumed run changes a sample.

    Args:
        seeds (`list[int]`): of each row.
        prompt_tokens (`int`): length of the padded prompts.
        steps (`int`): most tokens that will be drawn.
    """

    def __init__(self, seeds: list[int], prompt_tokens: int, steps: int):
        self.prompt_tokens = prompt_tokens
        rows = [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.double) for seed in seeds]
        self.uniform_BT = torch.stack(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_tokens
        exact = torch.float if scores.device.type == "mps" else torch.double
        summed_BV = scores.to(exact).softmax(-1).cumsum(-1)
        at_B1 = self.uniform_BT[:, step : step + 1].to(scores.device, exact) * summed_BV[:, -1:]
        token_B1 = torch.searchsorted(summed_BV, at_B1, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1, 0.0)


class RowEnds(StoppingCriteria):
    """
    Ends each row at its own length, or once its text holds a stop string outside of thinking.

    Attributes:
        lengths (`list[int | None]`): tokens of each row that ended so.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_tokens: int,
        until: tuple[str, ...],
        limits: list[int],
        opened: list[str],
    ):
        self.tokenizer, self.prompt_tokens, self.until, self.limits = tokenizer, prompt_tokens, until, limits
        self.opened = opened
        self.lengths: list[int | None] = [None] * len(limits)
        # a byte is at least a part of a token, so that a stop string is in this many tokens and the newest one's rest
        self.reach = 1 + max((len(stop.encode()) for stop in until), default=0)

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        made = input_ids.shape[1] - self.prompt_tokens
        if self.until:
            recent = input_ids[:, max(self.prompt_tokens, input_ids.shape[1] - self.reach) :]
            for row, text in enumerate(self.tokenizer.batch_decode(recent)):
                if self.lengths[row] is None and any(stop in text for stop in self.until):
                    whole = text_of(self.tokenizer, input_ids[row, self.prompt_tokens :].tolist())
                    if cut_at(self.opened[row] + whole, self.until)[1]:
                        self.lengths[row] = made
        for row, limit in enumerate(self.limits):
            if self.lengths[row] is None and made >= limit:
                self.lengths[row] = made
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


def processors(decoding: Decoding, seeds: list[int], prompt_tokens: int, steps: int) -> LogitsProcessorList:
    """What turns logits into a drawn token; none for greedy decoding. Takes its settings out of `decoding.rest`."""
    found = LogitsProcessorList()
    top_k, min_p = decoding.rest.pop("top_k", None), decoding.rest.pop("min_p", None)
    if decoding.temperature == 0:
        return found
    if decoding.temperature != 1:
        found.append(TemperatureLogitsWarper(decoding.temperature))
    if top_k:
        found.append(TopKLogitsWarper(top_k))
    if decoding.top_p < 1:
        found.append(TopPLogitsWarper(decoding.top_p))
    if min_p:
        found.append(MinPLogitsWarper(min_p))
    found.append(Draw(seeds, prompt_tokens, steps))
    return found


def text_of(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """The text of tokens without special ones, but with the tags of thinking, which are special tokens of Mistral's."""
    tags = {tokenizer.convert_tokens_to_ids(tag) for pair in THINKING_TAGS for tag in pair}
    dropped = set(tokenizer.all_special_ids) - tags
    return tokenizer.decode([token for token in token_ids if token not in dropped], skip_special_tokens=False)
