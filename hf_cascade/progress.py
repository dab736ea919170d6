"""How far a stage is, told to whoever started its process: one JSON line an event, in the file the runner names."""

import json
import os
import sys
import time

EVENTS_VARIABLE = "HF_CASCADE_EVENTS"
SECONDS_BETWEEN = 0.25

_state = {"last": 0.0, "start": None, "complained": False}


def report(
    step: int, total: int, *, tokens: int | None = None, loss: float | None = None, label: str | None = None
) -> None:
    """
    Say how far this stage is; does nothing unless a runner listens, and at most four times a second.

    Args:
        step (`int`), total (`int`): how many of how many.
        tokens (`int`, *optional*): tokens worked through so far.
        loss (`float`, *optional*): newest loss.
        label (`str`, *optional*): what is being counted.
    """
    path = os.environ.get(EVENTS_VARIABLE)
    now = time.monotonic()
    if not path or (now - _state["last"] < SECONDS_BETWEEN and step < total):
        return
    if _state["start"] is None:
        _state["start"] = (now, tokens or 0)
    _state["last"] = now
    seconds = now - _state["start"][0]
    rate = (tokens - _state["start"][1]) / seconds if tokens and seconds > 0 else None
    loss = None if loss is None else float(loss)
    event = {"step": step, "total": total, "tokens": tokens, "loss": loss, "tokens_per_second": rate, "label": label}
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
    except OSError as error:  # a full disk must not end a training that does not need these lines
        if not _state["complained"]:
            print(f"hf-cascade: progress cannot be reported: {error}", file=sys.stderr)
            _state["complained"] = True
