"""What `hf-cascade evaluate` measures: models on held-out text, benchmarks, lm-eval tasks, and their own responses."""

import math
from dataclasses import dataclass, field

from hf_cascade.evaluate.suite.config import SuiteArguments


@dataclass
class AnswerArguments:
    """
    Parameters of `hf-cascade evaluate` that control what models answer to prompts, and who compares the answers.

    Args:
        prompts (`str`, *optional*): prompts that every model answers: a `.jsonl`, `.json`, `.parquet` or `.csv` file
            (also `.gz`), or a dataset's Hub id, with a column `prompt`, text or messages, and columns for `reward`.
        reward_model (`str`, *optional*): pairwise reward model that compares the answers with the baseline's.
        reward (`list[str]`, *optional*): rewards of the answers, also against their tokens: a name of
            `hf_cascade/rewards/README.md` (`exact_match`, `maths_reward`, `stem_reward`, ...), which says its columns
            `package.module.function`, or `path/to/file.py:function`, which is executed.
        baseline (`str`, *optional*): model whose answers the others are compared with; unset, the first of `model`.
            It is measured too.
        sampling_temperature (`float`, *optional*, defaults to `0.7`): of the answers (paper section 4); 0 takes
            the likeliest token.
        top_p (`float`, *optional*, defaults to `1.0`): answers are drawn from the likeliest tokens of this probability
            together; the released reasoning models' card says 0.95.
        samples_per_prompt (`int`, *optional*, defaults to `1`): answers of each model to each prompt.
        max_completion_length (`int`, *optional*, defaults to `256`): tokens of an answer at most; TRL's default for
            online training.
        loop_min_tokens (`int`, *optional*, defaults to `64`): an answer that never ends is an infinite loop when it
            repeats itself over so many last tokens. Ours, as in Online DPO.
    """

    prompts: str | None = field(
        default=None, metadata={"help": "Prompts that every model answers: a file or dataset id."}
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "Pairwise reward model that compares the answers with baseline's."}
    )
    reward: list[str] = field(
        default_factory=list,
        metadata={"help": "Rewards of the answers: exact_match, maths_reward, ..., or file.py:function."},
    )
    baseline: str | None = field(
        default=None, metadata={"help": "Model whose answers are compared with. Unset: the first of model."}
    )
    sampling_temperature: float = field(default=0.7, metadata={"help": "Temperature of answers; 0 is greedy."})
    top_p: float = field(
        default=1.0, metadata={"help": "Answers are drawn from the likeliest tokens of this probability together."}
    )
    samples_per_prompt: int = field(default=1, metadata={"help": "Answers of each model to each prompt."})
    max_completion_length: int = field(default=256, metadata={"help": "Tokens of an answer at most."})
    loop_min_tokens: int = field(default=64, metadata={"help": "Tokens that an infinite loop's repeats must cover."})

    def _check_preference(self):
        if self.prompts is not None and self.reward_model is None and not self.reward:
            raise ValueError(
                f"prompts={self.prompts}: nothing ranks the answers: give --reward_model (a pairwise reward model), "
                "--reward (exact_match, similarity, or a function of yours), or both"
            )
        for name in ("reward_model", "reward", "baseline"):
            if self.prompts is None and getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)}: answers are compared on prompts: give --prompts too")
        if not 0 <= self.sampling_temperature < math.inf:
            raise ValueError(f"sampling_temperature={self.sampling_temperature}: give 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: give a probability above 0 and up to 1, which is all tokens")
        if self.sampling_temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"samples_per_prompt={self.samples_per_prompt}: at sampling_temperature=0 all answers are equal"
            )


