"""estimate.py on GRPO and Online DPO: hours by their parts, memory of both phases, remedies that are enough."""

import re
from dataclasses import replace

import pytest
import yaml

from hf_cascade.costs import forward_flops, keys_of
from hf_cascade.estimate import estimate
from hf_cascade.machines import find_machine
from hf_cascade.memory import Setup
from hf_cascade.online_costs import cache_bytes, judged_flops, online_flops, online_memory
from hf_cascade.plan import PlannedStage
from hf_cascade.recipe import Stage
from hf_cascade.stage_setup import Options, make_setup
from hf_cascade.writing import SHORT, Writer
from tests.test_estimate import CHILD, EIGHT, FLASH, talk

GROUPS = {"max_steps": 10, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 64, "train_tokens": None}
GROUPS |= {"max_completion_length": 81920, "vllm_max_model_length": 86016, "use_vllm": True, **FLASH}
GROUPS |= {"vllm_enable_sleep_mode": True, "vllm_gpu_memory_utilization": 0.5, "vllm_tensor_parallel_size": 4}
GROUPS |= {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
LARGER = Options(find_machine("8xh200"))


def group(inputs=(), **changes) -> PlannedStage:
    """A stage of GRPO on rows of 80K tokens; a setting that is `None` is left out."""
    settings = {name: value for name, value in {**GROUPS, **changes}.items() if value is not None}
    stage = Stage("stage", "grpo", None, settings, dict.fromkeys(inputs, "x"), "")
    return PlannedStage(stage, CHILD, CHILD, None, CHILD if inputs else None)


def test_a_stage_of_grpo_by_its_parts():
    part, responses = group(), 8 * 64
    cost, setup = estimate(part, LARGER), make_setup(part, LARGER)
    assert (setup.max_length, setup.trl_head, setup.packed, setup.fewest_rows) == (86016, True, False, 1)
    assert cost.per_token == online_flops(CHILD, setup, forwards=1)  # vLLM's probabilities are corrected
    assert cost.tokens == 10 * responses * 86016 and cost.written == 10 * responses * 81920
    held = online_memory(CHILD, setup, engine=0.5 * 141e9, sleeps=True)
    assert (cost.memory, cost.writing_memory) == held and cost.device_bytes == max(part.total for part in held)
    rate, times = 8 * 989.4e12 * 0.4, cost.times
    own = cost.per_token.student + cost.per_token.recomputed
    assert times.passes == pytest.approx(cost.tokens * own / rate)
    assert times.writing == pytest.approx(10 * Writer(0.5, 4).seconds(CHILD, setup, LARGER.machine, responses))
    assert cost.seconds == times.total == times.writing + times.passes
    fewer = setup.changed(max_length=round(SHORT * 86016))
    short = 10 * Writer(0.5, 4).seconds(CHILD, fewer, LARGER.machine, responses)
    assert times.short == pytest.approx(times.passes + short)  # rows are padded to the longest
    before = cost.tokens * (cost.per_token.student - estimate(_uncorrected(), LARGER).per_token.student) / rate
    assert times.refilled == pytest.approx(times.total + 3 * (times.writing + before))
    none = estimate(group(max_refill_rounds=0), LARGER).times
    assert none.refilled is None


def _uncorrected() -> PlannedStage:
    return group(vllm_importance_sampling_correction=False)


def test_rows_of_grpo_are_not_shared():
    with pytest.raises(ValueError, match="sequence_parallel 2: TRL's GRPO takes neither .* a row must fit one GPU"):
        estimate(group(), replace(LARGER, sequence_parallel={"stage": 2}))
    assert make_setup(group(), replace(LARGER, sequence_parallel={"": 2})).sequence_parallel == 1


def test_when_grpo_scores_beforehand():
    """As TRL: responses of another policy, or vLLM's; two steps on the same responses write half as many."""
    passes = [
        estimate(group(use_vllm=False, **changes), LARGER).per_token
        for changes in ({}, {"steps_per_generation": 128}, {"generation_batch_size": 1024}, {"num_iterations": 2})
    ]
    forward = passes[0].generated
    assert passes[0] == estimate(_uncorrected(), LARGER).per_token
    for scored in passes[1:3]:
        assert scored.student - passes[0].student == pytest.approx(forward)
    assert passes[3].generated == forward / 2 and passes[3].student - passes[0].student == pytest.approx(forward / 2)
    cost = estimate(group(num_iterations=2), LARGER)
    assert cost.written == 10 * 512 // 2 * 81920
    assert cost.times.writing == pytest.approx(estimate(group(), LARGER).times.writing / 2)


@pytest.mark.parametrize(
    ("part", "options", "words"),
    [
        (group(vllm_mode="server"), LARGER, "on GPUs of its own"),
        (group(vllm_gpu_memory_utilization=0.1, vllm_tensor_parallel_size=1), LARGER, "no room for a row of 86,016"),
        (group(vllm_tensor_parallel_size=3), LARGER, "3 does not divide 8 GPUs"),
        (group(), Options(find_machine(None, 8, 900, 141)), "the memory of a machine given in numbers is"),
        (group(), Options(find_machine("8xcpu")), "how fast the memory of cpu is read"),
        (group(use_vllm=False), Options(find_machine("cpu")), "how fast the memory of cpu is read"),
        (group(), Options(find_machine(None, 8)), "give --machine"),
        (talk("odpo"), Options(find_machine("cpu")), "how fast the memory of cpu is read"),
        (talk("odpo", use_vllm=True, vllm_mode="server"), LARGER, "on GPUs of its own"),
        (group(max_steps=None), LARGER, "max_steps is not set"),
        (replace(group(["judge_model_name_or_path"]), reward=None), LARGER, "its judge's config.json"),
    ],
)
def test_what_is_not_known_of_stages_that_write(part, options, words):
    cost = estimate(part, options)
    assert cost.seconds is None and cost.times is None and words in cost.missing


def test_a_judge_in_the_process_is_on_every_gpu():
    """A judge elsewhere holds nothing here; one here is counted in the type of its checkpoint."""
    beside = estimate(group(["judge_model_name_or_path"]), LARGER)
    assert (
        beside.memory.teacher == 2 * 13_945_031_680
        and estimate(group(judge_url="http://x"), LARGER).memory.teacher == 0
    )


def apply(part: PlannedStage, words: str, options: Options) -> tuple[PlannedStage, Options]:
    """A remedy done as it is written."""
    settings = dict(part.stage.settings)
    for change in re.split(" and | with |, ", words.rpartition(" (")[0]):
        flag, value = re.split(": | ", change, maxsplit=1)
        if flag.startswith("--"):
            machine = find_machine(value) if flag == "--machine" else find_machine("h100-80gb", int(value))
            options = replace(options, machine=machine)
        else:
            settings[flag] = yaml.safe_load(value)
    return replace(part, stage=replace(part.stage, settings=settings)), options


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["--gpus 32", "--machine 8xh200-141gb"]),  # rows of 80K of the 14B
        ({"vllm_enable_sleep_mode": False}, ["vllm_enable_sleep_mode: true and --gpus 32"]),
        ({"max_completion_length": 28672, "vllm_max_model_length": 32768, "vllm_enable_sleep_mode": False}, ["sleep"]),
        (
            {"max_completion_length": 4096, "vllm_max_model_length": 8192, "gradient_checkpointing": False},
            ["gradient_"],
        ),
        (
            {"max_completion_length": 28672, "vllm_max_model_length": 32768, "per_device_train_batch_size": 4},
            ["_size: 1"],
        ),
        ({"max_completion_length": 53248, "vllm_max_model_length": 57344, "attn_implementation": None}, ["flash"]),
        ({"max_completion_length": 28672, "vllm_max_model_length": 32768, "accelerator_config": None}, ["sync_each"]),
    ],
)
def test_remedies_of_grpo_are_enough_as_they_are_written(changes, words):
    part = group(**changes)
    cost = estimate(part, EIGHT)
    assert cost.fits(EIGHT.machine) is False
    said = " | ".join(cost.advice)
    assert [word for word in words if word not in said] == [] and "sequence_parallel" not in said
    for text in cost.advice:
        changed, options = apply(part, text, EIGHT)
        mended = estimate(changed, options)
        assert mended.fits(options.machine) and f"({mended.device_bytes / 1e9:,.0f} GB)" in text
        rows = [make_setup(one, where) for one, where in ((part, EIGHT), (changed, options))]
        assert len({setup.rows * setup.accumulation for setup in rows}) == 1  # as many responses a step on each GPU


