"""Context extension: YaRN and position temperature against their formulas, for every supported family."""

import math

import pytest
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig

from hf_cascade.anatomy import FAMILIES
from hf_cascade.context import SUPPORTED, WITH_TEMPERATURE, YARN, extend_context
from tests.prune import families

ORIGINAL, LONG = 16, 64
NAMES = families.FAMILIES
WITH = ("mistral", "mistral_sliding", "ministral3", "mistral3", "mistral3_ministral3")


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


def implicit(family: str):
    """A family's config without the entries that tests/prune/families.py sets: the size of a head is implied."""
    shape = {name: value for name, value in families.SHAPE.items() if name not in ("head_dim", "initializer_range")}
    return AutoConfig.for_model(family, **shape, rope_parameters={"rope_type": "default", "rope_theta": 1e4})


def theta(name: str) -> float:
    """The base of the rotary positions of tests/prune/families.py's models."""
    return 2e6 if "smollm3" in name else 1e4


def test_every_supported_family_is_tested():
    assert {families.build(name).config.get_text_config().model_type for name in NAMES} == set(SUPPORTED)
    knowing = {f for f in FAMILIES if "llama_4_scaling_beta" in type(implicit(f)).ignore_keys_at_rope_validation}
    assert knowing == set(WITH_TEMPERATURE)


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
        assert one.rope_parameters["rope_theta"] == theta(name)
        assert one.model_type == ("ministral3" if "mistral" in name else name.split("_")[0])
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
    rotary = decoder_of(type(model)._from_config(config) if "mistral3" in name else build(config)).rotary_emb
    expected = yarn_frequencies(16, theta(name), factor, ORIGINAL)
    torch.testing.assert_close(rotary.inv_freq.double(), expected, rtol=1e-6, atol=0)
    assert rotary.attention_scaling == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_frequencies_of_heads_whose_size_is_implied(family):
    """And an entry that these families do not read: they turn whole heads."""
    config = implicit(family)
    config.rope_parameters["partial_rotary_factor"] = 0.5
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    before = build(config).model.rotary_emb.inv_freq
    model = build(extend_context(config, LONG, ORIGINAL))
    assert before.shape == model.model.rotary_emb.inv_freq.shape == (size // 2,)
    expected = yarn_frequencies(size, 1e4, 4, ORIGINAL)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq.double(), expected, rtol=1e-6, atol=0)
    assert families.logits(model, families.ids(1, LONG)).isfinite().all()


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
@pytest.mark.parametrize("name", WITH)
def test_temperature_follows_its_formula(name, beta):
    """Queries at position p are multiplied by 1 + beta ln(1 + floor(p / original window)), and nothing else changes."""
    model = families.build(name)
    config = extended(model, beta)
    assert config.get_text_config().rope_parameters["llama_4_scaling_beta"] == (0.1 if beta is None else beta)
    queries = {}
    for kind, strength in (("with", beta), ("without", 0.0)):
        config = extended(model, strength)
        other = (type(model)._from_config(config) if "mistral3" in name else build(config)).double().eval()
        other.load_state_dict(model.state_dict())
        queries[kind] = all_queries(other, families.ids(1, LONG))[0]
    positions = torch.arange(LONG, dtype=torch.float64)
    expected = 1 + (0.1 if beta is None else beta) * torch.log(1 + torch.floor(positions / ORIGINAL))
    assert torch.equal(expected[:ORIGINAL], torch.ones(ORIGINAL, dtype=torch.float64)), "none in the original window"
    torch.testing.assert_close(queries["with"], queries["without"] * expected[:, None], rtol=1e-6, atol=1e-9)


def all_queries(model, input_ids) -> list[torch.Tensor]:
    """Queries of every layer, [tokens, heads * head size], as an attention kernel that gives zeros gets them."""
    seen = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        seen.append(query[0].transpose(0, 1).flatten(1))
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("spy", spy)
    model.set_attn_implementation("spy")
    with torch.no_grad():
        model.base_model(input_ids=input_ids, use_cache=False)
    return seen


@pytest.mark.parametrize("name", ["smollm3", "smollm3_sliding"])
def test_layers_without_positions_stay_without(name):
    model = families.build(name)
    longer = build(extended(model)).double().eval()
    longer.load_state_dict(model.state_dict())
    ids = families.ids(1, LONG)
    pairs = zip(all_queries(model, ids), all_queries(longer, ids), strict=True)
    assert [torch.equal(*pair) for pair in pairs] == [not has_rope for has_rope in model.config.no_rope_layers]
    assert set(model.config.no_rope_layers) == {0, 1}


