"""Which checkpoint a stopped stage goes on from: the newest that was written to its end."""

import json
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

STATE_FILE = "trainer_state.json"  # written last into a checkpoint: its presence means the checkpoint is whole


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in `folder` that was written to its end; None if there is none."""
    steps = {}
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.rpartition("-")[2]
        if step.isdigit() and (path / STATE_FILE).is_file():
            try:
                json.loads((path / STATE_FILE).read_text())
            except json.JSONDecodeError:
                continue  # the process was killed while writing it
            steps[int(step)] = str(path)
    return steps[max(steps)] if steps else None
