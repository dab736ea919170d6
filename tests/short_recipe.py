"""A shipped recipe with a few steps a stage, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

from hf_cascade import assets


def run(recipe: str, folder: Path, settings: dict[str, dict]) -> Path:
    """
    Run a recipe to its end.

    Args:
        recipe (`str`): its place among the shipped ones.
        folder (`Path`): for its stages.
        settings (`dict[str, dict]`): stage to flags that are other than the recipe's.

    Returns:
        `Path`: `folder`.
    """
    given = [f"{name}.{flag}={value}" for name, flags in settings.items() for flag, value in flags.items()]
    command = [sys.executable, "-m", "hf_cascade.cli", "run", str(assets.find(recipe)), "--output_dir", str(folder)]
    done = subprocess.run(
        [*command, *(part for one in given for part in ("--set", one))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return folder
