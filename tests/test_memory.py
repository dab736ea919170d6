"""memory.py: activations equal to what autograd saves, states equal to AdamW's; the rest against hand numbers."""

import json

import pytest
import torch

from hf_cascade import ChildShape, assets
from hf_cascade.costs import layer_parameters
from hf_cascade.distill.loss import CHUNK_BYTES
from hf_cascade.memory import (
    LOSS_BUFFER_BYTES,
    LOSS_BUFFERS,
    TILE,
    Setup,
    communicated_bytes,
    layer_activation_bytes,
    prune_memory,
    training_memory,
)
from hf_cascade.shape import count_parameters, count_total
from tests.prune import families

TOKENS, ROWS = 32, 2
WIDER = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
PARENT = json.loads(assets.find("recipes/ministral3/parent_config.json").read_text())
CHILD = ChildShape(intermediate_size=16384).apply(PARENT)
# weights, factors: fp32 throughout, bf16 autocast over fp32 weights, bf16 throughout (what FSDP2 computes in)
PRECISIONS = {"fp32": (4, 4), "autocast": (4, 2), "bf16": (2, 2)}


def saved_bytes(family: str, layers: int, precision: str, attention: str, packed: bool, checkpointing=False) -> int:
    """What a forward pass keeps for its backward pass, weights and rounded weights left out."""
    weight_bytes, compute_bytes = PRECISIONS[precision]
    dtype = torch.float32 if weight_bytes == 4 else torch.bfloat16
    model = families.build(family, dtype=dtype, **WIDER, num_hidden_layers=layers).train()
    model.set_attn_implementation(attention)
    if checkpointing:
        model.activation_checkpointing_enable()
    inputs = {"input_ids": families.ids(ROWS, TOKENS), "use_cache": False}
    if packed:
        cuts = [torch.cat([torch.arange(cut), torch.arange(TOKENS - cut)]) for cut in (10, 20)]
        inputs["position_ids"] = torch.stack(cuts)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes, alive = {}, []

    def keep(tensor):
        alive.append(tensor)  # its place in memory must not be used twice
        storage = tensor.untyped_storage()
        is_rounded_weight = tensor.dim() == 2 and tensor.shape[0] != ROWS * TOKENS
        if storage.data_ptr() not in weights and not is_rounded_weight:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        model.base_model(**inputs)
    return sum(sizes.values())


def setup_of(precision: str, **changes) -> Setup:
    weight_bytes, compute_bytes = PRECISIONS[precision]
    given = {"max_length": TOKENS, "rows": ROWS, "weight_bytes": weight_bytes, "compute_bytes": compute_bytes}
    return Setup(**{**given, "checkpointing": False, **changes})


def config_of(family: str, **changes) -> dict:
    return families.build(family, **WIDER, **changes).config.to_dict()


@pytest.mark.parametrize(
    ("family", "precision"),
    [(family, precision) for family in families.FAMILIES for precision in ("autocast", "bf16")] + [("qwen3", "fp32")],
)
def test_activations_are_what_autograd_saves(family, precision):
    """Of one layer more, in packed rows: the mask is in it, and keys repeated for it. Left out are a number a token
    (position temperature) and a gain a layer (Gemma), nothing beside a real model's widths."""
    more = [saved_bytes(family, layers, precision, "sdpa", packed=True) for layers in (2, 3)]
    setup = setup_of(precision)
    memory = [training_memory(config_of(family, num_hidden_layers=layers), None, setup) for layers in (2, 3)]
    assert memory[1].activations - memory[0].activations == pytest.approx(more[1] - more[0], rel=0.004)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("attention", "packed"), [("sdpa", False), ("eager", True)])
