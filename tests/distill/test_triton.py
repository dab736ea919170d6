"""The Triton kernel against the torch path, its oracle: on a GPU where there is one, else in Triton's interpreter.

    TRITON_INTERPRET=1 python -m pytest tests/distill/test_triton.py

The interpreter needs Triton, which CPU builds of torch do not bring (`pip install triton`).
"""

import os

import pytest
import torch

from hf_cascade.distill.divergences import Objective
from hf_cascade.distill.loss import fused_divergence
from hf_cascade.distill.teacher import HiddenTargets
from tests.distill.test_loss import NAMES, OPTIONS, D, E, case, close

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and TRITON_INTERPRET=1 is not set")
FORWARD = {name: options for name, options in OPTIONS.items() if not options.get("beta")}


def both(tensors, **options):
    """Loss, parts and gradients by the kernel and by torch."""
    cap, teacher_cap = options.pop("cap", None), options.pop("teacher_cap", None)
    objective = Objective(**{NAMES.get(name, name): value for name, value in options.items()})
    answers = []
    for kernel in ("triton", "torch"):
        hidden, head, teacher, teacher_head, labels = (part.detach().to(DEVICE) for part in tensors)
        hidden.requires_grad_(), head.requires_grad_()
        loss, parts = fused_divergence(
            *(hidden, head, HiddenTargets(teacher, teacher_head, teacher_cap), labels),
            **{"num_items": 19, "objective": objective, "chunk": 9, "softcap": cap, "kernel": kernel},
        )
        answers.append([loss.detach(), *parts, *torch.autograd.grad(loss, (hidden, head))])
    return zip(*answers, strict=True)


def same(ours, oracle, tolerance):
    if oracle.abs().max() == 0:
        assert ours.abs().max() == 0
    else:
        close(ours, oracle, tolerance)


@runs
@pytest.mark.parametrize("options", FORWARD.values(), ids=FORWARD)
def test_is_the_torch_path(options):
    pytest.importorskip("triton")
    for ours, oracle in both(case(), **options):
        same(ours, oracle, 2e-6)


@runs
@pytest.mark.parametrize("vocabulary", [4096, 4097, 9000])
def test_rows_of_more_than_one_block(vocabulary):
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(1)
    shapes = [(6, D), (vocabulary, D), (6, E), (vocabulary, E)]
    tensors = [torch.randn(*shape, generator=generator) for shape in shapes]
    labels = torch.tensor([vocabulary - 1, 4095, 0, -100, 4, 5])
    for ours, oracle in both([*tensors, labels], temperature=1.5, weight=0.2, route=3.0):
        same(ours, oracle, 4e-6)


@runs
def test_extreme_logits_stay_finite():
    pytest.importorskip("triton")
    for ours, oracle in both(case(scale=40.0)):
        assert ours.isfinite().all()
        same(ours, oracle, 1e-5)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("options", [False, True])
def test_compiles_for_gpus_that_are_not_here(options):
    """To machine code of compute capability 8.0 and 9.0, without local memory, that is without spilled registers."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hf_cascade.distill.triton_kernel import WARPS, _forward_kl

    flags = ("READS_LABELS", "CAPPED", "TEACHER_CAPPED")
    constants = {**dict.fromkeys(flags, options), "BLOCK": 4096}
    types = {"label_ptr": "*i64", "student_stride": "i32", "teacher_stride": "i32", "vocabulary": "i32"}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*fp32" if name.endswith("ptr") else "fp32")
        for name in _forward_kl.arg_names
    }
    places = {(_forward_kl.arg_names.index(name),): value for name, value in constants.items()}
    for capability in (80, 90):
        built = triton.compile(
            ASTSource(fn=_forward_kl, signature=signature, constexprs=places),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": WARPS},
        )
        assert len(built.asm["cubin"]) > 0 and ".local" not in built.asm["ptx"]


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernel runs here")
def test_refused_where_it_cannot_run():
    hidden, head, teacher, teacher_head, labels = case()
    with pytest.raises(ValueError, match="loss_kernel='triton' .*'torch'"):
        fused_divergence(hidden, head, HiddenTargets(teacher, teacher_head), labels, num_items=19, kernel="triton")


@runs
def test_other_divergences_are_refused():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="beta=0.5"):
        list(both(case(), beta=0.5))
