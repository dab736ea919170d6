"""Who answers a question with yes or no: a chat model at an endpoint, or one in this process (ours)."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_cascade.completions import without_thinking
from hf_cascade.loading import load_model, load_tokenizer
from hf_cascade.rewards.endpoint import ChatEndpoint, UnusableAnswer, choices_of
from hf_cascade.rewards.pairwise import label_logits, pad_left
from hf_cascade.rewards.tagged import break_up

MAX_TOKENS = 8  # ours
SPACES = " Ġ▁"  # as tokenizers write one
_AROUND = re.compile(r"^[\W_]+|[\W_]+$")
_BEFORE = r"(?:(?:so|the|my|final|answer|verdict|criterion|is|was|met|satisfied|fulfilled)\W+)*"
_VERDICT = re.compile(rf"{_BEFORE}(yes|no)|(yes|no)[*_`\"')\]]*(?:[,.:;!]|\s+[-–—]\s).*", re.IGNORECASE | re.DOTALL)


class EndpointGrader:
    """
    A chat model behind an OpenAI-compatible endpoint says yes or no, greedily.

    The last line of its answer must be the verdict, or begin with it: "no", "**Yes.**", "The answer is: yes", "No, it
    is longer". Anything else is no verdict.

    Args:
        endpoint ([`ChatEndpoint`]): where to ask.
        max_tokens (`int`, *optional*, defaults to `8`): of an answer. A judge that thinks first needs thousands.
        chat_template_kwargs (`dict`, *optional*): for the server's chat template, such as `{"enable_thinking": False}`
            for a judge that would think first (vLLM, SGLang and `transformers serve` take it).

    Raises:
        ValueError: no tokens.
    """

    def __init__(self, endpoint: ChatEndpoint, max_tokens: int = MAX_TOKENS, chat_template_kwargs: dict | None = None):
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}: give 1 or more")
        self.endpoint, self.max_tokens, self.chat_template_kwargs = endpoint, max_tokens, chat_template_kwargs

    def grade(self, questions: list[str]) -> list[bool | None]:
        """
        Whether the answer to each question is yes; `None` where there is no verdict.

        Raises:
            ConnectionError: there is not one verdict, or `max_requests` are used up.
        """
        return self.endpoint.ask([self.request(question) for question in questions], read_verdict)

    def request(self, question: str) -> dict:
        """The body of one request."""
        messages = [{"role": "user", "content": question}]
        body = {"messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        return body | ({"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {})


class Judgement(NamedTuple):
    """log P(yes) - log P(no) of the next token, and whether the likeliest token is one of the two."""

    log_odds: float
    said: bool


class LocalGrader:
    """
    A chat model in this process says yes or no by its next token: yes where P(yes) > P(no), each over its spellings.

    Where the likeliest token is neither, there is no verdict: the model would have said something else. One that thinks
    first belongs behind an endpoint. Each process holds the whole model.

    Args:
        model (`PreTrainedModel`): causal language model; its mode becomes `eval`.
        tokenizer (`PreTrainedTokenizerBase`): the model's, with a chat template.
        batch_size (`int`, *optional*, defaults to `8`): questions in a forward pass.
        max_length (`int`, *optional*): tokens of a question; longer ones have no verdict. Unset, the model's window.
        chat_template_kwargs (`dict`, *optional*): for the chat template, such as `{"enable_thinking": False}`.

    Raises:
        ValueError: no chat template, no tokens for yes and no, or a number that is too small.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 8,
        max_length: int | None = None,
        chat_template_kwargs: dict | None = None,
    ):
        if not tokenizer.chat_template:
            raise ValueError(f"{model.name_or_path or 'the judge'} has no chat template: a judge is a chat model")
        self.max_length = max_length or model.config.get_text_config().max_position_embeddings
        if batch_size < 1 or self.max_length < 1:
            raise ValueError(f"batch_size={batch_size}, max_length={max_length}: both must be at least 1")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.yes_ids, self.no_ids = verdict_ids(tokenizer)
        self.chat_template_kwargs = chat_template_kwargs or {}
        special = sorted({*tokenizer.all_special_tokens, *_added(tokenizer)}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._has_warned = False

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        batch_size: int = 8,
        max_length: int | None = None,
        chat_template_kwargs: dict | None = None,
    ) -> "LocalGrader":
        """
        Open a folder or Hub id.

        Args:
            folder (`str` or `Path`): holds model and tokenizer.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): of the weights; `auto` is their own.
            device (`str` or `torch.device`, *optional*): unset, the current accelerator, or the CPU.
            batch_size, max_length, chat_template_kwargs: as above.

        Raises:
            ValueError: it does not open, or cannot judge.
        """
        tokenizer = load_tokenizer(str(folder))
        if not tokenizer.chat_template:
            raise ValueError(f"{folder} has no chat template: a judge is a chat model")
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        model = load_model(str(folder), dtype).to(device)
        return cls(model, tokenizer, batch_size, max_length, chat_template_kwargs)

    def grade(self, questions: list[str]) -> list[bool | None]:
        """Whether the answer to each question is yes; `None` where there is no verdict, or the question is too long."""
        judged = self.judge(questions)
        return [None if one is None or not one.said else one.log_odds > 0 for one in judged]

    @torch.no_grad()
    def judge(self, questions: list[str]) -> list[Judgement | None]:
        """What the model makes of each question, `None` of those too long; rows of like length share a forward pass."""
        rows = [self.encode(question) for question in questions]
        order = sorted((n for n, row in enumerate(rows) if len(row) <= self.max_length), key=lambda n: len(rows[n]))
        self._warn_of_long(len(rows) - len(order), len(rows))
        judged: list[Judgement | None] = [None] * len(rows)
        either = torch.tensor([*self.yes_ids, *self.no_ids], device=self.model.device)
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            batch = pad_left([rows[number] for number in numbers], self.tokenizer.pad_token_id or 0)  # masked
            batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            logits_BV, _ = label_logits(self.model, batch, [])
            odds_B = logits_BV[:, self.yes_ids].logsumexp(1) - logits_BV[:, self.no_ids].logsumexp(1)
            said_B = torch.isin(logits_BV.argmax(1), either) & odds_B.isfinite()
            for number, odds, said in zip(numbers, odds_B.tolist(), said_B.tolist(), strict=True):
                judged[number] = Judgement(odds, said)
        return judged

    def encode(self, question: str) -> list[int]:
        """Tokens of a user's turn; a control token of this model in it is text."""
        messages = [{"role": "user", "content": self._special.sub(break_up, question)}]
        options = {**self.chat_template_kwargs, "add_generation_prompt": True, "return_dict": False}
        return self.tokenizer.apply_chat_template(messages, **options)

    def _warn_of_long(self, count: int, total: int) -> None:
        if count and not self._has_warned:
            self._has_warned = True
            print(
                f"hf-cascade: warning: {count} of {total} questions to the judge have more than {self.max_length} "
                "tokens and no verdict (rubric_reward/failed_rate); take a judge with a longer window",
                file=sys.stderr,
            )


