"""`prune_model`: a stock model in, a smaller stock model out (paper section 2, Algorithm 2)."""

import copy

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from hf_cascade import progress
from hf_cascade.anatomy import Anatomy, dissect, head_dim, is_tied
from hf_cascade.prune.apply import apply_plan
from hf_cascade.prune.balance import balance_layer
from hf_cascade.prune.child import check_target, child_config, is_own_shape, target_shape
from hf_cascade.prune.compensate import Compensation, fit_head
from hf_cascade.prune.config import PruneConfig
from hf_cascade.prune.plan import PrunePlan, make_plan
from hf_cascade.prune.projector import prune_projector
from hf_cascade.prune.statistics import collect
from hf_cascade.prune.stream import Calibration
from hf_cascade.prune.tie import fit_final_norm, merge_ends


def prune_model(
    model: PreTrainedModel, config: PruneConfig, calibration: Tensor | None = None, *, batch_size: int = 8
) -> PreTrainedModel:
    """
    Prune `model` to the shape `config` names.

    ```python
    >>> child = prune_model(model, PruneConfig(num_hidden_layers=26, hidden_size=3072), calibration)
    >>> child.save_pretrained("child")  # opens with from_pretrained, vLLM, lm-eval, ...
    ```

    Args:
        model (`PreTrainedModel`): the parent; not changed. Llama, Mistral, Ministral3, Qwen2, Qwen3, or Mistral3
            around one of them (its vision tower is copied as it is).
        config (`PruneConfig`): target and method.
        calibration (`Tensor`, *optional*): token ids [windows, tokens], without padding. Only the parent's own shape
            needs none.
        batch_size (`int`, *optional*, defaults to `8`): windows at once.

    Returns:
        `PreTrainedModel`: a new model of the parent's class, in its type, on its device, in evaluation mode.

    Raises:
        ValueError: unsupported model, impossible shape, missing or broken calibration, weights that are not finite.
    """
    return prune_with_report(model, config, calibration, batch_size=batch_size)[0]


@torch.no_grad()
def prune_with_report(
    model: PreTrainedModel, config: PruneConfig, calibration: Tensor | None = None, *, batch_size: int = 8
) -> tuple[PreTrainedModel, dict]:
    """As [`prune_model`]; returns the report too: scores, kept layers, explained variance (`PrunePlan.report`)."""
    parent = dissect(model)
    check_target(model.config, config)
    shape = target_shape(model.config, config)
    if is_own_shape(model.config, config):
        every_layer = list(range(len(parent.layers)))
        child = _empty_child(model, child_config(model.config, config, every_layer), model.dtype, config.seed)
        weights = model.state_dict()
        if config.projector == "reinit":  # the new one is in `child` already
            weights = {name: value for name, value in weights.items() if ".multi_modal_projector." not in name}
        child.load_state_dict(weights, strict=config.projector == "keep")
        return child, {"kept_layers": every_layer}
    check_calibration(calibration, parent)
    was_training = model.training
    model.eval()
    try:
        return _prune(model, parent, config, shape, calibration, batch_size)
    finally:
        model.train(was_training)


def check_calibration(calibration: Tensor | None, parent: Anatomy) -> None:
    """Raise `ValueError` unless `calibration` is [windows, tokens] of ids the parent knows."""
    if calibration is None:
        raise ValueError("pruning to a smaller shape needs calibration text: give token ids [windows, tokens]")
    if calibration.dim() != 2 or calibration.numel() == 0 or calibration.is_floating_point():
        raise ValueError(
            f"calibration is {tuple(calibration.shape)} {calibration.dtype}: it must be token ids [windows, tokens]"
        )
    vocabulary = parent.embedding.weight.shape[0]
    if int(calibration.min()) < 0 or int(calibration.max()) >= vocabulary:
        raise ValueError(f"calibration holds ids outside 0 to {vocabulary - 1}: was it made by another tokenizer?")


def _prune(model, parent: Anatomy, config: PruneConfig, shape: dict, calibration_NT: Tensor, batch_size: int):
    dtype = torch.promote_types(parent.embedding.weight.dtype, torch.float32)
    epsilon = model.config.get_text_config().rms_norm_eps
    text = Calibration(parent.backbone, calibration_NT, batch_size, dtype)
    wants_gram = shape["hidden_size"] < parent.embedding.weight.shape[1]
    passes = 1 if config.compensation == "none" else 2
    with tqdm(total=passes * len(parent.layers), desc="pruning", unit="layer", disable=None) as bar:

        def advance():
            bar.update()
            progress.report(bar.n, bar.total, label="layers")

        statistics = collect(parent, text, epsilon, config, wants_gram, advance)
        plan = make_plan(statistics, config, shape)
        child_model = _empty_child(model, child_config(model.config, config, plan.kept_layers), dtype, config.seed)
        child = dissect(child_model)
        apply_plan(parent, child, plan)
        if is_tied(child_model.config):
            merge_ends(parent, child, plan, statistics.final_stream, epsilon, config.tie_merge)
        if parent.projector is not None and config.projector == "keep":
            prune_projector(parent.projector, child.projector, plan.rotation)
        if config.compensation != "none":
            epsilons = (epsilon, child_model.config.get_text_config().rms_norm_eps)
            _compensate(parent, child, plan, text, epsilons, config, advance)
        if config.balance:
            for layer in child.layers:
                balance_layer(layer, head_dim(child_model.config))
    child_model.to(dtype=model.dtype)
    if parent.projector is not None:
        child_model.model.vision_tower = copy.deepcopy(model.model.vision_tower)  # byte for byte, in its own type
    for name, value in child_model.named_parameters():
        if not value.isfinite().all():
            raise ValueError(f"the child's {name} is not finite: give more calibration text, or a larger ridge")
    return child_model.eval(), plan.report()


def _compensate(parent, child, plan: PrunePlan, text: Calibration, epsilons, config: PruneConfig, advance) -> None:
    """Re-fit what `apply_plan` and `merge_ends` have filled."""
    fits = Compensation(parent, child, plan, text, epsilons, config.compensation == "read_write", config.ridge)
    x, s = fits.run(advance)
    if child.head.weight is child.embedding.weight:
        ids = torch.cat([part.flatten() for part in text.ids])
        # one more of each: a token that calibration lacks still has a logit
        frequency_V = torch.bincount(ids, minlength=child.embedding.weight.shape[0]) + 1
        fit_final_norm(parent, child, x, s, epsilons, frequency_V)
    elif config.compensation == "read_write":
        fit_head(parent, child, x, s, fits.rotation, epsilons, config.ridge)


def _empty_child(model: PreTrainedModel, config: PreTrainedConfig, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """A model of the parent's class and the child's config on the parent's device; weights random from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        child = type(model)._from_config(config, dtype=dtype, attn_implementation=model.config._attn_implementation)
    child.generation_config = copy.deepcopy(model.generation_config)
    return child.to(model.device).eval()
