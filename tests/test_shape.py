"""shape.py: counts equal to transformers' models on the meta device, the paper's exact numbers, impossible shapes."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Mistral3ForConditionalGeneration

from hf_cascade import ChildShape, anatomy, assets
from hf_cascade.shape import attention_sizes, count_parameters, count_total, is_tied, text_config

SMALL = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
FAMILIES = [
    {"model_type": "llama"},
    {"model_type": "llama", "attention_bias": True},
    {"model_type": "llama", "mlp_bias": True},
    {"model_type": "mistral"},
    {"model_type": "ministral3"},
    {"model_type": "qwen2"},
    {"model_type": "qwen3"},
    {"model_type": "qwen3", "attention_bias": True},
    {"model_type": "smollm3"},
    {"model_type": "smollm3", "attention_bias": True, "mlp_bias": True},
    {"model_type": "gemma"},
    {"model_type": "gemma", "attention_bias": True},
]
# paper.md section 1, Table 1: child, language model, with tower and projector
PAPER = [
    (ChildShape(), 23_572_403_200, 24_011_361_280),
    (ChildShape(intermediate_size=16384), 13_506_073_600, 13_945_031_680),
    (ChildShape(34, 4096, 14336), 8_489_553_920, 8_918_026_240),
    (ChildShape(26, 3072, 9216, tie_word_embeddings=True), 3_429_006_336, 3_849_090_048),
]


def model_on_meta(config: dict) -> torch.nn.Module:
    config = AutoConfig.for_model(**config)
    with torch.device("meta"):
        if config.model_type == "mistral3":
            return Mistral3ForConditionalGeneration(config)
        return AutoModelForCausalLM.from_config(config)


def paper_parent() -> dict:
    return json.loads(assets.find("recipes/ministral3/parent_config.json").read_text())


def vision_language(**changes) -> dict:
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "patch_size": 4, "image_size": 16}
    text = {"model_type": "ministral3", "head_dim": 8, "tie_word_embeddings": False, **SMALL}
    return {"model_type": "mistral3", "text_config": text, "vision_config": vision} | changes


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head_dim", [6, 10])  # 6 is hidden_size / heads
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: "-".join(family))
def test_counts_equal_transformers(family, head_dim, tied):
    config = SMALL | family | {"head_dim": head_dim, "tie_word_embeddings": tied}
    assert count_parameters(config) == count_total(config) == model_on_meta(config).num_parameters()


@pytest.mark.parametrize("family", sorted(anatomy.FAMILIES))
def test_what_a_config_leaves_out_is_as_in_transformers(family):
    sizes = {name: size for name, size in SMALL.items() if name not in ("num_key_value_heads", "num_attention_heads")}
    config = {"model_type": family, "num_attention_heads": 8} | sizes
    assert count_parameters(config) == model_on_meta(config).num_parameters()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"tie_word_embeddings": True},
        {"multimodal_projector_bias": True},
        {"vision_feature_layer": [-2, -1]},
        {"spatial_merge_size": 1},
    ],
    ids=str,
)
def test_vision_language_counts_equal_transformers(changes):
    config = vision_language(**changes)
    model = model_on_meta(config)
    tower = model.model.vision_tower.num_parameters()
    projector = sum(weight.numel() for weight in model.model.multi_modal_projector.parameters())
    assert count_total(config) == model.num_parameters()
    assert count_parameters(config) == model.num_parameters() - tower - projector


def test_the_top_levels_tie_flag_decides_as_in_transformers():
    config = vision_language(tie_word_embeddings=True)
    assert is_tied(config) and text_config(config)["tie_word_embeddings"] is False
    assert model_on_meta(config).num_parameters() == count_total(config)
    assert is_tied(vision_language())  # Mistral3Config's default
    assert not is_tied({"model_type": "mistral"})


@pytest.mark.parametrize(("shape", "language", "total"), PAPER, ids=["24B", "14B", "8B", "3B"])
def test_the_papers_counts(shape, language, total):
    child = shape.apply(paper_parent())
    assert (count_parameters(child), count_total(child)) == (language, total)
    model = model_on_meta(child)
    assert model.num_parameters() == total
    assert model.model.vision_tower.num_parameters() == 403_305_472
    assert attention_sizes(child) == (32, 8, 128)


def test_apply_leaves_the_parent_alone_and_names_both_tie_flags():
    parent = vision_language(tie_word_embeddings=False)
    before = json.dumps(parent)
    child = ChildShape(num_hidden_layers=2, tie_word_embeddings=True).apply(parent)
    assert json.dumps(parent) == before
    assert child["tie_word_embeddings"] is child["text_config"]["tie_word_embeddings"] is True
    assert child["text_config"]["num_hidden_layers"] == 2
    assert child["vision_config"] == parent["vision_config"]


def test_head_dim_stays_when_the_hidden_size_shrinks():
    child = ChildShape(hidden_size=20).apply({"model_type": "qwen2"} | SMALL)
    assert child["head_dim"] == 6  # not 20 // 4
    assert count_parameters(child) == model_on_meta(child).num_parameters()


def test_every_impossible_dimension_in_one_error():
    with pytest.raises(ValueError) as error:
        ChildShape(num_hidden_layers=4, hidden_size=25, intermediate_size=0).check({"model_type": "mistral"} | SMALL)
    text = str(error.value)
    assert "num_hidden_layers=4: allowed are whole numbers from 1 to 3" in text
    assert "hidden_size=25: allowed are whole numbers from 1 to 24" in text
    assert "intermediate_size=0: allowed are whole numbers from 1 to 56" in text


@pytest.mark.parametrize("size", [2.0, "2", True])
def test_sizes_are_whole_numbers(size):
    with pytest.raises(ValueError, match="whole numbers"):
        ChildShape(num_hidden_layers=size).check({"model_type": "mistral"} | SMALL)


def test_what_the_architecture_forbids():
    with pytest.raises(ValueError, match="multiple of its 4 attention heads"):
        ChildShape(hidden_size=22).check({"model_type": "llama"} | SMALL)
    ChildShape(hidden_size=22).check({"model_type": "mistral"} | SMALL)


@pytest.mark.parametrize("config", [{"model_type": "gpt2"} | SMALL, SMALL], ids=["gpt2", "none"])
def test_unknown_families_are_named(config):
    with pytest.raises(ValueError, match="known: llama, mistral"):
        count_parameters(config)
