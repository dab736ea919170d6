"""What a stage of a recipe takes on a machine: tokens, FLOPs, memory of a GPU, seconds, and what each rests on."""

from dataclasses import dataclass, replace

from hf_cascade.costs import StepFlops, forward_flops, keys_of, step_flops
from hf_cascade.machines import CPU, CUSTOM, Machine
from hf_cascade.memory import Memory, Setup, communicated_bytes, prune_memory, training_memory
from hf_cascade.online_costs import cache_bytes, judged_flops, online_flops, online_memory
from hf_cascade.plan import PlannedStage
from hf_cascade.recipe import Stage
from hf_cascade.remedies import advise
from hf_cascade.shape import count_total, text_config
from hf_cascade.stage_setup import (
    BYTES,
    ONLINE,
    POST_TRAINING,
    Options,
    batches_written,
    compute_dtype,
    distils,
    is_scored,
    length_flag,
    make_setup,
    model_dtype,
    padded,
    setting,
    writer_of,
)
from hf_cascade.writing import SHORT, Times

# Forward passes of the parent over the calibration text that pruning takes, the most that was measured, on a CPU.
PRUNE_PASSES = {"compensated": 3.9, "paper": 1.6}  # benchmarks/results/prune_cpu.md
SERVED = "vLLM's server writes the responses, on GPUs of its own"
NO_MACHINE = "give --machine, or --tflops"


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
        writing_memory (`Memory`, *optional*): of odpo and grpo while they write responses; `memory` is of training.
        written (`int`, *optional*): tokens of all their responses, at most; groups that replace others not.
        times (`Times`, *optional*): what their seconds are made of, and bounds of them.
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
    writing_memory: Memory | None = None
    written: int | None = None
    times: Times | None = None

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
    if stage.run == "difficulty":
        return _sampling(part, options)
    return _training(part, options, record)


def _training(part: PlannedStage, options: Options, record: Record | None) -> Estimate:
    stage, machine = part.stage, options.machine
    if part.config is None:
        return Estimate(stage.name, stage.run, machine.gpus, missing="its model's shape is not known yet")
    if setting(stage, length_flag(stage)) is None and stage.run in POST_TRAINING:
        return Estimate(stage.name, stage.run, machine.gpus, missing=f"{length_flag(stage)} is not set")
    setup = make_setup(part, options)
    for config, needed, who in (
        (part.teacher, distils(stage) and setup.teacher_is_here, "teacher"),
        (part.reward, "reward_model" in stage.inputs, "reward model"),
        (part.reward, "judge_model_name_or_path" in stage.inputs, "judge"),
    ):
        if needed and config is None:
            missing = f"its {who}'s config.json is not here, or of a family that cannot be counted"
            return Estimate(stage.name, stage.run, machine.gpus, missing=missing)
    per_token, held = step_costs(part, setup), step_memory(part, setup, machine)
    known = {"gpus": machine.gpus, "batch_tokens": setup.step_tokens, "per_token": per_token, "memory": held[0]}
    known |= {"device_bytes": _most(held), "counted": _counted(stage), "writing_memory": held[-1]}
    if len(held) == 1:
        del known["writing_memory"]
    if machine.memory_bytes is not None and _most(held) > machine.memory_bytes:
        known["advice"] = _advice(part, setup, machine)
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
    if stage.run in ONLINE:
        responses = tokens // setup.max_length // setting(stage, "num_iterations")
        known["written"] = responses * setting(stage, "max_completion_length")
    if record is not None and record.tokens:
        seconds = record.seconds * tokens / record.tokens
        return Estimate(stage.name, stage.run, **known, seconds=seconds, bound="record", record=record.where)
    if missing := _no_time(part, setup, machine):
        return Estimate(stage.name, stage.run, **known, missing=missing)
    return Estimate(stage.name, stage.run, **known, **_seconds(part, setup, options, steps, per_token))


