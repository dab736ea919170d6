"""Context extension: YaRN and position temperature against their formulas, for every supported family."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig

from hf_cascade.context import SUPPORTED, extend_context
from tests.prune import families

ORIGINAL, LONG = 16, 64
NAMES = ("llama", "mistral", "ministral3", "qwen2", "qwen3", "mistral3")


def extended(model, beta=None):
    return extend_context(model.config, LONG, ORIGINAL, beta)


def reload(model, config, folder):
    """`model`'s weights in the class that `config` names; everything loaded, nothing left over."""
    model.save_pretrained(folder)
    auto = type(model) if config.model_type == "mistral3" else AutoModelForCausalLM
    loaded, info = auto.from_pretrained(folder, config=config, dtype=torch.float64, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return loaded.eval()


def decoder_of(model):
    return getattr(model.base_model, "language_model", model.base_model)


def yarn_frequencies(dim: int, base: float, factor: float, original: int, fast=32.0, slow=1.0) -> torch.Tensor:
    """YaRN (Peng et al., 2023, section 3.2): interpolate slow dimensions, keep fast ones, a ramp in between."""

    def turning(rotations: float) -> float:  # the dimension that turns this often within the original window
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(turning(fast)), 0), min(math.ceil(turning(slow)), dim - 1)
    if low == high:
        high += 0.001
    frequencies = []
    for index in range(dim // 2):
        plain = base ** (-2 * index / dim)
        interpolated = min(max((index - low) / (high - low), 0.0), 1.0)
        frequencies.append(plain * (1 - interpolated) + plain / factor * interpolated)
    return torch.tensor(frequencies, dtype=torch.float64)


def test_every_supported_family_is_tested():
    assert {families.build(name).config.get_text_config().model_type for name in NAMES} == set(SUPPORTED)


@pytest.mark.parametrize("name", NAMES)
def test_config_survives_saving(tmp_path, name):
    config = extended(families.build(name))
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is type(config)
    for one in (config.get_text_config(), again.get_text_config()):
        assert one.max_position_embeddings == LONG
        assert one.rope_parameters["rope_type"] == "yarn" and one.rope_parameters["factor"] == 4.0
        assert one.rope_parameters["original_max_position_embeddings"] == ORIGINAL
        assert one.rope_parameters["rope_theta"] == 1e4
        assert one.model_type == ("ministral3" if "mistral" in name else name)
    assert again.get_text_config().rope_parameters == config.get_text_config().rope_parameters
    assert again.tie_word_embeddings == config.tie_word_embeddings


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_weights_load_unchanged(tmp_path, name, tied):
    model = families.build(name, tie_word_embeddings=tied)
    before = model.config.to_dict()
    config = extended(model)
    assert model.config.to_dict() == before, "the given config stays as it is"
    loaded = reload(model, config, tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied
    # and from its own folder, as the next stage reads it
    loaded.save_pretrained(tmp_path / "again")
    again = type(loaded).from_pretrained(tmp_path / "again", dtype=torch.float64).eval()
    ids = families.ids(1, 40)
    assert torch.equal(families.logits(again, ids), families.logits(loaded, ids))


@pytest.mark.parametrize("factor", [1, 4, 16])
@pytest.mark.parametrize("name", NAMES)
def test_frequencies_are_yarns_and_attention_keeps_its_size(name, factor):
    model = families.build(name)
    config = extend_context(model.config, ORIGINAL * factor, ORIGINAL)
    rotary = decoder_of(type(model)._from_config(config) if name == "mistral3" else build(config)).rotary_emb
    expected = yarn_frequencies(16, 1e4, factor, ORIGINAL)
    torch.testing.assert_close(rotary.inv_freq.double(), expected, rtol=1e-6, atol=0)
    assert rotary.attention_scaling == 1.0


def build(config):
    return AutoModelForCausalLM.from_config(config)


def test_frequencies_as_released():
    """Theta 10^6, heads of 128, 16,384 to 262,144 tokens (released configs)."""
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1, vocab_size=8)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
    rotary = build(extend_context(config, 262144, 16384)).model.rotary_emb
    expected = yarn_frequencies(128, 1e6, 16, 16384)
    torch.testing.assert_close(rotary.inv_freq.double(), expected, rtol=1e-6, atol=0)
    plain = torch.tensor([1e6 ** (-2 * i / 128) for i in range(64)], dtype=torch.float64)
    assert torch.allclose(expected[:20], plain[:20]) and torch.allclose(expected[-15:], plain[-15:] / 16)


@pytest.mark.parametrize("beta", [None, 0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", ["mistral", "ministral3", "mistral3"])
def test_temperature_follows_its_formula(name, beta):
    """Queries at position p are multiplied by 1 + beta ln(1 + floor(p / original window)), and nothing else changes."""
    model = families.build(name)
    config = extended(model, beta)
    assert config.get_text_config().rope_parameters["llama_4_scaling_beta"] == (0.1 if beta is None else beta)
    queries = {}
    for kind, strength in (("with", beta), ("without", 0.0)):
        config = extended(model, strength)
        other = (type(model)._from_config(config) if name == "mistral3" else build(config)).double().eval()
        other.load_state_dict(model.state_dict())
        queries[kind] = first_queries(other, families.ids(1, LONG))
    positions = torch.arange(LONG, dtype=torch.float64)
    expected = 1 + (0.1 if beta is None else beta) * torch.log(1 + torch.floor(positions / ORIGINAL))
    assert torch.equal(expected[:ORIGINAL], torch.ones(ORIGINAL, dtype=torch.float64)), "none in the original window"
    torch.testing.assert_close(queries["with"], queries["without"] * expected[:, None], rtol=1e-6, atol=1e-9)


def first_queries(model, input_ids) -> torch.Tensor:
    """Queries of the first layer, [tokens, heads * head size], as its attention kernel gets them."""
    from transformers import AttentionInterface

    seen = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        seen.append(query[0].transpose(0, 1).flatten(1))
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("spy", spy)
    model.set_attn_implementation("spy")
    with torch.no_grad():
        model.base_model(input_ids=input_ids, use_cache=False)
    return seen[0]


@pytest.mark.parametrize("name", NAMES)
def test_factor_one_changes_nothing_within_the_window(tmp_path, name):
    model = families.build(name)
    loaded = reload(model, extend_context(model.config, ORIGINAL, ORIGINAL), tmp_path)
    ids = families.ids(2, ORIGINAL)
    torch.testing.assert_close(families.logits(loaded, ids), families.logits(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_of_the_config_changes(name):
    old = families.build(name).config
    new = extended(families.build(name))
    if name == "mistral3":
        same = {key for key in old.to_dict() if key != "text_config"}
        assert {key: new.to_dict()[key] for key in same} == {key: old.to_dict()[key] for key in same}
        old, new = old.text_config, new.text_config
    changed = {key for key, value in old.to_dict().items() if new.to_dict().get(key) != value}
    assert changed <= {"rope_parameters", "max_position_embeddings", "model_type", "architectures"}


def test_extending_again_starts_from_the_lengths_given():
    config = extend_context(families.build("ministral3").config, 32, 16)
    again = extend_context(config, 128, 16)
    assert again.rope_parameters["factor"] == 8.0 and again.max_position_embeddings == 128


def test_errors():
    llama = families.build("llama").config
    with pytest.raises(ValueError, match="'gpt2' cannot be extended: supported are llama, mistral"):
        extend_context(GPT2Config(), LONG, ORIGINAL)
    for lengths in ((8, 16), (16, None), (None, 16), (16, 0), (16, -4)):
        with pytest.raises(ValueError, match=f"context_length={lengths[0]} and original_context_length={lengths[1]}"):
            extend_context(llama, *lengths)
    with pytest.raises(ValueError, match="llama_4_scaling_beta=0.1: llama has no position temperature"):
        extend_context(llama, LONG, ORIGINAL, 0.1)
    assert "llama_4_scaling_beta" not in extend_context(llama, LONG, ORIGINAL, 0.0).rope_parameters
