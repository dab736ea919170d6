"""Pruning against references: exact where the mathematics says exact, for every family."""

import pytest
import torch

from hf_cascade import PruneConfig, prune_model
from hf_cascade.anatomy import FFN_OUT, dissect
from hf_cascade.prune.builder import ChildBuilder
from hf_cascade.prune.calibration import Calibration
from hf_cascade.prune.model import build
from hf_cascade.prune.parent import Parent
from hf_cascade.prune.pipeline import finish, rebuild, start_child, write_rest
from hf_cascade.prune.plan import PrunePlan
from hf_cascade.prune.state import NoState
from hf_cascade.prune.weights import MemoryWriter
from tests.prune.families import FAMILIES, SHAPE, ids, logits
from tests.prune.families import build as build_family

# transformers normalises in fp32 even in a float64 model: that is all the difference there may be
TOLERANCE = {"rtol": 0, "atol": 5e-5}


def random_rotation(rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64)).Q[:, :columns]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_own_shape_gives_the_parents_logits_bit_for_bit(family, tied):
    parent = build_family(family, tie_word_embeddings=tied)
    child = prune_model(parent, PruneConfig())
    assert type(child) is type(parent) and child is not parent
    assert torch.equal(logits(child, ids()), logits(parent, ids()))
    assert (child.lm_head.weight is child.get_input_embeddings().weight) == tied


