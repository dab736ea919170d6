"""How a stage of a recipe trains on a machine: its flags, and its dataclasses' defaults where it is silent."""

from dataclasses import dataclass, field

from hf_cascade.machines import CPU, Machine
from hf_cascade.memory import Setup
from hf_cascade.online_costs import GRPO_DEFAULTS, ODPO_DEFAULTS, ONLINE_DEFAULTS
from hf_cascade.plan import PlannedStage
from hf_cascade.recipe import Stage
from hf_cascade.shape import text_config
from hf_cascade.writing import Writer

MFU = 0.40  # ours; Llama 3 reached 0.38 to 0.43 on H100s (arXiv 2407.21783, table 4)
# What the stages' dataclasses hold where a recipe is silent (tested against them; planning must not import torch).
DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_length": 1024,
    "bf16": True,
    "gradient_checkpointing": True,
    "dtype": "float32",
    "teacher_dtype": "auto",
    "attn_implementation": None,
    "loss_chunk_tokens": None,
    "use_peft": False,
    "max_steps": -1,
}
PRUNE_DEFAULTS = {"calibration_samples": 64, "calibration_length": None, "batch_size": 8, "method": "compensated"}
DIFFICULTY_DEFAULTS = {"samples_per_prompt": 16, "max_completion_length": 512, "batch_size": 16, "dtype": "auto"}
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "fp8": 2}  # fp8 products read 16-bit weights
POST_TRAINING = ("sft", "pwrm", "odpo", "grpo")  # rows are conversations, of any length
ONLINE = ("odpo", "grpo")  # the policy writes what it trains on


@dataclass(frozen=True)
class Options:
    """
    Where and how the stages are to run.

    Attributes:
        machine (`Machine`): the machine; of a custom one, what is known.
        mfu (`float`): share of its peak that training reaches.
        sharding (`str`, *optional*): see [`Setup`]. Unset, `fsdp2` over several GPUs.
        sequence_parallel (`dict[str, int]`): stage to GPUs that share a row; `""` is every other stage.
    """

    machine: Machine
    mfu: float = MFU
    sharding: str | None = None
    sequence_parallel: dict[str, int] = field(default_factory=dict)


def setting(stage: Stage, flag: str):
    """A flag's value in a recipe, or its default."""
    own = {"difficulty": DIFFICULTY_DEFAULTS, "odpo": ODPO_DEFAULTS}.get(stage.run, {})
    return {**DEFAULTS, **PRUNE_DEFAULTS, **ONLINE_DEFAULTS, **GRPO_DEFAULTS, **own, **stage.settings}[flag]


def model_dtype(config: dict) -> str:
    """The type a checkpoint's weights are in; transformers' older name counts too."""
    for part in (config, text_config(config)):
        if found := part.get("dtype") or part.get("torch_dtype"):
            return str(found)
    return "float32"


def compute_dtype(stage: Stage) -> str:
    """The type of the factors in a training stage's matrix products."""
    if stage.settings.get("fp16"):
        return "float16"
    if setting(stage, "bf16") in (True, None):  # TRL's default is bf16
        return "bfloat16"
    return "float32" if setting(stage, "dtype") in ("auto", None) else str(setting(stage, "dtype"))


def make_setup(part: PlannedStage, options: Options) -> Setup:
    """
    How a training stage would run with these options.

    Raises:
        ValueError: GPUs that cannot share rows like this, or an empty batch.
    """
    stage, gpus = part.stage, options.machine.gpus
    for flag in (length_flag(stage), "per_device_train_batch_size", "gradient_accumulation_steps"):
        if not setting(stage, flag) or setting(stage, flag) < 1:
            raise ValueError(f"{stage.name}.{flag}: {setting(stage, flag)}; it must be at least 1")
    shared = options.sequence_parallel.get(stage.name, 1 if padded(stage) else options.sequence_parallel.get("", 1))
    _check_shared(stage, shared, options)
    dtype = "float32" if stage.run == "pretrain" else setting(stage, "dtype") or "float32"
    dtype = model_dtype(part.config) if dtype == "auto" else dtype
    frozen = setting(stage, "teacher_dtype")
    frozen = model_dtype(part.teacher or {}) if frozen == "auto" else frozen
    accelerator = stage.settings.get("accelerator_config")
    accumulation = accelerator.get("gradient_accumulation_kwargs", {}) if isinstance(accelerator, dict) else {}
    return Setup(
        max_length=setting(stage, length_flag(stage)),
        rows=setting(stage, "per_device_train_batch_size"),
        accumulation=setting(stage, "gradient_accumulation_steps"),
        gpus=gpus,
        sharding=options.sharding or ("zero3" if shared > 1 else "fsdp2" if gpus > 1 else "none"),
        sequence_parallel=shared,
        checkpointing=bool(setting(stage, "gradient_checkpointing")),
        weight_bytes=BYTES.get(dtype, 4),
        compute_bytes=min(4, BYTES[compute_dtype(stage)]),
        teacher_bytes=BYTES.get(frozen, 4),
        attention=setting(stage, "attn_implementation") or "sdpa",
        sync_each_batch=bool(accumulation.get("sync_each_batch")),
        trained=0.0 if setting(stage, "use_peft") else 1.0,
        chunk_tokens=setting(stage, "loss_chunk_tokens"),
        device="cpu" if options.machine.card.name == CPU else "cuda",
        trl_head=stage.run in ("pretrain", *ONLINE) or stage.run == "sft" and not distils(stage),
        teacher_is_here=not any(stage.settings.get(flag) for flag in ("teacher_url", "teacher_cache")),
        packed=not padded(stage),
        fewest_rows=2 if stage.run == "odpo" and setting(stage, "loss_form") == "pair" else 1,
    )


