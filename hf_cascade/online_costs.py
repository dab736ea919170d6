"""FLOPs and memory of an Online DPO or GRPO step, from config.json dicts alone, beside what any training step takes.

A row is one response with its prompt. Its forward passes: the policy's while it writes (every token once, with cached
keys), the policy's and its backward in training, and one more where probabilities or weights from before the step are
needed. In Online DPO also the reference's, and two of the reward model, which reads both responses of a pair in both
orders; GRPO has neither. Prompts are counted only where a setting bounds prompt and response together.
"""

from dataclasses import replace

from hf_cascade.costs import StepFlops, forward_flops, keys_of, step_flops
from hf_cascade.memory import Memory, Setup, training_memory
from hf_cascade.shape import attention_sizes, count_parameters, count_total, text_config

ORDERS = 2  # a pair is judged as (a, b) and as (b, a)
# What the stage's dataclasses hold where a recipe is silent (tested against them; planning must not import torch).
ONLINE_DEFAULTS = {
    "max_completion_length": 512,
    "vllm_max_model_length": None,
    "use_vllm": False,
    "vllm_mode": "colocate",
    "vllm_gpu_memory_utilization": 0.3,
    "vllm_enable_sleep_mode": False,
    "loss_form": "pair",
    "steps_per_generation": None,
    "reward_model_dtype": "auto",
}
GRPO_DEFAULTS = {  # of the grpo stage alone
    "generation_batch_size": None,
    "num_iterations": 1,
    "max_refill_rounds": 3,
    "vllm_importance_sampling_correction": True,
    "vllm_tensor_parallel_size": 1,
    "judge_model_name_or_path": None,
}
ODPO_DEFAULTS = {  # what Online DPO holds instead: no importance ratio, and no groups
    "vllm_importance_sampling_correction": False,
    "max_refill_rounds": 0,
}


def online_flops(
    policy: dict,
    setup: Setup,
    *,
    reward: dict | None = None,
    reference: bool = False,
    forwards: int = 0,
    iterations: int = 1,
) -> StepFlops:
    """
    FLOPs of a step for one token of a row. Groups that are replaced are not in it.

    Args:
        policy (`dict`): its config.json, the reference's too.
        setup (`Setup`): `max_length` is a row's longest; shorter rows are padded to the longest of their batch.
        reward (`dict`, *optional*): a pairwise reward model's; a judge elsewhere and functions multiply nothing here.
        reference (`bool`): there is one.
        forwards (`int`): forward passes of the policy before the step.
        iterations (`int`): steps on the same responses.
    """
    row = keys_of([policy], setup.max_length, whole_square=setup.masked)
    how = {"checkpointing": setup.checkpointing, "trained": setup.trained, "head_again": setup.trl_head}
    step, again = step_flops(policy, None, row, **how), sum(forward_flops(policy, row))
    # a written token attends to what is cached, whatever the kernel
    written = sum(forward_flops(policy, keys_of([policy], setup.max_length))) / iterations
    beside = (again if reference else 0.0) + (judged_flops(reward, setup) if reward else 0.0)
    return replace(step, student=step.student + forwards * again / iterations, teacher=beside, generated=written)


def judged_flops(reward: dict, setup: Setup) -> float:
    """FLOPs of a pairwise reward model for one token of a row; its head reads one token a pair."""
    judged = keys_of([reward], 2 * setup.max_length, whole_square=setup.masked)
    return ORDERS * forward_flops(reward, judged)[0]


def cache_bytes(policy: dict, setup: Setup, rows: int) -> float:
    """Bytes of the keys and values of `rows` whole rows: two of key_value_heads x head_dim a token and layer."""
    _, key_value_heads, head_dim = attention_sizes(policy)
    layers = text_config(policy)["num_hidden_layers"]
    return 2.0 * rows * setup.max_length * layers * key_value_heads * head_dim * setup.compute_bytes


def writing_bytes(policy: dict, setup: Setup, gathered: float, rows: int, engine: float = 0.0) -> float:
    """
    Bytes of one GPU that writing responses takes beside the policy's own state.

    Args:
        policy (`dict`), setup (`Setup`): as for [`online_memory`].
        gathered (`float`): what training gathers of the other GPUs' shares.
        rows (`int`): responses that one GPU writes at once without vLLM; 0 with it.
        engine (`float`): what vLLM takes of the same GPU while the policy's training does not.
    """
    if not rows:
        return engine
    whole = setup.compute_bytes * count_parameters(policy)  # all gathered (ds3_gather_for_generation)
    return engine + cache_bytes(policy, setup, rows) + (whole if setup.sharding == "zero3" else gathered)


def online_memory(
    policy: dict,
    setup: Setup,
    *,
    judge: dict | None = None,
    judge_bytes: int = 0,
    reference: bool = False,
    rows: int = 0,
    engine: float = 0.0,
    sleeps: bool = False,
) -> tuple[Memory, Memory]:
    """
    Memory of one GPU in the backward pass, and while responses are written: then as activations.

    Args:
        policy (`dict`): its config.json, the reference's too.
        setup (`Setup`): how the policy trains; a reference is loaded and sharded as the policy is.
        judge (`dict`, *optional*): config.json of a reward model or judge in the process. Every GPU holds it whole.
        judge_bytes (`int`): of its weight.
        reference (`bool`): there is one; with an adapter it is the policy without it.
        rows (`int`): responses that one GPU writes at once without vLLM; 0 with it.
        engine (`float`): what vLLM takes of the same GPU.
        sleeps (`bool`): vLLM gives it back while the policy trains.
    """
    beside = setup.weight_bytes * count_total(policy) / setup.shards if reference and setup.trained > 0 else 0.0
    beside += judge_bytes * count_total(judge) if judge else 0.0
    training = replace(training_memory(policy, None, setup), teacher=beside + (0.0 if sleeps else engine))
    writing = writing_bytes(policy, setup, training.gathered, rows, engine if sleeps else 0.0)
    return training, replace(training, gathered=0.0, activations=writing, loss=0.0)
