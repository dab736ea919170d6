"""Time and memory of the distillation loss beside other ways to compute it, forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/distill_loss.py > benchmarks/results/distill_loss_cpu.md
    OMP_NUM_THREADS=1 python benchmarks/distill_loss.py --lengths 512 1024 2048 4096 --plot benchmarks/results/x.png
    python benchmarks/distill_loss.py --device cuda --tokens 16384 --student 4096 --teacher 5120   # bf16, with Liger

Liger's loss takes part where `liger_kernel` is installed, our Triton kernel on GPUs.

Time is given as a multiple of the floor: the four matrix products that no method can do without (student's logits,
teacher's logits, gradient of the hidden states, gradient of the head). Each method runs in a process of its own, and
the floor is timed there too, in turns with the method, so that other load on the machine hurts both. Memory is the
growth of the process's resident set (a GPU's allocations) over one forward and backward pass; the gradients themselves
are part of it. With `--lengths` memory alone is measured, at each number of tokens.
"""

import argparse
import importlib.util
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


def liger(student_TD, head_VD, teacher_TE, teacher_head_VE, labels_T):
    """`LigerFusedLinearJSDLoss` at beta 0, the soft loss alone."""
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    compiled = torch.device(student_TD.device).type == "cuda"
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=compiled)
    # its compiled chunks need labels that require no gradient and inputs that do
    loss(student_TD, head_VD, teacher_TE, teacher_head_VE, labels_T).backward()


def ours(student_TD, head_VD, teacher_TE, teacher_head_VE, labels_T, kernel="torch"):
    """`hf_cascade.distill.loss.fused_divergence`."""
    from hf_cascade.distill.loss import fused_divergence
    from hf_cascade.distill.teacher import HiddenTargets

    targets = HiddenTargets(teacher_TE, teacher_head_VE)
    loss, _ = fused_divergence(student_TD, head_VD, targets, labels_T, num_items=len(labels_T), kernel=kernel)
    loss.backward()


def ours_triton(*tensors):
    """The same with the Triton kernel."""
    ours(*tensors, kernel="triton")


METHODS = {
    "floor": (floor, "four matrix products"),
    "naive": (naive, "all logits, torch's kl_div"),
    "trl_gkd": (trl_gkd, "TRL GKD, generalized JSD, beta 0"),
    "trl_chunked": (trl_chunked, "TRL ChunkedDivergenceFunction, beta 0"),
    "liger": (liger, "Liger LigerFusedLinearJSDLoss, beta 0"),
    "ours": (ours, "hf-cascade fused_divergence"),
    "ours_triton": (ours_triton, "hf-cascade fused_divergence, Triton"),
}


class Memory:
    """Growth of the device's memory since the object was made, in 10^6 bytes."""

    def __init__(self, device: str):
        import torch

        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def peak(self) -> float:
        """The most there was, not what there is."""
        import torch

        if self.device == "cuda":
            return (torch.cuda.max_memory_allocated() - self.before) / 1e6
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.before) / 1e6


def measure(name: str, settings) -> dict:
    """Peak memory in MB of one pass (10^6 bytes), seconds of the method and of the floor, in this process."""
    import torch

    torch.manual_seed(0)
    shapes = [(settings.tokens, settings.student), (settings.vocabulary, settings.student)]
    shapes += [(settings.tokens, settings.teacher), (settings.vocabulary, settings.teacher)]
    kind = {"device": settings.device, "dtype": torch.float32 if settings.device == "cpu" else torch.bfloat16}
    tensors = [torch.randn(*shape, **kind).mul_(shape[-1] ** -0.25) for shape in shapes]
    labels_T = torch.randint(0, settings.vocabulary, (settings.tokens,), device=settings.device)
    student_TD, head_VD = (tensor.requires_grad_() for tensor in tensors[:2])
    method, _ = METHODS[name]

    def wait() -> None:
        if settings.device == "cuda":
            torch.cuda.synchronize()

    def run(function) -> float:
        student_TD.grad = head_VD.grad = None
        wait()
        started = time.perf_counter()
        function(*tensors, labels_T)
        wait()
        return time.perf_counter() - started

    # Imports, compilation and the first product's workspace are not the method's memory.
    small = [tensor[:4].detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
    method(*small, labels_T.clamp(max=3)[:4])
    if settings.device == "cuda":
        run(method)
        student_TD.grad = head_VD.grad = None
    memory = Memory(settings.device)
    run(method)
    row = {"name": name, "megabytes": memory.peak()}
    if settings.lengths:
        return row
    seconds = [(run(method), run(floor)) for _ in range(settings.repeats)]
    row["seconds"] = statistics.median(own for own, _ in seconds)
    row["ratio"] = statistics.median(own / least for own, least in seconds)
    return row


def processor() -> str:
    """Name of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)}-core {platform.machine()}, {names[0]}" if names else platform.machine()


def in_own_process(name: str, tokens: int) -> dict | str:
    """`measure` in a fresh process; why not, where it fails."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--tokens", str(tokens)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"ended with status {answer.returncode}"]
        return f"failed: {lines[-1][:90]}"
    return json.loads(answer.stdout.splitlines()[-1])


