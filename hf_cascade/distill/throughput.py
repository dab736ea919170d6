"""How fast a training is: tokens a second, model FLOP utilisation, and the teacher's share of a step.

`Throughput` counts while the trainer trains and is asked at every log. Nothing here makes a device wait: tokens are
summed where they are, a GPU's times are read from events at the log, and the wall clock is the host's, which the
trainer keeps in step by looking at every loss. Evaluation and checkpoints are left out.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from hf_cascade.anatomy import FAMILIES
from hf_cascade.costs import attention_windows, forward_flops, step_flops
from hf_cascade.machines import peak_flops
from hf_cascade.shape import text_config

PEAK_SECONDS = 0.2  # ours: how long matrices are multiplied to learn a device's rate
PEAK_WIDTH = {"cpu": 1024, "cuda": 8192}  # ours: large enough for its best rate
Keys = dict[int | None, float]  # keys a token attends to, for each attention window


@cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that `device` reaches in one large matrix product of `dtype`: the fastest of 0.2 seconds of them."""
    width = PEAK_WIDTH.get(device.type, PEAK_WIDTH["cpu"])
    factor = torch.ones(width, width, device=device, dtype=dtype)
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    best, until = float("inf"), None
    while until is None or time.perf_counter() < until:
        started = time.perf_counter()
        factor @ factor
        wait()
        if until is not None:  # the first one warms up
            best = min(best, time.perf_counter() - started)
        until = until or time.perf_counter() + PEAK_SECONDS
    return 2 * width**3 / best


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of `device`: its data sheet's dense rate where `hf_cascade.machines` lists it, else what it reaches."""
    if device.type == "cuda":
        listed = peak_flops(torch.cuda.get_device_name(device), str(dtype).removeprefix("torch."))
        if listed is not None:
            return listed
    return measured_peak(device, dtype)


def linear_parameters(model: nn.Module) -> tuple[int, float]:
    """Parameters of a model's linear layers (a vision tower's left out), and the share of them that is trained."""
    total = trained = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "vision_tower" not in name:
            size = getattr(module.weight, "ds_numel", module.weight.numel())  # DeepSpeed's ZeRO-3 holds a part
            total += size
            trained += size * module.weight.requires_grad
    return total, trained / max(total, 1)


def _flops(model: PreTrainedModel, trains: bool) -> tuple[Callable[[Keys], float], set[int | None]]:
    """FLOPs of one token as a function of its keys, and the windows of its attention."""
    matrices, trained = linear_parameters(model)
    config = model.config.to_dict()
    if text_config(config).get("model_type") not in FAMILIES:  # without attention, whose shape is not known
        constant = matrices * (4 + 2 * trained if trains else 2)
        return (lambda keys: constant), set()
    windows = set(attention_windows(config))
    if trains:
        return (lambda keys: step_flops(config, None, keys, trained=trained).student), windows
    return (lambda keys: sum(forward_flops(config, keys))), windows


