"""Time that grows as the input does, on any machine, however busy: ratios of one run, never seconds."""

import gc
import time

SMALL, TIMES = 5_000, 8  # characters, and how often as many the long text has
SLACK = 0.05  # s, as short times are mostly noise; quadratic work on 40,000 characters takes longer


def check_growth(call, make, small: int = SMALL) -> None:
    """
    Eight times the input takes about eight times as long; where every pair is looked at, it would be 64.

    Args:
        call: what is timed, in this thread alone.
        make: from a length to the argument of `call`.
        small (`int`, *optional*, defaults to 5000): the shorter length.

    Raises:
        AssertionError: three tries took over 24 times as long, or fail in `call` itself.
    """
    inputs = [make(small), make(TIMES * small)]
    best = [float("inf")] * 2
    for _ in range(3):
        best = [min(before, seconds_of(call, given)) for before, given in zip(best, inputs, strict=True)]
        if best[1] <= 3 * TIMES * best[0] + SLACK:
            return
    raise AssertionError(f"{best[0]:.3f} s for {small}, {best[1]:.3f} s for {TIMES} times as many: {inputs[0][:40]!r}")


def repeated(part: str):
    """`make` of [`check_growth`]: `part` again and again, as many characters as are asked for."""
    return lambda length: part * (length // len(part))


def seconds_of(call, given) -> float:
    gc.disable()  # a collection walks all that other tests left
    try:
        started = time.thread_time()
        call(given)
        return time.thread_time() - started
    finally:
        gc.enable()
