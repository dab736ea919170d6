"""Scores and bases against what they say they are, on the stock model."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_cascade import PruneConfig
from hf_cascade.anatomy import dissect
from hf_cascade.prune.basis import fisher_directions, principal_directions, selected_channels
from hf_cascade.prune.calibration import Calibration, every
from hf_cascade.prune.child import target_shape
from hf_cascade.prune.config import CHOICES
from hf_cascade.prune.exit import Exit
from hf_cascade.prune.parent import Parent
from hf_cascade.prune.scores import FFN_SCORES, LAYER_SCORES, Activations
from hf_cascade.prune.statistics import collect
from tests.prune.families import build, ids


def statistics(model, text=None, **changes):
    """What one look at a model finds."""
    config = PruneConfig(**{"num_hidden_layers": 3, "hidden_size": 36, **changes})
    calibration = Calibration(Parent.from_model(model), [ids() if text is None else text])
    return collect(calibration, config, target_shape(model.config, config), False)


def test_the_names_are_the_configs():
    assert set(FFN_SCORES) == set(CHOICES["ffn_score"])
    assert {*LAYER_SCORES, "loss_drop"} == set(CHOICES["layer_score"])


@pytest.mark.parametrize("family", ["llama", "gemma", "ministral3"])
def test_layer_scores_against_hidden_states(family):
    model = build(family)
    with torch.no_grad():
        states = model(input_ids=ids(), output_hidden_states=True, use_cache=False).hidden_states
    ratio, cosine = (statistics(model, layer_score=name).layer_scores for name in ("ratio", "cosine"))
    for number in range(3):  # transformers' last hidden state is after the final norm
        x, y = states[number], states[number + 1]
        assert ratio[number] == pytest.approx(float((y.norm(dim=-1) / x.norm(dim=-1)).mean()), rel=1e-5)
        assert cosine[number] == pytest.approx(float((1 - torch.cosine_similarity(x, y, dim=-1)).mean()), rel=1e-4)


def test_loss_drop_is_the_loss_without_the_layer():
    model = build("qwen3")
    scores = statistics(model, layer_score="loss_drop").layer_scores
    text = ids()[::4]  # an L-th of the windows, from all over them

    def loss():
        with torch.no_grad():
            logits = model(input_ids=text, use_cache=False).logits[:, :-1]
        return float(cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten(), reduction="sum")) / text.numel()

    full = loss()
    for number, layer in enumerate(model.model.layers):
        forward = layer.forward
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        assert scores[number] == pytest.approx(loss() - full, abs=1e-5)
        layer.forward = forward


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen3_sliding"])
def test_fisher_is_the_gradient_autograd_gives(family):
    """Against one backward pass of the stock model, the same labels drawn."""
    model = build(family)
    text = ids(4, 24)
    found = statistics(model, text, hidden_basis="fisher", num_hidden_layers=4)
    normed = []
    parts = dissect(model)
    offset = 1.0 if family == "gemma" else 0.0
    norms = [norm for layer in parts.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]

    def keep(module, args, output):
        output.retain_grad()
        normed.append((module, output))

    hooks = [norm.register_forward_hook(keep) for norm in (*norms, parts.norm)]
    logits = model(input_ids=text, use_cache=False).logits.flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(len(logits), 1, dtype=torch.float64, generator=generator)
    drawn = torch.searchsorted(logits.softmax(-1).cumsum(1), uniform).squeeze(1)
    cross_entropy(logits, drawn, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    fisher = gram = 0
    for module, output in normed:
        gain = module.weight.detach() + offset
        g, y = (output.grad * gain).flatten(0, 1), (output.detach() / gain).flatten(0, 1)
        fisher, gram = fisher + g.t() @ g, gram + (g.t() @ g).trace() * (y.t() @ y)
    torch.testing.assert_close(found.fisher_kept, fisher, rtol=1e-3, atol=float(fisher.abs().max()) * 1e-4)
    torch.testing.assert_close(found.gram_kept, gram, rtol=1e-3, atol=float(gram.abs().max()) * 1e-4)


def test_fisher_directions_are_pca_where_all_directions_matter_alike_and_better_where_not():
    torch.manual_seed(0)
    data = torch.randn(400, 12, dtype=torch.float64) * torch.linspace(0.2, 2, 12, dtype=torch.float64)
    gram, identity = data.t() @ data, torch.eye(12, dtype=torch.float64)
    q, share = fisher_directions(gram, identity, 5)
    pca, expected = principal_directions(gram, 5)
    torch.testing.assert_close(q @ q.t(), pca @ pca.t(), rtol=0, atol=1e-4)
    assert share == expected
    torch.testing.assert_close(q.t() @ q, torch.eye(5, dtype=torch.float64))

    matters = torch.randn(12, 12, dtype=torch.float64)
    fisher = matters @ torch.diag(torch.logspace(-3, 1, 12, dtype=torch.float64)) @ matters.t()

    def cost(q):
        dropped = identity - q @ q.t()
        return float((fisher @ dropped @ gram @ dropped).trace())

    assert cost(fisher_directions(gram, fisher, 5)[0]) < 0.7 * cost(pca)


@pytest.mark.parametrize(("hidden", "width"), [(12, 5), (48, 47), (96, 80), (96, 1)])
def test_fisher_directions_end_where_the_gradient_does(hidden, width):
    """At the end no rotation towards a dropped direction lowers the cost, by autograd; for wide and narrow Q."""
    torch.manual_seed(1)
    parts = [torch.randn(400, hidden, dtype=torch.float64) * torch.logspace(0, -1, hidden).double() for _ in range(2)]
    gram, fisher = (part.t() @ part for part in parts)
    start = principal_directions(gram, width)[0]
    gradients = []
    for q in (start, fisher_directions(gram, fisher, width)[0]):
        q = q.clone().requires_grad_()
        dropped = torch.eye(hidden, dtype=torch.float64) - q @ q.t()
        ((fisher @ dropped) * (gram @ dropped).t()).sum().backward()
        gradients.append(float((q.grad - q.detach() @ (q.detach().t() @ q.grad)).norm()))
    assert gradients[1] < 0.2 * gradients[0], gradients


def test_selected_channels_are_the_highest():
    q, share = selected_channels(torch.tensor([1.0, 4.0, 2.0, 3.0]), 2)
    assert q.t().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]] and share == pytest.approx([0.4, 0.7, 0.9, 1.0])


def ffn(columns: int = 24):
    """A layer of a random model, its stream, and its activations [N, F]."""
    model = build("llama", intermediate_size=columns)
    layer = model.model.layers[1].requires_grad_(False)
    middle = [torch.randn(2, 30, 48, dtype=torch.float64) for _ in range(8)]
    activations = Activations(layer, middle, torch.device("cpu"))
    return layer, activations, torch.cat(list(activations())).flatten(0, 1)


def test_ffn_scores_are_their_formulas():
    layer, activations, a = ffn()
    down = layer.mlp.down_proj.weight
    windows = a.view(16, 30, 24)
    norms = [layer.mlp.gate_proj.weight.norm(dim=1), layer.mlp.up_proj.weight.norm(dim=1), down.norm(dim=0)]
    expected = {
        "mean_abs": a.abs().mean(0),
        "minitron": windows.abs().mean(1).norm(dim=0),
        "output": a.square().mean(0).sqrt() * down.norm(dim=0),
        "wanda": a.norm(dim=0) * down.abs().sum(0),
        "magnitude": norms[0] * norms[1] * norms[2],
    }
    assert {*expected, "obs"} == set(FFN_SCORES)
    for name, score in expected.items():
        torch.testing.assert_close(FFN_SCORES[name](layer, activations, 12), score, msg=name)


def test_obs_loses_less_than_columns_chosen_one_by_one():
    """Columns that can stand in for each other: the output's error after a re-fit is what counts."""
    layer, activations, _ = ffn()
    with torch.no_grad():  # every second column nearly repeats the one before it
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
            part.weight[1::2] = part.weight[::2] + 0.02 * torch.randn_like(part.weight[::2])
        layer.mlp.down_proj.weight[:, 12:] *= 0.6
    activations = Activations(layer, activations.middle, torch.device("cpu"))
    a = torch.cat(list(activations())).flatten(0, 1)
    target = a @ layer.mlp.down_proj.weight.t()

    def error(name):
        kept = a[:, FFN_SCORES[name](layer, activations, 12).topk(12).indices]
        return float((target - kept @ torch.linalg.lstsq(kept, target).solution).square().mean())

    assert error("obs") < 0.5 * min(error(name) for name in ("output", "mean_abs", "wanda"))