def test_how_long_an_engine_writes():
    """Two copies of four GPUs; by hand: bytes that are read, at the memory's bandwidth."""
    setup, machine = Setup(2048), find_machine("8xh100-80gb")
    writer, row = Writer(0.1, 4), cache_bytes(CHILD, Setup(2048), 1)
    assert row == 2048 * 40 * 2 * 8 * 128 * 2
    room = 4 * 0.1 * 80e9 - 2 * 13_945_031_680
    assert writer.rows_at_once(CHILD, setup, machine) == room // row == 12
    weights = 2 * 2048 * 2 * (13_506_073_600 - 131072 * 5120)  # 20 rows a copy, in two batches; no tower, no embedding
    read = weights + 20 * row * 2049 / 2
    assert writer.seconds(CHILD, setup, machine, 40) == pytest.approx(read / (4 * 3.35e12))
    assert Writer(0.01, 4).rows_at_once(CHILD, setup, machine) == 0
    with pytest.raises(ValueError, match="no room for a row of 2048 tokens"):
        Writer(0.01, 4).seconds(CHILD, setup, machine, 40)


def test_how_long_transformers_writes():
    """Each GPU its own batch at once; FSDP2 gathers the weights for every token, which takes longer than reading."""
    setup, machine = Setup(2048, gpus=8), find_machine("8xh100-80gb")
    writer, row = Writer(rows=16), cache_bytes(CHILD, setup, 1)
    read = 2048 * 2 * (13_506_073_600 - 131072 * 5120) + 16 * row * 2049 / 2
    assert writer.seconds(CHILD, setup, machine, 8 * 16) == pytest.approx(read / 3.35e12)
    gathered = 2048 * 2 * 13_506_073_600 * 7 / 8
    assert writer.seconds(CHILD, setup.changed(sharding="fsdp2"), machine, 128) == pytest.approx(gathered / 450e9)
    assert writer.seconds(CHILD, setup.changed(sharding="zero3"), machine, 128) == pytest.approx(read / 3.35e12)
    alone = setup.changed(gpus=1, sharding="fsdp2")
    assert writer.seconds(CHILD, alone, find_machine("h100-80gb"), 16) == pytest.approx(read / 3.35e12)


