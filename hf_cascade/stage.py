"""What every training script does around its trainer: resume, stop on request, save the folder, write the manifest."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from jinja2 import TemplateError
from transformers import GenerationConfig, TrainerCallback

from hf_cascade import assets, manifest
from hf_cascade.data.checkpoints import last_checkpoint
from hf_cascade.data.lengths import FIRST_ROWS, of_rows, short_text_warning
from hf_cascade.recipe import FORBIDDEN, check_config

STOPPED = 75  # EX_TEMPFAIL: stopped on request, the same command goes on
BAD_INPUT = 2
DIVERGED = 1
LEFTOVERS = ("seconds.json", "training_args.bin", "stage.json")


def run_script(main, parse) -> None:
    """
    Call `main(*parse())`; bad input ends with one line on stderr and exit status 2, a diverged run with 1.

    SIGTERM ends it with status 75: at once until training begins, after a checkpoint from then on. So does a teacher
    elsewhere that went away: the same command goes on from the last checkpoint.

    Args:
        main (`Callable`): the script's body; its return value is the exit status.
        parse (`Callable`): returns `main`'s arguments.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        find_config(sys.argv)
        check_config(sys.argv)
        arguments = parse()
        refuse_secrets_and_code(arguments)
        sys.exit(main(*arguments))
    except (ValueError, OSError, FloatingPointError, TemplateError) as error:  # OSError: a missing file, a full disk
        if os.environ.get("HF_CASCADE_TRACEBACK"):
            raise
        print(f"hf-cascade: error: {error}", file=sys.stderr)
        statuses = {FloatingPointError: DIVERGED, ConnectionError: STOPPED}
        sys.exit(next((status for kind, status in statuses.items() if isinstance(error, kind)), BAD_INPUT))


