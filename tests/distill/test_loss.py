"""The fused loss against a plain float64 KL written out here, then its invariances and its memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_cascade.distill.divergences import Objective
from hf_cascade.distill.loss import chunk_tokens, fused_chunks, fused_divergence
from hf_cascade.distill.teacher import HiddenTargets

# N tokens, V vocabulary, D student hidden, E teacher hidden
N, V, D, E = 23, 57, 12, 20
ROUTE = 1.2  # nats: about half of the tokens of `case`


def case(dtype=torch.float32, seed=0, scale=1.0):
    """Student hidden and head with gradients, teacher hidden and head, labels with some left out."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    labels = torch.randint(0, V, (N,), generator=generator)
    labels[[0, 4, 5, N - 1]] = -100
    return draw(N, D).requires_grad_(), draw(V, D).requires_grad_(), draw(N, E), draw(V, E), labels


def capped(logits, cap):
    return logits if cap is None else cap * torch.tanh(logits / cap)


def jsd(log_p, log_q, beta):
    """[N] generalized JSD as its definition says."""
    if beta in (0, 1):
        one, other = (log_p, log_q) if beta == 0 else (log_q, log_p)
        return (one.exp() * (one - other)).sum(-1)
    middle = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * jsd(log_p, middle, 0) + (1 - beta) * jsd(log_q, middle, 0)


def plain(
    hidden,
    head,
    teacher,
    teacher_head,
    labels,
    num_items,
    temperature=1.0,
    beta=0.0,
    weight=0.0,
    route=0.0,
    cap=None,
    teacher_cap=None,
):
    """Divergence and NLL of all logits at once, in float64; returns (loss, divergence, NLL, share routed)."""
    student = capped(hidden.double() @ head.double().t(), cap)
    teacher = capped(teacher.double() @ teacher_head.double().t(), teacher_cap)
    log_q, log_p = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    counts = labels != -100
    kl = temperature**2 * jsd(log_p, log_q, beta)[counts]
    nll = -student.log_softmax(-1)[counts].gather(1, labels[counts, None]).squeeze(1)
    routed = -(log_p.exp() * log_p).sum(-1)[counts] < route
    loss = torch.where(routed, nll, (1 - weight) * kl + weight * nll)
    return *(part.sum() / num_items for part in (loss, kl, nll)), routed.sum() / num_items


def gradients(function, hidden, head, *rest, **kwargs):
    """Loss, gradient of hidden, gradient of head; float64 leaves for the plain loss."""
    loss, *_ = function(hidden, head, *rest, **kwargs)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, head))


def close(actual, expected, tolerance):
    """Largest difference against the largest entry."""
    difference = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert difference <= tolerance, f"relative difference {difference:.2e}, allowed {tolerance:.0e}"


OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 2.5},
    "mixture": {"weight": 0.3},
    "next token alone": {"weight": 1.0},
    "reverse": {"beta": 1.0},
    "jsd": {"beta": 0.5},
    "skewed jsd": {"beta": 0.1, "temperature": 2.0, "weight": 0.2, "cap": 3.0},
    "routed": {"route": ROUTE},
    "routed jsd": {"route": ROUTE, "beta": 0.5},
    "softcap": {"cap": 3.0, "teacher_cap": 2.0},
    "student softcap": {"cap": 2.0},
    "teacher softcap": {"teacher_cap": 2.0},
    "all": {"temperature": 0.7, "weight": 0.6, "cap": 3.0, "teacher_cap": 4.0, "route": 2.75},
}
NAMES = {"weight": "next_token_weight", "route": "route_below_nats"}


def fused(hidden, head, teacher, teacher_head, labels, num_items, chunk=None, cap=None, teacher_cap=None, **options):
    objective = Objective(**{NAMES.get(name, name): value for name, value in options.items()})
    targets = HiddenTargets(teacher, teacher_head, teacher_cap)
    return fused_divergence(
        hidden, head, targets, labels, num_items=num_items, chunk=chunk, softcap=cap, objective=objective
    )


