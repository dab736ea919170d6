"""online_costs.py against arithmetic by hand and a step that torch counts: FLOPs of a response, memory of a GPU."""

import pytest
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, Ministral3Config, Ministral3ForCausalLM

from hf_cascade import ChildShape, assets
from hf_cascade.costs import forward_flops
from hf_cascade.memory import Setup, training_memory
from hf_cascade.online_costs import (
    GRPO_DEFAULTS,
    ODPO_DEFAULTS,
    ONLINE_DEFAULTS,
    cache_bytes,
    online_flops,
    online_memory,
)
from hf_cascade.shape import count_parameters, count_total
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
    from hf_cascade.odpo.arguments import ODPOArguments
    from hf_cascade.odpo.config import CascadeODPOConfig

    settings = {"per_device_train_batch_size": 2, "use_cpu": True, "bf16": False, "report_to": "none"}
    training = CascadeODPOConfig(output_dir=str(tmp_path), **settings)
    held = {**vars(ODPOArguments()), **vars(training), "steps_per_generation": None}  # set from the accumulation
    assert training.steps_per_generation == training.gradient_accumulation_steps
    assert {flag: held[flag] for flag in ONLINE_DEFAULTS} == ONLINE_DEFAULTS
    assert training.vllm_importance_sampling_correction is ODPO_DEFAULTS["vllm_importance_sampling_correction"]
    assert not hasattr(training, "max_refill_rounds") and not ODPO_DEFAULTS["max_refill_rounds"]


def test_defaults_of_grpo(tmp_path):
    from hf_cascade.grpo.arguments import GRPOArguments
    from hf_cascade.grpo.config import CascadeGRPOConfig
    from hf_cascade.stage_setup import DEFAULTS

    settings = {"per_device_train_batch_size": 8, "use_cpu": True, "report_to": "none"}
    training = CascadeGRPOConfig(output_dir=str(tmp_path), **settings)
    held = {**vars(GRPOArguments()), **vars(training)}
    assert held["generation_batch_size"] == 8 * held["steps_per_generation"]  # set from each other
    held |= {"steps_per_generation": None, "generation_batch_size": None}
    assert {flag: held[flag] for flag in GRPO_DEFAULTS} == GRPO_DEFAULTS
    others = {**ONLINE_DEFAULTS, **DEFAULTS}
    assert {flag: held[flag] for flag in others if flag in held} == {f: v for f, v in others.items() if f in held}


def test_flops_of_a_response():
    flops = online_flops(POLICY, SETUP.changed(trl_head=True), reward=JUDGE, reference=True)
    forward = LAYERS + HEAD + KEYS * 1024.5  # keys before and at a token, on average over 2048
    assert flops.generated == pytest.approx(forward)
    assert flops.student == pytest.approx(3 * forward) and flops.recomputed == HEAD
    judged = 2 * (JUDGE_LAYERS + JUDGE_KEYS * 2048.5)  # both orders of two responses in a row
    assert flops.teacher == pytest.approx(forward + judged)
    assert flops.executed == pytest.approx(5 * forward + HEAD + judged)


def test_a_judge_elsewhere_and_weights_beforehand():
    alone = online_flops(POLICY, SETUP, reference=True)
    weighed = online_flops(POLICY, SETUP, reference=True, forwards=1)
    forward = LAYERS + HEAD + KEYS * 1024.5
    assert alone.teacher == pytest.approx(forward)
    assert weighed.student - alone.student == pytest.approx(forward)


def test_a_masked_row_is_multiplied_whole_and_a_written_token_is_not():
    masked = online_flops(POLICY, SETUP.changed(attention="sdpa"), reference=True)
    assert masked.teacher == pytest.approx(LAYERS + HEAD + KEYS * 2048)
    assert masked.generated == pytest.approx(LAYERS + HEAD + KEYS * 1024.5)


def test_memory_of_policy_reference_and_reward_model():
    how = {"judge": JUDGE, "judge_bytes": 2, "reference": True}
    held, writing = online_memory(POLICY, SETUP, **how)
    alone = training_memory(POLICY, None, SETUP)
    assert held.teacher == writing.teacher == 4 * count_total(POLICY) + 2 * count_total(JUDGE)
    assert (held.student, held.activations, held.loss) == (alone.student, alone.activations, alone.loss)
    sharded, _ = online_memory(POLICY, SETUP.changed(gpus=8, sharding="fsdp2"), **how)
    assert sharded.teacher == 4 * count_total(POLICY) / 8 + 2 * count_total(JUDGE)  # the judge is on every GPU
    adapter, _ = online_memory(POLICY, SETUP.changed(trained=0.0), reference=True)
    assert adapter.teacher == 0  # without its adapter the policy is the reference


