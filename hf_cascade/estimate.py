"""What a stage of a recipe takes on a machine: tokens, FLOPs, memory of a GPU, seconds, and what each rests on."""

from dataclasses import dataclass, field
from functools import partial

from hf_cascade.costs import StepFlops, forward_flops, keys_of, step_flops
from hf_cascade.machines import CPU, CUSTOM, Machine
from hf_cascade.memory import Memory, Setup, communicated_bytes, prune_memory, training_memory
from hf_cascade.online_costs import ONLINE_DEFAULTS, online_flops, online_memory
from hf_cascade.plan import PlannedStage
from hf_cascade.recipe import Stage
from hf_cascade.remedies import remedies
from hf_cascade.shape import text_config

MFU = 0.40  # ours; Llama 3 reached 0.38 to 0.43 on H100s (arXiv 2407.21783, table 4)
# Forward passes of the parent over the calibration text that pruning takes, the most that was measured, on a CPU.
PRUNE_PASSES = {"compensated": 3.9, "paper": 1.6}  # benchmarks/results/prune_cpu.md
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
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "fp8": 2}  # fp8 products read 16-bit weights
WRITING = (
    "how long writing responses takes, which reads all weights for every token: memory bandwidth, batch and engine "
    "decide, not FLOPs"
)
NO_MACHINE = "give --machine, or --tflops"
POST_TRAINING = ("sft", "pwrm", "odpo")  # rows are conversations, of any length


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


@dataclass(frozen=True)
class Record:
    """Seconds a stage took before: `tokens` it read, and `where` that is written."""

    seconds: float
    tokens: int
    where: str


@dataclass(frozen=True)
class Estimate:
    """
    What one stage takes. `None` is not known, and `missing` says why.

    Attributes:
        name (`str`), run (`str`): the stage.
        gpus (`int`): how many it uses.
        tokens (`int`, *optional*): what it reads.
        batch_tokens (`int`, *optional*): tokens of an optimizer step.
        steps (`int`, *optional*): optimizer steps.
        flops (`float`, *optional*): all it multiplies.
        per_token (`StepFlops`, *optional*): of training, for one token.
        memory (`Memory`, *optional*): of training, by what holds it.
        device_bytes (`float`, *optional*): of one GPU.
        host_bytes (`float`, *optional*): beside it, in the host.
        seconds (`float`, *optional*): from start to end.
        bound (`str`): what the seconds are those of: `arithmetic`, `links` or `record`.
        record (`str`): where recorded seconds are from.
        missing (`str`): why something is not known.
        counted (`str`): what lengths stand for those that are not known.
        advice (`tuple[str, ...]`): where it does not fit, changes each of which is enough.
    """

    name: str
    run: str
    gpus: int = 1
    tokens: int | None = None
    batch_tokens: int | None = None
    steps: int | None = None
    flops: float | None = None
    per_token: StepFlops | None = None
    memory: Memory | None = None
    device_bytes: float | None = None
    host_bytes: float | None = None
    seconds: float | None = None
    bound: str = "arithmetic"
    record: str = ""
    missing: str = ""
    counted: str = ""
    advice: tuple[str, ...] = ()

    def fits(self, machine: Machine) -> bool | None:
        """Whether a card holds it, or `None` where one of both is not known."""
        if self.device_bytes is None or machine.memory_bytes is None:
            return None
        return self.device_bytes <= machine.memory_bytes


def estimate(part: PlannedStage, options: Options, record: Record | None = None) -> Estimate:
    """
    What a planned stage takes.

    Args:
        part (`PlannedStage`): from [`make_plan`].
        options (`Options`): machine and how to use it.
        record (`Record`, *optional*): the same stage's time on this kind of machine, which goes before arithmetic.

    Raises:
        ValueError: as [`make_setup`].
    """
    stage = part.stage
    if stage.run == "prune":
        return _pruning(part, options, record)
    if stage.run == "evaluate":
        if record is not None:
            return Estimate(stage.name, stage.run, seconds=record.seconds, bound="record", record=record.where)
        return Estimate(stage.name, stage.run, missing="depends on its tasks and texts")
    return _training(part, options, record)