def find_config(argv: list[str]) -> None:
    """
    Let `--config` name a file shipped with hf-cascade (`recipes/tiny/short.yaml`) from any folder; changes `argv`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    for place, word in enumerate(argv):
        if word == "--config" and place + 1 < len(argv):
            argv[place + 1] = str(assets.find(argv[place + 1]))
        elif word.startswith("--config="):
            argv[place] = f"--config={assets.find(word.partition('=')[2])}"


def refuse_secrets_and_code(arguments) -> None:
    """
    Refuse a token on the command line, where other users see it and the manifest would keep it; and foreign code.

    Raises:
        ValueError: names the flag, and shows no token.
    """
    for part in arguments:
        for name in ("hub_token", "trust_remote_code"):
            if getattr(part, name, None):
                raise ValueError(f"{name} is not allowed: {FORBIDDEN[name]}")


def check_output_dir(folder: str) -> None:
    """
    Refuse a folder that holds anything but a stage's own unfinished work; a finished stage ends the script well.

    Raises:
        ValueError: the folder is not empty and holds neither a checkpoint nor a stage's files.
        SystemExit: with status 0: the stage has finished.
    """
    path = Path(folder)
    if path.is_file():
        raise ValueError(f"output_dir={folder} is a file: name a folder that is new or empty")
    if manifest.is_finished(path):
        manifest.read(path)
        remove_leftovers(path)
        print(f"hf-cascade: {folder} is already finished; delete it to make it again", file=sys.stderr)
        raise SystemExit(0)
    foreign = path.is_dir() and any(path.iterdir()) and last_checkpoint(folder) is None
    if foreign and not (path / "stage.json").exists():
        raise ValueError(
            f"output_dir={folder} holds {sorted(p.name for p in path.iterdir())[:3]}: name a folder that is new or "
            "empty, or one with a checkpoint to resume from"
        )


def given_settings(argv: list[str]) -> dict:
    """
    What the user set: the keys of `--config FILE`, then the command line's, as given.

    `--key value` and `--key=value` are text, `--key` alone is true, `--key a b` is a list.
    """
    given: dict[str, list[str]] = {}
    key = None
    for word in argv:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            given[key] = [value] if equals else []
        elif key is not None:
            given[key].append(word)
    settings = {}
    if given.get("config"):
        settings = yaml.safe_load(Path(given["config"][-1]).read_text()) or {}
    for key, values in given.items():
        settings[key] = True if not values else values[0] if len(values) == 1 else values
    return {key: value for key, value in settings.items() if key not in ("config", "output_dir")}


class StopOnRequest(TrainerCallback):
    """SIGTERM: finish the optimizer step, save a checkpoint, stop. Transformers' own can save in mid-step."""

    def __init__(self, trainer):
        self.accelerator = trainer.accelerator
        self.requested = False
        self.before = signal.signal(signal.SIGTERM, self._request)

    def _request(self, *_) -> None:
        self.requested = True

    def on_step_end(self, args, state, control, **kwargs):
        """Stop every process after the same step, whichever was asked."""
        requested = torch.tensor(int(self.requested), device=self.accelerator.device)
        if int(self.accelerator.reduce(requested, reduction="sum")) > 0:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give SIGTERM back to who had it."""
        signal.signal(signal.SIGTERM, self.before)


def warn_of_short_text(stream, window: int) -> None:
    """
    Say on stderr, before hours are spent, that a long stage reads too few long documents.

    Args:
        stream (`PackedText`): the text, at the stage's first token.
        window (`int`): tokens the model was trained on before; only positions beyond teach the longer window.
    """
    warning = short_text_warning(of_rows(stream.rows_to_the_end(), window, FIRST_ROWS))
    if warning and PartialState().is_main_process:
        print(f"hf-cascade: warning: {warning}", file=sys.stderr)


def train(trainer, inputs: dict, ledger=None, companions=lambda folder: None) -> int:
    """
    Train from the last checkpoint in the output folder, if there is one, and leave a folder `from_pretrained` opens.

    Args:
        trainer (`SFTTrainer`): ready to train; `trainer.args.output_dir` is the stage's folder.
        inputs (`dict[str, str]`): folders or Hub ids the stage read, for the manifest.
        ledger (`Ledger`, *optional*): the reading so far, when the stage reads packed text.
        companions (`Callable`, *optional*): called with the folder to add what the trainer does not save; what it
            returns, if anything, joins the manifest's metrics.

    Returns:
        `int`: exit status, 0 when done and 75 when stopped by SIGTERM with a checkpoint saved.
    """
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if trainer.accelerator.is_main_process:
        (folder / "stage.json").write_text(json.dumps({"inputs": inputs}))  # this folder is ours
    started = time.monotonic()
    before = json.loads((folder / "seconds.json").read_text()) if (folder / "seconds.json").exists() else 0.0
    stop = StopOnRequest(trainer)
    trainer.add_callback(stop)
    result = trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    stop.restore()
    seconds = before + time.monotonic() - started
    if trainer.state.global_step < trainer.state.max_steps:
        if trainer.accelerator.is_main_process:
            (folder / "seconds.json").write_text(json.dumps(seconds))
            steps = f"{trainer.state.global_step} of {trainer.state.max_steps} steps"
            print(f"hf-cascade: stopped after {steps}; the same command goes on", file=sys.stderr)
        trainer.accelerator.wait_for_everyone()  # when the first process ends, a launcher ends the others
        return STOPPED
    trainer.save_model(_internal_call=True)  # no push: the folder is not finished
    if trainer.accelerator.is_main_process:
        found = companions(folder) or {}
        finish(trainer, folder, inputs, ledger, {**result.metrics, **found, "seconds": seconds})
    trainer.accelerator.wait_for_everyone()
    return 0


def finish(trainer, folder: Path, inputs: dict, ledger, metrics: dict) -> None:
    """Keep the generation config and the log, and write the manifest: its presence means finished. Then clean up."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(getattr(model, "generation_config", None), GenerationConfig):
        model.generation_config.save_pretrained(folder)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    (folder / "log.json").write_text(json.dumps(log, indent=1))
    settings = given_settings(sys.argv[1:])
    parameters = sum(getattr(part, "ds_numel", part.numel()) for part in model.parameters())  # ZeRO-3 leaves none here
    name = folder.name
    manifest.write(
        folder,
        stage=name,
        run=Path(sys.argv[0]).stem,
        config={key: value for key, value in settings.items() if key not in inputs and value not in inputs.values()},
        inputs=inputs,
        metrics=metrics,
        data=ledger.close(name, trainer.data_state) if ledger is not None else None,
        output=manifest.describe(folder, num_parameters=parameters),
    )
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Delete what only an unfinished stage needs. After the manifest: a kill in between must not cost the training."""
    for leftover in [*folder.glob("checkpoint-*"), *(folder / name for name in LEFTOVERS)]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
