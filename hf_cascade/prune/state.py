"""Where a killed pruning is taken up again: the decisions, and from time to time the streams, in the draft's folder."""

import json
import os
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

FILES = ("decisions.safetensors", "streams.safetensors")
SECONDS_BETWEEN = 120.0  # at most this much work is lost, and saving costs little of it; ours


class NoState:
    """Nothing is kept: for models in memory."""

    def load_job(self):
        """No decisions."""

    def save_job(self, job) -> None:
        """Forget them."""

    def load_streams(self, builders):
        """No streams."""

    def save_streams(self, number: int, x, spectra, builders) -> None:
        """Forget them."""


class FolderState:
    """
    State of one pruning in a folder.

    Args:
        folder (`Path`): the draft's.
        seconds (`float`, *optional*): between two savings of the streams.
    """

    def __init__(self, folder: Path, seconds: float | None = None):
        self.folder = folder
        self.seconds = SECONDS_BETWEEN if seconds is None else seconds
        self._saved = time.monotonic()

    def load_job(self):
        """The decisions as a `pipeline.Job`, or `None`."""
        from hf_cascade.prune.pipeline import Job
        from hf_cascade.prune.plan import PrunePlan

        loaded = self._load("decisions")
        if loaded is None:
            return None
        tensors, facts = loaded
        plan = PrunePlan(rotation=tensors.pop("rotation", None), **facts["plan"])
        scores = [tensors[f"scores-{number}"] for number in range(len(tensors))]
        return Job(plan, facts["tie_scale"], scores)

    def save_job(self, job) -> None:
        """Keep the decisions; the embedding and the rest are written by then."""
        job.writer.sync()
        tensors = {f"scores-{number}": value for number, value in enumerate(job.ffn_scores)}
        if job.plan.rotation is not None:
            tensors["rotation"] = job.plan.rotation
        plan = {name: value for name, value in vars(job.plan).items() if name != "rotation"}
        self._save("decisions", tensors, {"plan": plan, "tie_scale": job.tie_scale})

    def load_streams(self, builders):
        """(next layer, the parent's stream, spectra) with the builder's streams put back, or `None`."""
        loaded = self._load("streams")
        if loaded is None:
            return None
        tensors, facts = loaded
        (builder,) = builders
        for name in ("stream", "plain"):
            setattr(builder, name, [tensors[f"{name}-{n}"] for n in range(len(getattr(builder, name)))])
        builder.ffn_kept_score = facts["ffn_kept_score"]
        x = [tensors[f"x-{number}"] for number in range(len(builder.text.batches))]
        return facts["layer"], x, facts["spectra"]

    def save_streams(self, number: int, x, spectra, builders) -> None:
        """Keep the streams before layer `number`, when the last time is long ago and no layer is half built."""
        (builder,) = builders
        if builder.layer is not None or time.monotonic() - self._saved < self.seconds:
            return
        builder.writer.sync()
        parts = {"x": x, "stream": builder.stream, "plain": builder.plain}
        tensors = {f"{name}-{n}": part for name, stream in parts.items() for n, part in enumerate(stream)}
        facts = {"layer": number, "ffn_kept_score": builder.ffn_kept_score, "spectra": spectra}
        self._save("streams", tensors, facts)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete it: the pruning is done."""
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)

    def _save(self, name: str, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        """One file replaces the one before it whole; the facts travel in its header."""
        draft = self.folder / f"{name}.tmp"
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        try:
            save_file(tensors, draft, metadata={"facts": json.dumps(facts)})
        except SafetensorError as error:  # the disk is full
            raise OSError(f"{draft} cannot be written: {error}") from error
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, self.folder / f"{name}.safetensors")

    def _load(self, name: str):
        from safetensors import safe_open

        file = self.folder / f"{name}.safetensors"
        if not file.is_file():
            return None
        with safe_open(file, framework="pt") as opened:
            facts = json.loads(opened.metadata()["facts"])
        return load_file(file), facts