class Throughput(TrainerCallback):
    """
    Counts tokens, FLOPs and seconds between two logs.

    FLOPs are the models' own (`hf_cascade.costs`): those of recomputation are not in them, attention is counted over
    the tokens of the same document alone, and of families that are not listed only linear layers count. The peak is the
    data sheet's of a listed GPU; of any other device the rate of its own matrix products, measured before training.

    Args:
        student (`PreTrainedModel`): what is trained, before it is sharded.
        teacher (`PreTrainedModel`, *optional*): the teacher, where this process runs it.
        device (`torch.device`): of this process.
        dtype (`torch.dtype`): of the factors in matrix products.
        gather (`Callable`, *optional*): [1, n] of every process to [processes, n]; unset, this one is alone.
        copies (`int`, *optional*, defaults to `1`): processes that read the same tokens (tensor parallelism).
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None = None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        gather: Callable[[Tensor], Tensor] = lambda rows: rows,
        copies: int = 1,
    ):
        self.device, self.dtype, self.gather, self.copies = device, dtype, gather, copies
        parts = [_flops(student, trains=True)] + ([_flops(teacher, trains=False)] if teacher is not None else [])
        self._per_token = [flops for flops, _ in parts]
        self._windows = sorted(set().union(*(windows for _, windows in parts)), key=lambda window: window or 0)
        self.peak: float | None = None
        self._mark: float | None = None
        self._teacher_now: list = []  # of a batch that is not finished: seconds, or pairs of events
        self._has_teacher = False
        self._reset()

    def _reset(self) -> None:
        self._seconds, self._teacher_then = 0.0, []
        self._sums = torch.zeros(1 + len(self._windows), dtype=torch.float64, device=self.device)

    @contextmanager
    def teacher(self):
        """Around whatever waits for the teacher: its forward pass, or its answer."""
        self._has_teacher = True
        if self.device.type == "cuda":
            span = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            span[0].record()
            yield
            span[1].record()
        else:
            started = time.perf_counter()
            yield
            span = time.perf_counter() - started
        self._teacher_now.append(span)

    def step(self, inputs: dict[str, Tensor]) -> None:
        """
        A batch has been trained on.

        Args:
            inputs (`dict`): `input_ids` [B, T], and `position_ids` [B, T] or `attention_mask` [B, T] where there are.
        """
        tokens, keys_N = seen(inputs)
        sums = [tokens, *((keys_N if window is None else keys_N.clamp(max=window)).sum() for window in self._windows)]
        self._sums += torch.stack(sums).to(self._sums)
        self._teacher_then += self._teacher_now
        self._teacher_now = []
        self._accrue()

    def metrics(self) -> dict[str, float]:
        """
        What happened since the last call, over all processes: `distill/tokens_per_second`, `distill/mfu` and, with a
        teacher, `distill/teacher_share`. Empty before the first batch. Every process must call it.
        """
        if self.peak is None:
            self.peak = device_peak(self.device, self.dtype)
        tokens, *keys = self._sums.tolist()
        mean = {window: total / max(tokens, 1) for window, total in zip(self._windows, keys, strict=True)}
        flops = tokens * sum(per_token(mean) for per_token in self._per_token)
        row = [tokens, flops, self._seconds, sum(map(_seconds, self._teacher_then)), self.peak]
        self._reset()
        rows = self.gather(torch.tensor([row], dtype=torch.float64, device=self.device)).tolist()
        return rates(rows, self.copies, self._has_teacher)

    def on_train_begin(self, args, state, control, **kwargs):
        """Learn the device's rate, then start the clock."""
        if self.peak is None:
            self.peak = device_peak(self.device, self.dtype)
        self._reset()
        self._skip()

    def on_step_end(self, args, state, control, **kwargs):
        """The optimizer's step belongs to training; what comes before the next callback may not."""
        self._accrue()

    def on_evaluate(self, args, state, control, **kwargs):
        """An evaluation is no training, and neither are the teacher's passes in it."""
        self._skip()

    def on_save(self, args, state, control, **kwargs):
        """Nor is writing a checkpoint."""
        self._skip()

    def _accrue(self) -> None:
        now = time.perf_counter()
        self._seconds += 0.0 if self._mark is None else now - self._mark
        self._mark = now

    def _skip(self) -> None:
        self._mark, self._teacher_now = time.perf_counter(), []


def _seconds(span) -> float:
    """Seconds of a teacher's pass; waits for a GPU to be past it, as a log does anyway."""
    if isinstance(span, float):
        return span
    span[1].synchronize()
    return span[0].elapsed_time(span[1]) / 1000


def seen(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """
    Tokens of a batch, padding left out, and the keys each may attend to: those before it in its document, and itself.

    Args:
        inputs (`dict`): as of [`Throughput.step`].
    """
    ids, mask, positions = (inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    is_padded = mask is not None and mask.shape == ids.shape
    real = mask.ne(0) if is_padded else torch.ones_like(ids, dtype=torch.bool)
    if positions is None or positions.shape != ids.shape:
        keys = real.cumsum(-1)
    else:
        keys = positions + 1
    return real.sum(), (keys * real).flatten()


def rates(rows: list[list[float]], copies: int = 1, has_teacher: bool = True) -> dict[str, float]:
    """
    Metrics of all processes: sums of tokens and FLOPs, over the seconds of the slowest.

    Args:
        rows (`list[list[float]]`): of each process tokens, FLOPs, seconds, teacher's seconds, and peak FLOP/s.
        copies (`int`): processes that count the same tokens.
        has_teacher (`bool`): whether there is a share to tell.
    """
    tokens, flops, seconds, teacher, peaks = (list(column) for column in zip(*rows, strict=True))
    if not sum(tokens) or not sum(seconds):
        return {}
    metrics = {
        "distill/tokens_per_second": sum(tokens) / copies / max(seconds),
        "distill/mfu": sum(flops) / copies / (max(seconds) * sum(peaks)),
    }
    return metrics | ({"distill/teacher_share": sum(teacher) / sum(seconds)} if has_teacher else {})
