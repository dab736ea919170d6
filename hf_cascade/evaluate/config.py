"""What `hf-cascade evaluate` measures: the models, the teacher, the held-out text and the lm-eval tasks."""

from dataclasses import dataclass, field


@dataclass
class EvaluateArguments:
    """
    Parameters of `hf-cascade evaluate`.

    Args:
        model (`list[str]`): models to measure, folders or Hub ids. Give all stages of a child to see each one's part.
        output_dir (`str`): folder for results.json, report.md and the plots; new or empty.
        teacher (`str`, *optional*): model to compare with, the family's parent. Unset, neither divergence nor retention
            is measured.
        dataset (`str`, *optional*): held-out text: a `.jsonl`, `.json`, `.txt` or `.parquet` file (also `.gz`), or a
            dataset's Hub id. Only tasks are run without it.
        dataset_split (`str`, *optional*, defaults to `"train"`): split of a dataset from the Hub.
        dataset_text_field (`str`, *optional*, defaults to `"text"`): the text column; each row is one document.
        max_length (`int`, *optional*, defaults to `1024`): tokens of a window of held-out text. Ours: paper silent.
        long_max_length (`int`, *optional*): a second, longer window over the same text. Models whose
            `max_position_embeddings` is below it are not measured there.
        batch_size (`int`, *optional*, defaults to `16`): windows at once, and lm-eval's batch size.
        tasks (`list[str]`, *optional*): names of lm-eval tasks or groups in `tasks_path`.
        tasks_path (`str`, *optional*, defaults to `"evals/tasks/tiny"`): folder of task YAMLs.
        final_only (`bool`, *optional*, defaults to `False`): the long window and the tasks, which take most of the
            time, are left out for models that are an earlier stage of another one.
        limit (`int`, *optional*): rows of each task. For trying things out: such scores are not comparable.
        dtype (`str`, *optional*, defaults to `"auto"`): type of the weights while measuring; `auto` is the
            checkpoint's on an accelerator and float32 on a CPU.
    """

    model: list[str] = field(metadata={"help": "Models to measure: folders or Hub ids."})
    output_dir: str = field(metadata={"help": "Folder for results.json, report.md and the plots; new or empty."})
    teacher: str | None = field(default=None, metadata={"help": "The family's parent: folder or Hub id."})
    dataset: str | None = field(
        default=None, metadata={"help": "Held-out text: .jsonl, .json, .txt, .parquet (also .gz) or a dataset id."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset from the Hub."})
    dataset_text_field: str = field(default="text", metadata={"help": "Text column; each row is one document."})
    max_length: int = field(default=1024, metadata={"help": "Tokens of a window of held-out text."})
    long_max_length: int | None = field(default=None, metadata={"help": "A second, longer window, in tokens."})
    batch_size: int = field(default=16, metadata={"help": "Windows at once."})
    tasks: list[str] = field(default_factory=list, metadata={"help": "lm-eval tasks or groups in tasks_path."})
    tasks_path: str = field(default="evals/tasks/tiny", metadata={"help": "Folder of lm-eval task YAMLs."})
    final_only: bool = field(
        default=False, metadata={"help": "No long window and no tasks for earlier stages of another model."}
    )
    limit: int | None = field(default=None, metadata={"help": "Rows of each task, for trying things out."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )

    def __post_init__(self):
        if self.dataset is None and not self.tasks:
            raise ValueError("nothing to measure: give --dataset (held-out text), --tasks (lm-eval), or both")
        if self.dataset is None and self.teacher is not None:
            raise ValueError(f"teacher={self.teacher}: divergence is measured on held-out text: give --dataset too")
        for name in ("max_length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.long_max_length is not None and self.long_max_length <= self.max_length:
            raise ValueError(
                f"long_max_length={self.long_max_length}: it must be above max_length, which is {self.max_length}"
            )
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit={self.limit}: a standard error needs at least 2 rows")
        for name in ("model", "tasks"):
            values = getattr(self, name)
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"{name}: {', '.join(repeated)} given more than once")
