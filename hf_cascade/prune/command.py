"""`hf-cascade prune`: a model folder or Hub id in, a pruned model folder out."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import torch
from transformers import HfArgumentParser, PreTrainedConfig
from trl import TrlParser

from hf_cascade import manifest
from hf_cascade.data.packing import blocks
from hf_cascade.data.text_files import load_texts
from hf_cascade.loading import copy_companions, load_config, load_model, load_tokenizer
from hf_cascade.prune.child import check_target, is_own_shape
from hf_cascade.prune.config import PruneArguments, PruneConfig
from hf_cascade.prune.model import prune_with_report

REPORT = "prune_report.json"
LENGTH = 1024  # ours: paper silent
ENOUGH = 4  # tokens a column of the widest Gram matrix before a fit is trusted; ours


def make_parser() -> HfArgumentParser:
    """Flags of `hf-cascade prune`; `--config FILE` reads them from YAML."""
    return TrlParser((PruneConfig, PruneArguments), prog="hf-cascade prune", description=__doc__)


def main(argv: list[str]) -> int:
    """
    Prune and save; everything that can be checked is checked before weights are read.

    Raises:
        ValueError, FileNotFoundError: bad input, nothing written.
    """
    config, arguments = make_parser().parse_args_and_config(argv)
    folder = Path(arguments.output_dir)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"output_dir={folder} is not empty: name a folder that is new or empty")
    parent = load_config(arguments.model)
    check_target(parent, config)
    calibration = None
    if not is_own_shape(parent, config):
        calibration = _calibration(arguments, parent)

    started = time.monotonic()
    model = load_model(arguments.model)
    child, report = prune_with_report(model, config, calibration, batch_size=arguments.batch_size)
    if arguments.dtype != "auto":
        child.to(dtype=getattr(torch, arguments.dtype))
    if calibration is not None:
        report["calibration_tokens"] = calibration.numel()
    _save(child, report, arguments, config, folder, time.monotonic() - started)
    print(f"{folder}: {child.num_parameters():,} parameters from {model.num_parameters():,}")
    return 0


def _calibration(arguments: PruneArguments, parent: PreTrainedConfig) -> torch.Tensor:
    """Token ids [windows, tokens] of the calibration text."""
    if arguments.calibration is None:
        raise ValueError("pruning to a smaller shape needs text: give --calibration FILE_OR_DATASET")
    # 16 documents a window: enough for short ones, and a streamed dataset is not read to its end
    texts = load_texts(
        arguments.calibration,
        arguments.calibration_field,
        arguments.calibration_split,
        limit=arguments.calibration_samples * 16,
    )
    decoder, length = parent.get_text_config(), arguments.calibration_length
    window = decoder.max_position_embeddings
    if length is not None and not 1 <= length <= window:
        raise ValueError(f"calibration_length={length}: allowed is 1 to {window}, the model's window")
    if arguments.calibration_samples < 1 or arguments.batch_size < 1:
        raise ValueError("calibration_samples and batch_size must be at least 1")
    found = blocks(
        load_tokenizer(arguments.model), texts, length or min(LENGTH, window), arguments.calibration_samples, not length
    )
    width = max(decoder.hidden_size, decoder.intermediate_size)
    if found.numel() < ENOUGH * width:
        print(
            f"hf-cascade: warning: {found.numel():,} tokens of calibration text are few for matrices {width:,} wide; "
            f"{ENOUGH * width:,} or more give better fits",
            file=sys.stderr,
        )
    return found


def _save(child, report: dict, arguments: PruneArguments, config: PruneConfig, folder: Path, seconds: float) -> None:
    """Write beside the folder and move it there whole: a folder that exists is complete."""
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        child.save_pretrained(draft)
        copy_companions(arguments.model, draft)
        (draft / REPORT).write_text(json.dumps(report, indent=1))
        settings = {name: value for name, value in vars(config).items() if value is not None}
        settings |= {name: value for name, value in vars(arguments).items() if name.startswith("calibration")}
        manifest.write(
            draft,
            stage=folder.name,
            run="prune",
            config=settings,
            inputs={"model": arguments.model},
            metrics={"seconds": seconds},
            output=manifest.describe(draft, child.num_parameters()),
        )
        if folder.is_dir():
            folder.rmdir()
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