def step_costs(part: PlannedStage, setup: Setup) -> StepFlops:
    """FLOPs of a training step for one token."""
    stage = part.stage
    if stage.run in ONLINE:
        ranked = stage.run == "odpo"
        forwards = is_scored(stage, setup) + (ranked and setting(stage, "loss_form") == "weight")
        how = {"forwards": forwards, "iterations": setting(stage, "num_iterations")}
        return online_flops(part.config, setup, reward=part.reward if ranked else None, reference=ranked, **how)
    teacher = part.teacher if distils(stage) and setup.teacher_is_here else None
    keys = keys_of([part.config, *([teacher] if teacher else [])], setup.max_length, whole_square=setup.masked)
    how = {"checkpointing": setup.checkpointing, "trained": setup.trained, "head_again": setup.trl_head}
    return step_flops(part.config, teacher, keys, **how)


def step_memory(part: PlannedStage, setup: Setup, machine: Machine) -> tuple[Memory, ...]:
    """Memory of one GPU in a training step; of odpo and grpo also while responses are written."""
    stage = part.stage
    if stage.run not in ONLINE:
        return (training_memory(part.config, part.teacher, setup),)
    how, writer = {"judge": part.reward, "judge_bytes": BYTES.get(_judge_dtype(part), 4)}, writer_of(stage, setup)
    if writer is not None:
        how |= {"rows": writer.rows, "engine": writer.share * (machine.memory_bytes or 0)}
    sleeps = bool(setting(stage, "vllm_enable_sleep_mode"))
    return online_memory(part.config, setup, reference=stage.run == "odpo", sleeps=sleeps, **how)


def _judge_dtype(part: PlannedStage) -> str:
    """The type of a reward model or judge in the process."""
    dtype = setting(part.stage, "reward_model_dtype") if part.stage.run == "odpo" else "auto"
    return model_dtype(part.reward or {}) if dtype == "auto" else dtype


def _most(held: tuple[Memory, ...]) -> float:
    return max(memory.total for memory in held)


def _advice(part: PlannedStage, setup: Setup, machine: Machine) -> tuple[str, ...]:
    """Changes with which a stage that does not fit would; beside training vLLM may sleep first."""
    tried, writer = {"": part}, writer_of(part.stage, setup) if part.stage.run in ONLINE else None
    if writer is not None and writer.share and not setting(part.stage, "vllm_enable_sleep_mode"):
        settings = part.stage.settings | {"vllm_enable_sleep_mode": True}
        tried["vllm_enable_sleep_mode: true"] = replace(part, stage=replace(part.stage, settings=settings))
    totals = {words: lambda *case, of=other: _most(step_memory(of, *case)) for words, other in tried.items()}
    return tuple(advise(setup, machine, totals))


def _no_time(part: PlannedStage, setup: Setup, machine: Machine) -> str:
    """Why it is not known how long a training stage takes, or nothing."""
    stage = part.stage
    if machine.card.name == CUSTOM and machine.peak_flops("bfloat16") is None:
        return NO_MACHINE
    if stage.run in ONLINE:
        writer = writer_of(stage, setup)
        if writer is None:
            return SERVED
        if machine.card.memory_tb_per_second is None:
            card = "a machine given in numbers" if machine.card.name == CUSTOM else machine.card.name
            return f"how long writing responses takes: how fast the memory of {card} is read is not known"
        if machine.gpus % writer.together:
            return f"vllm_tensor_parallel_size {writer.together} does not divide {machine.gpus} GPUs"
        if not writer.rows_at_once(part.config, setup, machine):
            return (
                f"vLLM has no room for a row of {setup.max_length:,} tokens beside the policy: raise "
                "vllm_gpu_memory_utilization or vllm_tensor_parallel_size"
            )
    unknown = [kind for kind in product_types(part) if machine.peak_flops(kind) is None]
    return _no_peak(machine, unknown[0]) if unknown else ""


