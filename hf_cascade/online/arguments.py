"""The flags that the scripts of online training share."""

from dataclasses import dataclass, field


@dataclass
class OnlineArguments:
    """
    Parameters that control what scores responses, and what the policy may call, for `trainers/odpo.py` and
    `trainers/grpo.py`.

    Args:
        reward_funcs (`list[str]`, *optional*): TRL reward functions: names or dotted paths.
        tools (`list[str]`, *optional*): functions the policy may call, as dotted paths or `file.py:function`.
        chat_template_path (`str`, *optional*):
            For a policy without a chat template, or instead of its own: `mistral` (shipped), or a `.jinja` file.
    """

    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "Reward functions: a name, package.module.function or file.py:function."}
    )
    tools: list[str] | None = field(
        default=None, metadata={"help": "Functions the policy may call: package.module.function or file.py:function."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "mistral, or a .jinja file, instead of the policy's chat template."}
    )