def tolerance(options) -> float:
    """1e-6; the ablations multiply log ratios by probabilities of the fp32 logits, which costs a bit."""
    return 2e-6 if options.get("beta") else 1e-6


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_float64_in_fp32(options):
    tensors = case()
    actual = gradients(fused, *tensors, num_items=19, chunk=5, **options)
    expected = gradients(plain, *tensors, num_items=19, **options)
    for one, other in zip(actual, expected, strict=True):
        close(one, other, tolerance(options))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradcheck(options):
    hidden, head, *rest = case(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: fused(h, w, *rest, num_items=19, chunk=7, **options)[0], (hidden, head), fast_mode=True
    )


def test_parts_are_the_two_losses():
    tensors = case()
    loss, parts = fused(*tensors, num_items=19, weight=0.25)
    _, kl, nll, _ = plain(*tensors, num_items=19)
    close(torch.stack(parts[:2]), torch.stack([kl, nll]), 1e-6)
    close(loss, 0.75 * kl + 0.25 * nll, 1e-6)
    assert not any(part.requires_grad for part in parts)
    assert fused(*tensors, num_items=19)[1][1:] == (0, 0)


def test_routing_is_by_the_teachers_entropy():
    tensors = case()
    loss, parts = fused(*tensors, num_items=19, route=ROUTE)
    expected = plain(*tensors, num_items=19, route=ROUTE)
    assert 0.2 < parts.routed < 0.8, "else the test says nothing"
    for one, other in zip((loss, *parts), expected, strict=True):
        close(one, other, 1e-6)
    everywhere = gradients(fused, *tensors, num_items=19, route=100.0)
    for one, other in zip(everywhere, gradients(plain, *tensors, num_items=19, weight=1.0), strict=True):
        close(one, other, 1e-6)


def test_of_equal_models_is_zero():
    hidden, head, *_, labels = case()
    loss, grad_hidden, grad_head = gradients(fused, hidden, head, hidden.detach(), head.detach(), labels, num_items=19)
    assert abs(loss) < 1e-6 and grad_hidden.abs().max() < 1e-6 and grad_head.abs().max() < 1e-6


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]], ids=["plain", "all"])
def test_bf16_gradient_is_within_half_a_percent(options):
    tensors = case(torch.bfloat16)
    actual = gradients(fused, *tensors, num_items=19, **options)
    # the same rounded inputs in float64: what is left is the loss's own error
    exact = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in tensors]
    expected = gradients(plain, *exact, num_items=19, **options)
    assert actual[0].dtype == torch.float32 and actual[1].dtype == actual[2].dtype == torch.bfloat16
    for one, other in zip(actual, expected, strict=True):
        assert (one.double() - other).norm() <= 0.005 * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_round_the_logits(dtype):
    """The trainers' `bf16=True` runs the loss under autocast, which would make every product bf16."""
    tensors = case(dtype, scale=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(fused, *tensors, num_items=19)
    # autocast rounds the inputs of a linear layer, and nothing else may be rounded
    rounded = [t.detach().bfloat16().double().requires_grad_() if t.is_floating_point() else t for t in tensors]
    expected = gradients(plain, *rounded, num_items=19)
    close(actual[0], expected[0], 1e-6)
    for one, other in zip(actual[1:], expected[1:], strict=True):
        assert (one.double() - other).norm() <= 0.005 * other.norm()


def test_tied_head_gets_both_gradients():
    _, table, teacher, teacher_head, labels = case()
    ids = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(3))
    grads = [
        torch.autograd.grad(loss(table[ids].tanh(), table, teacher, teacher_head, labels, num_items=19)[0], table)[0]
        for loss in (fused, plain)
    ]
    close(*grads, 1e-6)


