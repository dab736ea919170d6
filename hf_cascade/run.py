"""`hf-cascade run`: the stages of a recipe in order, each a process of its own; finished ones are never run again."""

import ctypes
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
from rich.text import Text

from hf_cascade import assets, manifest, progress
from hf_cascade.display import Display, closing_summary, last_event, make_console
from hf_cascade.plan import make_plan, table
from hf_cascade.recipe import Recipe, Stage, load_recipe

RUN_FILE, LOCK_FILE = "run.json", ".lock"
STOPPED = 75  # EX_TEMPFAIL: a stage stopped on request and can go on
SCRIPTS = {word: f"trainers/{word}.py" for word in ("pretrain", "distill", "sft", "pwrm", "odpo", "grpo")}
POLL_SECONDS = 0.2
LOCK_SECONDS = 15.0  # a killed run's stage saves its checkpoint and leaves within this time
LINES_OF_LOG = 15
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1  # prctl(2)


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
        self.stopping = False
        self._check_folder()
        self._look()

    def _check_folder(self) -> None:
        folder = self.output_dir
        if folder.is_file():
            raise ValueError(f"output_dir={folder} is a file: name a folder that is new or empty")
        found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        if RUN_FILE not in found and set(found) - {LOCK_FILE}:
            raise ValueError(
                f"output_dir={folder} holds {found[:3]}, none of a run's: name a folder that is new or empty"
            )

    def _look(self) -> None:
        """Find each stage's state, and refuse to mix stages made with other settings: say what differs."""
        before = self._stages_before()
        self.states = {stage.name: self._state(stage, before) for stage in self.recipe.stages}
        self._refuse_changes(before)

    def _stages_before(self) -> dict[str, dict]:
        """What the runs that were here before recorded of their stages."""
        file = self.output_dir / RUN_FILE
        try:
            return json.loads(file.read_text())["stages"] if file.is_file() else {}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is none of hf-cascade's ({error!r}): name another --output_dir") from error

    def _state(self, stage: Stage, before: dict) -> str:
        folder = self.output_dir / stage.name
        if manifest.is_finished(folder):
            made_with = manifest.read(folder).get("fingerprint")
        elif folder.is_dir() and any(folder.iterdir()):
            made_with = before.get(stage.name, {}).get("fingerprint")
        else:
            return "new"
        if made_with != stage.fingerprint:
            return "changed"
        return "done" if manifest.is_finished(folder) else "resumes"

    def _refuse_changes(self, before: dict) -> None:
        changed = [stage for stage in self.recipe.stages if self.states[stage.name] == "changed"]
        if not changed:
            return
        lines = []
        for stage in changed:
            old = before.get(stage.name, {"settings": {}, "inputs": {}})
            old, new = {**old["settings"], **old["inputs"]}, {**stage.settings, **stage.inputs}
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            differences = ", ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in keys)
            lines.append(f"{stage.name}: {differences or 'what it starts from changed'}")
        raise ValueError(
            f"{self.output_dir} holds stages made with other settings; give another --output_dir, or delete these "
            "folders to make them again:\n  " + "\n  ".join(lines)
        )

    def execute(self, console) -> int:
        """Run what is not done yet; returns the exit status."""
        started = time.monotonic()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with _lock(self.output_dir, console) as lock:
            self._look()  # once more: whoever held the lock may have finished stages
            self._write_run_file()
            names = [stage.name for stage in self.recipe.stages]
            with Display(console, names, self.states) as display, self._signals():
                for stage in self.recipe.stages:
                    if self.states[stage.name] == "done":
                        continue
                    status = STOPPED if self.stopping else self._run_stage(stage, display, lock)
                    if status != 0:
                        break
                else:
                    status = 0
            if status != 0:
                return self._explain(console, stage, status)
        closing_summary(console, self.output_dir, names, time.monotonic() - started)
        return 0

    @contextmanager
    def _signals(self):
        """SIGTERM, Ctrl-C and a closed terminal ask the running stage to save and stop; the runner waits for it."""

        def stop(number, frame):
            self.stopping = True  # and no more: the runner may be in the middle of writing a line

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _write_run_file(self) -> None:
        stages = {
            stage.name: {
                "run": stage.run,
                "fingerprint": stage.fingerprint,
                "settings": stage.settings,
                "inputs": stage.inputs,
            }
            for stage in self.recipe.stages
        }
        record = {
            "recipe": str(self.recipe.path),
            "sha256": hashlib.sha256(self.recipe.path.read_bytes()).hexdigest(),
            "stages": {**self._stages_before(), **stages},  # a stage the recipe left out may come back
        }
        draft = self.output_dir / f".{RUN_FILE}.tmp"
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1, default=str)
            file.flush()
            os.fsync(file.fileno())
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

    def _run_stage(self, stage: Stage, display: Display, lock: int) -> int:
        """
        Run one stage to its end; returns its exit status.

        Its process holds the lock too, so that no second run starts beside a stage that outlived its runner.
        """
        logs = self.output_dir / "logs"
        logs.mkdir(exist_ok=True)
        events = logs / f"{stage.name}.events"
        events.unlink(missing_ok=True)
        identity = {"name": stage.name, "run": stage.run, "fingerprint": stage.fingerprint}
        environment = {
            "TOKENIZERS_PARALLELISM": "false",
            # Threads that spin while they wait lose to any other work on the machine: a tiny stage beside one took
            # 344 s with torch's default, 28 s with this, 33 s on one thread.
            "OMP_WAIT_POLICY": "PASSIVE",
            **os.environ,
            progress.EVENTS_VARIABLE: str(events),
            manifest.STAGE_VARIABLE: json.dumps(identity),
        }
        command = command_for(stage, self._settings_file(stage), self.output_dir / stage.name)
        display.start(stage.name)
        with open(logs / f"{stage.name}.log", "a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            self.log_start = log.tell()
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(lock,),
                process_group=0,  # Ctrl-C reaches the runner alone, which asks the stage to save
                preexec_fn=_end_with_runner,
            )
            asked = False
            while child.poll() is None:
                if self.stopping and not asked:
                    asked = True
                    display.stopping()
                    child.terminate()
                display.update(last_event(events))
                time.sleep(POLL_SECONDS)
            if child.returncode == 0 and not manifest.is_finished(self.output_dir / stage.name):
                log.write(f"hf-cascade: the stage ended with status 0 and left no {manifest.FILE}\n")
                return 1  # it has not done its work, whatever it says
        if child.returncode == 0:
            display.finish(stage.name, last_event(events))
        return child.returncode

    def _explain(self, console, stage: Stage, status: int) -> int:
        """Say what happened to a stage that did not finish; returns the exit status of the run."""
        log = self.output_dir / "logs" / f"{stage.name}.log"
        if status == STOPPED or (self.stopping and status != 2):  # asked to stop, a launcher ends with 1
            console.print(f"{stage.name}: stopped; type the same command to go on.", soft_wrap=True)
            return STOPPED
        this_time = log.read_bytes()[self.log_start :].decode(errors="replace")  # the log keeps earlier attempts
        lines = [line for line in this_time.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("hf-cascade: error:")]
        for line in said[-1:] if status == 2 and said else lines[-LINES_OF_LOG:]:
            console.print(Text.from_ansi(line), soft_wrap=True)
        how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        hint = " (out of memory? then a smaller batch helps)" if status == -signal.SIGKILL else ""
        console.print(f"{stage.name}: failed, {how}{hint}. All it said: {log}", markup=False, soft_wrap=True)
        console.print("Mend the cause and type the same command: finished stages are kept.", soft_wrap=True)
        return 2 if status == 2 else 1


