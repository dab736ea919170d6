"""Pruning as users meet it: exact target shapes, the order of methods, ties, types, and bad input."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hf_cascade import PruneConfig, prune_model
from hf_cascade.prune import tie
from hf_cascade.prune.basis import principal_directions
from hf_cascade.prune.config import CHOICES, METHODS
from hf_cascade.prune.model import prune_with_report
from hf_cascade.prune.plan import top
from hf_cascade.shape import count_parameters
from tests.prune.families import FAMILIES, build, divergence, ids, logits

TARGET = {"num_hidden_layers": 3, "hidden_size": 36, "intermediate_size": 56}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [None, False, True])
def test_the_child_has_exactly_the_shape_and_opens_again(family, tied, tmp_path):
    parent = build(family, dtype=torch.float32)
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    child = prune_model(parent, PruneConfig(**TARGET, tie_word_embeddings=tied), ids())
    decoder = child.config.get_text_config()
    assert {name: getattr(decoder, name) for name in TARGET} == TARGET
    assert decoder.head_dim == 16 and decoder.num_attention_heads == 3
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items()), "parent was changed"
    child.save_pretrained(tmp_path)
    reloaded = type(child).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=ids()).logits, child(input_ids=ids()).logits)
    vision = ("model.vision", "model.multi")
    language = sum(value.numel() for name, value in child.named_parameters() if not name.startswith(vision))
    assert language == count_parameters(child.config.to_dict())


@pytest.mark.parametrize("family", ["llama", "ministral3", "qwen2", "qwen3", "mistral3"])
def test_each_part_of_the_method_brings_the_child_nearer(family):
    """On unseen text: the paper's listing, then better scores, then write fits, then read fits.

    Layers by ratio: what a random model loses on random text without a layer says nothing of the layer.
    """
    parent, text = build(family), ids(windows=64)
    steps = [
        PruneConfig(**TARGET, method="paper"),
        PruneConfig(**TARGET, layer_score="ratio", compensation="write"),
        PruneConfig(**TARGET, layer_score="ratio"),
    ]
    kls = [divergence(parent, prune_model(parent, step, text), ids(seed=5)) for step in steps]
    assert kls[2] < kls[1] < kls[0] and kls[2] < 0.7 * kls[0], kls


def test_the_tied_merge_is_the_best_compromise():
    """Of the four merges, least squares has the least of what it says it minimises."""
    torch.manual_seed(0)
    embedding, head = torch.randn(97, 12).double(), torch.randn(97, 12).double()
    states = torch.randn(500, 12).double() * torch.linspace(0.1, 3, 12).double()
    covariance = states.t() @ states / 500
    mean_square = embedding.square().mean()
    weight = tie.EMBEDDING_WEIGHT / mean_square

    def objective(how):
        shared = tie.Merge(covariance, mean_square, how)(embedding, head)
        head_error = (states @ (shared - head).t()).square().sum() / 500
        return float(head_error + weight * (shared - embedding).square().sum())

    values = {how: objective(how) for how in CHOICES["tie_merge"]}
    best = values.pop("least_squares")
    assert best < 0.99 * min(values.values()), (best, values)


@pytest.mark.parametrize("how", CHOICES["tie_merge"])
def test_a_matrix_that_is_both_already_stays(how):
    """An untied model whose two matrices are equal, with a flat final gain, ties without loss."""
    parent = build("llama")
    parent.lm_head.weight.data = parent.model.embed_tokens.weight.data.clone()
    parent.model.norm.weight.data.fill_(0.7)
    child = prune_model(parent, PruneConfig(tie_word_embeddings=True, tie_merge=how, compensation="none"), ids())
    torch.testing.assert_close(logits(child, ids()), logits(parent, ids()), rtol=0, atol=1e-3)


def test_the_same_input_gives_the_same_child():
    parent = build("qwen3", dtype=torch.float32)
    one, two = (prune_model(parent, PruneConfig(**TARGET), ids()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_batches_do_not_matter():
    parent = build("ministral3")
    one, two = (prune_model(parent, PruneConfig(**TARGET), ids(), batch_size=size) for size in (12, 5))
    torch.testing.assert_close(one.lm_head.weight, two.lm_head.weight, rtol=1e-7, atol=1e-7)


def test_types_and_modes_are_the_parents():
    parent = build("llama", dtype=torch.bfloat16).train()
    child = prune_model(parent, PruneConfig(**TARGET), ids())
    assert child.dtype == torch.bfloat16 and not child.training and parent.training


def test_rope_theta_is_an_explicit_step():
    parent = build("ministral3")
    assert prune_model(parent, PruneConfig()).config.rope_parameters["rope_theta"] == 1e4
    child = prune_model(parent, PruneConfig(rope_theta=5e3))
    assert child.config.rope_parameters["rope_theta"] == 5e3
    fresh = type(child)(child.config)
    assert torch.equal(child.model.rotary_emb.inv_freq, fresh.model.rotary_emb.inv_freq.to(child.dtype))


def test_the_report_says_what_was_kept():
    parent = build("llama")
    child, report = prune_with_report(parent, PruneConfig(**TARGET, layer_score="cosine"), ids())
    assert len(report["layer_scores"]) == 4 and len(report["kept_layers"]) == 3
    lowest = min(range(4), key=report["layer_scores"].__getitem__)
    assert lowest not in report["kept_layers"]
    variance = report["explained_variance"]
    assert len(variance) == 48 and variance == sorted(variance) and variance[-1] == pytest.approx(1)
    assert len(report["ffn_kept_score"]) == 3 and all(0 < share < 1 for share in report["ffn_kept_score"])


def test_plan_pieces_against_references():
    assert top(torch.tensor([3.0, 1.0, 3.0, 2.0]), 2).tolist() == [0, 2]
    data = torch.randn(500, 6, dtype=torch.float64) * torch.tensor([5, 4, 3, 2, 1, 0.5], dtype=torch.float64)
    q, variance = principal_directions(data.t() @ data, 3)
    _, singular, right = torch.linalg.svd(data)
    torch.testing.assert_close((q.t() @ right[:3].t()).abs(), torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.tensor(variance).double(), singular.square().cumsum(0) / singular.square().sum())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_hidden_layers": 5}, "num_hidden_layers=5: allowed is 1 to 4"),
        ({"hidden_size": 64}, "hidden_size=64: allowed is 1 to 48"),
        ({"intermediate_size": 0}, "intermediate_size=0: allowed is 1 to 80"),
        ({"hidden_size": 40}, "LlamaConfig refuses this shape: .*40.* is not a multiple of the number of attention"),
    ],
)
def test_impossible_shapes(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        prune_model(build("llama"), PruneConfig(**changes), ids())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "needs calibration text"),
        (torch.empty(0, 8, dtype=torch.long), "must be token ids"),
        (torch.rand(4, 8), "must be token ids"),
        (torch.full((2, 8), 97), "outside 0 to 96"),
    ],
)
def test_bad_calibration(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        prune_model(build("llama"), PruneConfig(**TARGET), text)


def test_unsupported_models_are_refused_by_name():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=97))
    with pytest.raises(ValueError, match="'gpt2' cannot be pruned: supported are llama"):
        prune_model(gpt2, PruneConfig(), ids())
    with pytest.raises(ValueError, match="no language-model head"):
        prune_model(build("llama").model, PruneConfig(), ids())


def test_broken_weights_are_found():
    parent = build("llama")
    parent.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="model.layers.2.mlp.up_proj.weight holds NaN or infinite"):
        prune_model(parent, PruneConfig(**TARGET), ids())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_name_real_choices(method):
    assert {piece: getattr(PruneConfig(method=method), piece) for piece in CHOICES} == METHODS[method]


def test_misspelt_choices_are_refused():
    for field in ("method", "projector", *CHOICES):
        with pytest.raises(ValueError, match=f"{field}='nonsense': allowed are"):
            PruneConfig(**{field: "nonsense"})
    with pytest.raises(ValueError, match="ridge"):
        PruneConfig(ridge=0)


def test_auto_classes_open_the_child(tmp_path):
    prune_model(build("qwen2", dtype=torch.float32), PruneConfig(**TARGET), ids()).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.head_dim == 16
