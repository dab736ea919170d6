"""The runner with real, cheap processes as stages: order, skipping, stopping, killing, resuming, refusing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hf_cascade import assets, fields, manifest
from hf_cascade.recipe import Stage
from hf_cascade.run import SCRIPTS, command_for, default_name, parse_overrides

# A stage: counts to `steps`, keeps its count like a checkpoint, saves on SIGTERM. behave.json says what goes wrong.
STAGE = """
import json, os, signal, sys, time
from pathlib import Path
import yaml
from hf_cascade import manifest, progress

settings = yaml.safe_load(open(sys.argv[sys.argv.index("--config") + 1]))
folder = Path(sys.argv[sys.argv.index("--output_dir") + 1])
here = Path(__file__).parent
behave = json.loads((here / "behave.json").read_text()).get(folder.name, {})
if "model" in settings and "/parent" not in settings["model"]:
    manifest.read(settings["model"])  # the stage before has finished
if behave.get("bad_input"):
    print("hf-cascade: error: no such thing", file=sys.stderr)
    sys.exit(2)
folder.mkdir(exist_ok=True)
count = folder / "count"
step = int(count.read_text()) if count.exists() else 0
with open(here / "order.txt", "a") as file:
    file.write(f"{folder.name} from {step}\\n")
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
(here / f"{folder.name}.pid").write_text(str(os.getpid()))
total = behave.get("steps", 3)
while step < total:
    time.sleep(0.05)
    step += 1
    count.write_text(str(step))
    progress.report(step, total, tokens=100 * step, loss=1 / step, label="KL")
    if asked and not behave.get("deaf"):
        sys.exit(behave.get("asked_status", 75))
if behave.get("fail"):
    print("line one [bold]")
    raise RuntimeError("it broke")
if not behave.get("no_manifest"):
    manifest.write(folder, stage=folder.name, run="prune", config={}, inputs={"model": settings["model"]},
                   metrics={"seconds": 1.0}, output={"num_parameters": 1234})
"""
DRIVER = """
import sys
from hf_cascade import cli, display, run
run.command_for = lambda stage, config, folder: [
    sys.executable, {stage!r}, "--config", str(config), "--output_dir", str(folder)]
if {orphans}:
    run.LIBC = None  # as on systems without prctl: a stage outlives its runner
