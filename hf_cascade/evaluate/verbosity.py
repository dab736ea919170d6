"""How many tokens a model spends, on thinking and answer, and what it gains by them: pure functions (ours: paper
silent, but for its figure 5, accuracy against output tokens)."""

from statistics import fmean

from transformers import PreTrainedTokenizerBase

from hf_cascade.completions import THINKING_TAGS
from hf_cascade.evaluate.preference_figures import interval

POINTS = 32  # of a budget curve; ours
RIGHT = 0.5  # a response whose reward is above it counts as right; ours: stem_reward gives 1 and more, or 0.2 and less


def thinking_tokens(token_ids: list[int], tokenizer: PreTrainedTokenizerBase, opened: str = "") -> tuple[int, bool]:
    """
    Tokens of a response up to the end of its thinking, and whether the thinking never closes.

    Thinking is what [`completions.without_thinking`] leaves out. Tokens are cut where a tag is whole, so that tags that
    are one token and tags that are spelt in many are told alike. Text before or between blocks counts as thinking.

    Args:
        token_ids (`list[int]`): tokens of a response.
        tokenizer (`PreTrainedTokenizerBase`): their tokenizer.
        opened (`str`, *optional*): the tag with which the prompt opened the thinking.
    """
    text = opened + tokenizer.decode(token_ids)
    for begin, end in THINKING_TAGS:
        if begin in text or end in text:
            if text.rfind(begin) > text.rfind(end):
                return len(token_ids), True
            closings, low, high = text.count(end), 0, len(token_ids)
            while low < high:  # the fewest tokens with every closing tag
                middle = (low + high) // 2
                if tokenizer.decode(token_ids[:middle]).count(end) < closings:
                    low = middle + 1
                else:
                    high = middle
            return low, False
    return 0, False


def spending(responses: list) -> dict:
    """
    Tokens of a model's responses.

    Returns:
        `dict`: `tokens` as of [`interval`], mean `thinking_tokens` and `answer_tokens`, and `unfinished_rate`, the
        share of responses whose thinking never closes.
    """
    tokens = [len(response.token_ids) for response in responses]
    thinking = fmean(response.thinking_tokens for response in responses)
    return {
        "tokens": interval(tokens, [response.row for response in responses]),
        "thinking_tokens": thinking,
        "answer_tokens": fmean(tokens) - thinking,
        "unfinished_rate": fmean(response.unfinished for response in responses),
    }


def gain(rewards: list[float | None], responses: list, budgets: list[int]) -> dict:
    """
    What a model's responses are worth, and how long right and wrong ones are.

    Args:
        rewards (`list[float | None]`): of each response; `None`: not judged.
        responses (`list[Response]`): the responses.
        budgets (`list[int]`): tokens at which responses would be cut.

    Returns:
        `dict`: [`interval`]'s keys; `binary`, whether all rewards are 0 or 1; mean `right_tokens` and `wrong_tokens` of
        responses with a reward above `RIGHT` and of the others, `None` where there are none; and `budget`, the mean
        reward if responses were cut at each of `budgets`, where one that is longer gets 0. That is `None` with negative
        rewards, beside which 0 is no loss.
    """
    rows = [response.row for response in responses]
    known = [(reward, len(r.token_ids)) for reward, r in zip(rewards, responses, strict=True) if reward is not None]
    right = [tokens for reward, tokens in known if reward > RIGHT]
    wrong = [tokens for reward, tokens in known if not reward > RIGHT]
    within = None
    if known and min(known)[0] >= 0:
        within = [_mean_within(rewards, responses, budget) for budget in budgets]
    return {
        **interval(rewards, rows),
        "binary": all(reward in (0, 1) for reward, _ in known),
        "right_tokens": fmean(right) if right else None,
        "wrong_tokens": fmean(wrong) if wrong else None,
        "budget": within,
    }


def budget_grid(mean_tokens: list[float], longest: int) -> list[int]:
    """
    Budgets of tokens at which all models' curves are taken, in equal ratios up to `longest`.

    Args:
        mean_tokens (`list[float]`): of each model's responses.
        longest (`int`): `max_completion_length`.
    """
    first = max(1, min(longest, *(tokens / 4 for tokens in mean_tokens)))
    ratio = longest / first
    return sorted({round(first * ratio ** (place / (POINTS - 1))) for place in range(POINTS)} | {longest})


def _mean_within(rewards: list[float | None], responses: list, budget: int) -> float:
    """Mean over prompts, as [`interval`] has it, of the rewards of responses within a budget."""
    by_row: dict[int, list[float]] = {}
    for reward, response in zip(rewards, responses, strict=True):
        if reward is not None:
            by_row.setdefault(response.row, []).append(reward if len(response.token_ids) <= budget else 0.0)
    return fmean(fmean(values) for values in by_row.values())