def test_ignored_positions_do_not_matter():
    hidden, head, teacher, teacher_head, labels = case()
    counts = labels != -100
    whole = gradients(fused, hidden, head, teacher, teacher_head, labels, num_items=19)
    kept = hidden[counts].detach().requires_grad_()
    part = gradients(fused, kept, head, teacher[counts], teacher_head, labels[counts], num_items=19)
    assert whole[1][~counts].abs().max() == 0
    close(whole[0], part[0], 1e-6)
    close(whole[1][counts], part[1], 1e-6)
    close(whole[2], part[2], 1e-6)


@pytest.mark.parametrize("count", [0, 3])
def test_no_labels_is_zero_with_gradients(count):
    hidden, head, teacher, teacher_head, labels = case()
    hidden = hidden[:count].detach().requires_grad_()
    nothing = torch.full_like(labels[:count], -100)
    loss, *grads = gradients(fused, hidden, head, teacher[:count], teacher_head, nothing, num_items=0)
    assert loss == 0 and all(grad.abs().sum() == 0 for grad in grads)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("chunk", [1, 7, N, N + 100])
def test_chunk_size_changes_nothing(chunk, options):
    tensors = case()
    actual = gradients(fused, *tensors, num_items=19, chunk=chunk, **options)
    for one, other in zip(actual, gradients(fused, *tensors, num_items=19, **options), strict=True):
        close(one, other, tolerance(options))


def test_num_items_divides_and_may_be_a_tensor():
    tensors = case()
    once = gradients(fused, *tensors, num_items=1)
    for number in (7, 7.0, torch.tensor(7)):
        for one, other in zip(gradients(fused, *tensors, num_items=number), once, strict=True):
            close(one * 7, other, 1e-6)


def test_halves_add_up():
    hidden, head, teacher, teacher_head, labels = case()
    whole = fused(hidden, head, teacher, teacher_head, labels, num_items=19)[0]
    halves = sum(
        fused(hidden[rows], head, teacher[rows], teacher_head, labels[rows], num_items=19)[0]
        for rows in (slice(0, 9), slice(9, N))
    )
    close(halves, whole, 1e-6)


def test_incoming_gradient_scales_and_may_come_twice():
    hidden, head, *rest = case()
    loss, _ = fused(hidden, head, *rest, num_items=19)
    once = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    thrice = torch.autograd.grad(loss * 3, (hidden, head), retain_graph=True)
    again = torch.autograd.grad(loss, (hidden, head))
    for one, three, last in zip(once, thrice, again, strict=True):
        close(three, one * 3, 1e-6)
        assert torch.equal(one, last)


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_frozen_side_gets_no_gradient(frozen):
    hidden, head, *rest = case()
    {"hidden": hidden, "head": head}[frozen].requires_grad_(False)
    loss, _ = fused(hidden, head, *rest, num_items=19)
    loss.backward()
    expected = gradients(plain, *case(), num_items=19)
    assert (hidden.grad if frozen == "hidden" else head.grad) is None
    close(*((head.grad, expected[2]) if frozen == "hidden" else (hidden.grad, expected[1])), 1e-6)