def test_other_kernels_save_other_things(precision, attention, packed):
    """Without a mask keys are not repeated; eager attention keeps its scores."""
    more = [saved_bytes("qwen3", layers, precision, attention, packed) for layers in (2, 3)]
    setup = setup_of(precision, attention=attention if packed else "flash_attention_2")
    memory = [training_memory(config_of("qwen3", num_hidden_layers=layers), None, setup) for layers in (2, 3)]
    assert memory[1].activations - memory[0].activations == more[1] - more[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_checkpointing_keeps_what_goes_into_a_layer(precision):
    more = [saved_bytes("llama", layers, precision, "sdpa", packed=False, checkpointing=True) for layers in (2, 3)]
    setup = setup_of(precision, checkpointing=True, attention="flash_attention_2")
    memory = [training_memory(config_of("llama", num_hidden_layers=layers), None, setup) for layers in (2, 3)]
    assert memory[1].activations - memory[0].activations == more[1] - more[0]
    one_layer = ROWS * TOKENS * layer_activation_bytes(config_of("llama"), setup)
    assert memory[0].activations > 2 * (more[1] - more[0]) + one_layer  # the layer at work is recomputed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_students_state_is_adamws(precision):
    model = families.build("llama", dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=families.ids(1, 8)).logits.sum().backward()
    optimizer.step()
    tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
    tensors += [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    memory = training_memory(model.config.to_dict(), None, setup_of(precision))
    assert memory.student == expected
    assert training_memory(model.config.to_dict(), None, setup_of(precision, trained=0.0)).student == expected / 4


def test_sharding_in_hand_numbers():
    setup = Setup(16384, rows=1, gpus=8, sharding="fsdp2", teacher_bytes=2)
    memory = training_memory(CHILD, PARENT, setup)
    language, whole = count_parameters(CHILD), count_total(CHILD)
    assert memory.student == (4 * whole + 12 * language) / 8  # the vision tower is not trained on text
    assert memory.teacher == 2 * count_total(PARENT) / 8
    zero3 = training_memory(CHILD, PARENT, setup.changed(sharding="zero3"))
    assert zero3.student == (2 * whole + 14 * language) / 8
    alone = training_memory(CHILD, PARENT, setup.changed(gpus=1, sharding="none"))
    assert (alone.student, alone.teacher) == (8 * memory.student, 8 * memory.teacher)
    ddp = training_memory(CHILD, PARENT, setup.changed(sharding="none"))
    assert ddp.gathered - alone.gathered == 4 * language and ddp.student == alone.student


def test_fsdp2_keeps_whole_gradients_while_it_accumulates():
    setup = Setup(16384, rows=1, accumulation=32, gpus=8, sharding="fsdp2", teacher_bytes=2)
    whole = training_memory(CHILD, PARENT, setup)
    reduced = training_memory(CHILD, PARENT, setup.changed(sync_each_batch=True))
    ends = 2 * 131072 * 5120
    assert whole.total - reduced.total == 2 * (count_parameters(CHILD) - layer_parameters(CHILD) - ends)
    assert not setup.changed(accumulation=1).keeps_whole_gradients
    assert not setup.changed(sharding="zero3").keeps_whole_gradients


def test_what_grows_with_what():
    setup = Setup(16384, rows=1, gpus=8, sharding="fsdp2", teacher_bytes=2)

    def of(**changes):
        return training_memory(CHILD, PARENT, setup.changed(**changes))

    assert of(max_length=32768).loss - of().loss == pytest.approx(16384 * 2 * 3 * 5120)  # hidden states, no logits
    flash = {"attention": "flash_attention_2", "max_length": 32768}
    assert of(sequence_parallel=2, **flash).activations == of(**flash).activations / 2
    assert of(attention="flash_attention_2").activations == of().activations - 3 * 16384**2 - 2 * 16384 * (
        2 * 4096 - 2 * 1024
    )
    assert of(checkpointing=False).activations > 10 * of().activations
    assert of(chunk_tokens=256).loss < of().loss
    assert of(teacher_is_here=False).teacher == 0


def test_trls_head():
    """In its backward pass, by hand; the layers' comes after it, and on longer rows takes more."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    assert TILE == (chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE)
    setup = Setup(4096, rows=1, gpus=8, sharding="fsdp2", attention="flash_attention_2", trl_head=True)
    head, layers = training_memory(CHILD, None, setup), training_memory(CHILD, None, setup.changed(trl_head=False))
    assert head.loss == 2 * 4096 * 32768 + 6 * 131072 * 5120 + 4096 * (8 + 2 + 3 * 2) * 5120
    kept = 4096 * 40 * 2 * 5120
    assert head.activations == kept and layers.activations > kept
    long = training_memory(CHILD, None, setup.changed(max_length=65536))
    assert long.loss == 0 and long.activations == 16 * layers.activations  # no logits, whole or not
    few = training_memory(CHILD, None, setup.changed(max_length=16, device="cpu"))
    assert few.loss == 16 * 32768 * (2 + 9 * 4) + 6 * 131072 * 5120 + 16 * 16 * 5120


def test_the_losss_buffers_are_the_losss():
    assert LOSS_BUFFER_BYTES == CHUNK_BYTES
    few = Setup(16, rows=1, teacher_bytes=2)  # fewer tokens than a buffer has rows
    memory = training_memory(CHILD, PARENT, few)
    heads = (6 + 2 + 2) * 131072 * 5120
    assert memory.loss == heads + LOSS_BUFFERS * 4 * 131072 * 16 + 16 * 2 * 3 * 5120


def test_what_is_exchanged_in_a_step():
    ours, theirs = count_parameters(CHILD), count_parameters(PARENT)
    setup = Setup(16384, rows=1, accumulation=32, gpus=8, sharding="fsdp2", teacher_bytes=2)
    assert communicated_bytes(CHILD, PARENT, setup) == (32 * (4 * ours + 2 * theirs) + 2 * ours) * 7 / 8
    each = communicated_bytes(CHILD, PARENT, setup.changed(sync_each_batch=True))
    assert each == 32 * (6 * ours + 2 * theirs) * 7 / 8
    assert communicated_bytes(CHILD, PARENT, setup.changed(sharding="none")) == 8 * ours
    assert communicated_bytes(CHILD, PARENT, setup.changed(gpus=1, sharding="none")) == 0


def test_pruning_holds_layers_not_models():
    device, host = prune_memory(PARENT, CHILD, samples=1024, length=1024, batch=1)
    assert 10 * layer_parameters(PARENT) < device < 4 * count_parameters(PARENT) / 10
    assert host == 4 * 1024 * 1024 * (5120 + 5120 + 4096)