def pairs(inputs=("reward_model",), **changes) -> PlannedStage:
    return talk("odpo", inputs, **{"max_completion_length": 1024, **changes})


@pytest.mark.parametrize("form", ["pair", "weight"])
@pytest.mark.parametrize("vllm", [False, True])
def test_a_stage_of_online_dpo_by_its_parts(form, vllm):
    part = pairs(loss_form=form, use_vllm=vllm, vllm_enable_sleep_mode=True, vllm_gpu_memory_utilization=0.6)
    cost, setup = estimate(part, EIGHT), make_setup(part, EIGHT)
    assert (setup.max_length, setup.trl_head, setup.packed) == (1024, True, False)
    assert setup.fewest_rows == (2 if form == "pair" else 1)
    assert cost.tokens == cost.written == 10 * 8 * 2 * 4 * 1024 and cost.flops == cost.tokens * cost.per_token.executed
    assert cost.per_token == online_flops(CHILD, setup, reward=CHILD, reference=True, forwards=form == "weight")
    how = {"engine": 0.6 * 80e9, "sleeps": True} if vllm else {"rows": 8}
    held = online_memory(CHILD, setup, judge=CHILD, judge_bytes=2, reference=True, **how)
    assert (cost.memory, cost.writing_memory) == held and cost.device_bytes == max(part.total for part in held)
    assert "prompts as if they had none" in cost.counted
    rate, times, judged = 8 * 989.4e12 * 0.4, cost.times, judged_flops(CHILD, setup)
    flops = cost.per_token.student + cost.per_token.recomputed + cost.per_token.teacher - judged
    assert times.passes == pytest.approx(cost.tokens * flops / rate) and cost.bound == "arithmetic"
    assert times.judging == pytest.approx(cost.tokens * judged / rate)
    writer = Writer(0.6) if vllm else Writer(rows=8)
    assert times.writing == pytest.approx(10 * writer.seconds(CHILD, setup, EIGHT.machine, 64))
    short = 10 * writer.seconds(CHILD, setup.changed(max_length=256), EIGHT.machine, 64)
    assert times.short == pytest.approx(short + times.passes + times.judging)
    assert cost.seconds == times.total == times.writing + times.passes + times.judging and times.refilled is None