def setting(stage: Stage, flag: str):
    """A flag's value in a recipe, or its default."""
    return {**DEFAULTS, **PRUNE_DEFAULTS, **ONLINE_DEFAULTS, **stage.settings}[flag]


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
    for flag in (_length_flag(stage), "per_device_train_batch_size", "gradient_accumulation_steps"):
        if not setting(stage, flag) or setting(stage, flag) < 1:
            raise ValueError(f"{stage.name}.{flag}: {setting(stage, flag)}; it must be at least 1")
    shared = options.sequence_parallel.get(stage.name, 1 if _padded(stage) else options.sequence_parallel.get("", 1))
    _check_shared(stage, shared, options)
    dtype = "float32" if stage.run == "pretrain" else setting(stage, "dtype") or "float32"
    dtype = model_dtype(part.config) if dtype == "auto" else dtype
    frozen = setting(stage, "teacher_dtype")
    frozen = model_dtype(part.teacher or {}) if frozen == "auto" else frozen
    accelerator = stage.settings.get("accelerator_config")
    accumulation = accelerator.get("gradient_accumulation_kwargs", {}) if isinstance(accelerator, dict) else {}
    return Setup(
        max_length=setting(stage, _length_flag(stage)),
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
        fused_loss=_distils(stage) or stage.run in ("pwrm", "odpo"),  # a comparison has logits of its last token alone
        teacher_is_here=not any(stage.settings.get(flag) for flag in ("teacher_url", "teacher_cache")),
        packed=not _padded(stage),
        fewest_rows=2 if stage.run == "odpo" and setting(stage, "loss_form") == "pair" else 1,
    )


def _padded(stage: Stage) -> bool:
    return stage.run in POST_TRAINING and not stage.settings.get("packing")


def _distils(stage: Stage) -> bool:
    return stage.run == "distill" or stage.run == "sft" and not stage.settings.get("plain_sft")


def _length_flag(stage: Stage) -> str:
    """The setting that bounds a row."""
    if stage.run != "odpo":
        return "max_length"
    return "vllm_max_model_length" if setting(stage, "vllm_max_model_length") else "max_completion_length"


def _check_shared(stage: Stage, shared: int, options: Options) -> None:
    """Refuse what the trainers refuse of GPUs that share rows of packed text (`distill/parallel.py`)."""
    gpus, given = options.machine.gpus, f"{stage.name}: --sequence_parallel {shared}"
    if shared < 1 or gpus % shared:
        raise ValueError(f"{given}: {gpus} GPUs cannot be divided into groups of {shared}")
    if shared == 1:
        return
    if _padded(stage):
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


def _training(part: PlannedStage, options: Options, record: Record | None) -> Estimate:
    stage, machine = part.stage, options.machine
    if part.config is None:
        return Estimate(stage.name, stage.run, machine.gpus, missing="its model's shape is not known yet")
    if setting(stage, _length_flag(stage)) is None and stage.run in POST_TRAINING:
        return Estimate(stage.name, stage.run, machine.gpus, missing=f"{_length_flag(stage)} is not set")
    setup = make_setup(part, options)
    for config, needed, who in (
        (part.teacher, _distils(stage) and setup.teacher_is_here, "teacher"),
        (part.reward, "reward_model" in stage.inputs, "reward model"),
    ):
        if needed and config is None:
            missing = f"its {who}'s config.json is not here, or of a family that cannot be counted"
            return Estimate(stage.name, stage.run, machine.gpus, missing=missing)
    per_token, memory = step_costs(part, setup), step_memory(part, setup, machine)
    known = {"gpus": machine.gpus, "batch_tokens": setup.step_tokens, "per_token": per_token, "memory": memory}
    known |= {"device_bytes": memory.total, "counted": _counted(stage)}
    if machine.memory_bytes is not None and memory.total > machine.memory_bytes:
        total = partial(_total, part, machine)
        known["advice"] = tuple(remedies(setup, machine.memory_bytes, total))
    steps = setting(stage, "max_steps")
    if stage.settings.get("train_tokens") is not None:  # as CascadeSFTConfig rounds
        steps = max(1, round(stage.settings["train_tokens"] / setup.step_tokens))
    if record is not None and stage.run in POST_TRAINING:  # of these very settings
        return Estimate(stage.name, stage.run, **known, seconds=record.seconds, bound="record", record=record.where)
    if steps < 1:
        missing = f"{'max_steps' if stage.run in POST_TRAINING else 'train_tokens'} is not set"
        return Estimate(stage.name, stage.run, **known, missing=missing)
    tokens = steps * setup.step_tokens
    known |= {"tokens": tokens, "steps": steps, "flops": tokens * per_token.executed}
    if record is not None and record.tokens:
        seconds = record.seconds * tokens / record.tokens
        return Estimate(stage.name, stage.run, **known, seconds=seconds, bound="record", record=record.where)
    if stage.run == "odpo":
        return Estimate(stage.name, stage.run, **known, missing=WRITING)
    peak, frozen = _peaks(stage, machine)
    if peak is None:
        return Estimate(stage.name, stage.run, **known, missing=_no_peak(machine, compute_dtype(stage)))
    if frozen is None:
        return Estimate(stage.name, stage.run, **known, missing=_no_peak(machine, "float8"))
    own = per_token.student + per_token.recomputed
    arithmetic = tokens * (own / peak + per_token.teacher / frozen) / (machine.gpus * options.mfu)
    links = _exchange_seconds(part, setup, machine) * steps
    bound = "links" if links > arithmetic else "arithmetic"
    return Estimate(stage.name, stage.run, **known, seconds=max(links, arithmetic), bound=bound)