def test_every_takes_windows_from_all_over():
    parts = [torch.arange(0, 5), torch.arange(5, 7), torch.arange(7, 16)]
    taken = [part.tolist() for part in every(4, parts) if part is not None]
    assert taken == [[0, 4], [8, 12]] and [p is None for p in every(4, parts)] == [False, True, False]
    assert [part.tolist() for part in every(1, parts)] == [part.tolist() for part in parts]
    whole = [part.tolist() for part in every(4, parts, whole={2}) if part is not None]
    assert whole == [[0, 4], list(range(7, 16))]


def test_exit_against_the_stock_model():
    model, other = build("qwen3"), build("qwen3", seed=3)
    with torch.no_grad():
        states = model(input_ids=ids(), output_hidden_states=True, use_cache=False)
        p, q = states.logits.log_softmax(-1), other(input_ids=ids(), use_cache=False).logits.log_softmax(-1)
    streams = []
    for part in (model, other):
        hook = part.model.norm.register_forward_pre_hook(lambda _, args: streams.append(args[0].detach()))
        part(input_ids=ids(), use_cache=False)
        hook.remove()
    ends = [Exit.of(Parent.from_model(part)) for part in (model, other)]
    expected = float((p.exp() * (p - q)).sum())
    assert ends[0].divergence(streams[0], ends[1], streams[1]) == pytest.approx(expected, rel=1e-5)
    loss = -float(p[:, :-1].gather(2, ids()[:, 1:, None]).sum())
    assert ends[0].loss(streams[0], ids()) == pytest.approx(loss, rel=1e-5)


def test_a_head_of_another_type_is_cast_part_by_part(monkeypatch):
    from hf_cascade.prune import ends

    torch.manual_seed(0)
    gain, head, y = torch.rand(48) + 0.5, torch.randn(97, 48).bfloat16(), torch.randn(30, 48)
    whole, parts = Exit(gain, head.float(), 1e-6), Exit(gain, head, 1e-6)
    monkeypatch.setattr(ends, "CHUNK_ENTRIES", 48 * 10)
    assert len(parts._rows()) == 10 and len(whole._rows()) == 1
    torch.testing.assert_close(parts.logits(y), whole.logits(y))
    gradients = [end.sampled_gradient(y, torch.Generator().manual_seed(0)) for end in (parts, whole)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)
