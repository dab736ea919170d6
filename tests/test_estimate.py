"""estimate.py: times against arithmetic by hand, defaults against the stages' own, remedies that really are enough."""

from dataclasses import replace

import pytest
import torch

from hf_cascade import ChildShape
from hf_cascade.costs import forward_flops, keys_of, step_flops
from hf_cascade.distill.config import CascadeDistillationConfig
from hf_cascade.estimate import PRUNE_PASSES, Record, estimate
from hf_cascade.grpo.difficulty_arguments import DifficultyArguments
from hf_cascade.machines import find_machine
from hf_cascade.memory import training_memory
from hf_cascade.plan import PlannedStage
from hf_cascade.prune.config import PruneArguments, PruneConfig
from hf_cascade.recipe import Stage
from hf_cascade.remedies import remedies
from hf_cascade.stage_setup import (
    BYTES,
    DEFAULTS,
    DIFFICULTY_DEFAULTS,
    PRUNE_DEFAULTS,
    Options,
    compute_dtype,
    make_setup,
    model_dtype,
)
from tests.test_costs import PARENT

CHILD = ChildShape(intermediate_size=16384).apply(PARENT)
SHORT = {"max_length": 16384, "train_tokens": 27e9, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 32}
FLASH = {"attn_implementation": "flash_attention_2"}
EIGHT = Options(find_machine("8xh100-80gb"))


def planned(run: str = "distill", config=CHILD, source=CHILD, teacher=PARENT, **settings) -> PlannedStage:
    given = SHORT if run != "prune" else {"calibration": "org/text"}
    return PlannedStage(Stage("stage", run, None, {**given, **settings}, {}, ""), config, source, teacher)


def test_defaults_are_those_of_the_stages(tmp_path):
    from trl import ModelConfig

    training = CascadeDistillationConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    held = {**vars(ModelConfig()), **vars(training)}
    assert {flag: held[flag] for flag in DEFAULTS} == DEFAULTS
    sampling = vars(DifficultyArguments(prompts="p", reward="r", output_dir="o", model="m"))
    assert {flag: sampling[flag] for flag in DIFFICULTY_DEFAULTS} == DIFFICULTY_DEFAULTS
    pruning = {**vars(PruneConfig()), **vars(PruneArguments("model", "folder"))}
    assert {flag: pruning[flag] for flag in PRUNE_DEFAULTS} == PRUNE_DEFAULTS
    assert {name: getattr(torch, name).itemsize for name in BYTES if name != "fp8"} | {"fp8": 2} == BYTES


def test_time_is_flops_over_peak():
    cost = estimate(planned(), EIGHT)
    keys = {None: 16384.0}  # SDPA multiplies the whole square
    flops = step_flops(CHILD, PARENT, keys, checkpointing=True)
    assert cost.per_token == flops and cost.batch_tokens == 8 * 32 * 16384
    assert cost.steps == round(27e9 / cost.batch_tokens) and cost.tokens == cost.steps * cost.batch_tokens
    assert cost.flops == cost.tokens * flops.executed
    assert cost.seconds == pytest.approx(cost.flops / (8 * 989.4e12 * 0.4)) and cost.bound == "arithmetic"
    twice = estimate(planned(), replace(EIGHT, mfu=0.2))
    assert twice.seconds == pytest.approx(2 * cost.seconds)
    more = estimate(planned(), Options(find_machine("64xh100-80gb")))
    assert more.seconds == pytest.approx(cost.seconds / 8, rel=0.01) and more.steps == pytest.approx(
        cost.steps / 8, abs=1
    )
    flash = estimate(planned(attn_implementation="flash_attention_2"), EIGHT)
    assert flash.per_token == step_flops(CHILD, PARENT, keys_of([CHILD, PARENT], 16384), checkpointing=True)


def test_an_fp8_teacher_is_faster_where_there_is_fp8():
    cost, plain = estimate(planned(teacher_dtype="fp8"), EIGHT), estimate(planned(), EIGHT)
    teacher = plain.tokens * plain.per_token.teacher / (8 * 989.4e12 * 0.4)
    assert plain.seconds - cost.seconds == pytest.approx(teacher / 2, rel=1e-3)
    assert cost.memory.teacher == plain.memory.teacher, "its weights stay 16-bit"
    old = estimate(planned(teacher_dtype="fp8"), Options(find_machine("8xa100-80gb")))
    assert old.seconds is None and "float8" in old.missing and old.flops == plain.flops