def test_extreme_logits_stay_finite():
    tensors = case(scale=40.0)
    actual = gradients(fused, *tensors, num_items=19)
    expected = gradients(plain, *tensors, num_items=19)
    for one, other in zip(actual, expected, strict=True):
        assert one.isfinite().all()
        close(one, other, 1e-5)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest floating tensor any operation returned, and how many matrix products ran."""

    def __init__(self):
        super().__init__()
        self.elements, self.products = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.hf_cascade.fused_divergence.default:
            with self:  # look inside
                return fused_chunks(*args[:7], *args[7], args[8], Objective(*args[9]), args[10:12], args[12])
        result = function(*args, **(kwargs or {}))
        self.products += "mm" in function.overloadpacket.__name__
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_logits_of_all_tokens_never_exist(options):
    generator = torch.Generator().manual_seed(0)
    tokens, vocabulary, chunk = 200, 300, 8
    hidden = torch.randn(tokens, D, generator=generator).requires_grad_()
    head = torch.randn(vocabulary, D, generator=generator).requires_grad_()
    teacher = torch.randn(tokens, E, generator=generator)
    teacher_head = torch.randn(vocabulary, E, generator=generator)
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    with LargestTensor() as largest:
        fused(hidden, head, teacher, teacher_head, labels, num_items=tokens, chunk=chunk, **options)[0].backward()
    assert 0 < largest.elements <= vocabulary * max(chunk, D, E) < tokens * vocabulary


@pytest.mark.parametrize("how", ["no_grad", "frozen"])
def test_evaluation_computes_no_gradient(how):
    tensors = case()
    with LargestTensor() as largest:
        if how == "no_grad":
            with torch.no_grad():
                loss, _ = fused(*tensors, num_items=19, chunk=N)
        else:
            loss, _ = fused(*[t.detach() for t in tensors], num_items=19, chunk=N)
    assert not loss.requires_grad
    assert largest.products == 2, "evaluation needs the two heads' products and no other"


def test_teacher_gets_no_gradient():
    hidden, head, teacher, teacher_head, labels = case()
    teacher.requires_grad_(), teacher_head.requires_grad_()
    fused(hidden, head, teacher, teacher_head, labels, num_items=19)[0].backward()
    assert teacher.grad is None and teacher_head.grad is None


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_agrees_with_trl(beta, temperature):
    kernels = pytest.importorskip("trl.kernels.chunked_divergence")
    hidden, head, teacher, teacher_head, labels = case()
    counts = labels != -100
    divergence, _ = kernels.ChunkedDivergenceFunction.apply(
        hidden, head, None, teacher, teacher_head, None, beta, temperature, 1.0, None, 1.0, None
    )
    divergence = divergence * temperature**2  # TRL leaves the scale to the learning rate
    expected = torch.autograd.grad((divergence * counts).sum() / 19, (hidden, head))
    actual = gradients(
        fused, hidden, head, teacher, teacher_head, labels, num_items=19, beta=beta, temperature=temperature
    )
    close(actual[0], (divergence * counts).sum().detach() / 19, 1e-6)
    close(actual[1], expected[0], 2e-6)
    close(actual[2], expected[1], 2e-6)


WRONG = {
    "vocabulary": lambda h, w, t, u, n: (h, w[1:], t, u, n),
    "tokens": lambda h, w, t, u, n: (h[1:], w, t, u, n),
    "labels": lambda h, w, t, u, n: (h, w, t, u, n[1:]),
    "student hidden": lambda h, w, t, u, n: (h[:, 1:], w, t, u, n),
    "teacher hidden": lambda h, w, t, u, n: (h, w, t[:, 1:], u, n),
    "batched": lambda h, w, t, u, n: (h[None], w, t[None], u, n[None]),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_shapes_that_do_not_fit(wrong):
    with pytest.raises(ValueError, match="student .* teacher .* labels"):
        fused(*wrong(*case()), num_items=19)


@pytest.mark.parametrize("chunk", [0, -3])
def test_chunk_must_be_positive(chunk):
    with pytest.raises(ValueError, match=f"chunk={chunk}"):
        fused(*case(), num_items=19, chunk=chunk)


def test_unknown_kernel():
    hidden, head, teacher, teacher_head, labels = case()
    targets = HiddenTargets(teacher, teacher_head)
    with pytest.raises(ValueError, match="kernel='fast': allowed are torch, triton"):
        fused_divergence(hidden, head, targets, labels, num_items=19, kernel="fast")


def test_default_chunk_holds_64_mib():
    assert chunk_tokens(131072) == 128 and chunk_tokens(131072, "cuda") == 1024
    assert chunk_tokens(10**9) == 1


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]], ids=["plain", "all"])
def test_compiles_without_a_graph_break(options):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *tensors: fused(*tensors, num_items=19, chunk=9, **options), fullgraph=True)
    tensors = case()
    actual = gradients(compiled, *tensors)
    for one, other in zip(actual, gradients(fused, *tensors, num_items=19, chunk=9, **options), strict=True):
        close(one, other, 2e-6)
    with torch.no_grad():
        close(compiled(*tensors)[0], actual[0], 2e-6)
