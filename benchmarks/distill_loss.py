"""Time and memory of the distillation loss beside other ways to compute it, forward and backward, on a CPU in fp32.

    OMP_NUM_THREADS=1 python benchmarks/distill_loss.py > benchmarks/results/distill_loss_cpu.md

Time is given as a multiple of the floor: the four matrix products that no method can do without (student's logits,
teacher's logits, gradient of the hidden states, gradient of the head). Each method runs in a process of its own, and
the floor is timed there too, in turns with the method, so that other load on the machine hurts both. Memory is the
growth of the process's resident set over one forward and backward pass; the gradients themselves are part of it.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

# T tokens, V vocabulary, D student hidden, E teacher hidden


def floor(student_TD, head_VD, teacher_TE, teacher_head_VE, labels_T):
    """The four products, through one [T, V] buffer."""
    import torch

    logits_TV = torch.mm(teacher_TE, teacher_head_VE.t())
    torch.mm(student_TD.detach(), head_VD.detach().t(), out=logits_TV)
    return torch.mm(logits_TV, head_VD.detach()), torch.mm(logits_TV.t(), student_TD.detach())


def naive(student_TD, head_VD, teacher_TE, teacher_head_VE, labels_T):
    """All logits, torch's own KL."""
    import torch
    from torch.nn import functional

    with torch.no_grad():
        log_p_TV = (teacher_TE @ teacher_head_VE.t()).log_softmax(-1)
    log_q_TV = (student_TD @ head_VD.t()).log_softmax(-1)
    (functional.kl_div(log_q_TV, log_p_TV, reduction="sum", log_target=True) / len(labels_T)).backward()


def trl_gkd(student_TD, head_VD, teacher_TE, teacher_head_VE, labels_T):
    """`generalized_jsd_loss` of TRL's GKD trainer at beta 0, which is the forward KL."""
    import torch
    from trl.experimental.gkd import GKDTrainer

    with torch.no_grad():
        teacher_TV = teacher_TE @ teacher_head_VE.t()
    GKDTrainer.generalized_jsd_loss(student_TD @ head_VD.t(), teacher_TV, labels_T, beta=0).backward()


def trl_chunked(student_TD, head_VD, teacher_TE, teacher_head_VE, labels_T):
    """`ChunkedDivergenceFunction` of TRL's distillation trainer at beta 0."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence_T, _ = ChunkedDivergenceFunction.apply(
        student_TD, head_VD, None, teacher_TE, teacher_head_VE, None, 0.0, 1.0, 1.0, None, 1.0, None
    )
    (divergence_T.sum() / len(labels_T)).backward()


def ours(student_TD, head_VD, teacher_TE, teacher_head_VE, labels_T):
    """`hf_cascade.distill.loss.fused_divergence`."""
    from hf_cascade.distill.loss import fused_divergence
    from hf_cascade.distill.teacher import HiddenTargets

    targets = HiddenTargets(teacher_TE, teacher_head_VE)
    loss, _ = fused_divergence(student_TD, head_VD, targets, labels_T, num_items=len(labels_T))
    loss.backward()


METHODS = {
    "floor": (floor, "four matrix products"),
    "naive": (naive, "all logits, torch's kl_div"),
    "trl_gkd": (trl_gkd, "TRL GKD, generalized JSD, beta 0"),
    "trl_chunked": (trl_chunked, "TRL ChunkedDivergenceFunction, beta 0"),
    "ours": (ours, "hf-cascade fused_divergence"),
}


def measure(name: str, settings) -> dict:
    """Peak memory in MB of one pass (10^6 bytes), seconds of the method and of the floor, in this process."""
    import torch

    torch.manual_seed(0)
    shapes = [(settings.tokens, settings.student), (settings.vocabulary, settings.student)]
    shapes += [(settings.tokens, settings.teacher), (settings.vocabulary, settings.teacher)]
    tensors = [torch.randn(*shape).mul_(shape[-1] ** -0.25) for shape in shapes]
    labels_T = torch.randint(0, settings.vocabulary, (settings.tokens,))
    student_TD, head_VD = (tensor.requires_grad_() for tensor in tensors[:2])
    method, _ = METHODS[name]

    def run(function) -> float:
        student_TD.grad = head_VD.grad = None
        started = time.perf_counter()
        function(*tensors, labels_T)
        return time.perf_counter() - started

    # Imports and the first product's workspace are not the method's memory.
    small = [tensor[:4].detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
    method(*small, labels_T.clamp(max=3)[:4])
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    run(method)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = [(run(method), run(floor)) for _ in range(settings.repeats)]
    return {
        "name": name,
        "megabytes": (peak - before) / 1e6,
        "seconds": statistics.median(own for own, _ in seconds),
        "ratio": statistics.median(own / least for own, least in seconds),
    }


def processor() -> str:
    """Name of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)}-core {platform.machine()}, {names[0]}" if names else platform.machine()


def main() -> None:
    """Run every method in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024, help="T")
    parser.add_argument("--vocabulary", type=int, default=131072, help="V; 131,072 is the paper's family's")
    parser.add_argument("--student", type=int, default=512, help="hidden size of the student")
    parser.add_argument("--teacher", type=int, default=1024, help="hidden size of the teacher")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each method")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.one:
        print(json.dumps(measure(settings.one, settings)))
        return
    import torch
    import trl

    print(f"# Forward KL of {settings.tokens:,} tokens, vocabulary {settings.vocabulary:,}, ", end="")
    print(f"student {settings.student}, teacher {settings.teacher}\n")
    versions = f"torch {torch.__version__}, trl {trl.__version__}"
    print(f"{processor()}; {torch.get_num_threads()} thread(s); fp32; {versions};")
    print(f"median of {settings.repeats} passes, forward and backward. Memory in 10^6 bytes.\n")
    print("| method | x floor | seconds | extra peak MB |\n|---|---|---|---|", flush=True)
    for name in settings.methods:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            print(f"| {METHODS[name][1]} | failed: {answer.stderr.strip().splitlines()[-1]} | | |", flush=True)
            continue
        row = json.loads(answer.stdout.splitlines()[-1])
        print(
            f"| {METHODS[name][1]} | {row['ratio']:.2f} | {row['seconds']:.2f} | {row['megabytes']:,.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