def padded(stage: Stage) -> bool:
    """Whether each row is one conversation, or response, by itself."""
    return stage.run in POST_TRAINING and not stage.settings.get("packing")


def distils(stage: Stage) -> bool:
    """Whether a stage learns from a teacher's logits."""
    return stage.run == "distill" or stage.run == "sft" and not stage.settings.get("plain_sft")


def length_flag(stage: Stage) -> str:
    """The setting that bounds a row."""
    if stage.run not in ONLINE:
        return "max_length"
    return "vllm_max_model_length" if setting(stage, "vllm_max_model_length") else "max_completion_length"


def batches_written(stage: Stage, setup: Setup) -> int:
    """Batches of one GPU whose responses are written together (TRL's `steps_per_generation`)."""
    whole = setting(stage, "generation_batch_size")
    together = whole // (setup.rows * setup.gpus) if whole else setting(stage, "steps_per_generation")
    return max(1, together or setup.accumulation)


def writer_of(stage: Stage, setup: Setup) -> Writer | None:
    """What writes responses on the GPUs that train, or `None` where vLLM's server does on others."""
    if not setting(stage, "use_vllm"):
        return Writer(rows=setup.rows * batches_written(stage, setup))
    if setting(stage, "vllm_mode") != "colocate":
        return None
    return Writer(setting(stage, "vllm_gpu_memory_utilization"), setting(stage, "vllm_tensor_parallel_size"))


def is_scored(stage: Stage, setup: Setup) -> bool:
    """Whether log-probabilities are taken before a step too: responses are older than the policy, or GRPO's by vLLM."""
    if setting(stage, "use_vllm") and setting(stage, "vllm_importance_sampling_correction"):
        return True
    return setup.accumulation % (batches_written(stage, setup) * setting(stage, "num_iterations")) != 0


def _check_shared(stage: Stage, shared: int, options: Options) -> None:
    """Refuse what the trainers refuse of GPUs that share rows of packed text (`distill/parallel.py`)."""
    gpus, given = options.machine.gpus, f"{stage.name}: --sequence_parallel {shared}"
    if shared < 1 or gpus % shared:
        raise ValueError(f"{given}: {gpus} GPUs cannot be divided into groups of {shared}")
    if shared == 1:
        return
    if stage.run == "grpo":
        raise ValueError(f"{given}: TRL's GRPO takes neither context nor sequence parallelism: a row must fit one GPU")
    if padded(stage):
        raise ValueError(f"{given}: planned are packed rows alone; {stage.run} reads each conversation by itself")
    if options.sharding not in (None, "zero3"):
        raise ValueError(f"{given} with --sharding {options.sharding}: GPUs share rows under zero3 alone")
    if "flash" not in (setting(stage, "attn_implementation") or "sdpa"):
        words = f"--set {stage.name}.attn_implementation=flash_attention_2"
        raise ValueError(f"{given}: rows of packed text are shared with FlashAttention alone: add {words}")
    if setting(stage, "per_device_train_batch_size") != 1:
        raise ValueError(f"{given}: add --set {stage.name}.per_device_train_batch_size=1, a row is split already")
    accumulation = setting(stage, "gradient_accumulation_steps")
    if gpus > shared and accumulation % shared:
        words = f"gradient_accumulation_steps must be a multiple of {shared}, and is {accumulation}"
        raise ValueError(f"{given}: {words}, since {shared} rows are trained on in turn")