run.LOCK_SECONDS, display.SECONDS_BETWEEN_LINES, run.POLL_SECONDS = {lock_seconds}, 0.1, 0.05
sys.exit(cli.main(sys.argv[1:]))
"""
PARENT = {
    "model_type": "mistral",
    "num_hidden_layers": 8,
    "hidden_size": 96,
    "intermediate_size": 512,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 2048,
    "tie_word_embeddings": False,
}


class Playground:
    """A recipe of three stages a, b, c, each starting from the one before, and ways to run it."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "out"
        (folder / "parent").mkdir()
        (folder / "parent" / "config.json").write_text(json.dumps(PARENT))
        (folder / "text.jsonl").write_text('{"text": "x"}\n')
        (folder / "stage.py").write_text(STAGE)
        self.stages = {
            name: {
                "run": "prune",
                "inputs": {"model": model},
                "set": {"calibration": str(folder / "text.jsonl"), "intermediate_size": size},
            }
            for name, model, size in (("a", str(folder / "parent"), 256), ("b", "a", 224), ("c", "b", 144))
        }
        self.behave({})

    def behave(self, how: dict) -> None:
        (self.folder / "behave.json").write_text(json.dumps(how))

    def start(self, *more: str, lock_seconds: float = 10.0, orphans: bool = False) -> subprocess.Popen:
        (self.folder / "cascade.yaml").write_text(yaml.safe_dump(self.stages, sort_keys=False))
        driver = self.folder / "driver.py"
        stage = str(self.folder / "stage.py")
        driver.write_text(DRIVER.format(stage=stage, lock_seconds=lock_seconds, orphans=orphans))
        command = [sys.executable, str(driver), "run", str(self.folder / "cascade.yaml"), "--output_dir", str(self.out)]
        environment = {**os.environ, "PYTHONPATH": str(Path(manifest.__file__).parents[1])}
        return subprocess.Popen(
            [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def run(self, *more: str, lock_seconds: float = 10.0) -> tuple[int, str]:
        process = self.start(*more, lock_seconds=lock_seconds)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    @property
    def order(self) -> list[str]:
        file = self.folder / "order.txt"
        return file.read_text().splitlines() if file.exists() else []

    def wait_for(self, stage: str, steps: int) -> int:
        """Wait until a stage has made some steps; returns its process's id."""
        count = self.out / stage / "count"
        until(lambda: count.exists() and count.read_text() and int(count.read_text()) >= steps)
        return int((self.folder / f"{stage}.pid").read_text())

    def finished(self) -> list[str]:
        return [name for name in self.stages if manifest.is_finished(self.out / name)]


def until(condition, seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def play(tmp_path) -> Playground:
    return Playground(tmp_path)


def test_stages_run_in_order_and_never_twice(play):
    status, said = play.run()
    assert status == 0, said
    assert play.order == ["a from 0", "b from 0", "c from 0"]
    assert yaml.safe_load((play.out / "settings" / "b.yaml").read_text())["model"] == str(play.out / "a")
    record = json.loads((play.out / "run.json").read_text())
    for name in "abc":
        made = manifest.read(play.out / name)
        assert (made["stage"], made["fingerprint"]) == (name, record["stages"][name]["fingerprint"])
    assert record["recipe"] == str(play.folder / "cascade.yaml")
    assert "3 stages finished" in said and "1,234 parameters" in said

    status, said = play.run()
    assert (status, len(play.order)) == (0, 3)
    assert said.count("done") >= 3


def test_without_a_terminal_there_are_plain_lines(play):
    play.behave({"a": {"steps": 20}})
    _, said = play.run()
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", said)
    assert re.search(r"^a: +\d+%  KL 0\.\d+  [\d,]+ tokens/s  0:0\d left$", said, re.MULTILINE), said
    assert re.search(r"^b: done in 0:0\d, KL 0\.333$", said, re.MULTILINE), said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_stopped_run_goes_on_where_it_was(play, number):
    play.behave({"b": {"steps": 200}})
    process = play.start()
    play.wait_for("b", 3)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 75, said
    assert "b: stopped; type the same command to go on" in said
    assert play.finished() == ["a"]
    assert not (play.out / "c").exists()

    play.behave({})
    status, said = play.run()
    assert status == 0, said
    assert [line.split()[0] for line in play.order] == ["a", "b", "b", "c"]
    assert int(play.order[2].split()[-1]) >= 3


def test_a_stage_that_ends_well_after_the_signal_is_the_last(play):
    """The request to stop is not lost when the stage was just about to finish."""
    play.behave({"a": {"steps": 10, "deaf": True}})
    process = play.start()
    play.wait_for("a", 2)
    process.terminate()
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, play.finished()) == (75, ["a"]), said
    assert play.run()[0] == 0 and len(play.order) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the stage ends by itself, and the lock is held so long")
def test_killing_the_runner_leaves_no_stage_behind(play):
    play.behave({"b": {"steps": 600}})
    process = play.start()
    child = play.wait_for("b", 3)
    process.kill()
    process.communicate(timeout=30)
    play.behave({})
    status, said = play.run()  # at once: waits for the orphan's lock
    assert status == 0, said
    assert not is_alive(child)
    assert [line.split()[0] for line in play.order] == ["a", "b", "b", "c"]


def test_no_second_writer_beside_a_stage_that_outlived_its_runner(play):
    play.behave({"a": {"steps": 60}})
    process = play.start(orphans=True)
    child = play.wait_for("a", 3)
    process.kill()
    process.communicate(timeout=30)
    assert is_alive(child)
    status, said = play.run(lock_seconds=0.2)
    assert status == 2 and "another hf-cascade is at work" in said and play.order == ["a from 0"]
    assert play.run(lock_seconds=30)[0] == 0  # waits, and keeps what the orphan made
    assert play.order == ["a from 0", "b from 0", "c from 0"]


def test_a_launcher_that_ends_with_1_when_stopped(play):
    play.behave({"a": {"steps": 600, "asked_status": 1}})
    process = play.start()
    play.wait_for("a", 1)
    process.terminate()
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and "a: stopping" in said and "a: stopped" in said


def test_only_the_last_attempt_explains(play):
    play.behave({"a": {"bad_input": True}})
    assert play.run()[0] == 2
    play.behave({"a": {"fail": True}})
    status, said = play.run()
    assert status == 1 and "it broke" in said and "no such thing" not in said
    log = (play.out / "logs" / "a.log").read_text()
    assert "no such thing" in log and "it broke" in log


def test_killing_a_stage_fails_the_run_and_the_next_one_goes_on(play):
    play.behave({"b": {"steps": 600}})
    process = play.start()
    os.kill(play.wait_for("b", 3), signal.SIGKILL)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "b: failed, ended by SIGKILL" in said and "same command" in said
    play.behave({})
    assert play.run()[0] == 0
    assert [line.split()[0] for line in play.order] == ["a", "b", "b", "c"]


@pytest.mark.parametrize(
    "how, status, words",
    [
        ({"fail": True}, 1, ["line one [bold]", "RuntimeError: it broke", "exit status 1", "logs/b.log"]),
        ({"bad_input": True}, 2, ["hf-cascade: error: no such thing", "exit status 2"]),
        ({"no_manifest": True}, 1, ["left no cascade.json"]),
    ],
)
def test_a_failing_stage_says_why(play, how, status, words):
    play.behave({"b": how})
    got, said = play.run()
    assert got == status, said
    assert [word for word in words if word not in said.replace("\n", " ")] == [], said
    assert play.finished() == ["a"] and not (play.out / "c").exists()
    play.behave({})
    assert play.run()[0] == 0


def test_other_settings_are_refused_with_what_differs(play):
    assert play.run()[0] == 0
    before = (play.out / "run.json").read_bytes()
    play.stages["b"]["set"]["ridge"] = 0.5
    status, said = play.run()
    assert status == 2
    assert "b: ridge: None then, 0.5 now" in said
    assert "c: what it starts from changed" in said  # settings upstream count
    assert "\n  a:" not in said
    assert ((play.out / "run.json").read_bytes(), len(play.order)) == (before, 3)
    assert play.run("--dry_run")[0] == 2


def test_a_stage_that_comes_back_is_compared_too(play):
    assert play.run()[0] == 0
    last = play.stages.pop("c")
    assert play.run()[0] == 0
    play.stages["c"] = {**last, "set": {**last["set"], "seed": 3}}
    status, said = play.run()
    assert status == 2 and "c: seed: None then, 3 now" in said


def test_an_unfinished_stage_does_not_go_on_with_other_settings(play):
    play.behave({"b": {"fail": True}})
    play.run()
    status, said = play.run("--set", "b.seed=7")
    assert status == 2 and "b: seed: None then, 7 now" in said
    play.behave({})
    assert play.run("--set", "c.seed=7")[0] == 0  # c had not begun
    assert json.loads((play.out / "run.json").read_text())["stages"]["c"]["settings"]["seed"] == 7


def test_a_folder_of_something_else_is_left_alone(play):
    play.out.mkdir()
    (play.out / "thesis.tex").write_text("mine")
    status, said = play.run()
    assert status == 2 and "thesis.tex" in said and said.count("hf-cascade: error:") == 1
    assert [path.name for path in play.out.iterdir()] == ["thesis.tex"] and not play.order
    (play.out / "run.json").write_text('{"jogging": 5}')
    status, said = play.run()
    assert status == 2 and "none of hf-cascade's" in said
    (play.folder / "file").write_text("")
    play.out = play.folder / "file"
    assert play.run()[0] == 2


def test_dry_run_and_bad_recipes_write_nothing(play):
    status, said = play.run("--dry_run")
    assert status == 0 and "8 x 96 / 144" in said
    play.stages["c"]["set"]["intermediate_size"] = 999
    status, said = play.run()
    assert status == 2 and "intermediate_size=999" in said
    assert not play.out.exists() and not play.order


@pytest.mark.parametrize(
    ("given", "words"),
    [("a.sead=1", "did you mean seed?"), ("d.seed=1", "--set d: no such stage"), ("a.seed=[", "--set a.seed=[: while")],
)
def test_flags_on_the_command_line_are_checked(play, given, words):
    status, said = play.run("--set", given)
    assert status == 2 and words in said and said.startswith("hf-cascade: error:") and said.count("\n") == 1
    assert not play.out.exists()


def test_a_folder_that_cannot_be_made(play):
    (play.folder / "file").write_text("")
    play.out = play.folder / "file" / "out"
    status, said = play.run()
    assert status == 2 and "hf-cascade: error:" in said and "Traceback" not in said


def test_two_runs_cannot_share_a_folder(play):
    play.behave({"a": {"steps": 600}})
    first = play.start()
    play.wait_for("a", 1)
    status, said = play.run(lock_seconds=0.3)
    assert status == 2 and "another hf-cascade is at work" in said
    first.terminate()
    first.communicate(timeout=30)
    assert len(play.order) == 1


def test_a_second_run_takes_over_what_the_first_finished(play):
    play.behave({"a": {"steps": 40}})
    first, second = play.start(), None
    play.wait_for("a", 1)
    second = play.start(lock_seconds=30)
    assert [process.wait(timeout=60) for process in (first, second)] == [0, 0]
    assert len(play.order) == 3


def test_default_folder():
    assert default_name(Path("recipes/tiny/cascade.yaml")) == "tiny"
    assert default_name(Path("recipes/tiny/parent.yaml")) == "parent"


def test_overrides():
    given = parse_overrides(["8b-v1.5.seed=3", "a.tasks=[x, y]", "a.dtype=auto"])
    assert given == {"8b-v1.5": {"seed": 3}, "a": {"tasks": ["x", "y"], "dtype": "auto"}}
    for wrong in ("a.seed", "seed=3", ".seed=3", "a.=3"):
        with pytest.raises(ValueError, match="STAGE.FLAG=VALUE"):
            parse_overrides([wrong])


@pytest.mark.parametrize("run", fields.DATACLASSES)
def test_every_kind_of_stage_has_its_program(run):
    stage = Stage("stage", run, None, {}, {}, "")
    program, *words = command_for(stage, Path("settings.yaml"), Path("out"))
    script = [str(assets.find(SCRIPTS[run]))] if run in SCRIPTS else ["-m", "hf_cascade.cli", run]
    assert (program, words) == (sys.executable, [*script, "--config", "settings.yaml", "--output_dir", "out"])
    assert (assets.root() / "trainers" / f"{run}.py").is_file() == (run in SCRIPTS)
