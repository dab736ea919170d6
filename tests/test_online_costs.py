"""online_costs.py against arithmetic by hand: what a response costs in FLOPs, and what a GPU holds of three models."""

import pytest

from hf_cascade import ChildShape
from hf_cascade.memory import Setup, training_memory
from hf_cascade.online_costs import ONLINE_DEFAULTS, cache_bytes, online_flops, online_memory
from hf_cascade.shape import count_total
from tests.test_costs import PARENT

POLICY = ChildShape(intermediate_size=16384).apply(PARENT)
JUDGE = ChildShape(26, 3072, 9216, tie_word_embeddings=True).apply(PARENT)
SETUP = Setup(max_length=2048, rows=2, accumulation=8, checkpointing=False, packed=False, attention="flash_attention_2")
# of a token: 2 for each factor of a layer or the head; 4 x heads x head_dim x layers for each key attended to
LAYERS = 2 * 40 * 5120 * (2 * 40 * 128 + 3 * 16384)
HEAD = 2 * 131072 * 5120
KEYS = 4 * 32 * 128 * 40
JUDGE_LAYERS = 2 * 26 * 3072 * (2 * 40 * 128 + 3 * 9216)
JUDGE_KEYS = 4 * 32 * 128 * 26


def test_defaults_are_those_of_the_stage(tmp_path):
    from hf_cascade.odpo.config import CascadeODPOConfig, ODPOArguments

    settings = {"per_device_train_batch_size": 2, "use_cpu": True, "bf16": False, "report_to": "none"}
    training = CascadeODPOConfig(output_dir=str(tmp_path), **settings)
    held = {**vars(ODPOArguments()), **vars(training), "steps_per_generation": None}  # set from the accumulation
    assert training.steps_per_generation == training.gradient_accumulation_steps
    assert {flag: held[flag] for flag in ONLINE_DEFAULTS} == ONLINE_DEFAULTS


def test_flops_of_a_response():
    flops = online_flops(POLICY, JUDGE, SETUP)
    forward = LAYERS + HEAD + KEYS * 1024.5  # keys before and at a token, on average over 2048
    assert flops.generated == pytest.approx(forward)
    assert flops.student == pytest.approx(3 * forward) and flops.recomputed == 0
    judged = 2 * (JUDGE_LAYERS + JUDGE_KEYS * 2048.5)  # both orders of two responses in a row
    assert flops.teacher == pytest.approx(forward + judged)
    assert flops.executed == pytest.approx(5 * forward + judged)


def test_a_judge_elsewhere_and_weights_beforehand():
    alone, weighed = online_flops(POLICY, None, SETUP), online_flops(POLICY, None, SETUP, forms=1)
    forward = LAYERS + HEAD + KEYS * 1024.5
    assert alone.teacher == pytest.approx(forward)
    assert weighed.student - alone.student == pytest.approx(forward)


def test_a_masked_row_is_multiplied_whole_and_a_written_token_is_not():
    masked = online_flops(POLICY, None, SETUP.changed(attention="sdpa"))
    assert masked.teacher == pytest.approx(LAYERS + HEAD + KEYS * 2048)
    assert masked.generated == pytest.approx(LAYERS + HEAD + KEYS * 1024.5)


def test_memory_of_policy_reference_and_reward_model():
    held = online_memory(POLICY, JUDGE, SETUP, reward_bytes=2, rows=0)
    alone = training_memory(POLICY, None, SETUP)
    assert held.teacher == 4 * count_total(POLICY) + 2 * count_total(JUDGE)
    assert (held.student, held.activations, held.loss) == (alone.student, alone.activations, alone.loss)
    sharded = online_memory(POLICY, JUDGE, SETUP.changed(gpus=8, sharding="fsdp2"), reward_bytes=2, rows=0)
    assert sharded.teacher == 4 * count_total(POLICY) / 8 + 2 * count_total(JUDGE)  # the judge is on every GPU
    adapter = online_memory(POLICY, None, SETUP.changed(trained=0.0), reward_bytes=2, rows=0)
    assert adapter.teacher == 0  # without its adapter the policy is the reference


def test_memory_of_an_engine_on_the_same_gpu():
    alone = online_memory(POLICY, None, SETUP, reward_bytes=2, rows=0)
    awake = online_memory(POLICY, None, SETUP, reward_bytes=2, rows=0, engine=24e9)
    assert awake.teacher - alone.teacher == 24e9 and awake.total - alone.total == 24e9
    working = alone.gathered + alone.activations + alone.loss
    for engine in (0.5 * working, 2 * working):
        asleep = online_memory(POLICY, None, SETUP, reward_bytes=2, rows=0, engine=engine, sleeps=True)
        assert asleep.total == pytest.approx(alone.student + alone.teacher + max(engine, working))


def test_memory_while_responses_are_written():
    assert cache_bytes(POLICY, SETUP, 16) == 16 * 2048 * 40 * 2 * 8 * 128 * 2
    alone = training_memory(POLICY, None, SETUP)
    few, many = (online_memory(POLICY, None, SETUP, reward_bytes=2, rows=rows) for rows in (1, 4096))
    assert (few.gathered, few.activations, few.loss) == (alone.gathered, alone.activations, alone.loss)
    cache = cache_bytes(POLICY, SETUP, 4096)
    assert (many.gathered, many.activations, many.loss) == (0, cache + alone.gathered, 0)
    zero3 = SETUP.changed(gpus=64, sharding="zero3", checkpointing=True)
    writing = online_memory(POLICY, None, zero3, reward_bytes=2, rows=16)
    assert writing.activations == 2 * 13_506_073_600 + cache_bytes(POLICY, SETUP, 16)  # ZeRO-3 gathers it all
