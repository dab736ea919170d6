"""The flags of `trainers/grpo.py` that are its own."""

import json
from dataclasses import dataclass, field

from hf_cascade.online.arguments import OnlineArguments

STEM_PARTS = ("form", "correct", "language")
EXAMPLES = {"judge_chat_template_kwargs": '{"enable_thinking": false}', "stem_weights": '{"correct": 0.8}'}


@dataclass
class GRPOArguments(OnlineArguments):
    """
    [`~online.arguments.OnlineArguments`] with prompts of another place and the judge of `rubric_reward`, for
    `trainers/grpo.py`.

    Args:
        prompts_from (`str`, *optional*):
            Folder that `hf-cascade difficulty` made: its rows train, instead of `datasets`.
        stem_weights (`dict` or `str`, *optional*):
            Other weights of `stem_reward` than the paper's: `{form: 0.1, correct: 0.9, language: 0.1}`.
        sandbox_url (`str`, *optional*):
            A SandboxFusion service that runs programs instead of bubblewrap; tests of input and output alone.
        judge_url (`str`, *optional*): an OpenAI-compatible endpoint whose model grades rubrics, for `rubric_reward`.
        judge_model (`str`, *optional*): that model's name at the endpoint.
        judge_model_name_or_path (`str`, *optional*): a chat model that grades rubrics in this process instead.
        judge_template (`str`, *optional*):
            What it is asked, with `{prompt}`, `{response}` and `{criterion}`. Ours: paper silent.
        judge_chat_template_kwargs (`dict` or `str`, *optional*):
            For the judge's chat template, such as `{enable_thinking: false}` for one that would think first.
        judge_max_tokens (`int`, *optional*, defaults to `8`):
            Tokens of an endpoint's answer; a judge that thinks first needs thousands. Ours: paper silent.
        judge_cache (`str`, *optional*): file that keeps the endpoint's judgements, so that none is paid for twice.
        judge_max_requests (`int`, *optional*):
            Requests to the endpoint after which training stops, of one start; its processes share them out.
    """

    prompts_from: str | None = field(
        default=None, metadata={"help": "Folder made by hf-cascade difficulty; its prompts, instead of datasets."}
    )
    stem_weights: dict | str | None = field(
        default=None, metadata={"help": 'Weights of stem_reward, as {"form": 0.1, "correct": 0.9, "language": 0.1}.'}
    )
    sandbox_url: str | None = field(
        default=None, metadata={"help": "SandboxFusion service that runs programs. Unset: bubblewrap here."}
    )
    judge_url: str | None = field(default=None, metadata={"help": "OpenAI-compatible endpoint that grades rubrics."})
    judge_model: str | None = field(default=None, metadata={"help": "The judge's name at that endpoint."})
    judge_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Chat model that grades rubrics in this process: folder or Hub id."}
    )
    judge_template: str | None = field(
        default=None,
        metadata={"help": "What a judge is asked, with {prompt}, {response} and {criterion}. Unset: ours."},
    )
    judge_chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'For the judge\'s chat template, as {"enable_thinking": false}.'}
    )
    judge_max_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of a grade at most. Unset: 8; a judge that thinks needs thousands."}
    )
    judge_cache: str | None = field(
        default=None, metadata={"help": "File that keeps judgements, so that none is paid for twice."}
    )
    judge_max_requests: int | None = field(
        default=None, metadata={"help": "Requests to the endpoint, after which training stops. Unset: no limit."}
    )

    def __post_init__(self):
        for name in ("judge_chat_template_kwargs", "stem_weights"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, _mapping(name, getattr(self, name)))
        unknown = [name for name in self.stem_weights or {} if name not in STEM_PARTS]
        if unknown:
            raise ValueError(f"stem_weights: there is no {unknown[0]!r}; allowed are {', '.join(STEM_PARTS)}")


def _mapping(name: str, text: str) -> dict:
    """A mapping given on the command line, as JSON."""
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError(f"{name}={text}: give a mapping, as {EXAMPLES[name]}")
    return given
