"""What every training script does around its trainer: resume, stop on request, save the folder, write the manifest."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import yaml
from transformers import GenerationConfig
from transformers.trainer_utils import get_last_checkpoint

from hf_cascade import manifest

STOPPED = 75  # EX_TEMPFAIL: stopped on request, the same command goes on
BAD_INPUT = 2


def run_script(main, parse) -> None:
    """
    Call `main(*parse())`; bad input ends with one line on stderr and exit status 2.

    Args:
        main (`Callable`): the script's body; its return value is the exit status.
        parse (`Callable`): returns `main`'s arguments.
    """
    try:
        sys.exit(main(*parse()))
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("HF_CASCADE_TRACEBACK"):
            raise
        print(f"hf-cascade: error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def check_output_dir(folder: str) -> None:
    """
    Refuse a folder that holds anything but a stage's own unfinished work.

    Raises:
        ValueError: the folder is not empty and holds neither a checkpoint nor a stage's files.
    """
    path = Path(folder)
    if path.is_file():
        raise ValueError(f"output_dir={folder} is a file: name a folder that is new or empty")
    foreign = path.is_dir() and any(path.iterdir()) and get_last_checkpoint(folder) is None
    if foreign and not any((path / name).exists() for name in ("cascade.json", "stage.json")):
        raise ValueError(
            f"output_dir={folder} holds {sorted(p.name for p in path.iterdir())[:3]}: name a folder that is new or "
            "empty, or one with a checkpoint to resume from"
        )


def given_settings(argv: list[str]) -> dict:
    """What the user set: the keys of `--config FILE`, then the command line's `--key value` pairs, as given."""
    settings = {}
    if "--config" in argv:
        settings = yaml.safe_load(Path(argv[argv.index("--config") + 1]).read_text()) or {}
    key = None
    for word in argv:
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            settings[key] = value or True
        elif key is not None:
            settings[key] = word if settings[key] is True else f"{settings[key]} {word}"
    settings.pop("config", None)
    settings.pop("output_dir", None)
    return settings


def train(trainer, inputs: dict, ledger=None, companions=lambda folder: None) -> int:
    """
    Train from the last checkpoint in the output folder, if there is one, and leave a folder `from_pretrained` opens.

    Args:
        trainer (`SFTTrainer`): ready to train; `trainer.args.output_dir` is the stage's folder.
        inputs (`dict[str, str]`): folders or Hub ids the stage read, for the manifest.
        ledger (`Ledger`, *optional*): the reading so far, when the stage reads packed text.
        companions (`Callable`, *optional*): called with the folder to add what the trainer does not save.

    Returns:
        `int`: exit status, 0 when done and 75 when stopped by SIGTERM with a checkpoint saved.
    """
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if trainer.accelerator.is_main_process:
        (folder / "stage.json").write_text(json.dumps({"inputs": inputs}))  # this folder is ours
    started = time.monotonic()
    before = json.loads((folder / "seconds.json").read_text()) if (folder / "seconds.json").exists() else 0.0
    result = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    seconds = before + time.monotonic() - started
    if trainer.state.global_step < trainer.state.max_steps:
        (folder / "seconds.json").write_text(json.dumps(seconds))
        return STOPPED
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        companions(folder)
        finish(trainer, folder, inputs, ledger, {**result.metrics, "seconds": seconds})
    trainer.accelerator.wait_for_everyone()
    return 0


def finish(trainer, folder: Path, inputs: dict, ledger, metrics: dict) -> None:
    """Keep the generation config, drop the checkpoints, and write the manifest last: its presence means finished."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(getattr(model, "generation_config", None), GenerationConfig):
        model.generation_config.save_pretrained(folder)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    (folder / "log.json").write_text(json.dumps(log, indent=1))
    for leftover in [*folder.glob("checkpoint-*"), folder / "seconds.json", folder / "training_args.bin"]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    name = folder.name
    data = ledger.close(name, trainer.data_state) if ledger is not None else None
    manifest.write(
        folder,
        stage=name,
        run=Path(sys.argv[0]).stem,
        config={name: value for name, value in given_settings(sys.argv[1:]).items() if name not in inputs},
        inputs=inputs,
        metrics=metrics,
        data=data,
        output=manifest.describe(folder, num_parameters=model.num_parameters()),
    )
    (folder / "stage.json").unlink()