def lengths(settings) -> None:
    """Memory against the number of tokens: a table, and a plot where one is asked for."""
    print("| method | " + " | ".join(f"{tokens:,} tokens" for tokens in settings.lengths) + " |")
    print("|---" * (len(settings.lengths) + 1) + "|", flush=True)
    found = {}
    for name in settings.methods:
        rows = {}
        for tokens in settings.lengths:
            too_much = 4 * tokens * settings.vocabulary * 5 > settings.limit_gigabytes * 1e9
            if name in ("naive", "trl_gkd") and too_much:
                continue
            row = in_own_process(name, tokens)
            if not isinstance(row, str):
                rows[tokens] = row["megabytes"]
        found[name] = rows
        cells = [f"{rows[tokens]:,.0f} MB" if tokens in rows else "–" for tokens in settings.lengths]
        print(f"| {METHODS[name][1]} | {' | '.join(cells)} |", flush=True)
    if settings.plot:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for name, rows in found.items():
            axes.plot(list(rows), list(rows.values()), marker="o", label=METHODS[name][1])
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="extra peak memory (MB)")
        axes.set_title(f"Loss and gradient at a vocabulary of {settings.vocabulary:,}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(settings.plot, dpi=150)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024, help="T")
    parser.add_argument("--vocabulary", type=int, default=131072, help="V; 131,072 is the paper's family's")
    parser.add_argument("--student", type=int, default=512, help="hidden size of the student")
    parser.add_argument("--teacher", type=int, default=1024, help="hidden size of the teacher")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each method")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--lengths", type=int, nargs="+", help="measure memory alone, at these numbers of tokens")
    parser.add_argument("--limit_gigabytes", type=float, default=12, help="leave out what needs all logits and more")
    parser.add_argument("--plot", help="with --lengths: a picture")
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run every method in a process of its own and print the table."""
    settings = make_parser().parse_args()
    if settings.one:
        print(json.dumps(measure(settings.one, settings)))
        return
    import torch
    import trl

    if settings.methods is None:
        left_out = {"ours_triton"} if settings.device == "cpu" else set()
        left_out |= set() if importlib.util.find_spec("liger_kernel") else {"liger"}
        settings.methods = [name for name in METHODS if name not in left_out]
    what = "Memory of the forward KL" if settings.lengths else f"Forward KL of {settings.tokens:,} tokens"
    print(f"# {what}, vocabulary {settings.vocabulary:,}, student {settings.student}, teacher {settings.teacher}\n")
    machine = torch.cuda.get_device_name() if settings.device == "cuda" else processor()
    kind = "bf16" if settings.device == "cuda" else f"{torch.get_num_threads()} thread(s); fp32"
    print(f"{machine}; {kind}; torch {torch.__version__}, trl {trl.__version__};")
    if settings.lengths:
        print("extra peak memory of one forward and backward pass, in 10^6 bytes.\n")
        return lengths(settings)
    print(f"median of {settings.repeats} passes, forward and backward. Memory in 10^6 bytes.\n")
    print("| method | x floor | seconds | extra peak MB |\n|---|---|---|---|", flush=True)
    for name in settings.methods:
        row = in_own_process(name, settings.tokens)
        if isinstance(row, str):
            print(f"| {METHODS[name][1]} | {row} | | |", flush=True)
            continue
        numbers = f"{row['ratio']:.2f} | {row['seconds']:.3g} | {row['megabytes']:,.0f}"
        print(f"| {METHODS[name][1]} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