def _seconds(part: PlannedStage, setup: Setup, options: Options, steps: int, per_token: StepFlops) -> dict:
    """
    A training stage's `seconds`, their `bound`, and `times` where it writes what it trains on.

    Args:
        part (`PlannedStage`): the stage; nothing is missing.
        setup (`Setup`), options (`Options`): how and where it trains.
        steps (`int`): optimizer steps.
        per_token (`StepFlops`): of one token.
    """
    stage, machine = part.stage, options.machine
    own, frozen, judge = (machine.peak_flops(kind) for kind in product_types(part))
    tokens, share = steps * setup.step_tokens, machine.gpus * options.mfu
    judged = judged_flops(part.reward, setup) if stage.run == "odpo" and part.reward else 0.0
    each = (per_token.student + per_token.recomputed) / own + (per_token.teacher - judged) / frozen
    passes, links = tokens * each / share, _exchange_seconds(part, setup, machine) * steps
    bound, passes = ("links", links) if links > passes else ("arithmetic", passes)
    if stage.run not in ONLINE:
        return {"seconds": passes, "bound": bound}
    writer, iterations = writer_of(stage, setup), setting(stage, "num_iterations")
    batches, writing = batches_written(stage, setup), []
    responses = setup.rows * batches * machine.gpus  # that are written together
    for part_of in (1, SHORT):
        rows = setup.changed(max_length=max(1, round(part_of * setup.max_length)))
        flops = responses * rows.max_length * sum(forward_flops(part.config, keys_of([part.config], rows.max_length)))
        once = max(writer.seconds(part.config, rows, machine, responses), flops / (own * share))
        writing.append(once * steps * setup.accumulation / batches / iterations)
    again = writing[0]
    if is_scored(stage, setup):
        row = keys_of([part.config], setup.max_length, whole_square=setup.masked)
        again += tokens * sum(forward_flops(part.config, row)) / (own * share) / iterations
    judging = tokens * judged / (judge * share)
    rest = passes + judging
    rounds = setting(stage, "max_refill_rounds")
    refilled = writing[0] + rest + rounds * again if rounds else None
    times = Times(writing[0], passes, judging, writing[1] + rest, refilled)
    return {"seconds": times.total, "bound": bound, "times": times}


def _sampling(part: PlannedStage, options: Options) -> Estimate:
    """A difficulty stage, which writes responses to every prompt, on one GPU."""
    stage, machine = part.stage, options.machine
    if "model" not in stage.inputs:
        return Estimate(stage.name, stage.run, missing="its server writes the responses")
    if part.source is None:
        return Estimate(stage.name, stage.run, missing="its model's shape is not known yet")
    samples, length = (setting(stage, flag) for flag in ("samples_per_prompt", "max_completion_length"))
    dtype = setting(stage, "dtype")
    if dtype == "auto":
        dtype = "float32" if machine.card.name == CPU else model_dtype(part.source)
    width = BYTES.get(dtype, 4)
    forward = sum(forward_flops(part.source, keys_of([part.source], length)))
    row = cache_bytes(part.source, Setup(length, compute_bytes=width), 1)
    weights, batch = width * count_total(part.source), setting(stage, "batch_size")
    known = {"per_token": StepFlops(0.0, 0.0, 0.0, generated=forward), "device_bytes": weights + batch * row}
    room = machine.memory_bytes
    if room is not None and weights + batch * row > room:
        fewer = int((room - weights) // row)
        words = f"batch_size: {fewer} ({(weights + fewer * row) / 1e9:,.0f} GB)" if fewer > 0 else ""
        known["advice"] = tuple(
            filter(None, [words, "set.url and set.served_model, a server, instead of inputs.model"])
        )
    flops = f"{samples * length * forward:.1e}".replace("e+0", "e").replace("e+", "e")
    each = f"{samples} responses of at most {length:,} tokens to each, {flops} FLOPs a prompt"
    if limit := stage.settings.get("limit"):
        known["tokens"] = limit * samples * length
        known["flops"] = known["tokens"] * forward
        missing = f"how long writing takes, without vLLM: at most {limit:,} prompts, {each}"
    else:
        missing = f"depends on the number of prompts: {each}"
    return Estimate(stage.name, stage.run, **known, missing=missing)


def _counted(stage: Stage) -> str:
    """What stands for lengths that only the rows have."""
    if not padded(stage):
        return ""
    if length_flag(stage) != "max_completion_length":
        return f"at most: every row as if it had {length_flag(stage)} tokens"
    return (
        "every response as if it had max_completion_length tokens, and prompts as if they had none: "
        "vllm_max_model_length bounds both together"
    )


def product_types(part: PlannedStage) -> tuple[str, str, str]:
    """Types of the student's products, of the teacher's or reference's, and of the reward model's."""
    own = compute_dtype(part.stage)
    judge = _judge_dtype(part) if part.stage.run == "odpo" and part.reward else own
    return own, "float8" if setting(part.stage, "teacher_dtype") == "fp8" else own, judge


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