def read_verdict(answer: dict) -> bool:
    """
    Whether the body of a chat completion says yes.

    Raises:
        UnusableAnswer: no verdict; or the answer was cut off behind its first line, so that its last line is none.
    """
    choice = choices_of(answer)[0]
    said = choice["message"].get("content") or ""
    lines = without_thinking(said).strip().splitlines()
    cut = choice.get("finish_reason") == "length"
    verdict = None if cut and len(lines) > 1 else verdict_of(lines[-1] if lines else "")
    if verdict is None:
        hint = ", cut off: raise max_tokens (judge_max_tokens among a script's flags)" if cut else ""
        raise UnusableAnswer(f"an answer without yes or no ({said[-200:]!r}){hint}")
    return verdict


def verdict_of(line: str) -> bool | None:
    """Whether a line says yes, whatever marks stand around it; `None`: neither yes nor no."""
    found = _VERDICT.fullmatch(_AROUND.sub("", line))
    return found and (found[1] or found[2]).lower() == "yes"


def verdict_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """
    Tokens that say yes, and those that say no: each spelling of the word with or without a space; where no token does,
    those that begin the word.

    Raises:
        ValueError: the words begin alike, or the tokenizer does not know them.
    """
    whole, first = ({"yes": set(), "no": set()} for _ in range(2))
    for token, number in tokenizer.get_vocab().items():
        if (word := token.lstrip(SPACES).lower()) in whole:
            whole[word].add(number)
    for word in first:
        spellings = (word, word.capitalize(), word.upper())
        first[word] = {ids[0] for ids in (tokenizer.encode(one, add_special_tokens=False) for one in spellings) if ids}
    for found in (whole, first):
        yes, no = found["yes"] - found["no"], found["no"] - found["yes"]
        yes, no = (ids - {tokenizer.unk_token_id} for ids in (yes, no))
        if yes and no:
            return sorted(yes), sorted(no)
    raise ValueError("the judge's tokenizer has no tokens that begin yes and not no, or no and not yes: take another")


def _added(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