def test_slow_links_bound_the_time():
    cost = estimate(planned(gradient_accumulation_steps=1), Options(find_machine("8xrtx4090"), sharding="fsdp2"))
    assert cost.bound == "arithmetic"
    short = {"max_length": 512, "gradient_accumulation_steps": 1}
    cost = estimate(planned(**short), Options(find_machine("8xrtx4090")))
    assert cost.bound == "links" and cost.seconds > cost.flops / (8 * 165.2e12 * 0.4)


def test_types_of_weights_and_products():
    assert compute_dtype(planned().stage) == "bfloat16"
    assert compute_dtype(planned(fp16=True).stage) == "float16"
    assert compute_dtype(planned(bf16=False).stage) == "float32"
    assert compute_dtype(planned(bf16=False, dtype="bfloat16").stage) == "bfloat16"
    assert model_dtype(PARENT) == "bfloat16" and model_dtype({}) == "float32"
    assert model_dtype({"text_config": {"torch_dtype": "float16"}}) == "float16"
    setup = make_setup(planned(dtype="auto", teacher_dtype="float32"), EIGHT)
    assert (setup.weight_bytes, setup.compute_bytes, setup.teacher_bytes, setup.sharding) == (2, 2, 4, "fsdp2")
    assert make_setup(planned("pretrain", dtype="bfloat16"), EIGHT).weight_bytes == 4  # its script loads fp32
    assert make_setup(planned(), Options(find_machine("h200"))).sharding == "none"
    each = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    assert make_setup(planned(accelerator_config=each), EIGHT).sync_each_batch


def test_pretraining_has_no_teacher_and_trls_head():
    cost, distilled = estimate(planned("pretrain", teacher=None), EIGHT), estimate(planned(), EIGHT)
    assert cost.per_token.teacher == 0 and cost.memory.teacher == 0
    assert cost.per_token.student == distilled.per_token.student
    assert cost.per_token.recomputed - distilled.per_token.recomputed == 2 * 131072 * 5120
    whole = 16384 * 131072 * 2  # bytes of bf16 logits, which are never whole
    assert cost.memory.activations + cost.memory.loss < distilled.memory.activations + distilled.memory.loss + whole


def test_lora_trains_little():
    cost, full = estimate(planned(use_peft=True), EIGHT), estimate(planned(), EIGHT)
    assert cost.memory.student < full.memory.student / 3
    assert 0.7 < cost.per_token.student / full.per_token.student < 0.8  # attention's backward stays whole


@pytest.mark.parametrize(("method", "passes"), PRUNE_PASSES.items())
def test_pruning_is_passes_of_the_parent(method, passes):
    part = planned("prune", source=PARENT, calibration_samples=1024, method=method)
    cost = estimate(part, EIGHT)
    one = 1024 * 1024 * sum(forward_flops(PARENT, keys_of([PARENT], 1024)))
    assert cost.flops == pytest.approx(passes * one)
    assert cost.seconds == pytest.approx(cost.flops / (66.9e12 * 0.4)) and cost.gpus == 1  # one GPU, in fp32
    assert cost.fits(EIGHT.machine) and cost.host_bytes > 4 * 1024 * 1024 * 5120
    on_cpu = estimate(part, Options(find_machine("cpu", tflops=1.0)))
    assert on_cpu.device_bytes == cost.device_bytes + cost.host_bytes and on_cpu.host_bytes is None


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (planned("evaluate", None, None, None), "tasks and texts"),
        (planned("prune", calibration=None), "no text"),
        (planned("prune", config=None), "found when it runs"),
        (planned(config=None), "shape is not known"),
        (planned(teacher=None), "teacher's config.json"),
        (planned(train_tokens=None), "train_tokens is not set"),
    ],
)
def test_what_is_not_known_is_said(part, words):
    cost = estimate(part, EIGHT)
    assert cost.seconds is None and words in cost.missing


def test_a_teacher_elsewhere_costs_nothing_here():
    for flag in ("teacher_url", "teacher_cache"):
        cost = estimate(planned(teacher=None, **{flag: "http://there"}), EIGHT)
        assert cost.per_token.teacher == 0 and cost.memory.teacher == 0 and cost.seconds