@pytest.mark.parametrize("name", NAMES)
def test_factor_one_changes_nothing(tmp_path, name):
    """Bit for bit, the class and its positions included."""
    model = families.build(name, dtype=torch.float32)
    config = extend_context(model.config, ORIGINAL, ORIGINAL)
    assert type(config) is type(model.config) and config.get_text_config().max_position_embeddings == ORIGINAL
    assert config.get_text_config().rope_parameters == model.config.get_text_config().rope_parameters
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, config=config).eval()
    ids = families.ids(2, ORIGINAL)
    assert torch.equal(families.logits(loaded, ids), families.logits(model, ids))


@pytest.mark.parametrize("name", ["llama", "ministral3"])
def test_short_positions_change_too(tmp_path, name):
    """YaRN slows frequencies at every position: that is what the long stage trains away."""
    model = families.build(name)
    loaded, ids = reload(model, extended(model), tmp_path), families.ids(2, ORIGINAL)
    assert (families.logits(loaded, ids) - families.logits(model, ids)).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_of_the_config_changes(name):
    old = families.build(name).config
    new = extended(families.build(name))
    if name.startswith("mistral3"):
        same = {key for key in old.to_dict() if key != "text_config"}
        assert {key: new.to_dict()[key] for key in same} == {key: old.to_dict()[key] for key in same}
        old, new = old.text_config, new.text_config
    changed = {key for key, value in old.to_dict().items() if new.to_dict().get(key) != value}
    assert changed <= {"rope_parameters", "max_position_embeddings", "model_type", "architectures"}


# --- models whose positions are scaled already


def test_extending_again_replaces_the_factor():
    config = extend_context(families.build("mistral").config, 32, 16, 0.3)
    again = extend_context(config, 128, 16)
    assert again.rope_parameters == {**config.rope_parameters, "factor": 8.0} and again.max_position_embeddings == 128
    assert again.rope_parameters["llama_4_scaling_beta"] == 0.3, "the model's own"
    assert extend_context(config, 128, 16, 0.0).rope_parameters["llama_4_scaling_beta"] == 0.0
    assert extend_context(config, 32, 16).to_dict() == config.to_dict()
    assert extend_context(config, 16, 16).rope_parameters["factor"] == 1.0
    with pytest.raises(
        ValueError, match="has YaRN already, from a window of 16 tokens: give original_context_length=16"
    ):
        extend_context(config, 128, 32)


def test_yarn_of_others_keeps_its_constants():
    """Without `mscale` attention is scaled by 0.1 ln(factor) + 1 (YaRN, section 3.4): the weights are used to it."""
    config = families.build("qwen2").config
    own = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16}
    config.rope_parameters = {**own, "beta_fast": 16.0}
    longer = extend_context(config, LONG, ORIGINAL)
    assert longer.rope_parameters == {**own, "beta_fast": 16.0, "factor": 4.0}
    rotary = build(longer).model.rotary_emb
    assert rotary.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)
    expected = yarn_frequencies(16, 1e4, 4, ORIGINAL, fast=16.0)
    torch.testing.assert_close(rotary.inv_freq.double(), expected, rtol=1e-6, atol=0)


def test_released_parameters_are_extended():
    """As transformers' default for Ministral3, which names the window twice."""
    released = AutoConfig.for_model("ministral3").rope_parameters
    config = AutoConfig.for_model(
        "ministral3", max_position_embeddings=32768, rope_parameters={**released, "factor": 2.0}
    )
    longer = extend_context(config, 262144, 16384)
    assert longer.rope_parameters == {**released, "max_position_embeddings": 262144, "factor": 16.0}
    assert {name: released[name] for name in YARN} == YARN, "our constants are the released ones"


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_other_scalings_are_refused(rope):
    config = families.build("llama").config
    config.rope_parameters = {"rope_theta": 1e4, **rope}
    with pytest.raises(
        ValueError, match=f"scaled already .rope_type '{rope['rope_type']}'.*leave context_length unset"
    ):
        extend_context(config, LONG, ORIGINAL)


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
