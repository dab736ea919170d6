"""`JudgeSettings`: which model judges, and what it may cost; from the environment, for lm-eval's command line."""

import json
import os
from dataclasses import dataclass, fields

from hf_cascade.evaluate.benchmarks.data import MissingData
from hf_cascade.rewards.endpoint import KEY_VARIABLE

PREFIX = "HFC_JUDGE_"


class NoJudge(MissingData):
    """No judge is named, or it gives no answers: a judged task is "not run", never 0. The message says what to do."""


@dataclass(frozen=True)
class JudgeSettings:
    """
    The judge of the tasks that need one. Each field is the variable `HFC_JUDGE_<FIELD>`.

    Args:
        url (`str`): base of an OpenAI-compatible server, which ends in `/v1`.
        model (`str`): the judge's name at the server.
        key_variable (`str`, *optional*, defaults to `"OPENAI_API_KEY"`): environment variable that holds the key.
        cache (`str`, *optional*): file that keeps the judge's answers; what is in it is not asked again.
        max_requests (`int`, *optional*): requests that one process may send, retries too, for all tasks together.
        concurrency (`int`, *optional*, defaults to `16`): requests at once.
        timeout_seconds (`float`, *optional*, defaults to `600.0`): for one answer.
        retries (`int`, *optional*, defaults to `4`): further tries after 429, 5xx, a timeout or a broken connection.
        max_tokens (`int`, *optional*): of an answer; unset, the benchmark's own.
        temperature (`float`, *optional*): unset, the benchmark's own.
        chat_template_kwargs (`dict`, *optional*): what the server's chat template is told, as
            `{"enable_thinking": false}`; servers of OpenAI and others refuse it.
        images (`bool`, *optional*, defaults to `True`): whether the judge is shown images, as in MM-MT-Bench's own
            protocol; a judge that reads text alone needs `False`.
        prompt_price (`float`, *optional*), completion_price (`float`, *optional*): per million tokens, in a currency of
            your choice; both or none.

    Raises:
        ValueError: an empty url or model, a number that cannot be, or one price of two.
    """

    url: str
    model: str
    key_variable: str = KEY_VARIABLE
    cache: str | None = None
    max_requests: int | None = None
    concurrency: int = 16
    timeout_seconds: float = 600.0
    retries: int = 4
    max_tokens: int | None = None
    temperature: float | None = None
    chat_template_kwargs: dict | None = None
    images: bool = True
    prompt_price: float | None = None
    completion_price: float | None = None

    def __post_init__(self):
        for name in ("url", "model"):
            if not getattr(self, name):
                raise ValueError(f"the judge's {name} is empty: set {PREFIX}{name.upper()}")
        lowest = {"timeout_seconds": 1e-3, "max_tokens": 1, "temperature": 0, "prompt_price": 0, "completion_price": 0}
        for name, least in lowest.items():
            if getattr(self, name) is not None and not getattr(self, name) >= least:
                raise ValueError(f"{PREFIX}{name.upper()}={getattr(self, name)}: give {least} or more")
        if (self.prompt_price is None) != (self.completion_price is None):
            raise ValueError(f"give both {PREFIX}PROMPT_PRICE and {PREFIX}COMPLETION_PRICE, or none of them")

    @classmethod
    def from_environment(cls) -> "JudgeSettings":
        """
        The judge that `HFC_JUDGE_*` describe.

        Raises:
            NoJudge: url or model is not set.
            ValueError: a variable that is none of the fields, or cannot be read.
        """
        given = {
            name.removeprefix(PREFIX).lower(): text for name, text in os.environ.items() if name.startswith(PREFIX)
        }
        known = {field.name: field.type for field in fields(cls)}
        if unknown := sorted(given.keys() - known.keys()):
            raise ValueError(
                f"{PREFIX}{unknown[0].upper()}: there is no such setting; "
                f"allowed are {', '.join(PREFIX + name.upper() for name in known)}"
            )
        given = {name: text.strip() for name, text in given.items() if text.strip()}
        if missing := [PREFIX + name.upper() for name in ("url", "model") if name not in given]:
            raise NoJudge(
                f"this task needs a judge, a chat model at an OpenAI-compatible server: set {' and '.join(missing)} "
                f"(and {PREFIX}KEY_VARIABLE, the name of the variable that holds its key, if it needs one), or give "
                "hf-cascade evaluate --judge_url and --judge_model; lm-eval's own command line ends here: leave Arena "
                "Hard, WildBench and MM-MT-Bench out of its --tasks"
            )
        return cls(**{name: _read(PREFIX + name.upper(), known[name], text) for name, text in given.items()})

    def to_environment(self) -> None:
        """Set the variables that [`JudgeSettings.from_environment`] reads, in this process; unset the others."""
        for field in fields(self):
            value, name = getattr(self, field.name), PREFIX + field.name.upper()
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value if isinstance(value, str) else json.dumps(value)


def _read(name: str, kind, text: str):
    """A setting of its type from text."""
    if kind in (str, str | None):
        return text
    kind = {int | None: int, dict | None: dict, float | None: float}.get(kind, kind)
    words = {"1": "true", "0": "false", "True": "true", "False": "false"} if kind is bool else {}
    try:
        value = json.loads(words.get(text, text))
    except ValueError:
        value = None
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        wanted = {bool: "true or false", dict: "a JSON object", int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name}={text}: give {wanted}")
    return value
