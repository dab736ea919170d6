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
)

from hf_cascade.completions import THINKING_TAGS
from hf_cascade.evaluate.backends.asking import Decoding, cut_at

FEW = 512  # tokens that hold the nucleus of most steps; ours
TAGS = {tag for pair in THINKING_TAGS for tag in pair}


class Draw(LogitsProcessor):
    """
    Sampling by one uniform number a row and step: the first token at which the summed probability passes it.

    Equal in distribution to nucleus sampling with `torch.multinomial`, but a row's tokens do not depend on the rows
    beside it (up to the model's own rounding): neither another batch size nor a resumed run changes a sample. Tokens
    are sorted once for both, the nucleus and the sum.

    Args:
        seeds (`list[int]`): of each row.
        prompt_tokens (`int`): length of the padded prompts.
        steps (`int`): most tokens that will be drawn.
        top_p (`float`): only the likeliest tokens that have this share together are drawn.
    """

    def __init__(self, seeds: list[int], prompt_tokens: int, steps: int, top_p: float = 1.0):
        self.prompt_tokens, self.top_p, self.few = prompt_tokens, top_p, FEW
        rows = [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.double) for seed in seeds]
        self.uniform_BT = torch.stack(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_tokens
        share_BV, last_B1, order_BV = scores.softmax(-1, dtype=torch.float), None, None
        if self.top_p < 1:
            share_BV, order_BV = self._likeliest(share_BV)
        summed_BV = share_BV.cumsum(-1, dtype=torch.float if scores.device.type == "mps" else torch.double)
        if order_BV is not None:
            last_B1 = (summed_BV - share_BV < self.top_p).sum(-1, keepdim=True) - 1
            total_B1 = summed_BV.gather(-1, last_B1)
        else:
            total_B1 = summed_BV[:, -1:]
        at_B1 = self.uniform_BT[:, step : step + 1].to(total_B1) * total_B1
        token_B1 = torch.searchsorted(summed_BV, at_B1, right=True)
        token_B1 = token_B1.clamp(max=scores.shape[-1] - 1) if last_B1 is None else token_B1.minimum(last_B1)
        if order_BV is not None:
            token_B1 = order_BV.gather(-1, token_B1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1, 0.0)

    def _likeliest(self, share_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sorted shares and their tokens, as many as the nucleus needs: a whole vocabulary only where few do not do."""
        if share_BV.shape[-1] > self.few:
            few_BV, order_BV = share_BV.topk(self.few)
            if few_BV.sum(-1).min() > self.top_p + 1e-4:  # not by rounding alone
                return few_BV, order_BV
            self.few = share_BV.shape[-1]  # a flat distribution: not tried again
        return share_BV.sort(-1, descending=True)


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
    if min_p:
        found.append(MinPLogitsWarper(min_p))
    found.append(Draw(seeds, prompt_tokens, steps, decoding.top_p))
    return found


def text_of(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """The text of tokens without special ones, but with the tags of thinking, which are special tokens of Mistral's."""
    dropped = set(tokenizer.all_special_ids)
    special = [token for token in set(token_ids) if token in dropped]
    dropped = {token for token in special if tokenizer.convert_ids_to_tokens(token) not in TAGS}
    return tokenizer.decode([token for token in token_ids if token not in dropped], skip_special_tokens=False)
