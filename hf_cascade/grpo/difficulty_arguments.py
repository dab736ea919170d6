"""What `hf-cascade difficulty` takes: prompts, who answers them, what judges the answers, and which prompts stay."""

import math
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class DifficultyArguments:
    """
    All parameters of `hf-cascade difficulty`.

    Args:
        prompts (`str`): a `.jsonl`, `.json`, `.parquet` or `.csv` file (also `.gz`), or a dataset's Hub id, with a
            column `prompt`, text or messages, and the columns that `reward` asks for.
        reward (`str`): what judges a response: `maths_reward`, `stem_reward`, `program_reward`, `exact_match`,
            `package.module.function`, or `path/to/file.py:function`, which is executed.
        output_dir (`str`): folder for the prompts that stay, those that go, and the report. The same command goes on
            where it was stopped.
        model (`str`, *optional*): folder or Hub id of the model that answers, in this process.
        url (`str`, *optional*): OpenAI-compatible server that answers instead (vLLM, `transformers serve`), with its
            own chat template. Requests set temperature and top_p; a server may take top_k, and whether it samples at
            all, from the model's generation_config.json.
        served_model (`str`, *optional*): the model's name at that server.
        dataset_split (`str`, *optional*, defaults to `"train"`): split of a dataset from the Hub.
        limit (`int`, *optional*): prompts to read at most. For trying things out.
        samples_per_prompt (`int`, *optional*, defaults to `16`): responses to each prompt (Magistral, section 4).
        sampling_temperature (`float`, *optional*, defaults to `1.0`): Magistral's in training.
        max_completion_length (`int`, *optional*, defaults to `512`): tokens of a response at most; TRL's default for
            GRPO. Give what you train with.
        batch_size (`int`, *optional*, defaults to `16`): responses at once, or requests to the server at once.
        pass_above (`float`, *optional*, defaults to `0.5`): a response passes with a reward above it. `maths_reward`,
            `program_reward` and `exact_match` give 1 or 0; `stem_reward` gives 1 or more where the answer is right, and
            at most 0.2 where it is not.
        min_pass_rate (`float`, *optional*, defaults to `0.01`): share of passing responses from which on a prompt
            stays. Magistral: solved at all; the number is ours.
        max_pass_rate (`float`, *optional*, defaults to `0.8`): share up to which it stays. Magistral: not with "a high
            success rate"; the number is ours.
        majority_share (`float`, *optional*, defaults to `0.5`): a prompt goes when so large a share of its responses,
            and more than gave any other, give one answer that is not the right one. Magistral: a majority.
        dtype (`str`, *optional*, defaults to `"auto"`): type of `model`'s weights; `auto` is the checkpoint's on an
            accelerator and float32 on a CPU.

    Raises:
        ValueError: no model or two, or a number out of range.
    """

    prompts: str = field(metadata={"help": "Prompts, with the columns that the reward asks for: a file or dataset id."})
    reward: str = field(
        metadata={"help": "What judges a response: maths_reward, exact_match, ..., or file.py:function."}
    )
    output_dir: str = field(metadata={"help": "Folder for prompts.jsonl, dropped.jsonl and the report."})
    model: str | None = field(default=None, metadata={"help": "Model that answers: folder or Hub id."})
    url: str | None = field(default=None, metadata={"help": "OpenAI-compatible server that answers instead of model."})
    served_model: str | None = field(default=None, metadata={"help": "The model's name at that server."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset from the Hub."})
    limit: int | None = field(default=None, metadata={"help": "Prompts to read at most: for trying out."})
    samples_per_prompt: int = field(default=16, metadata={"help": "Responses to each prompt."})
    sampling_temperature: float = field(default=1.0, metadata={"help": "Temperature of responses."})
    max_completion_length: int = field(default=512, metadata={"help": "Tokens of a response at most: as in training."})
    batch_size: int = field(default=16, metadata={"help": "Responses, or requests to the server, at once."})
    pass_above: float = field(default=0.5, metadata={"help": "A response passes with a reward above it."})
    min_pass_rate: float = field(default=0.01, metadata={"help": "Pass rate from which on a prompt stays."})
    max_pass_rate: float = field(default=0.8, metadata={"help": "Pass rate up to which a prompt stays."})
    majority_share: float = field(
        default=0.5, metadata={"help": "A prompt goes when so large a share of responses agrees on a wrong answer."}
    )
    dtype: str = field(
        default="auto",
        metadata={"help": "Type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )

    def __post_init__(self):
        if (self.model is None) == (self.url is None):
            given = "neither" if self.model is None else f"model={self.model} and url={self.url}"
            raise ValueError(f"{given} given: give one of --model (answers in this process) and --url (a server)")
        if (self.url is None) != (self.served_model is None):
            raise ValueError(
                f"url={self.url} and served_model={self.served_model}: a server needs both, --url and the model's name "
                "there, --served_model"
            )
        for name in ("samples_per_prompt", "max_completion_length", "batch_size", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if not 0 < self.sampling_temperature < math.inf:
            raise ValueError(
                f"sampling_temperature={self.sampling_temperature}: give more than 0, at which all responses are equal"
            )
