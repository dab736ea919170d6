"""The FP8 twin of models: what is in its folder, what opens it, and how far it is from the BF16 twin."""

import json
from pathlib import Path

import pytest
import torch
import transformers.integrations.finegrained_fp8 as integration
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from hf_cascade import manifest
from hf_cascade.anatomy import READERS
from hf_cascade.data.text_files import load_texts
from hf_cascade.loading import load_model
from hf_cascade.publish import activations, e4m3, fp8, fp8_weights
from tests.prune import families
from tests.publish.test_fp8_e4m3 import nearest

PARENT = Path(__file__).parents[2] / "recipes/tiny/parent"
DATA = PARENT.parent / "data"
SUFFIXES = ("weight_scale_inv", "activation_scale")


def words(count: int, length: int = 40) -> list[str]:
    """Documents in the tokenizer of `families`."""
    numbers = families.ids(count, length).tolist()
    return [" ".join(f"w{number}" for number in row) for row in numbers]


def make_source(folder: Path, name: str, change=None, shard="5GB", dtype=torch.bfloat16, **changes) -> Path:
    """A model folder of a family, with tokenizer, chat template and generation config."""
    model = families.build(name, dtype=dtype, **changes)
    if change is not None:
        change(model)
    model.generation_config.max_length = 99
    model.save_pretrained(folder, max_shard_size=shard)
    families.save_tokenizer(folder, chat_template="{{ messages }}")
    return folder


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder by their stored names."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """(twin's folder, its manifest) of the tiny parent."""
    folder = tmp_path_factory.mktemp("fp8") / "parent-fp8"
    texts = load_texts(str(DATA / "calibration.jsonl.gz"))[:24]
    heldout = load_texts(str(DATA / "heldout.jsonl.gz"))[:4]
    return folder, fp8.convert(PARENT, folder, texts, heldout, samples=8, max_length=256)


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """(source, twin) of a vision-language model in four files."""
    root = tmp_path_factory.mktemp("fp8-vision")
    source = make_source(root / "source", "mistral3_ministral3", shard="60KB", tie_word_embeddings=True)
    fp8.convert(source, root / "twin", words(40), samples=8)
    return source, root / "twin"


def test_every_weight_is_the_nearest_code_of_the_original(parent):
    source, twin = whole(PARENT), whole(parent[0])
    converted = [name for name, value in twin.items() if value.dtype == torch.float8_e4m3fn]
    assert len(converted) == 8 * 7 == parent[1]["metrics"]["converted_layers"]
    for name in converted:
        weight, scale = source[name].float(), twin[name.removesuffix("weight") + "weight_scale_inv"]
        joined = {
            reader for readers in READERS.values() for reader in readers if name.split(".", 3)[3].startswith(reader)
        }
        group = next((readers for readers in READERS.values() if joined & {*readers}), [name.split(".", 3)[3][:-7]])
        prefix = ".".join(name.split(".", 3)[:3])
        assert torch.equal(scale, max(source[f"{prefix}.{reader}.weight"].abs().max() for reader in group) / 448)
        assert (twin[name].float().numpy() == nearest((weight / scale).numpy())).all()
        error = (twin[name].float() * scale - weight).abs()
        assert (error <= (weight.abs() / 17).clamp(min=scale * 2**-10) * 1.0001).all()  # half of a subnormal's step
    for name, value in source.items():
        if name not in converted:
            assert torch.equal(twin[name], value.to(torch.bfloat16)), name
    assert not any("lm_head" in name or "embed" in name or "norm" in name for name in converted)


def test_scales_are_scalars_of_fp32_with_the_released_names(parent, vision):
    for folder in (parent[0], vision[1]):
        twin = whole(folder)
        converted = [name for name, value in twin.items() if value.dtype == torch.float8_e4m3fn]
        scales = {name: value for name, value in twin.items() if name.endswith(SUFFIXES)}
        assert scales.keys() == {name.removesuffix("weight") + suffix for name in converted for suffix in SUFFIXES}
        assert all(value.shape == () and value.dtype == torch.float32 for value in scales.values())


def test_half_the_bytes_of_bf16_and_eight_more_a_layer(parent):
    twin, metrics = whole(parent[0]), parent[1]["metrics"]
    in_fp8 = sum(value.numel() for value in twin.values() if value.dtype == torch.float8_e4m3fn)
    expected = metrics["bf16_tensor_bytes"] - in_fp8 + 8 * metrics["converted_layers"]
    assert metrics["tensor_bytes"] == expected
    assert parent[1]["output"]["bytes"] == pytest.approx(expected, rel=0.02)  # and the header
    assert parent[1]["output"]["num_parameters"] == 1_771_104


def test_activation_scales_are_the_largest_input_of_each_layer(parent):
    """Recomputed without hooks: by the layers' own arithmetic on the hidden states that transformers returns."""
    twin = whole(parent[0])
    model = load_model(str(PARENT), "bfloat16").float().eval()
    tokenizer = AutoTokenizer.from_pretrained(PARENT)
    texts = load_texts(str(DATA / "calibration.jsonl.gz"))[:24]
    text = fp8.read_text(tokenizer, texts, ["held out text"], samples=8, max_length=256)
    found = {"q_proj": 0.0, "gate_proj": 0.0, "down_proj": 0.0}
    layer = model.model.layers[7]
    attended = []
    layer.self_attn.register_forward_hook(lambda module, inputs, output: attended.append(output[0]))
    with torch.no_grad():
        for ids in text.fitted:
            stream = model(input_ids=ids, output_hidden_states=True).hidden_states[7]
            normed = layer.input_layernorm(stream)
            between = layer.post_attention_layernorm(stream + attended[-1])
            inner = torch.nn.functional.silu(layer.mlp.gate_proj(between)) * layer.mlp.up_proj(between)
            for name, value in zip(found, (normed, between, inner), strict=True):
                found[name] = max(found[name], value.abs().max().item())
    for name, largest in found.items():
        part = "self_attn" if name == "q_proj" else "mlp"
        scale = twin[f"model.layers.7.{part}.{name}.activation_scale"].item()
        assert scale == pytest.approx(largest / 448, rel=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_layers_that_read_the_same_norm_have_one_scale(parent, suffix):
    """An engine joins q, k, v and gate, up to one product with one scale; vLLM rounds codes again where they differ."""
    twin = whole(parent[0])
    for number in range(8):
        for names in READERS.values():
            assert len({twin[f"model.layers.{number}.{name}.{suffix}"].item() for name in names}) == 1


def test_what_vllm_does_to_join_layers_changes_no_code(parent):
    """Its `requantize_with_max_scale`: codes to fp16, times their scale, and back by the largest scale."""
    twin = whole(parent[0])
    for name, codes in twin.items():
        if codes.dtype == torch.float8_e4m3fn:
            scale = twin[name.removesuffix("weight") + "weight_scale_inv"]
            again = e4m3.encode(codes.to(torch.float16) * scale, scale)
            assert torch.equal(again.float(), codes.float())


def test_a_group_that_is_spread_over_files_has_one_scale(vision):
    index = json.loads((vision[1] / "model.safetensors.index.json").read_text())["weight_map"]
    spread = 0
    twin = whole(vision[1])
    for name in twin:
        if name.endswith("q_proj.weight_scale_inv") and "vision" not in name:
            group = [name.replace("q_proj", other) for other in ("q_proj", "k_proj", "v_proj")]
            spread += len({index[member] for member in group}) > 1
            assert len({twin[member].item() for member in group}) == 1
    assert spread


def test_opens_with_transformers_dequantised(parent):
    """Without a GPU transformers dequantises to bf16; the values are codes times scales, rounded to bf16."""
    twin = whole(parent[0])
    model, info = AutoModelForCausalLM.from_pretrained(parent[0], output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    name = "model.layers.3.mlp.down_proj."
    expected = twin[name + "weight"].float() * twin[name + "weight_scale_inv"]
    assert torch.equal(model.state_dict()[name + "weight"], expected.to(torch.bfloat16))
    exact = fp8.open_dequantised(parent[0])
    assert torch.equal(exact.state_dict()[name + "weight"], expected)
    tokenizer = AutoTokenizer.from_pretrained(parent[0])
    prompt = tokenizer("The", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt["input_ids"].shape[1]


def test_loads_whole_in_the_type_that_is_asked_for(parent, vision):
    for folder in (parent[0], vision[1]):
        model = load_model(str(folder), dtype="float32")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_layers_a_gpu_would_run_hold_what_was_written(parent, monkeypatch):
    """Transformers' FP8 modules, which it makes only with a GPU; their product is replaced by one in fp32."""
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)
    model, info = AutoModelForCausalLM.from_pretrained(parent[0], output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    twin, state = whole(parent[0]), model.state_dict()
    assert state.keys() == twin.keys()
    assert all(state[name].dtype == value.dtype and torch.equal(state[name], value) for name, value in twin.items())
    fp8_layers = {name for name, module in model.named_modules() if isinstance(module, integration.FP8Linear)}
    exact = fp8.open_dequantised(parent[0])
    assert fp8_layers == activations.converted_layers(exact).keys()

    def product(inputs, weight, weight_scale_inv, block_size, bias, activation_scale, allow_deepgemm=True):
        assert block_size is None and bias is None
        codes = (inputs.float() / activation_scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        return (codes @ weight.float().T * activation_scale * weight_scale_inv).to(inputs.dtype)

    monkeypatch.setattr(integration, "fp8_linear", product)
    layers, seen, made = activations.converted_layers(exact), {}, {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        layer.register_forward_hook(lambda _, inputs, output, name=name: made.update({name: output}))
    scales = {name: twin[f"{name}.activation_scale"] for name in fp8_layers}
    with torch.no_grad(), activations.static_inputs(exact, scales):
        exact(input_ids=torch.tensor([[1, *range(5, 60)]]))
        assert seen.keys() == made.keys() == fp8_layers
        for name in fp8_layers:  # one by one: a sum in another order moves inputs to the next code, layer after layer
            expected = model.get_submodule(name)(seen[name])
            assert torch.allclose(made[name], expected, rtol=1e-4, atol=1e-4 * expected.abs().max()), name


def test_divergences_are_measured_and_recorded(parent):
    metrics = parent[1]["metrics"]
    weights, both = metrics["weights"], metrics["weights_and_activations"]
    assert 0 < weights["kl"] < both["kl"] < 0.01
    assert 0.9 < both["top1_agreement"] <= weights["top1_agreement"] < 1
    assert metrics["heldout_tokens"] > 100 and metrics["calibration_tokens"] > 1000
    assert both["saturated"] < 1e-3
    assert parent[1]["run"] == "fp8" and parent[1]["lineage"][-1]["stage"] == "parent"
    assert metrics["source_sha256"] == manifest.weights_sha256(PARENT)
    assert manifest.read(parent[0]) == parent[1]


def test_simulated_inputs_are_rounded_and_nothing_stays_behind():
    model = families.build("ministral3", dtype=torch.float32)
    ids = families.ids(2, 20)
    before = families.logits(model, ids)
    scales = {name: e4m3.scale_of(largest) for name, largest in activations.input_maxima(model, [ids]).items()}
    seen = []
    with activations.static_inputs(model, scales) as saturation:
        layer = model.model.layers[1].self_attn.o_proj
        handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        during = families.logits(model, ids)
        handle.remove()
    scale = scales["model.layers.1.self_attn.o_proj"]
    codes = seen[0] / scale
    assert torch.allclose(codes, codes.clamp(-448, 448).to(torch.float8_e4m3fn).float(), rtol=1e-6)
    assert not torch.equal(before, during)
    assert torch.equal(before, families.logits(model, ids))
    small = {name: scale / 4 for name, scale in scales.items()}
    with activations.static_inputs(model, small) as more:
        assert families.logits(model, ids).isfinite().all()
    assert saturation.share < 1e-3 < more.share < 1


def test_vision_tower_projector_and_head_stay(vision):
    source, twin = whole(vision[0]), whole(vision[1])
    kept = [name for name in source if "vision_tower" in name or "projector" in name or "embed" in name]
    assert len(kept) > 10 and "lm_head.weight" not in twin  # tied
    assert all(torch.equal(twin[name], source[name]) for name in kept)
    assert sum(value.dtype == torch.float8_e4m3fn for value in twin.values()) == 4 * 7
    config = json.loads((vision[1] / "config.json").read_text())
    assert config["quantization_config"] == {
        "activation_scheme": "static",
        "dequantize": False,
        "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
        "quant_method": "fp8",
        "weight_block_size": None,
    }
    config.pop("quantization_config")
    original = json.loads((vision[0] / "config.json").read_text())
    assert config == original


def test_a_vision_language_model_opens_in_both_forms(vision, monkeypatch):
    auto = AutoModelForImageTextToText
    model, info = auto.from_pretrained(vision[1], output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    source = auto.from_pretrained(vision[0])
    assert families.divergence(source.float(), model.float(), families.ids(2, 20)) < 0.1
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)
    model, info = auto.from_pretrained(vision[1], output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    converted = {name for name, module in model.named_modules() if isinstance(module, integration.FP8Linear)}
    assert len(converted) == 4 * 7 and all(name.startswith("model.language_model.layers.") for name in converted)


def test_shards_keep_their_names_and_the_index_names_every_tensor(vision):
    names = [sorted(file.name for file in folder.glob("*.safetensors")) for folder in vision]
    assert names[0] == names[1] and len(names[0]) > 2
    index = json.loads((vision[1] / "model.safetensors.index.json").read_text())
    found = {name: file.name for file in vision[1].glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole(vision[1]).values())


def test_tokenizer_template_and_generation_config_are_kept(vision):
    kept = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    for name in kept:
        assert (vision[0] / name).read_bytes() == (vision[1] / name).read_bytes()
    assert {file.name for file in vision[1].iterdir()} == {
        *kept,
        "config.json",
        "cascade.json",
        "model.safetensors.index.json",
        *(file.name for file in vision[0].glob("*.safetensors")),
    }


@pytest.mark.parametrize("name", ["llama_bias", "qwen3", "mistral"])
def test_other_families(tmp_path, name):
    source = make_source(tmp_path / "source", name, dtype=torch.float32)
    record = fp8.convert(source, tmp_path / "twin", words(16), samples=4)
    assert record["metrics"]["converted_layers"] == 28
    twin = whole(tmp_path / "twin")
    assert all(value.dtype == torch.bfloat16 for name, value in twin.items() if name.endswith("bias"))
    assert AutoConfig.from_pretrained(tmp_path / "twin").dtype == torch.bfloat16


def test_layers_of_zeros_and_of_huge_weights(tmp_path):
    def change(model):
        model.model.layers[0].mlp.up_proj.weight.data.zero_()  # and so the inputs of down_proj are zero
        model.model.layers[1].self_attn.q_proj.weight.data *= 1e4

    source = make_source(tmp_path / "source", "ministral3", change)
    fp8.convert(source, tmp_path / "twin", words(16), samples=4)
    twin = whole(tmp_path / "twin")
    assert not twin["model.layers.0.mlp.up_proj.weight"].float().any()
    assert twin["model.layers.0.mlp.down_proj.activation_scale"] == 1
    assert not any(value.float().isnan().any() for value in twin.values())


def test_a_second_call_does_nothing_and_other_weights_are_refused(tmp_path, parent, monkeypatch):
    monkeypatch.setattr(fp8, "load_model", None)
    folder, record = parent
    assert fp8.convert(PARENT, folder, ["any text"]) == record
    other = make_source(tmp_path / "other", "ministral3")
    with pytest.raises(ValueError, match="not the FP8 twin of"):
        fp8.convert(other, folder, ["any text"])


def test_a_layer_without_input_is_named():
    model = families.build("ministral3", dtype=torch.float32)
    model.model.layers[0].unused = torch.nn.Linear(16, 16)
    with pytest.raises(ValueError, match="1 layers had no input.*layers.0.unused"):
        activations.input_maxima(model, [families.ids(1, 8)])


def test_weights_are_rounded_in_parts(monkeypatch):
    weight = torch.randn(33, 17, generator=torch.Generator().manual_seed(3))
    scale = e4m3.scale_of(weight.abs().max())
    monkeypatch.setattr(fp8_weights, "PART", 100)
    before = weight.clone()
    assert torch.equal(fp8_weights._codes(weight, scale).float(), e4m3.encode(weight, scale).float())
    assert torch.equal(weight, before)


def test_windows_to_calibrate_and_to_measure_on_are_apart():
    tokenizer = AutoTokenizer.from_pretrained(PARENT)
    texts = [f"document number {number} of some words" for number in range(40)]
    text = fp8.read_text(tokenizer, texts, samples=8)
    fitted = {tuple(ids[0].tolist()) for ids in text.fitted}
    held_out = {tuple(row[row_labels != -100].tolist()) for row, row_labels in zip(
        text.held_out.inputs, text.held_out.labels, strict=True)}  # fmt: skip
    assert len(fitted) == 8 and len(held_out) == 5 and not fitted & held_out
    assert all(ids[0, 0] == tokenizer.bos_token_id for ids in text.fitted)
