"""`hf-cascade prune`: a model folder or Hub id in, a pruned model folder out; the model never is in memory whole."""

import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import HfArgumentParser
from trl import TrlParser

from hf_cascade import manifest, pruning_plots
from hf_cascade.anatomy import TOWER
from hf_cascade.loading import copy_companions, load_config, local_weights
from hf_cascade.prune.child import check_target, child_config, is_own_shape, target_shape
from hf_cascade.prune.config import PruneArguments, PruneConfig
from hf_cascade.prune.draft import Draft
from hf_cascade.prune.parent import Parent, skeleton
from hf_cascade.prune.pipeline import prune
from hf_cascade.prune.search import budget, find_shape
from hf_cascade.prune.shards import check_shard_size
from hf_cascade.prune.statistics import scoring_tokens
from hf_cascade.prune.text import CalibrationText, read_text

REPORT = "prune_report.json"
PLOTS = "prune_plots"


def make_parser() -> HfArgumentParser:
    """Flags of `hf-cascade prune`; `--config FILE` reads them from YAML."""
    return TrlParser((PruneConfig, PruneArguments), prog="hf-cascade prune", description=__doc__)


def main(argv: list[str]) -> int:
    """
    Prune and save; everything that can be checked is checked before weights are read.

    Raises:
        ValueError, FileNotFoundError: bad input, nothing written.
        OSError: the disk is full; the same command goes on once there is room.
    """
    config, arguments = make_parser().parse_args_and_config(argv)
    folder = Path(arguments.output_dir)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"output_dir={folder} is not empty: name a folder that is new or empty")
    parent_config = load_config(arguments.model)
    check_target(parent_config, config)
    device = _device(arguments.device)
    check_shard_size(arguments.max_shard_size)
    searches = budget(arguments, parent_config) if arguments.target_parameters or arguments.target_memory else None
    text = None
    if searches or not is_own_shape(parent_config, config):
        text = read_text(arguments, parent_config)

    started = time.monotonic()
    weights = local_weights(arguments.model)
    parent = Parent.from_checkpoint(weights, parent_config, device)
    settings = _settings(config, arguments)
    identity = {"settings": settings, "weights": _identity(weights), "text": text.sha256 if text else None}
    draft = Draft(folder, identity | {"max_shard_size": arguments.max_shard_size})
    parent = replace(parent, scratch=draft.folder)
    try:
        frontier = None
        if searches:
            text_alone = text.calibration(parent, arguments.batch_size)
            config, frontier = find_shape(draft, parent, config, searches, text_alone)
        if arguments.search_only:
            draft.discard()
        else:
            _prune_into(draft, parent, config, arguments, text, started, frontier)
    except ValueError:
        draft.discard()  # the same command would fail again
        raise
    except OSError as error:
        if not draft.folder.is_dir():
            raise
        raise OSError(f"{error}; {draft.folder} stays, and the same command goes on with it") from error
    return 0


def _prune_into(
    draft: Draft, parent: Parent, config, arguments, text: CalibrationText | None, started, frontier
) -> None:
    """Everything after the checks: fill the draft, then move it to its place."""
    chosen = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)

    def dtype_of(name: str) -> torch.dtype:
        return parent.stored_dtype(name) if chosen is None or name.startswith(TOWER) else chosen

    def make_writer(child):
        return draft.writer(child, dtype_of, arguments.max_shard_size)

    if draft.is_resumed:
        print(f"hf-cascade: going on with {draft.folder}", file=sys.stderr)
    draft.check_room(_needed_bytes(parent, config, chosen or parent.stored, text))
    batches, held_out = ([], 0) if text is None else text.batches(arguments.batch_size)
    images = None if text is None else text.project(parent)
    child, report = prune(parent, config, batches, held_out, make_writer, images=images, state=draft.state)
    if frontier is not None:
        report["frontier"] = frontier
    child.config.architectures = [type(child).__name__]
    child.config.dtype = chosen or parent.stored
    child.config.save_pretrained(draft.folder)
    copy_companions(arguments.model, draft.folder)
    (draft.folder / REPORT).write_text(json.dumps(report, indent=1))
    if text is not None:
        (draft.folder / PLOTS).mkdir(exist_ok=True)
        pruning_plots.pruning(report, draft.name, draft.folder / PLOTS)
    metrics = {"seconds": time.monotonic() - started}
    if text is not None:
        metrics |= {"calibration_tokens": text.tokens, "calibration_sha256": text.sha256}
        metrics |= {"held_out": report["held_out"]} if "held_out" in report else {}
    manifest.write(
        draft.folder,
        stage=draft.name,
        run="prune",
        config=_settings(config, arguments),
        inputs={"model": arguments.model},
        metrics=metrics,
        output=manifest.describe(draft.folder, child.num_parameters()),
    )
    draft.publish()
    print(f"{draft.target}: {child.num_parameters():,} parameters from {parent.model.num_parameters():,}")
    if "held_out" in report:
        print(_sentence(report["held_out"]))


def _needed_bytes(parent: Parent, config: PruneConfig, dtype: torch.dtype, text: CalibrationText | None) -> int:
    """Most that the disk will hold: weights, and saved streams (old beside new) or `fisher`'s layer inputs."""
    decoder, shape = parent.config.get_text_config(), target_shape(parent.config, config)
    layers = list(range(shape["num_hidden_layers"]))
    weights = skeleton(child_config(parent.config, config, layers)).num_parameters() * dtype.itemsize
    if text is None:
        return weights
    streams = 2 * text.all_tokens * (decoder.hidden_size + shape["hidden_size"])
    narrows = shape["hidden_size"] < decoder.hidden_size
    inputs = 0
    if narrows and config.hidden_basis == "fisher":
        looked_at = min(scoring_tokens(text.tokens, decoder), text.tokens)
        inputs = int(looked_at) * decoder.hidden_size * decoder.num_hidden_layers
    return weights + max(streams, inputs) * parent.dtype.itemsize


def _sentence(held_out: dict) -> str:
    """What the held-out text says."""
    said = f"held-out text, {held_out['tokens']:,} tokens: KL to the parent {held_out['kl']:.4f}"
    if held_out["kl"] != held_out["kl_uncompensated"]:
        said += f" ({held_out['kl_uncompensated']:.4f} before compensation)"
    return said + f", loss {held_out['loss']:.3f} (parent {held_out['loss_parent']:.3f})"


def _settings(config: PruneConfig, arguments: PruneArguments) -> dict:
    """What makes this child this child, for the manifest."""
    settings = {name: value for name, value in vars(config).items() if value is not None}
    described = ("calibration", "heldout", "dtype", "batch_size", "target", "multiple_of")
    return settings | {
        name: value for name, value in vars(arguments).items() if name.startswith(described) and value is not None
    }


def _identity(weights: Path) -> list:
    """What tells one checkpoint from another without reading it whole."""
    files = sorted(weights.glob("*.safetensors"))
    config = hashlib.sha256((weights / "config.json").read_bytes()).hexdigest()
    return [config, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]


def _device(name: str) -> torch.device:
    """
    The device to compute on.

    Raises:
        ValueError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}: there is no CUDA device here; leave it out, or give cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name}: there is no such device; give auto, cpu, cuda or cuda:1") from error