def test_memory_of_an_engine_on_the_same_gpu():
    alone, _ = online_memory(POLICY, SETUP, reference=True)
    for part, other in zip(online_memory(POLICY, SETUP, reference=True, engine=24e9), (alone.total, 0), strict=True):
        assert part.teacher - alone.teacher == 24e9 and (not other or part.total - other == 24e9)
    training, writing = online_memory(POLICY, SETUP, reference=True, engine=24e9, sleeps=True)
    assert training == alone and writing.total == pytest.approx(alone.student + alone.teacher + 24e9)


def test_memory_while_responses_are_written():
    assert cache_bytes(POLICY, SETUP, 16) == 16 * 2048 * 40 * 2 * 8 * 128 * 2
    training, writing = online_memory(POLICY, SETUP, rows=4096)
    cache = cache_bytes(POLICY, SETUP, 4096)
    assert training == training_memory(POLICY, None, SETUP)
    assert (writing.gathered, writing.activations, writing.loss) == (0, cache + training.gathered, 0)
    zero3 = SETUP.changed(gpus=64, sharding="zero3", checkpointing=True)
    _, writing = online_memory(POLICY, zero3, rows=16)
    assert writing.activations == 2 * 13_506_073_600 + cache_bytes(POLICY, SETUP, 16)  # ZeRO-3 gathers it all


def test_flops_of_a_response_in_a_group():
    setup = SETUP.changed(trl_head=True)
    flops = online_flops(POLICY, setup)
    forward = LAYERS + HEAD + KEYS * 1024.5
    assert (flops.generated, flops.student, flops.recomputed) == pytest.approx((forward, 3 * forward, HEAD))
    assert flops.teacher == 0  # no reference
    scored = online_flops(POLICY, setup, forwards=1)
    assert scored.executed - flops.executed == pytest.approx(forward)
    twice = online_flops(POLICY, setup, forwards=1, iterations=2)  # two steps on what was written and scored once
    assert twice.executed == pytest.approx(3 * forward + HEAD + 0.5 * 2 * forward)
    again = online_flops(POLICY, setup.changed(checkpointing=True)).recomputed
    assert again == pytest.approx(HEAD + LAYERS + KEYS * 1024.5 - 2 * 40 * 5120 * 16384)  # but for down_proj


