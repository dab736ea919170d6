"""The flags of `hf-cascade evaluate` that say which suites are run, by what, and what their figures are set beside."""

import math
from dataclasses import dataclass, field

BACKENDS = ["hf", "vllm", "openai"]
_JUDGES = ("judge_cache", "judge_max_requests", "judge_max_tokens")
_SAMPLING = ("system_prompt", "samples", "max_gen_tokens", "suite_temperature", "suite_top_p")


@dataclass(kw_only=True)
class SuiteArguments:
    """
    Parameters of `hf-cascade evaluate` that control suites of benchmarks.

    Args:
        suite (`list[str]`, *optional*): suites of `evals/suites`: the paper's `table2` ... `table5`, `base` (2 and 3),
            `instruct` (4), `reasoning` (5), `extra` (long context and copying), `tiny`.
        backend (`str`, *optional*, defaults to `"hf"`): what answers: `hf` is transformers in this process, `vllm` is
            vLLM in this process, `openai` a server at `base_url`.
        base_url (`str`, *optional*): OpenAI-compatible server of backend `openai`, as `http://HOST:8000/v1`; its key is
            read from `OPENAI_API_KEY`.
        served_model_name (`str`, *optional*): the model's name at that server; unset, `model` as given.
        system_prompt (`str`, *optional*): system message of suites that go through the chat template.
        samples (`int`, *optional*): responses to each problem of a sampled task; unset, the task's.
        max_gen_tokens (`int`, *optional*): tokens of a response at most; unset, the task's.
        suite_temperature (`float`, *optional*): of generated responses; 0 is greedy; unset, the task's.
        suite_top_p (`float`, *optional*): responses are drawn from the likeliest tokens of this probability together;
            unset, the task's.
        data (`str`, *optional*): folder with the benchmarks' rows in the Hub's schema, `<org>/<name>/...`, such as
            `evals/rows`; unset, `HFC_EVAL_DATA`, and without that the Hub.
        judge_url (`str`, *optional*): OpenAI-compatible endpoint of the judge of Arena Hard, WildBench, MM-MT-Bench.
        judge_model (`str`, *optional*): the judge's name at that endpoint.
        judge_api_key_variable (`str`, *optional*, defaults to `"OPENAI_API_KEY"`): environment variable with its key.
        judge_cache (`str`, *optional*): file that keeps judgements, so that none is paid for twice.
        judge_max_requests (`int`, *optional*): requests to the judge after which its tasks stop.
        judge_max_tokens (`int`, *optional*): tokens of a judgement; unset, the task's.
        paper_row (`list[str]`, *optional*): the paper's model that each `model` is set beside, as `Ministral 3 8B`, or
            one for all; unset, the one of exactly the same sizes, if there is one.
        parent (`str`, *optional*): folder whose evals.json has the parent's figures, which are then not measured again:
            its own, or that of a report, `suites/<model>`. Unset, `teacher`, or what the model's cascade.json names.
    """

    suite: list[str] = field(
        default_factory=list,
        metadata={"help": "table2 ... table5, base (2, 3), instruct (4), reasoning (5), extra, tiny."},
    )
    backend: str = field(
        default="hf",
        metadata={"help": "What answers: transformers here, vLLM here, or a server.", "choices": list(BACKENDS)},
    )
    base_url: str | None = field(
        default=None, metadata={"help": "Server of backend openai, as http://HOST:8000/v1; key in OPENAI_API_KEY."}
    )
    served_model_name: str | None = field(
        default=None, metadata={"help": "The model's name at base_url. Unset: model."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message of suites that are asked as chats."}
    )
    samples: int | None = field(
        default=None, metadata={"help": "Responses to each problem of a sampled task. Unset: the task's."}
    )
    max_gen_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of a response at most. Unset: the task's."}
    )
    suite_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of responses; 0 is greedy. Unset: the task's."}
    )
    suite_top_p: float | None = field(default=None, metadata={"help": "top_p of responses. Unset: the task's."})
    data: str | None = field(
        default=None, metadata={"help": "Folder with the benchmarks' rows. Unset: HFC_EVAL_DATA, else the Hub."}
    )
    judge_url: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible endpoint of the judge, as http://HOST:8000/v1."}
    )
    judge_model: str | None = field(default=None, metadata={"help": "The judge's name at that endpoint."})
    judge_api_key_variable: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable with the judge's key."}
    )
    judge_cache: str | None = field(
        default=None, metadata={"help": "File that keeps judgements, so that none is paid for twice."}
    )
    judge_max_requests: int | None = field(
        default=None, metadata={"help": "Requests to the judge, after which its tasks stop. Unset: no limit."}
    )
    judge_max_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of a judgement at most. Unset: the task's."}
    )
    paper_row: list[str] = field(
        default_factory=list,
        metadata={"help": "The paper's model beside each, as 'Ministral 3 8B'. Unset: that of equal sizes."},
    )
    parent: str | None = field(
        default=None, metadata={"help": "Folder with the parent's evals.json. Unset: teacher, or by cascade.json."}
    )

    def _check_suite(self):
        """`ValueError` for what cannot be, before anything is read."""
        for name in ("suite", "paper_row"):
            if isinstance(getattr(self, name), str):  # of a YAML file
                raise ValueError(f"{name}={getattr(self, name)}: it is a list: write {name}: [{getattr(self, name)}]")
        if not self.suite:
            names = ("data", "judge_url", "paper_row", "parent", *_SAMPLING)
            given = [name for name in names if getattr(self, name) not in (None, [])] + ["backend"] * (
                self.backend != "hf"
            )
            if given:
                raise ValueError(f"{given[0]}={getattr(self, given[0])}: it is a suite's: give --suite too")
        self._check_backend()
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("a judge needs both: --judge_url (its endpoint) and --judge_model (its name there)")
        for name in _JUDGES:
            if self.judge_url is None and getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)}: there is no judge: give --judge_url and --judge_model")
        for name in ("samples", "max_gen_tokens", "judge_max_requests", "judge_max_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.suite_temperature is not None and not 0 <= self.suite_temperature < math.inf:
            raise ValueError(f"suite_temperature={self.suite_temperature}: give 0 (greedy) or more")
        if self.suite_top_p is not None and not 0 < self.suite_top_p <= 1:
            raise ValueError(f"suite_top_p={self.suite_top_p}: give a probability above 0 and up to 1")
        if self.suite_temperature == 0 and (self.samples or 1) > 1:
            raise ValueError(f"samples={self.samples}: at suite_temperature=0 all responses are equal")
        if self.parent is not None and self.teacher is not None:
            raise ValueError(
                f"parent={self.parent}: teacher={self.teacher} is measured as the parent: give one of them"
            )
        if len(self.paper_row) not in (0, 1, len(self.model)):
            raise ValueError(f"paper_row has {len(self.paper_row)} names: give one, or one for each --model, in order")

    def _check_backend(self):
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={self.backend}: allowed are {', '.join(BACKENDS)}")
        if self.backend == "openai" and self.base_url is None:
            raise ValueError("backend=openai: give --base_url, the address of the server, as http://HOST:8000/v1")
        for name in ("base_url", "served_model_name"):
            if self.backend != "openai" and getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)}: it is for --backend openai; backend={self.backend}")
        if self.backend == "hf":
            return
        for name in ("dataset", "prompts", "tasks"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: backend={self.backend} loads no model in transformers, which "
                    f"measures {name}: leave it out, or measure it with --backend hf in another run"
                )
        if self.backend == "openai" and (len(self.model) > 1 or self.teacher is not None):
            raise ValueError(
                "backend=openai measures the one model that is served: give one --model and no --teacher; the parent's "
                "figures can be read with --parent"
            )
