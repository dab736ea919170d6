"""What all back ends share: a response with what is known about it, how it is decoded, and prompts as turns of a chat.

lm-eval sends one `Instance` k times for k samples. The runner of suites sends copies that have `repeat`, 0 to k - 1.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from jinja2.exceptions import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from hf_cascade.completions import THINKING_TAGS
from hf_cascade.evaluate.benchmarks.answers import is_unfinished
from hf_cascade.evaluate.benchmarks.conversations import messages_of

SEED = 1234  # lm-eval's default
MAX_GEN_TOKENS = 256  # where a task does not say; lm-eval's default


class Unsupported(RuntimeError):
    """A back end cannot do what a task asks: the task is "not run", and the message says why."""


class Response(str):
    """
    A response: to lm-eval and its tasks a text, and beside it what is known about it (`None`: not known).

    Attributes:
        tokens (`int`): that were generated, the one that ends the response left out.
        finish (`str`): "stop", where it ended by itself or at a stop string, or "length".
        thinking_tokens (`int`): of `tokens`, those up to the end of the thinking.
        looped (`bool`): whether it was cut off in an infinite loop.
        cut_prompt (`bool`): whether the left of the prompt was left out, so that it fits the model.
        clipped (`bool`): whether fewer tokens were allowed than the task allows, so that they fit the model.
    """

    FIELDS = ("tokens", "finish", "thinking_tokens", "looped", "cut_prompt", "clipped")

    def __new__(cls, text: str, **known):
        response = super().__new__(cls, text)
        for name in cls.FIELDS:
            setattr(response, name, known.pop(name, None))
        if known:
            raise TypeError(f"a response has no {', '.join(known)}; it has {', '.join(cls.FIELDS)}")
        return response

    def known(self) -> dict:
        """What is known about it, by name."""
        return {name: getattr(self, name) for name in self.FIELDS if getattr(self, name) is not None}


@dataclass(frozen=True)
class Decoding:
    """
    How responses to one request are generated; of a task's `generation_kwargs` by lm-eval's rules.

    Args:
        temperature (`float`): 0: greedy.
        top_p (`float`): 1: all tokens.
        max_tokens (`int`): of a response.
        until (`tuple[str, ...]`): texts that end a response, and are left out of it. Not within thinking.
        rest (`dict`): further settings, by the back end's own names.
    """

    temperature: float
    top_p: float
    max_tokens: int
    until: tuple[str, ...]
    rest: dict = field(default_factory=dict)

    @classmethod
    def of(cls, gen_kwargs: dict) -> "Decoding":
        """From `gen_kwargs`; `do_sample: true` without a temperature is temperature 1, as in transformers."""
        asked = dict(gen_kwargs)
        if asked.get("do_sample") and asked.get("temperature") is None:
            asked["temperature"] = 1.0
        kwargs = normalize_gen_kwargs(asked, MAX_GEN_TOKENS)
        until = kwargs.pop("until", None) or []
        until = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        sampled = kwargs.pop("do_sample", False)
        temperature = float(kwargs.pop("temperature", 0.0) or 0.0) if sampled else 0.0
        top_p = float(kwargs.pop("top_p", 1.0) or 1.0)
        return cls(temperature, top_p, kwargs.pop("max_gen_toks"), until, kwargs)


class Asking:
    """
    Mixed into lm-eval's models: chat, seeds, and a call for each response as soon as it is there.

    Attributes:
        chat (`bool`): whether prompts become turns of a chat. lm-eval's own `--apply_chat_template` renders them before
            a model sees them; then this stays `False`.
        system_prompt (`str`, *optional*): first message of every chat that has no system message of its own.
        seed (`int`): samples of one prompt are made with numbers that follow from it, the prompt and the repeat.
        on_response (`Callable`, *optional*): gets each request and its response.
        following (`int`): responses of the same batch that are reported right after this one.
        cut (`set`, *optional*): (context, continuation) of log-likelihoods for which the left of the context was left
            out; `None`: the back end does not tell.
    """

    chat = False
    system_prompt: str | None = None
    seed = SEED
    on_response: Callable[[Instance, Response | None], None] | None = None
    following = 0
    cut: set[tuple[str, str]] | None = None

    def answered(self, request: Instance, response: Response | None, following: int = 0) -> None:
        """To be called for each response once it is there; `None`: it did not come."""
        self.following = following
        if response is not None:
            self.cache_hook.add_partial("generate_until", request.args, response)
        if self.on_response is not None:
            self.on_response(request, response)

    def messages(self, context: str) -> list[dict]:
        """A prompt as turns of a chat: its own turns where it is a conversation, else one of the user."""
        messages = messages_of(context) or [{"role": "user", "content": context}]
        if self.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        return messages

    def check_plain(self, context: str) -> None:
        """Without chat, a conversation is no prompt."""
        if messages_of(context) is not None:
            raise Unsupported("the task is a conversation of several turns: it needs a chat template (chat: true)")


def rendered(templated: PreTrainedTokenizerBase | ProcessorMixin, messages: list[dict]) -> str:
    """
    A prompt through a chat template.

    Raises:
        Unsupported: the template refuses these messages, as Gemma's does those of a system.
    """
    try:
        return templated.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise Unsupported(f"the model's chat template refuses messages of {roles}: {error}") from error


def check_template(
    templated: PreTrainedTokenizerBase | ProcessorMixin, name: str, system_prompt: str | None = None
) -> None:
    """
    Raises:
        ValueError: there is no chat template, or it takes no system prompt, and there is one.
    """
    if not templated.chat_template:
        raise ValueError(f"{name} has no chat template: give the model after SFT, or leave suites of chats out")
    if system_prompt:
        try:
            rendered(templated, [{"role": "system", "content": system_prompt}, {"role": "user", "content": "?"}])
        except Unsupported as error:
            raise ValueError(f"system_prompt={system_prompt!r}: {name}: {error}. Leave it out") from error


def repeats_of(requests: list[Instance]) -> list[int]:
    """Which sample of its request each is: the runner's number, or how often lm-eval sent the same object before."""
    seen: Counter = Counter()
    found = []
    for request in requests:
        number = getattr(request, "repeat", None)
        found.append(seen[id(request)] if number is None else number)
        seen[id(request)] += 1
    return found


def seed_of(seed: int, context: str, repeat: int) -> int:
    """A seed for one sample, from the run's: the same whatever else is in its batch; below 2^63."""
    digest = hashlib.sha256(json.dumps([seed, context, repeat]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def cut_at(text: str, until: Iterable[str]) -> tuple[str, bool]:
    """
    A text up to the first of the stop strings, and whether there was one. In thinking they stop nothing: a line break
    that ends an answer of a base model does not end a thought.
    """
    if not until or is_unfinished(text):
        return text, False
    start = max([text.rfind(end) + len(end) for _, end in THINKING_TAGS if end in text], default=0)
    places = [place for place in (text.find(stop, start) for stop in until) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def visuals(request: Instance) -> list:
    """The images of a request, none for text."""
    return list(request.args[2].get("visual") or []) if len(request.args) > 2 else []
