"""costs.py: equal to what torch counts in every family's real model, and to the shares measured before."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_cascade import ChildShape, assets
from hf_cascade.anatomy import dissect
from hf_cascade.costs import (
    attention_windows,
    forward_flops,
    head_parameters,
    keys_of,
    layer_matmul_parameters,
    layer_parameters,
    mean_keys,
    step_flops,
)
from hf_cascade.shape import count_parameters
from tests.prune import families

TOKENS, ROWS = 24, 2
WIDER = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
PARENT = json.loads(assets.find("recipes/ministral3/parent_config.json").read_text())


def build(family: str, **changes):
    """A model whose attention is matrix products that torch counts."""
    model = families.build(family, dtype=torch.float32, **{**WIDER, **changes}).train()
    model.set_attn_implementation("eager")
    return model


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def logits(model):
    return model(input_ids=families.ids(ROWS, TOKENS), use_cache=False).logits


def whole_rows(*models) -> tuple[list[dict], dict]:
    """Configs, and the keys of an eager kernel: all of the row, whatever the mask."""
    configs = [model.config.to_dict() for model in models]
    return configs, keys_of(configs, TOKENS, whole_square=True)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_forward_pass_is_what_torch_counts(family):
    model = build(family)
    (config,), keys = whole_rows(model)
    assert ROWS * TOKENS * sum(forward_flops(config, keys)) == counted(lambda: logits(model))


@pytest.mark.parametrize(("checkpointing", "tied"), [(False, True), (True, False)])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_distillation_step_is_what_torch_counts(family, checkpointing, tied):
    student, teacher = build(family, tie_word_embeddings=tied), build(family, hidden_size=60, num_hidden_layers=3)
    if checkpointing:
        student.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    def step():
        with torch.no_grad():
            targets = logits(teacher)
        (logits(student) - targets).square().sum().backward()

    configs, keys = whole_rows(student, teacher)
    flops = step_flops(*configs, keys, checkpointing=checkpointing)
    assert ROWS * TOKENS * flops.executed == counted(step)
    assert flops.teacher == sum(forward_flops(configs[1], keys)) and flops.model <= flops.executed


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral3"])
def test_frozen_matrices_get_no_gradient(family):
    """LoRA's case: gradients flow through, weights have none."""
    model = build(family).requires_grad_(False)
    model.enable_input_require_grads()
    (config,), keys = whole_rows(model)
    flops = step_flops(config, None, keys, trained=0.0)
    assert ROWS * TOKENS * flops.executed == counted(lambda: logits(model).sum().backward())


@pytest.mark.parametrize("family", families.FAMILIES)
def test_windows_are_those_of_transformers(family):
    """Layers by window, against the masks that the model really makes."""
    model = families.build(family)
    seen = []

    def look(module, args, kwargs):
        mask_11TT = kwargs["attention_mask"][:1]
        visible = mask_11TT if mask_11TT.dtype == torch.bool else mask_11TT == 0
        seen.append(int(visible.sum(-1).max()))

    model.set_attn_implementation("eager")
    for layer in dissect(model).layers:
        layer.self_attn.register_forward_pre_hook(look, with_kwargs=True)
    logits(model)
    expected = [min(window or TOKENS, TOKENS) for window in _by_layer(attention_windows(model.config.to_dict()))]
    assert sorted(seen) == sorted(expected) and len(seen) == 4


def _by_layer(windows: dict) -> list:
    return [window for window, layers in windows.items() for _ in range(layers)]


def test_a_child_keeps_its_parents_share_of_windows():
    """Pruning leaves the list of layer types as it is; which layers stay is not known before it runs."""
    types = ["sliding_attention", "full_attention"] * 4
    config = {"model_type": "qwen3", "num_hidden_layers": 4, "sliding_window": 8, "layer_types": types}
    assert attention_windows(config) == {None: 2, 8: 2}
    assert attention_windows({"model_type": "mistral", "num_hidden_layers": 3}) == {4096: 3}
    assert attention_windows({"model_type": "mistral", "num_hidden_layers": 3, "sliding_window": None}) == {None: 3}
    some = {"model_type": "qwen2", "num_hidden_layers": 6, "sliding_window": 8, "use_sliding_window": True}
    assert attention_windows(some | {"max_window_layers": 4}) == {None: 4, 8: 2}


@pytest.mark.parametrize(("tokens", "window"), [(1, None), (7, None), (7, 3), (7, 7), (7, 100), (7, 1)])
def test_mean_keys_are_those_of_a_causal_mask(tokens, window):
    mask = torch.ones(tokens, tokens).tril().triu(1 - (window or tokens))
    assert mean_keys(tokens, window) == pytest.approx(float(mask.sum(-1).mean()))


def test_parameters_of_layers_and_ends_are_all_there_are():
    for shape in (ChildShape(), ChildShape(26, 3072, 9216, tie_word_embeddings=True)):
        config = shape.apply(PARENT)
        text, tied = config["text_config"], config["tie_word_embeddings"]
        ends = head_parameters(config) * (1 if tied else 2) + text["hidden_size"]
        assert count_parameters(config) == text["num_hidden_layers"] * layer_parameters(config) + ends
        assert layer_parameters(config) - layer_matmul_parameters(config) == 2 * text["hidden_size"]


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        (ChildShape(intermediate_size=16384), 0.28),
        (ChildShape(34, 4096, 14336), 0.37),
        (ChildShape(26, 3072, 9216, tie_word_embeddings=True), 0.53),
    ],
    ids=["14B", "8B", "3B"],
)
def test_the_teachers_share_of_the_papers_steps(shape, share):
    """Against an earlier count of the step at 16,384 tokens; it did not say how it counted attention."""
    student = shape.apply(PARENT)
    flops = step_flops(student, PARENT, {None: 16384.0}, checkpointing=True)
    assert flops.teacher / flops.executed == pytest.approx(share, abs=0.015)
    causal = step_flops(student, PARENT, keys_of([student, PARENT], 16384), checkpointing=True)
    assert causal.executed < flops.executed and causal.teacher / causal.executed == pytest.approx(share, abs=0.045)


def test_hand_numbers_of_the_14b():
    student = ChildShape(intermediate_size=16384).apply(PARENT)
    matrices = 40 * 5120 * (2 * 40 * 128 + 3 * 16384) + 131072 * 5120
    attention = 4 * 32 * 128 * 40 * 8192.5  # causal, one document of 16,384 tokens
    flops = step_flops(student, None, keys_of([student], 16384))
    assert flops.student == pytest.approx(6 * matrices + 3 * attention)
    assert (flops.teacher, flops.recomputed) == (0, 0)
