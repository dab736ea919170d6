r"""Reward for form: one thinking block, first and closed, then `\boxed{}` or a fenced program (paper section 5)."""

from collections.abc import Callable
from contextlib import suppress

from jinja2 import TemplateError

from hf_cascade.completions import THINKING_KEYS, THINKING_PARTS, THINKING_TAGS
from hf_cascade.rewards.answers import opening_tag
from hf_cascade.rewards.maths import boxed
from hf_cascade.rewards.programs import last_program

TAGS = tuple(tag for pair in THINKING_TAGS for tag in pair)


class FormatReward:
    """
    1 where the last assistant message has the form, else 0 (the paper weighs it 0.1).

    It reads messages as `response_template` parses them, or text with its thinking tags. Parsed messages do not tell
    two blocks from one, nor text before the block; with a tokenizer the tokens do.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): reads TRL's `completion_ids`. It can be set later.
    """

    def __init__(self, tokenizer=None):
        self.tokenizer = tokenizer
        self.__name__ = "format_reward"
        self._known = None  # a chat template, and the tag with which it opens an answer

    def __call__(
        self,
        prompts: list,
        completions: list,
        completion_ids: list[list[int]] | None = None,
        tests: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns,
    ) -> list[float]:
        """
        Rewards of a batch.

        Args:
            prompts (`list`): text, or lists of messages. A text that ends with an opening tag opens the thinking.
            completions (`list`): text, or lists of messages.
            completion_ids (`list[list[int]]`, *optional*): TRL's; looked at with a tokenizer.
            tests (`list`, *optional*): a row that has some is for a program, any other for `\\boxed{}`.
            log_metric (`Callable`, *optional*): TRL's. Gets the share without the right thinking, as
                `format_reward/thinking`, and the share of all others without an answer, `format_reward/answer`.
            **columns: not looked at.
        """
        texts = [None] * len(prompts)
        if self.tokenizer is not None and completion_ids is not None:
            texts = [self._last_turn(ids, row) for ids, row in zip(completion_ids, completions, strict=True)]
        rewards, thinking, answer = [], 0, 0
        rows = zip(prompts, completions, texts, tests or [None] * len(prompts), strict=True)
        for prompt, completion, text, row_tests in rows:
            parts = thinking_and_answer(completion if text is None else text, prompt)
            found = parts and (last_program if row_tests else boxed)(parts[1]) is not None
            thinking += parts is None
            answer += found is False
            rewards.append(float(bool(found)))
        if log_metric is not None and rewards:
            log_metric(f"{self.__name__}/thinking", thinking / len(rewards))
            if thinking < len(rewards):
                log_metric(f"{self.__name__}/answer", answer / (len(rewards) - thinking))
        return rewards

    def _last_turn(self, ids: list[int], completion: str | list[dict]) -> str:
        """Text of the last turn, special tokens kept; what comes before it in a later turn is a tool's and no text."""
        *before, text = self.tokenizer.decode(ids, skip_special_tokens=False).removesuffix(self._end).split(self._end)
        begins = [begin for begin, _ in THINKING_TAGS if begin in text]
        if before and begins:
            text = text[min(map(text.index, begins)) :]
        if not begins and not isinstance(completion, str):  # the prompt may have opened it
            told = next((begin for begin, end in THINKING_TAGS if end in text), "")
            text = (told if thinking_and_answer(completion) else self._opened()) + text
        return text

    def _opened(self) -> str:
        """The tag with which the chat template opens every answer, "" where it does not."""
        template = getattr(self.tokenizer, "chat_template", None)
        if self._known is None or self._known[0] != template:
            self._known = template, ""
            with suppress(TemplateError, TypeError):  # it takes no such message
                asked = [{"role": "user", "content": "?"}]
                options = {"add_generation_prompt": True, "tokenize": False}
                if template is not None:
                    self._known = template, opening_tag(self.tokenizer.apply_chat_template(asked, **options))
        return self._known[1]

    @property
    def _end(self) -> str:
        return self.tokenizer.eos_token


format_reward = FormatReward()


def thinking_and_answer(completion: str | list[dict], prompt: str | list[dict] = "") -> tuple[str, str] | None:
    """
    The thinking and the answer of the last assistant message; `None` where it is not one block, closed, and first.

    Args:
        completion (`str` or `list[dict]`): text, or messages.
        prompt (`str` or `list[dict]`): a text that ends with an opening tag opens the thinking.
    """
    if isinstance(completion, str):
        return _split(opening_tag(prompt) + completion)
    message = next((entry for entry in reversed(completion) if entry.get("role") == "assistant"), {})
    thinking = [message[key] for key in THINKING_KEYS if message.get(key)]
    content = message.get("content") or ""
    if isinstance(content, list):
        kinds = [part.get("type") in THINKING_PARTS for part in content]
        if any(kinds[1:]):
            return None
        thinking += [_text(part) for part in content[:1] if kinds[0]]
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    if not thinking:
        return _split(content)
    if len(thinking) > 1 or not thinking[0].strip() or any(tag in thinking[0] + content for tag in TAGS):
        return None
    return thinking[0], content


def _split(text: str) -> tuple[str, str] | None:
    """The same of text with tags."""
    if sum(map(text.count, TAGS)) != 2:
        return None
    for begin, end in THINKING_TAGS:
        thinking, tag, answer = text.strip().removeprefix(begin).partition(end)
        if tag and begin not in thinking + answer and text.lstrip().startswith(begin) and thinking.strip():
            return thinking, answer
    return None


def _text(part: dict) -> str:
    """The text of a thinking part, whose value is text or a list of text parts."""
    value = part.get("thinking") or part.get("reasoning") or part.get("text") or ""
    return value if isinstance(value, str) else "".join(inner.get("text", "") for inner in value)
