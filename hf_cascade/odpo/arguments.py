"""The flags of `trainers/odpo.py` that are its own."""

from dataclasses import dataclass, field

from hf_cascade.online.arguments import OnlineArguments


@dataclass
class ODPOArguments(OnlineArguments):
    """
    [`~online.arguments.OnlineArguments`], whose `reward_funcs` are one of three that may rank responses, with the two
    others, for `trainers/odpo.py`.

    Args:
        reward_model (`str`, *optional*): folder of a pairwise reward model, made by `trainers/pwrm.py`.
        reward_model_dtype (`str`, *optional*, defaults to `"auto"`): type its weights are loaded in.
        judge_url (`str`, *optional*): an OpenAI-compatible endpoint whose model compares responses instead.
        judge_model (`str`, *optional*): that model's name.
    """

    reward_model: str | None = field(
        default=None, metadata={"help": "Folder of a pairwise reward model, made by pwrm."}
    )
    reward_model_dtype: str = field(default="auto", metadata={"help": "Type of the reward model's weights."})
    judge_url: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible endpoint of a judge, instead; key in OPENAI_API_KEY."}
    )
    judge_model: str | None = field(default=None, metadata={"help": "The judge's name at that endpoint."})