def test_without_a_machine_there_is_no_time_but_all_else():
    cost = estimate(planned(), Options(find_machine(None, gpus=8)))
    assert cost.seconds is None and "--machine" in cost.missing
    assert cost.flops and cost.memory and cost.fits(find_machine(None)) is None


def test_steps_may_be_named_instead_of_tokens():
    assert estimate(planned(train_tokens=None, max_steps=10), EIGHT).tokens == 10 * 8 * 32 * 16384


def test_records_go_before_arithmetic():
    cost = estimate(planned(), EIGHT, Record(10.0, 27_000_000, "there"))
    assert cost.seconds == pytest.approx(10.0 * cost.tokens / 27e6) and (cost.bound, cost.record) == ("record", "there")
    assert estimate(planned("prune", source=PARENT), EIGHT, Record(7.0, 0, "there")).seconds == 7.0
    assert estimate(planned("evaluate", None), EIGHT, Record(5.0, 0, "there")).seconds == 5.0


@pytest.mark.parametrize(
    ("machine", "settings", "words"),
    [
        ("8xh100-80gb", {}, ["sync_each_batch: true", "--sequence_parallel 2", "--gpus 16"]),
        ("8xa100-40gb", {"per_device_train_batch_size": 4}, ["per_device_train_batch_size: 1", " and "]),
        ("8xh100-80gb", {"max_length": 262144}, ["flash_attention_2", "--sequence_parallel"]),
        ("h200", {"gradient_checkpointing": False}, ["gradient_checkpointing: true"]),
        ("h200", {}, ["--gpus 4"]),
    ],
)
def test_what_does_not_fit_gets_remedies_that_are_enough(machine, settings, words):
    part, options = planned(**settings), Options(find_machine(machine))
    cost = estimate(part, options)
    assert cost.fits(options.machine) is False and cost.advice
    assert [word for word in words if word not in " | ".join(cost.advice)] == []
    settings_first = [text for text in cost.advice if "--machine" not in text]
    sizes = [int(text.rpartition("(")[2].split()[0].replace(",", "")) for text in settings_first]
    assert all(size <= options.machine.memory_bytes / 1e9 for size in sizes)
    setup = make_setup(part, options)
    assert [*remedies(setup, 0.0, lambda _: 1.0)] == []  # nothing is enough for nothing
    if words == ["--gpus 4"]:
        four = training_memory(CHILD, PARENT, setup.changed(gpus=4, sharding="fsdp2"))
        two = training_memory(CHILD, PARENT, setup.changed(gpus=2, sharding="fsdp2"))
        assert four.total < 141e9 < two.total and sizes == [round(four.total / 1e9)]
    for text in set(cost.advice) - set(settings_first):  # a larger card, in words that --machine takes
        other = find_machine(text.split()[1])
        assert estimate(part, Options(other)).fits(other) and other.gpus == options.machine.gpus


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({"gradient_accumulation_steps": 0}, EIGHT, "stage.gradient_accumulation_steps: 0"),
        ({"max_length": None}, EIGHT, "stage.max_length: None"),
        ({}, replace(EIGHT, sequence_parallel={"": 3}), "8 GPUs cannot be divided into groups of 3"),
        ({}, replace(EIGHT, sequence_parallel={"stage": 0}), "--sequence_parallel 0"),
        ({}, replace(EIGHT, sequence_parallel={"": 2}), "add --set stage.attn_implementation=flash_attention_2"),
        (FLASH, replace(EIGHT, sequence_parallel={"": 2}, sharding="fsdp2"), "under zero3 alone"),
        (FLASH | {"per_device_train_batch_size": 2}, replace(EIGHT, sequence_parallel={"": 2}), "batch_size=1"),
        (FLASH | {"gradient_accumulation_steps": 2}, replace(EIGHT, sequence_parallel={"": 4}), "a multiple of 4"),
    ],
)
def test_bad_numbers(settings, options, words):
    with pytest.raises(ValueError, match=words):
        estimate(planned(**settings), options)


