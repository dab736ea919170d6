"""The trainer's options beyond the plain forward KL: other divergences, routing, hidden-state matching, compilation."""

import json

import pytest
import torch

from hf_cascade.distill.hidden import kept_before, paired_layers, relative_distance
from hf_cascade.distill.teacher import LocalTeacher, hidden_states
from tests.distill import setting
from tests.distill.test_loss import jsd, plain


def heads(model, parent, batch):
    """Hidden states and heads of both models, and the labels, for `test_loss.plain`."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    sides = []
    for part in (model, parent):
        with torch.no_grad():
            hidden, _ = hidden_states(part, inputs)
        sides += [hidden[labels != -100], part.get_output_embeddings().weight.detach()]
    return *sides, labels[labels != -100]


OPTIONS = {
    "reverse": ({"beta": 1.0}, {"beta": 1.0}, "distill/divergence"),
    "jsd": ({"beta": 0.5, "temperature": 2.0}, {"beta": 0.5, "temperature": 2.0}, "distill/divergence"),
    "routed": ({"route_below_nats": 3.7}, {"route": 3.7}, "distill/kl"),
}


@pytest.mark.parametrize(("settings", "options", "metric"), OPTIONS.values(), ids=OPTIONS)
def test_loss_of_the_first_step(tmp_path, settings, options, metric):
    model, parent = setting.student(), setting.teacher()
    sides = heads(model, parent, setting.first_batch(2))
    loss, divergence, nll, routed = plain(*sides, num_items=len(sides[-1]), **options)
    trainer = setting.distiller(tmp_path, model, parent, max_steps=1, **settings)
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert log[metric] == pytest.approx(float(divergence), rel=1e-6)
    if "route" in options:
        assert 0.1 < float(routed) < 0.9, "else the test says nothing"
        assert log["distill/routed"] == pytest.approx(float(routed), rel=1e-6)
        assert log["distill/next_token"] == pytest.approx(float(nll), rel=1e-6)
    else:
        assert not {"distill/kl", "distill/routed", "distill/next_token"} & set(log)


def test_oracle_of_the_divergences_is_itself_right():
    """`torch.nn.functional.kl_div` at both ends, and symmetry in the middle."""
    one, other = (torch.randn(4, 9, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    for beta, (target, own) in {0: (one, other), 1: (other, one)}.items():
        expected = torch.nn.functional.kl_div(own, target, reduction="none", log_target=True).sum(-1)
        torch.testing.assert_close(jsd(one, other, beta), expected)
    torch.testing.assert_close(jsd(one, other, 0.5), jsd(other, one, 0.5))


# --- hidden states


def deep(layers=6, seed=2, **changes):
    return setting.families.build("llama", seed=seed, dtype=torch.float64, num_hidden_layers=layers, **changes)


def test_hidden_states_are_compared(tmp_path):
    model, parent = setting.student(num_hidden_layers=3), deep()
    batch = setting.first_batch(2)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    counts = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100) != -100
    with torch.no_grad():
        states = [
            part.base_model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
            for part in (model, parent)
        ]
    expected = 0.0
    for ours, theirs in ((1, 2), (2, 4)):
        s, t = states[0][ours][counts], states[1][theirs][counts]
        expected += float(((s - t).square().sum(-1) / t.square().sum(-1)).mean()) / 2
    kl = setting.plain_kl(model, parent, batch)
    trainer = setting.distiller(tmp_path, model, parent, max_steps=1, hidden_weight=0.5)
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log["distill/hidden"] == pytest.approx(expected, rel=1e-6)
    assert log["loss"] == pytest.approx(kl + 0.5 * expected, rel=1e-6)


def test_hidden_gradient_reaches_only_what_lies_below():
    ours = [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    theirs = [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *states: relative_distance(list(states), theirs), ours)
    relative_distance(ours, theirs).backward()
    assert all(state.grad is None for state in theirs)


@pytest.mark.parametrize("split", [1, 2])
def test_hidden_distance_does_not_depend_on_accumulation(tmp_path, split):
    model, parent = setting.student(num_hidden_layers=3), deep()
    sizes = {"per_device_train_batch_size": 2 // split, "gradient_accumulation_steps": split}
    trainer = setting.distiller(tmp_path, model, parent, max_steps=2, hidden_weight=1.0, **sizes)
    trainer.train()
    other = setting.student(num_hidden_layers=3)
    setting.distiller(tmp_path, other, deep(), max_steps=2, hidden_weight=1.0).train()
    assert setting.differ(setting.weights(model), setting.weights(other)) < 1e-6


def test_a_batch_in_which_nothing_counts_has_no_distance(tmp_path):
    trainer = setting.distiller(tmp_path, setting.student(num_hidden_layers=3), deep(), hidden_weight=1.0)
    batch = setting.first_batch(2)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    assert float(trainer.compute_loss(trainer.model, batch).detach()) == 0


def test_which_layers_belong_together():
    assert paired_layers(3, 6) == [2, 4]
    assert paired_layers(4, 4) == [1, 2, 3]
    assert paired_layers(2, 40) == [20]
    assert paired_layers(3, 6, [1, 5]) == [1, 5]


def test_pruning_report_says_which_layers_belong_together(tmp_path):
    assert kept_before(tmp_path) is None
    for kept, expected in (([0, 1, 4, 7], [1, 4, 7]), ([2, 3], [3]), ([0, 1, 2], None)):
        (tmp_path / "prune_report.json").write_text(json.dumps({"kept_layers": kept}))
        assert kept_before(tmp_path) == expected
    paired_layers(4, 8, [1, 4, 7])


@pytest.mark.parametrize("given", [[1], [1, 2, 3], [2, 1], [0, 3], [3, 6]])
def test_layers_that_cannot_be_paired(given):
    with pytest.raises(ValueError, match=r"hidden_layers=.*allowed are 2 rising numbers from 1 to 5"):
        paired_layers(3, 6, given)


def test_hidden_states_of_other_widths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="hidden sizes of 48 and 60"):
        setting.distiller(tmp_path, hidden_weight=1.0)


def test_hidden_states_need_a_teacher_here(tmp_path):
    with pytest.raises(ValueError, match="only a teacher in this process"):
        setting.distiller(tmp_path, parent=LocalTeacher(setting.teacher()), hidden_weight=1.0)


# --- compilation


@pytest.mark.slow
def test_compiled_model_trains_alike(tmp_path):
    """`torch_compile` compiles the forward that the loss is redirected through."""
    runs = []
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        torch._dynamo.reset()
        model, parent = setting.student(dtype=torch.float32), setting.teacher(dtype=torch.float32)
        setting.distiller(tmp_path, model, parent, torch_compile=compiled).train()
        runs.append(setting.weights(model))
    assert setting.differ(*runs) < 2e-3, "Adam turns rounding of a tiny gradient into a step"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2, "student and teacher"
