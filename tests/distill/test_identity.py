"""Fingerprints of models and tokenizers: the same for the same, another for any other."""

import copy

import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.device_mesh import init_device_mesh

from hf_cascade.distill.identity import model_sha256, tokenizer_sha256
from hf_cascade.loading import load_model
from tests.data import tiny
from tests.prune import families


@pytest.mark.parametrize("family", ["llama", "ministral3", "qwen3_sliding", "gemma", "mistral3"])
@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded_is_the_same_model(tmp_path, family, tied):
    model = families.build(family, dtype=torch.bfloat16, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert model_sha256(load_model(tmp_path)) == model_sha256(model)
    assert model_sha256(load_model(tmp_path, attn_implementation="eager")) == model_sha256(model)


def test_any_other_model_is_another():
    model = families.build("llama", dtype=torch.float32)
    others = [families.build("llama", seed=1, dtype=torch.float32), copy.deepcopy(model).to(torch.bfloat16)]
    others += [copy.deepcopy(model) for _ in range(4)]
    others[2].config.rope_parameters["rope_theta"] = 2e4
    with torch.no_grad():
        others[3].lm_head.weight[50, 13] += 1e-3  # one element of the head, wherever it lies
        others[4].model.layers[2].mlp.up_proj.weight.mul_(1 + 1e-6)
        others[5].model.norm.weight[-1] += 1e-6
    assert len({model_sha256(other) for other in [model, *others]}) == 7


def test_the_sample_reaches_the_end_of_a_large_tensor():
    model = families.build("llama", dtype=torch.float32, intermediate_size=2000)
    assert model.model.layers[0].mlp.down_proj.weight.numel() > 20 * 4096
    before = model_sha256(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[-1, -1] += 1e-3
    assert model_sha256(model) != before


def test_a_sharded_model_is_refused(tmp_path):
    model = families.build("llama", dtype=torch.float32)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = model.lm_head.weight
        model.lm_head.weight = torch.nn.Parameter(DTensor.from_local(whole.detach(), mesh, [Replicate()]))
        with pytest.raises(ValueError, match="lm_head.weight is sharded"):
            model_sha256(model)
    finally:
        torch.distributed.destroy_process_group()


def test_tokenizers():
    assert tokenizer_sha256(tiny.tokenizer()) == tokenizer_sha256(tiny.tokenizer())
    assert tokenizer_sha256(tiny.tokenizer()) != tokenizer_sha256(tiny.tokenizer("bacdefghijklmnopqrstuvwxyz .\n"))
