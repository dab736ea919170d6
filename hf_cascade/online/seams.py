"""What Online DPO and GRPO use of TRL's `GRPOTrainer`, as data, and a check that the installed TRL still has it.

The trainer overrides private methods, which TRL may change in any release. A renamed key or another order of arguments
would train on something else without a word, so they are looked up before a trainer is built. That takes less than a
millisecond: names are read from compiled code, no source is parsed.
"""

import inspect
from types import CodeType, ModuleType

SUPPORTED = ">=1.16,<2"  # as in pyproject.toml
READ = "1.16.0"  # the release whose code was read
# Methods that are overridden: TRL calls them, with these parameters.
OVERRIDDEN = {
    "_prepare_inputs": ("self", "generation_batch"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_generate": ("self", "prompts"),
    "_generate_single_turn": tuple("self prompt_ids images multimodal_fields num_generations has_tool_images".split()),
    "_generate_and_score_completions": ("self", "inputs"),
    "_compute_loss": ("self", "model", "inputs"),
}
IMAGE_KEYS = ("pixel_values", "image_sizes", "num_images")
# Methods that are called by name: these parameters are among theirs.
CALLED = {
    "__init__": tuple("model reward_funcs args train_dataset eval_dataset processing_class peft_config tools".split()),
    "_log_completion_extra": ("column", "values"),
    "_get_per_token_logps_and_entropies": (
        *("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        *IMAGE_KEYS,
    ),
}
# Keys of the batch that one method writes and another reads.
SEQUENCE_KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "ref_per_token_logps")
GRPO_KEYS = ("advantages", "num_items_in_batch", "old_per_token_logps")
GRPO_KEYS += ("sampling_per_token_logps", "importance_sampling_ratio")  # with vLLM
KEYS = {
    "_generate_and_score_completions": (*SEQUENCE_KEYS, *GRPO_KEYS, *IMAGE_KEYS),
    "_compute_loss": (*SEQUENCE_KEYS, *GRPO_KEYS, *IMAGE_KEYS),
}
# What `__init__`, its own or its bases', leaves on the trainer.
ATTRIBUTES = (
    *(
        "_metrics",
        "_logs",
        "_step",
        "_buffered_inputs",
        "_pending_extra_logs",
        "num_iterations",
        "num_generations_eval",
    ),
    *("reward_func_names", "reward_weights", "ref_model", "model_wrapped", "eos_token_ids"),
    *("reward_funcs", "reward_processing_classes", "num_generations", "_tokenizer"),
)
# Functions of `trl.trainer.utils` that `_prepare_inputs` calls on the batch.
HELPERS = {
    "split_tensor_dict": ("tensor_dict", "num_chunks"),
    "shuffle_sequence_dict": ("seq_dict",),
    "split_pixel_values_by_grid": ("batch",),
    "unsplit_pixel_values_by_grid": ("batch",),
}
# Fields of `GRPOConfig` whose values or defaults are set: of a name that is gone nobody would take notice.
SETTINGS = (
    *("num_generations", "num_generations_eval", "beta", "temperature", "generation_kwargs", "scale_rewards"),
    *("steps_per_generation", "num_iterations", "mask_truncated_completions", "vllm_importance_sampling_correction"),
    *("epsilon", "epsilon_high", "loss_type", "importance_sampling_level", "multi_objective_aggregation"),
)


def check_seams(trainer: type | None = None, helpers: ModuleType | None = None, config: type | None = None) -> None:
    """
    Refuse a TRL whose `GRPOTrainer` is not the one that the trainers were written for.

    Args:
        trainer (`type`, *optional*, defaults to `trl.GRPOTrainer`): the class.
        helpers (`ModuleType`, *optional*, defaults to `trl.trainer.utils`): the functions it calls.
        config (`type`, *optional*, defaults to `trl.GRPOConfig`): its settings.

    Raises:
        ValueError: names the installed version, all that changed, and the versions that are supported.
    """
    import trl
    from trl.trainer import utils

    changes = find_changes(trainer or trl.GRPOTrainer, helpers or utils, config or trl.GRPOConfig)
    if changes:
        raise ValueError(
            f"trl {trl.__version__} is installed, and its GRPOTrainer is not the one that hf-cascade extends: "
            f"{'; '.join(changes)}. hf-cascade wants trl{SUPPORTED} and was written for {READ}: "
            f'pip install "trl=={READ}", or a newer hf-cascade'
        )


def find_changes(trainer: type, helpers: ModuleType, config: type) -> list[str]:
    """All in which TRL differs from the data above, in words."""
    changes = [*_parameters_changed(trainer, OVERRIDDEN), *_parameters_changed(helpers, HELPERS)]
    for name, expected in CALLED.items():
        found = _parameters(trainer, name)
        changes += [f"{name} takes no {part}" for part in expected if found is not None and part not in found]
        changes += [f"{name} is gone"] if found is None else []
    for name, expected in KEYS.items():
        _, known = _words(trainer, name)
        changes += [f"{name} knows no key {key!r}" for key in expected if known and key not in known]
    called, _ = _words(trainer, "_prepare_inputs")
    changes += [f"_prepare_inputs does not call {name}" for name in HELPERS if called and name not in called]
    kept = {name for base in trainer.__mro__ for name in _words(base, "__init__")[0]}
    changes += [f"no attribute {name}" for name in ATTRIBUTES if name not in kept]
    fields = getattr(config, "__dataclass_fields__", {})
    return changes + [f"{config.__name__} has no {name}" for name in SETTINGS if name not in fields]


def _parameters_changed(owner: type | ModuleType, expected: dict[str, tuple[str, ...]]) -> list[str]:
    changes = []
    for name, wanted in expected.items():
        found = _parameters(owner, name)
        if found is None:
            changes.append(f"{name} is gone")
        elif found != wanted:
            changes.append(f"{name} takes ({', '.join(found)}), not ({', '.join(wanted)})")
    return changes


def _parameters(owner: type | ModuleType, name: str) -> tuple[str, ...] | None:
    """Names of a function's parameters, or `None` where there is no such function; decorators are looked through."""
    function = getattr(owner, name, None)
    return None if function is None else tuple(inspect.signature(function).parameters)


def _words(owner: type, name: str) -> tuple[set, set]:
    """Names and constants in a method's compiled code; none of a method that is gone, which its parameters say."""
    code = getattr(inspect.unwrap(getattr(owner, name, None)), "__code__", None)
    names, constants, waiting = set(), set(), [] if code is None else [code]
    while waiting:
        part = waiting.pop()
        if isinstance(part, CodeType):  # a comprehension is a function inside
            names |= {*part.co_names}
            waiting += part.co_consts
        elif isinstance(part, tuple):  # so are the keys of a dictionary kept
            waiting += part
        else:
            constants.add(part)
    return names, constants