def step_costs(part: PlannedStage, setup: Setup) -> StepFlops:
    """FLOPs of a training step for one token."""
    stage = part.stage
    if stage.run == "odpo":
        return online_flops(part.config, part.reward, setup, forms=setting(stage, "loss_form") == "weight")
    teacher = part.teacher if _distils(stage) and setup.teacher_is_here else None
    keys = keys_of([part.config, *([teacher] if teacher else [])], setup.max_length, whole_square=setup.masked)
    return step_flops(part.config, teacher, keys, checkpointing=setup.checkpointing, trained=setup.trained)


def step_memory(part: PlannedStage, setup: Setup, machine: Machine) -> Memory:
    """Memory of one GPU in a training step."""
    stage = part.stage
    if stage.run != "odpo":
        return training_memory(part.config, part.teacher, setup)
    dtype, vllm = setting(stage, "reward_model_dtype"), setting(stage, "use_vllm")
    dtype = model_dtype(part.reward or {}) if dtype == "auto" else dtype
    beside = vllm and setting(stage, "vllm_mode") == "colocate"
    return online_memory(
        part.config,
        part.reward,
        setup,
        reward_bytes=BYTES.get(dtype, 4),
        rows=0 if vllm else setup.rows * (setting(stage, "steps_per_generation") or setup.accumulation),
        engine=setting(stage, "vllm_gpu_memory_utilization") * (machine.memory_bytes or 0) if beside else 0.0,
        sleeps=bool(setting(stage, "vllm_enable_sleep_mode")),
    )


def _total(part: PlannedStage, machine: Machine, setup: Setup) -> float:
    return step_memory(part, setup, machine).total


def _counted(stage: Stage) -> str:
    """What stands for lengths that only the rows have."""
    if not _padded(stage):
        return ""
    if _length_flag(stage) != "max_completion_length":
        return f"at most: every row as if it had {_length_flag(stage)} tokens"
    return (
        "every response as if it had max_completion_length tokens, and prompts as if they had none: "
        "vllm_max_model_length bounds both together"
    )


def _peaks(stage: Stage, machine: Machine) -> tuple[float | None, float | None]:
    """FLOP/s of the student's products, and of the teacher's."""
    peak = machine.peak_flops(compute_dtype(stage))
    return peak, machine.peak_flops("float8") if setting(stage, "teacher_dtype") == "fp8" else peak


def _no_peak(machine: Machine, dtype: str) -> str:
    if machine.card.name == CUSTOM:
        return NO_MACHINE
    return f"how fast {machine.card.name} multiplies in {dtype} is not known: give --tflops"


def _exchange_seconds(part: PlannedStage, setup: Setup, machine: Machine) -> float:
    """Seconds of an optimizer step's exchanges, if nothing else went over the links; 0 where they are not known."""
    if machine.card.link_gb_per_second is None:
        return 0.0
    return communicated_bytes(part.config, part.teacher, setup) / (machine.card.link_gb_per_second * 1e9)


def _pruning(part: PlannedStage, options: Options, record: Record | None) -> Estimate:
    stage, machine = part.stage, options.machine
    if stage.settings.get("calibration") is None:
        return Estimate(stage.name, stage.run, missing="no text: its shape stays")
    if part.config is None or part.source is None:
        return Estimate(stage.name, stage.run, missing="its shape is found when it runs")
    window = text_config(part.source).get("max_position_embeddings", 1024)
    length = setting(stage, "calibration_length") or min(1024, window)
    samples = setting(stage, "calibration_samples")
    one_pass = samples * length * sum(forward_flops(part.source, keys_of([part.source], length)))
    flops = PRUNE_PASSES[setting(stage, "method")] * one_pass
    device, host = prune_memory(part.source, part.config, samples, length, setting(stage, "batch_size"))
    known = {"flops": flops, "device_bytes": device, "host_bytes": host}
    if machine.card.name == CPU:
        known |= {"device_bytes": device + host, "host_bytes": None}
    if record is not None:
        return Estimate(stage.name, stage.run, **known, seconds=record.seconds, bound="record", record=record.where)
    peak = machine.peak_flops("float32")  # a layer is computed in fp32, whatever its checkpoint is in
    if peak is None:
        return Estimate(stage.name, stage.run, **known, missing=_no_peak(machine, "float32"))
    return Estimate(stage.name, stage.run, **known, seconds=flops / (peak * options.mfu))