def rotated(model, rotation):
    """A child of the parent's own shape whose stream is the parent's in another basis."""
    parent, writer = Parent.from_model(model), MemoryWriter(lambda name: model.dtype, model.device)
    config = PruneConfig(method="paper")
    text = Calibration(parent, [ids()])
    plan = PrunePlan(list(range(SHAPE["num_hidden_layers"])), SHAPE["intermediate_size"], rotation)
    job = start_child(parent, config, {"hidden_size": 48}, plan, None, lambda _: writer)
    write_rest(parent, config, job, None)
    embedding = writer.read(f"{dissect(model).prefix}embed_tokens.weight")
    builder = ChildBuilder(text, plan, config, job.child, writer, embedding)
    x, _ = rebuild(text, [builder], config, [], NoState(), lambda count: None)
    finish(text, builder, job, x)
    return build(model, job.child.config, writer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_rotation_gives_the_parents_logits(family):
    parent = build_family(family)
    child = rotated(parent, random_rotation(48, 48))
    assert not torch.allclose(child.lm_head.weight, parent.lm_head.weight)
    torch.testing.assert_close(logits(child, ids()), logits(parent, ids()), **TOLERANCE)


@pytest.mark.parametrize("method", ["paper", "compensated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_inside_the_kept_subspace_loses_nothing(family, method):
    """Everything the parent writes lies in 36 of 48 dimensions: a child of width 36 must have its logits."""
    parent = build_family(family)
    parts = dissect(parent)
    basis = random_rotation(48, 36)
    project = basis @ basis.t()
    parts.embedding.weight.data = parts.embedding.weight.data @ project
    for layer in parts.layers:
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writer.weight.data = project @ writer.weight.data
            if writer.bias is not None:
                writer.bias.data = project @ writer.bias.data
    # a ridge this small leaves the exact solution alone
    child = prune_model(parent, PruneConfig(hidden_size=36, method=method, ridge=1e-12), ids())
    assert child.config.get_text_config().hidden_size == 36
    text = ids(seed=7)
    torch.testing.assert_close(logits(child, text), logits(parent, text), **TOLERANCE)


@pytest.mark.parametrize("family", ["llama_bias", "ministral3", "qwen3", "mistral3"])
@pytest.mark.parametrize("method", ["paper", "compensated"])
def test_dead_ffn_columns_cost_nothing(family, method):
    """Columns that drive nothing are the ones to go, and nothing changes without them."""
    parent = build_family(family)
    parts = dissect(parent)
    for layer in parts.layers:
        layer.get_submodule(FFN_OUT).weight.data[:, ::4] = 0
        layer.mlp.up_proj.weight.data[::4] = 0
        if layer.mlp.up_proj.bias is not None:
            layer.mlp.up_proj.bias.data[::4] = 0
    child = prune_model(parent, PruneConfig(intermediate_size=60, method=method, ridge=1e-12), ids())
    text = ids(seed=7)
    torch.testing.assert_close(logits(child, text), logits(parent, text), **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_layers_keep_their_kind(family):
    """Sliding windows and other per-layer settings follow the layers that stay."""
    parent = build_family(family)
    child = prune_model(parent, PruneConfig(num_hidden_layers=2, method="paper"), ids())
    parent_types = getattr(parent.config.get_text_config(), "layer_types", None)
    child_types = getattr(child.config.get_text_config(), "layer_types", None)
    if parent_types is None:
        assert child_types is None
        return
    kept = [
        next(
            number
            for number, candidate in enumerate(dissect(parent).layers)
            if torch.equal(candidate.self_attn.q_proj.weight, layer.self_attn.q_proj.weight)
        )
        for layer in dissect(child).layers
    ]
    assert child_types == [parent_types[number] for number in kept]
    reloaded = type(child)(child.config).to(child.dtype).eval()
    reloaded.load_state_dict(child.state_dict())
    torch.testing.assert_close(logits(reloaded, ids()), logits(child, ids()))


def test_the_norm_factor_and_epsilon_are_what_makes_it_exact():
    """Without either the logits differ, so the exactness tests above do test them."""
    parent = build_family("llama")
    parts = dissect(parent)
    basis = random_rotation(48, 36)
    parts.embedding.weight.data = parts.embedding.weight.data @ basis @ basis.t()
    for layer in parts.layers:
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writer.weight.data = basis @ basis.t() @ writer.weight.data
    child = prune_model(parent, PruneConfig(hidden_size=36, method="paper"), ids())
    reference = logits(parent, ids())
    assert child.config.rms_norm_eps == pytest.approx(parent.config.rms_norm_eps * 48 / 36)
    child.model.norm.weight.data.fill_(1.0)
    assert (logits(child, ids()) - reference).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_balancing_changes_weights_and_no_output(family):
    parent = build_family(family)
    for layer in dissect(parent).layers:
        layer.mlp.up_proj.weight.data *= 0.01
        layer.self_attn.v_proj.weight.data *= 0.01
    shape = {"num_hidden_layers": 3, "intermediate_size": 56}
    plain, balanced = (prune_model(parent, PruneConfig(**shape, balance=balance), ids()) for balance in (False, True))
    torch.testing.assert_close(logits(balanced, ids()), logits(plain, ids()), **TOLERANCE)
    layer = dissect(balanced).layers[0]
    torch.testing.assert_close(layer.mlp.up_proj.weight.norm(dim=1), layer.mlp.down_proj.weight.norm(dim=0))
    values, out = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
    torch.testing.assert_close(values.norm(dim=1), out.view(48, 3, 16).square().sum((0, 1)).sqrt())


def test_vision_tower_is_unchanged_and_images_still_reach_the_text():
    parent = build_family("mistral3", dtype=torch.float32)
    child = prune_model(parent, PruneConfig(num_hidden_layers=3, hidden_size=32, intermediate_size=64), ids())
    for (name, ours), theirs in zip(
        child.model.vision_tower.state_dict().items(), parent.model.vision_tower.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    image = {"pixel_values": torch.randn(1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
    tokens = torch.tensor([[1, 3, 3, 3, 3, 9, 11]])  # four merged patches
    with torch.no_grad():
        with_image = child(input_ids=tokens, **image).logits
        other = child(input_ids=tokens, pixel_values=-image["pixel_values"], image_sizes=image["image_sizes"]).logits
    assert with_image.isfinite().all() and not torch.allclose(with_image, other)


def test_the_projector_follows_the_stream_it_writes_to():
    """FFN pruning leaves image features as they are; a new projector is new and repeatable."""
    parent = build_family("mistral3", dtype=torch.float32)
    image = {"pixel_values": torch.randn(1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}

    def features_of(model):
        return torch.cat(list(model.get_image_features(**image).pooler_output))

    own_shape = features_of(prune_model(parent, PruneConfig(projector="reinit")))
    children = [PruneConfig(intermediate_size=64, projector=how) for how in ("keep", "reinit", "reinit")]
    features = [features_of(prune_model(parent, config, ids())) for config in children]
    original = features_of(parent)
    assert torch.equal(features[0], original)
    assert not torch.allclose(features[1], original) and torch.equal(features[1], features[2])
    assert not torch.allclose(own_shape, original)