@dataclass(kw_only=True)
class EvaluateArguments(AnswerArguments, SuiteArguments):
    """
    All parameters of `hf-cascade evaluate`.

    Args:
        model (`list[str]`): models to measure, folders or Hub ids. Give all stages of a child to see each one's part.
        output_dir (`str`): folder for results.json, report.md and the plots: new, empty, or with an earlier report,
            which is replaced; answers of suites that are kept there are not asked for again.
        teacher (`str`, *optional*): model to compare with, the family's parent, which is measured too. Unset, there is
            no divergence.
        dataset (`str`, *optional*): held-out text: a `.jsonl`, `.json`, `.txt` or `.parquet` file (also `.gz`), or a
            dataset's Hub id. Only suites and tasks are run without it.
        dataset_split (`str`, *optional*, defaults to `"train"`): split of a dataset from the Hub.
        dataset_text_field (`str`, *optional*, defaults to `"text"`): the text column; each row is one document.
        max_length (`int`, *optional*, defaults to `1024`): tokens of a window of held-out text. Ours: paper silent.
        long_max_length (`int`, *optional*): a second, longer window over the same text. Models whose
            `max_position_embeddings` is below it are not measured there.
        batch_size (`int`, *optional*, defaults to `16`): windows at once, and lm-eval's batch size.
        tasks (`list[str]`, *optional*): names of lm-eval tasks or groups in `tasks_path`.
        tasks_path (`str`, *optional*, defaults to `"evals/tasks/tiny"`): folder of task YAMLs.
        final_only (`bool`, *optional*, defaults to `False`): the long window, tasks and suites, which take most of the
            time, are left out for models that are an earlier stage of another one.
        limit (`int`, *optional*): rows of each task, a suite's too, and prompts. For trying things out: such scores are
            not comparable.
        dtype (`str`, *optional*, defaults to `"auto"`): type of the weights while measuring; `auto` is the
            checkpoint's on an accelerator and float32 on a CPU.
    """

    model: list[str] = field(metadata={"help": "Models to measure: folders or Hub ids."})
    output_dir: str = field(
        metadata={"help": "Folder for report.md, results.json and plots. An earlier report there is replaced."}
    )
    teacher: str | None = field(
        default=None, metadata={"help": "The parent, measured too, for divergence and retention: folder or Hub id."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Held-out text: .jsonl, .json, .txt, .parquet (also .gz) or a dataset id."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset from the Hub."})
    dataset_text_field: str = field(default="text", metadata={"help": "Text column; each row is one document."})
    max_length: int = field(default=1024, metadata={"help": "Tokens of a window of held-out text."})
    long_max_length: int | None = field(
        default=None, metadata={"help": "A second, longer window, in tokens. Unset: none."}
    )
    batch_size: int = field(default=16, metadata={"help": "Windows or requests at once."})
    tasks: list[str] = field(default_factory=list, metadata={"help": "lm-eval tasks or groups in tasks_path."})
    tasks_path: str = field(default="evals/tasks/tiny", metadata={"help": "Folder of lm-eval task YAMLs."})
    final_only: bool = field(
        default=False,
        metadata={"help": "Leave long window, tasks and suites out for a model that is an earlier stage of another."},
    )
    limit: int | None = field(
        default=None, metadata={"help": "First rows of each task, and prompts: for trying out, not comparable."}
    )
    dtype: str = field(
        default="auto",
        metadata={"help": "Type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )

    def __post_init__(self):
        if self.dataset is None and self.prompts is None and not self.tasks and not self.suite:
            raise ValueError(
                "nothing to measure: give --suite (benchmarks), --dataset (held-out text), --tasks (lm-eval), "
                "--prompts (win-rate), or more"
            )
        self._check_preference()
        self._check_suite()
        if self.dataset is None and self.teacher is not None and not self.suite:
            raise ValueError(
                f"teacher={self.teacher}: divergence is measured on held-out text, retention in suites: give --dataset "
                "or --suite too"
            )
        for name in ("max_length", "batch_size", "samples_per_prompt", "max_completion_length", "loop_min_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.long_max_length is not None and self.long_max_length <= self.max_length:
            raise ValueError(
                f"long_max_length={self.long_max_length}: it must be above max_length, which is {self.max_length}"
            )
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit={self.limit}: a standard error needs at least 2 rows")
        for name in ("model", "tasks", "reward", "suite"):
            values = getattr(self, name)
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"{name}: {', '.join(repeated)} given more than once")