def test_settings_of_online_dpo():
    bounded = estimate(pairs(vllm_max_model_length=8192), EIGHT)
    assert bounded.batch_tokens == 8 * 2 * 4 * 8192 and bounded.counted.startswith("at most")
    assert bounded.written == 10 * 8 * 2 * 4 * 1024
    awake = estimate(pairs(use_vllm=True, vllm_gpu_memory_utilization=0.5), EIGHT)
    asleep = estimate(pairs(use_vllm=True, vllm_enable_sleep_mode=True), EIGHT)
    assert awake.memory.teacher - asleep.memory.teacher == pytest.approx(0.5 * 80e9)
    elsewhere = estimate(pairs([]), EIGHT)
    assert elsewhere.times.judging == 0 and elsewhere.memory.teacher < asleep.memory.teacher
    single = estimate(pairs(reward_model_dtype="float32"), EIGHT)  # without autocast, at the rate of its own type
    assert single.times.judging == pytest.approx(estimate(pairs(), EIGHT).times.judging * 989.4 / 66.9)
    older = [estimate(pairs(steps_per_generation=count), EIGHT) for count in (4, 8)]
    assert older[1].per_token.student - older[0].per_token.student == pytest.approx(
        sum(forward_flops(CHILD, {None: 1024.0}))
    )
    assert older[1].times.writing == pytest.approx(older[0].times.writing / 2)  # twice the rows read the weights once


def test_online_dpo_that_does_not_fit_may_let_vllm_sleep():
    part = pairs(use_vllm=True, vllm_gpu_memory_utilization=0.5, accelerator_config=GROUPS["accelerator_config"])
    advice = estimate(part, LARGER).advice
    assert advice[-1].startswith("vllm_enable_sleep_mode: true (")
    changed, options = apply(part, advice[-1], LARGER)
    assert estimate(changed, options).fits(LARGER.machine)


def test_a_difficulty_stage_writes_responses():
    settings = {"max_completion_length": 32768, "dtype": "bfloat16"}
    stage = Stage("stage", "difficulty", None, settings, {"model": "x"}, "")
    part = PlannedStage(stage, CHILD, CHILD)
    cost = estimate(part, EIGHT)
    forward = sum(forward_flops(CHILD, keys_of([CHILD], 32768)))
    assert cost.per_token.executed == cost.per_token.generated == forward and cost.gpus == 1
    row = cache_bytes(CHILD, Setup(32768), 1)
    assert cost.device_bytes == 2 * 13_945_031_680 + 16 * row and cost.fits(EIGHT.machine) is False
    assert cost.tokens is None and "depends on the number of prompts: 16 responses" in cost.missing
    fewer = int(cost.advice[0].split()[1])
    changed = replace(part, stage=replace(stage, settings=settings | {"batch_size": fewer, "limit": 100}))
    cost = estimate(changed, EIGHT)
    assert cost.fits(EIGHT.machine) and cost.device_bytes + row > 80e9
    assert (
        cost.tokens == 100 * 16 * 32768
        and cost.flops == cost.tokens * forward
        and "at most 100 prompts, 16 responses" in cost.missing
    )
    served = replace(part, stage=replace(stage, settings=settings | {"url": "http://x"}, inputs={}))
    assert "server" in estimate(served, EIGHT).missing
    assert "shape is not known" in estimate(replace(part, source=None), EIGHT).missing
