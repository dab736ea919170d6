"""`hf-cascade run`: the stages of a recipe in order, each a process of its own; finished ones are never run again."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import yaml

from hf_cascade import assets, manifest, progress
from hf_cascade.display import Display, closing_summary, last_event, make_console
from hf_cascade.plan import make_plan, table
from hf_cascade.recipe import Recipe, RecipeError, Stage, load_recipe

RUN_FILE = "run.json"
STOPPED = 75  # EX_TEMPFAIL: a stage stopped on request and can go on
SCRIPTS = {"pretrain": "trainers/pretrain.py", "distill": "trainers/distill.py"}
POLL_SECONDS = 0.2
LINES_OF_LOG = 15


def command_for(stage: Stage, config: Path, folder: Path) -> list[str]:
    """The command line of one stage's process."""
    if stage.run in SCRIPTS:
        program = [sys.executable, str(assets.find(SCRIPTS[stage.run]))]
    else:
        program = [sys.executable, "-m", "hf_cascade.cli", stage.run]
    return [*program, "--config", str(config), "--output_dir", str(folder)]


class Run:
    """
    One recipe in one output folder.

    Args:
        recipe (`Recipe`): checked.
        output_dir (`Path`): a folder that is new, empty, or this recipe's from before.

    Raises:
        ValueError: the folder holds something else, or finished stages made with other settings.
    """

    def __init__(self, recipe: Recipe, output_dir: Path):
        self.recipe, self.output_dir = recipe, output_dir
        self.plan = make_plan(recipe)
        self._check_folder()
        self.states = {stage.name: self._state(stage) for stage in recipe.stages}
        self._refuse_changes()

    def _check_folder(self) -> None:
        folder = self.output_dir
        if folder.is_file():
            raise ValueError(f"output_dir={folder} is a file: name a folder that is new or empty")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / RUN_FILE).is_file():
            found = sorted(entry.name for entry in folder.iterdir())[:3]
            raise ValueError(f"output_dir={folder} holds {found}, none of a run's: name a folder that is new or empty")

    def _state(self, stage: Stage) -> str:
        folder = self.output_dir / stage.name
        if manifest.is_finished(folder):
            return "done" if manifest.read(folder).get("fingerprint") == stage.fingerprint else "changed"
        return "resumes" if folder.is_dir() and any(folder.iterdir()) else "new"

    def _refuse_changes(self) -> None:
        """A folder's stages must come from one recipe: say what differs instead of mixing two."""
        changed = [stage for stage in self.recipe.stages if self.states[stage.name] == "changed"]
        if not changed:
            return
        before = json.loads((self.output_dir / RUN_FILE).read_text())["stages"]
        lines = []
        for stage in changed:
            old = before.get(stage.name, {"settings": {}, "inputs": {}})
            old, new = {**old["settings"], **old["inputs"]}, {**stage.settings, **stage.inputs}
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            differences = ", ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in keys)
            lines.append(f"{stage.name}: {differences or 'a stage before it changed'}")
        raise ValueError(
            f"{self.output_dir} holds stages made with other settings; give another --output_dir, or delete these "
            "folders to make them again:\n  " + "\n  ".join(lines)
        )

    def execute(self, console) -> int:
        """Run what is not done yet; returns the exit status."""
        started = time.monotonic()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with _lock(self.output_dir):
            self._write_run_file()
            names = [stage.name for stage in self.recipe.stages]
            with Display(console, names, self.states) as display:
                for stage in self.recipe.stages:
                    if self.states[stage.name] == "done":
                        continue
                    status = self._run_stage(stage, display)
                    if status != 0:
                        break
                else:
                    status = 0
            if status != 0:
                return self._explain(console, stage, status)
        closing_summary(console, self.output_dir, names, time.monotonic() - started)
        return 0

    def _write_run_file(self) -> None:
        record = {
            "recipe": str(self.recipe.path),
            "sha256": hashlib.sha256(self.recipe.path.read_bytes()).hexdigest(),
            "stages": {
                stage.name: {"run": stage.run, "settings": stage.settings, "inputs": stage.inputs}
                for stage in self.recipe.stages
            },
        }
        draft = self.output_dir / f".{RUN_FILE}.tmp"
        draft.write_text(json.dumps(record, indent=1, default=str))
        os.replace(draft, self.output_dir / RUN_FILE)

    def _settings_file(self, stage: Stage) -> Path:
        """The stage's settings with its inputs resolved, as the YAML its script reads."""
        names = {other.name for other in self.recipe.stages}

        def place(source: str) -> str:
            return str(self.output_dir / source) if source in names else source

        inputs = {
            flag: [place(part) for part in value] if isinstance(value, list) else place(value)
            for flag, value in stage.inputs.items()
        }
        file = self.output_dir / "settings" / f"{stage.name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump({**stage.settings, **inputs}, sort_keys=False))
        return file

    def _run_stage(self, stage: Stage, display: Display) -> int:
        """Run one stage to its end; returns its exit status."""
        logs = self.output_dir / "logs"
        logs.mkdir(exist_ok=True)
        events = logs / f"{stage.name}.events"
        events.unlink(missing_ok=True)
        identity = {"name": stage.name, "run": stage.run, "fingerprint": stage.fingerprint}
        environment = {
            "TOKENIZERS_PARALLELISM": "false",
            **os.environ,
            progress.EVENTS_VARIABLE: str(events),
            manifest.STAGE_VARIABLE: json.dumps(identity),
        }
        command = command_for(stage, self._settings_file(stage), self.output_dir / stage.name)
        display.start(stage.name)
        with open(logs / f"{stage.name}.log", "a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            with _signals_to(child):
                while child.poll() is None:
                    display.update(last_event(events))
                    time.sleep(POLL_SECONDS)
        finished = manifest.is_finished(self.output_dir / stage.name)
        if child.returncode == 0 and not finished:
            return 1  # a stage that leaves no manifest has not done its work, whatever it says
        if child.returncode == 0:
            display.finish(stage.name, last_event(events))
        return child.returncode

    def _explain(self, console, stage: Stage, status: int) -> int:
        """Say what happened to a stage that did not finish; returns the exit status of the run."""
        log = self.output_dir / "logs" / f"{stage.name}.log"
        if status in (STOPPED, -signal.SIGTERM, -signal.SIGINT):
            console.print(f"{stage.name}: stopped; the same command goes on from here.")
            return STOPPED
        lines = log.read_text(errors="replace").splitlines()
        said = [line for line in lines if line.startswith("hf-cascade: error:")]
        for line in said[-1:] if status == 2 and said else lines[-LINES_OF_LOG:]:
            console.print(line, markup=False, soft_wrap=True)
        console.print(f"{stage.name}: failed (exit status {status}); {log} has all of it.", soft_wrap=True)
        return 2 if status == 2 else 1


@contextmanager
def _lock(folder: Path):
    """Two runs cannot share a folder; the lock goes with the process, however it ends."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another hf-cascade is at work in {folder}: wait for it, or name another folder"
            ) from None
        yield


@contextmanager
def _signals_to(child: subprocess.Popen):
    """SIGTERM and Ctrl-C ask the running stage to save and stop; the runner waits for it."""

    def forward(number, frame):
        if child.poll() is None:
            child.terminate()

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse_overrides(given: list[str]) -> dict[str, dict]:
    """
    `STAGE.FLAG=VALUE` from the command line, values read as YAML.

    Raises:
        RecipeError: not of that form.
    """
    overrides: dict[str, dict] = {}
    for text in given:
        target, equals, value = text.partition("=")
        stage, dot, flag = target.rpartition(".")
        if not (equals and dot and stage and flag):
            raise RecipeError(f"--set {text}: write STAGE.FLAG=VALUE, for instance 3b-short.train_tokens=100000")
        overrides.setdefault(stage, {})[flag] = yaml.safe_load(value)
    return overrides


def main(arguments) -> int:
    """
    `hf-cascade run`.

    Args:
        arguments (`argparse.Namespace`): `recipe`, `output_dir`, `dry_run`, `set`.

    Raises:
        ValueError, FileNotFoundError: bad input; nothing was written.
    """
    recipe = load_recipe(arguments.recipe, parse_overrides(arguments.set))
    output_dir = Path(arguments.output_dir or Path("runs") / recipe.path.resolve().parent.name)
    run = Run(recipe, output_dir)
    console = make_console()
    console.print(f"{recipe.path} -> {output_dir}", style="bold", soft_wrap=True)
    console.print(table(run.plan, run.states))
    return 0 if arguments.dry_run else run.execute(console)