def train_and_count(folder, run: str, tokens: int, **settings) -> tuple[dict, int, int]:
    """A tiny policy's config, tokens of its prompt, and what torch counts of a run whose responses have `tokens`."""
    from hf_cascade.grpo.config import CascadeGRPOConfig
    from hf_cascade.grpo.trainer import CascadeGRPOTrainer
    from hf_cascade.odpo.config import CascadeODPOConfig
    from hf_cascade.odpo.trainer import CascadeODPOTrainer

    kinds = {"grpo": (CascadeGRPOTrainer, CascadeGRPOConfig), "odpo": (CascadeODPOTrainer, CascadeODPOConfig)}
    tokenizer = AutoTokenizer.from_pretrained(assets.find("recipes/tiny/tokenizer"))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": tokenizer.pad_token_id}
    config = Ministral3Config(vocab_size=len(tokenizer), **sizes)
    Ministral3ForCausalLM(config).save_pretrained(folder / "policy")  # where a reference is read from
    tokenizer.save_pretrained(folder / "policy")
    settings |= {"per_device_train_batch_size": 4, "max_completion_length": tokens}
    settings |= {"generation_kwargs": {"min_new_tokens": tokens}, "model_init_kwargs": {"attn_implementation": "eager"}}
    settings |= {"bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    if run == "grpo":
        settings |= {"num_generations": 4, "max_refill_rounds": 0, "length_penalty": 0.0}
    trainer = kinds[run][0](
        str(folder / "policy"),
        lambda completions, **columns: [float(number) for number in range(len(completions))],
        args=kinds[run][1](output_dir=str(folder / "trained"), **settings),
        train_dataset=Dataset.from_dict({"prompt": ["The cell is"] * 8}),
    )
    in_place = {torch.ops.aten.addmm_: lambda own, left, right, **_: 2 * left[0] * left[1] * right[1]}  # TRL's head
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        trainer.train()
    return config.to_dict(), len(tokenizer("The cell is").input_ids), counter.get_total_flops()


@pytest.mark.parametrize(
    ("run", "checkpointing", "accumulation", "per_generation", "iterations", "forwards"),
    [
        ("grpo", True, 1, 1, 1, 0),
        ("grpo", False, 1, 2, 1, 1),
        ("grpo", False, 2, 2, 2, 1),
        ("odpo", True, 1, 1, 1, 0),
        ("odpo", False, 1, 2, 1, 1),  # responses are older than the policy of the second step
        ("odpo weight", False, 2, 2, 1, 1),
    ],
)
def test_a_step_is_what_torch_counts(tmp_path, run, checkpointing, accumulation, per_generation, iterations, forwards):
    run, *form = run.split()
    completion, steps = 60, iterations * per_generation // accumulation
    settings = {"gradient_accumulation_steps": accumulation, "steps_per_generation": per_generation}
    settings |= {"gradient_checkpointing": checkpointing, "max_steps": steps}
    settings |= {"num_iterations": iterations} if run == "grpo" else {"loss_form": form[0] if form else "pair"}
    config, prompt, counted = train_and_count(tmp_path, run, completion, **settings)
    tokens, reference = prompt + completion, run == "odpo"
    base, head = forward_flops(config, {None: 0.0})
    key = forward_flops(config, {None: 1.0})[0] - base
    # prompts are read as a masked square; the last written token enters no pass, and heads see what they predict from
    written = (tokens - 1) * base + key * (prompt**2 + sum(range(prompt + 1, tokens))) + completion * head
    layers, heads = tokens * (base + key * tokens), (tokens - 1) * head
    again = heads + (layers - tokens * 2 * 2 * 32 * 48 if checkpointing else 0)
    rows, trained = 4 * per_generation, 4 * accumulation * steps
    once = written + (forwards + reference) * (layers + heads)
    assert counted == rows * once + trained * (3 * (layers + heads) + again)
    setup = Setup(tokens, 4, accumulation, checkpointing=checkpointing, attention="eager", packed=False, trl_head=True)
    flops = online_flops(config, setup, reference=reference, forwards=forwards, iterations=iterations)
    plan = trained * tokens * flops.executed
    assert 0.97 * plan < counted < plan


def test_memory_of_a_row_of_80k_by_hand():
    """The 14B on eight GPUs by FSDP2, one row at a time, vLLM asleep: every part."""
    tokens, hidden, ffn, layers = 86016, 5120, 16384, 40
    setup = Setup(tokens, 1, 64, 8, "fsdp2", sync_each_batch=True, packed=False, trl_head=True)
    setup = setup.changed(attention="flash_attention_2")
    training, writing = online_memory(POLICY, setup, engine=44e9, sleeps=True)
    assert training.student == (4 * 13_945_031_680 + 12 * 13_506_073_600) / 8 and training.teacher == 0
    layer, ends = (13_506_073_600 - 2 * 131072 * hidden - hidden) / layers, 2 * 131072 * hidden
    assert training.gathered == 2 * (2 * layer + ends) + 2 * (layer + ends)  # weights of two layers, gradients of one
    kept = tokens * layers * 2 * hidden  # what goes into every layer, in bf16
    attention = 2 * (2 * 4096 + 2 * 1024) + 4 * 32
    passing = tokens * (16 * hidden + attention + 8 * ffn + 8 + 6 * ffn)
    assert training.activations == kept + passing and training.loss == 0
    assert training.total == pytest.approx(98.2e9, rel=1e-3)
    assert tokens * 131072 * 2 < training.activations  # whole logits would be 22.5 GB more, and are never made
    assert (writing.student, writing.activations, writing.gathered) == (training.student, 44e9, 0)
    awake, _ = online_memory(POLICY, setup, judge=JUDGE, judge_bytes=2, engine=44e9)
    assert awake.teacher == 44e9 + 2 * count_total(JUDGE)  # a judge in the process is whole on every GPU


def test_memory_of_responses_that_transformers_writes():
    for sharding, gathered in (("fsdp2", None), ("zero3", 2 * count_parameters(POLICY))):
        setup = SETUP.changed(gpus=8, sharding=sharding, trl_head=True)
        training, writing = online_memory(POLICY, setup, rows=16)
        held = training.gathered if gathered is None else gathered
        assert writing.activations == cache_bytes(POLICY, setup, 16) + held and writing.loss == 0
