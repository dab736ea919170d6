"""`SuiteSettings`: how a suite's tasks are run, and the environment that their loaders and judges read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hf_cascade.evaluate.backends.asking import SEED
from hf_cascade.evaluate.benchmarks.data import VARIABLE
from hf_cascade.evaluate.benchmarks.judge_settings import PREFIX, JudgeSettings


@dataclass(frozen=True)
class SuiteSettings:
    """
    How tasks are run. What is `None` is as each task has it.

    Args:
        chat (`bool`): whether prompts become turns of a chat, through the model's chat template.
        system_prompt (`str`, *optional*): first message of every chat that has none of its own.
        samples (`int`, *optional*): responses to each problem of tasks that sample.
        temperature (`float`, *optional*), top_p (`float`, *optional*), max_gen_tokens (`int`, *optional*): of tasks
            that generate. Temperature 0 is greedy decoding.
        limit (`int`, *optional*): first rows of each task; its score then is none of the benchmark's.
        seed (`int`): of samples.
        tasks_path (`str`): folder of task YAMLs.
        judge ([`JudgeSettings`], *optional*): of judged tasks; else `HFC_JUDGE_*` of the environment.
        data (`str`, *optional*): folder with the benchmarks' rows; else `HFC_EVAL_DATA` of the environment, or the Hub.

    Raises:
        ValueError: a number that cannot be, or a system prompt without chat.
    """

    chat: bool = False
    system_prompt: str | None = None
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_gen_tokens: int | None = None
    limit: int | None = None
    seed: int = SEED
    tasks_path: str = "evals/tasks"
    judge: JudgeSettings | None = None
    data: str | None = None

    def __post_init__(self):
        for name in ("samples", "max_gen_tokens", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give 1 or more, or leave it out")
        if self.temperature is not None and not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: give 0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: give a share above 0 and up to 1")
        if self.system_prompt and not self.chat:
            raise ValueError("a system prompt is part of a chat: set chat too, or leave it out")

    def generation(self) -> dict:
        """The overrides of a task's `generation_kwargs`."""
        found = {}
        if self.temperature is not None:
            found |= {"temperature": self.temperature, "do_sample": self.temperature > 0}
        if self.top_p is not None:
            found["top_p"] = self.top_p
        if self.max_gen_tokens is not None:
            found["max_gen_toks"] = self.max_gen_tokens
        return found

    @contextmanager
    def environment(self) -> Iterator[None]:
        """What loaders and judges read; as it was before when this ends."""
        before = {name: value for name, value in os.environ.items() if name == VARIABLE or name.startswith(PREFIX)}
        try:
            if self.data is not None:
                os.environ[VARIABLE] = str(self.data)
            if self.judge is not None:
                self.judge.to_environment()
            yield
        finally:
            for name in [name for name in os.environ if name == VARIABLE or name.startswith(PREFIX)]:
                del os.environ[name]
            os.environ.update(before)
