"""The fused loss with a cached teacher, its most likely tokens and a tail, against the same KL from all logits."""

import pytest
import torch

from hf_cascade.distill.divergences import Objective
from hf_cascade.distill.loss import fused_divergence
from hf_cascade.distill.teacher import TopKTargets
from tests.distill.test_loss import V, case, close, fused, gradients, plain


def kept(teacher, teacher_head, count):
    """The teacher's `count` most likely tokens, exactly."""
    log_probs, ids = (teacher.double() @ teacher_head.double().t()).log_softmax(-1).topk(count)
    return TopKTargets(ids, log_probs.to(teacher.dtype))


def bucketed(hidden, head, targets, labels, num_items):
    """KL of K tokens and one tail, from all logits."""
    log_q = (hidden.double() @ head.double().t()).log_softmax(-1)
    p = targets.log_probs_NK.double().exp()
    q_kept = log_q.exp().gather(1, targets.ids_NK)
    rest = torch.ones_like(log_q).scatter(1, targets.ids_NK, 0.0)
    p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)
    q = torch.cat([q_kept, (log_q.exp() * rest).sum(-1, keepdim=True)], -1)
    return ((p * (p / q).log()).sum(-1)[labels != -100].sum() / num_items,)


def from_cache(hidden, head, targets, labels, num_items, **kwargs):
    return fused_divergence(hidden, head, targets, labels, num_items=num_items, **kwargs)


@pytest.mark.parametrize("count", [1, 5, 30])
def test_top_k_and_tail(count):
    hidden, head, teacher, teacher_head, labels = case(torch.float64)
    targets = kept(teacher, teacher_head, count)
    actual = gradients(from_cache, hidden, head, targets, labels, num_items=19, chunk=5)
    for one, other in zip(actual, gradients(bucketed, hidden, head, targets, labels, num_items=19), strict=True):
        close(one, other, 1e-9)


def test_top_k_of_everything_is_the_teacher():
    hidden, head, teacher, teacher_head, labels = case()
    actual = gradients(from_cache, hidden, head, kept(teacher, teacher_head, V), labels, num_items=19)
    for one, other in zip(
        actual, gradients(fused, hidden, head, teacher, teacher_head, labels, num_items=19), strict=True
    ):
        close(one, other, 1e-6)


def test_top_k_with_the_next_token():
    hidden, head, teacher, teacher_head, labels = case()
    targets = kept(teacher, teacher_head, 5)
    actual = gradients(
        from_cache, hidden, head, targets, labels, num_items=19, objective=Objective(next_token_weight=0.3)
    )
    kl = gradients(bucketed, hidden, head, targets, labels, num_items=19)
    nll = gradients(plain, hidden, head, teacher, teacher_head, labels, num_items=19, weight=1.0)
    for one, first, second in zip(actual, kl, nll, strict=True):
        close(one, 0.7 * first + 0.3 * second, 1e-6)


def test_top_k_rounded_to_more_than_one_stays_finite():
    hidden, head, teacher, teacher_head, labels = case(scale=4.0)
    targets = kept(teacher, teacher_head, 40)
    targets.log_probs_NK += 1e-3
    for part in gradients(from_cache, hidden, head, targets, labels, num_items=19):
        assert part.isfinite().all()


@pytest.mark.parametrize(
    "objective", [Objective(beta=0.5), Objective(temperature=2.0), Objective(route_below_nats=1.0)], ids=str
)
def test_top_k_serves_the_plain_kl_alone(objective):
    hidden, head, teacher, teacher_head, labels = case()
    with pytest.raises(ValueError, match="with cached logits"):
        from_cache(hidden, head, kept(teacher, teacher_head, 5), labels, num_items=19, objective=objective)