def test_rows_shared_in_one_stage():
    options = replace(EIGHT, sequence_parallel={"stage": 4, "": 2})
    setup = make_setup(planned(**FLASH), options)
    assert (setup.sequence_parallel, setup.sharding) == (4, "zero3")
    other = planned(**FLASH)
    other = replace(other, stage=replace(other.stage, name="other"))
    assert make_setup(other, options).sequence_parallel == 2
    assert estimate(planned(**FLASH), options).batch_tokens == 2 * 32 * 16384
    alone = make_setup(planned(**FLASH), replace(options, sequence_parallel={"other": 2}))
    assert (alone.sequence_parallel, alone.sharding) == (1, "fsdp2")


def test_remedies_are_accepted_as_they_are_written():
    """What a remedy asks for, given to the plan, is no error and fits."""
    long = {"max_length": 262144, "gradient_accumulation_steps": 2, **FLASH}
    options = Options(find_machine("16xh100-80gb"))
    (words,) = [text for text in estimate(planned(**long), options).advice if "sequence_parallel" in text][:1]
    shared = int(words.split("--sequence_parallel ")[1].split()[0])
    steps = int(words.split("gradient_accumulation_steps: ")[1].split()[0].rstrip(","))
    changed = planned(**{**long, "gradient_accumulation_steps": steps})
    cost = estimate(changed, replace(options, sequence_parallel={"": shared}))
    assert cost.fits(options.machine) and f"({cost.device_bytes / 1e9:,.0f} GB)" in words


TALK = {"max_steps": 10, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_length": 4096}
PAIRS = {"max_steps": 10, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "train_tokens": None}


def talk(run: str, inputs=(), **changes) -> PlannedStage:
    """A stage on conversations."""
    settings = {**(PAIRS if run == "odpo" else TALK), **changes}
    stage = Stage("stage", run, None, settings, dict.fromkeys(inputs, "x"), "")
    return PlannedStage(stage, CHILD, CHILD, PARENT if run == "sft" else None, CHILD if inputs else None)


def test_conversations_are_counted_as_full():
    cost = estimate(talk("sft"), EIGHT)
    assert cost.tokens == 10 * 8 * 2 * 4 * 4096 and cost.counted.startswith("at most") and cost.seconds
    assert cost.per_token == step_flops(CHILD, PARENT, {None: 4096.0}, checkpointing=True)
    plain, judge = estimate(talk("sft", plain_sft=True), EIGHT), estimate(talk("pwrm"), EIGHT)
    assert plain.per_token.teacher == judge.per_token.teacher == 0
    assert plain.flops - judge.flops == pytest.approx(plain.tokens * 2 * 131072 * 5120)  # its head again
    assert estimate(talk("sft", packing=True), EIGHT).counted == ""


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (talk("sft", max_steps=-1), "max_steps is not set"),
        (talk("pwrm", max_length=None), "max_length is not set"),
        (replace(talk("sft"), teacher=None), "its teacher's config.json"),
        (replace(talk("odpo", ["reward_model"]), reward=None), "its reward model's config.json"),
    ],
)
def test_what_is_not_known_of_conversations(part, words):
    cost = estimate(part, EIGHT)
    assert cost.seconds is None and words in cost.missing


def test_recorded_seconds_of_post_training():
    assert estimate(talk("odpo"), EIGHT, Record(7.0, 0, "there")).seconds == 7.0


def test_rows_of_conversations_are_not_shared():
    assert make_setup(talk("odpo"), replace(EIGHT, sequence_parallel={"": 2})).sequence_parallel == 1
    with pytest.raises(ValueError, match="stage: --sequence_parallel 2: planned are packed rows alone; odpo reads"):
        estimate(talk("odpo"), replace(EIGHT, sequence_parallel={"stage": 2}))


def test_remedies_keep_pairs_together():
    setup = make_setup(talk("odpo", per_device_train_batch_size=64), EIGHT)
    (advice,) = remedies(setup, 2, lambda other: other.rows)
    assert advice.startswith("per_device_train_batch_size: 2 with gradient_accumulation_steps: 128 (")
    assert [*remedies(setup, 1, lambda other: other.rows)] == []
    said = "".join(remedies(setup, 0, lambda other: 0 if other != setup else 1))
    assert "sequence_parallel" not in said and "padding_free" not in said and "--gpus 16" in said