@contextmanager
def _lock(folder: Path, console):
    """
    Hold the folder's lock; gives its file descriptor. It goes with the processes that hold it, however they end.

    Raises:
        ValueError: another run is at work there.
    """
    with open(folder / LOCK_FILE, "w") as file:
        give_up = None
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if give_up is None:
                    give_up = time.monotonic() + LOCK_SECONDS
                    console.print(f"another hf-cascade is at work in {folder}; waiting a moment for it to end")
                if time.monotonic() >= give_up:
                    raise ValueError(
                        f"another hf-cascade is at work in {folder}: wait for it, or name another folder"
                    ) from None
                time.sleep(POLL_SECONDS)
        yield file.fileno()


def _end_with_runner() -> None:
    """In the stage's process: have Linux send it SIGTERM when the runner dies, so that no stage is left training."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def parse_overrides(given: list[str]) -> dict[str, dict]:
    """
    `STAGE.FLAG=VALUE` from the command line, values read as YAML.

    Raises:
        ValueError: not of that form.
    """
    overrides: dict[str, dict] = {}
    for text in given:
        target, equals, value = text.partition("=")
        stage, dot, flag = target.rpartition(".")
        if not (equals and dot and stage and flag):
            raise ValueError(f"--set {text}: write STAGE.FLAG=VALUE, for instance 3b-short.train_tokens=100000")
        try:
            overrides.setdefault(stage, {})[flag] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {text}: {' '.join(str(error).split())}") from error
    return overrides


def default_name(recipe: Path) -> str:
    """Name of a recipe's output folder: `tiny` for tiny/cascade.yaml, `parent` for tiny/parent.yaml."""
    return recipe.resolve().parent.name if recipe.name == "cascade.yaml" else recipe.stem


def main(arguments) -> int:
    """
    `hf-cascade run`.

    Args:
        arguments (`argparse.Namespace`): `recipe`, `output_dir`, `dry_run`, `set`.

    Raises:
        ValueError, FileNotFoundError: bad input; nothing was written.
    """
    recipe = load_recipe(arguments.recipe, parse_overrides(arguments.set))
    output_dir = Path(arguments.output_dir or Path("runs") / default_name(recipe.path))
    run = Run(recipe, output_dir)
    console = make_console()
    console.print(f"{recipe.path} -> {output_dir}", style="bold", markup=False, soft_wrap=True)
    console.print(table(run.plan, run.states))
    return 0 if arguments.dry_run else run.execute(console)
