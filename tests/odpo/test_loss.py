"""The loss against DPO written by hand; the weights against autograd; rescaling."""

import math

import pytest
import torch

from hf_cascade.odpo.loss import pair_loss, row_weights


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("difference", "probability", "beta"), [(0.0, 0.9, 0.1), (3.0, 0.2, 0.5), (-40.0, 1.0, 0.1)])
def test_equals_the_formula(difference, probability, beta, rescale):
    by_hand = -probability * math.log(sigmoid(beta * difference))
    by_hand -= (1 - probability) * math.log(sigmoid(-beta * difference))
    ours = pair_loss(torch.tensor([difference], dtype=float), torch.tensor([probability], dtype=float), beta, rescale)
    assert ours.item() == pytest.approx(by_hand / (beta if rescale else 1), rel=1e-9)


def test_certain_labels_are_dpos_loss():
    difference_P = torch.randn(50, generator=torch.Generator().manual_seed(0)).double() * 20
    dpo_P = -torch.nn.functional.logsigmoid(0.1 * difference_P)
    torch.testing.assert_close(pair_loss(difference_P, torch.ones(50).double(), 0.1, rescale=False), dpo_P)
    torch.testing.assert_close(pair_loss(-difference_P, torch.zeros(50).double(), 0.1, rescale=False), dpo_P)


@pytest.mark.parametrize("rescale", [False, True])
def test_weights_are_the_gradient(rescale):
    generator = torch.Generator().manual_seed(1)
    ratios_PR = torch.randn(30, 2, generator=generator).double().mul(10).requires_grad_()
    probability_P = torch.rand(30, generator=generator).double()
    difference_P = ratios_PR[:, 0] - ratios_PR[:, 1]
    pair_loss(difference_P, probability_P, 0.3, rescale).sum().backward()
    weights_PR = row_weights(difference_P.detach(), probability_P, 0.3, rescale)
    torch.testing.assert_close(weights_PR, ratios_PR.grad)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_rescaled_the_first_gradient_is_the_same_whatever_beta_and_the_optimum_is_not(beta):
    at_start_PR = row_weights(torch.zeros(1), torch.tensor([0.8]), beta)
    assert at_start_PR[0, 0].item() == pytest.approx(0.5 - 0.8)
    optimum = math.log(0.8 / 0.2) / beta
    assert row_weights(torch.tensor([optimum]), torch.tensor([0.8]), beta)[0, 0].item() == pytest.approx(0, abs=1e-6)


def test_far_away_it_is_finite():
    loss_P = pair_loss(torch.tensor([1e6, -1e6]), torch.tensor([0.0, 1.0]), 1.0)
    assert torch.isfinite(loss_P).all() and (loss_P > 1e5).all()
