"""What surrounds a trainer: settings as given, refused folders, and stages stopped by signals, as processes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_cascade import assets, manifest, stage
from tests.data import tiny
from tests.prune import families

COUNT = 60  # documents


# --- settings


def test_given_settings(tmp_path):
    file = tmp_path / "short.yaml"
    file.write_text("learning_rate: 3.0e-3\nreport_to: none\ndatasets: [{path: json}]\nmax_length: 16\n")
    argv = f"--config {file} --learning_rate 1e-5 --bf16 --seed=7 --betas 0.9 0.95 --shift -1 --output_dir x --empty="
    assert stage.given_settings(argv.split()) == {
        "learning_rate": "1e-5",
        "report_to": "none",
        "datasets": [{"path": "json"}],
        "max_length": 16,
        "bf16": True,
        "seed": "7",
        "betas": ["0.9", "0.95"],
        "shift": "-1",
        "empty": "",
    }
    assert stage.given_settings([f"--config={file}"])["max_length"] == 16
    assert stage.given_settings(["--flag", "--other", "1"]) == {"flag": True, "other": "1"}
    assert stage.given_settings([]) == {}


def test_config_may_be_a_shipped_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in (["x", "--config", "recipes/tiny/short.yaml"], ["x", "--config=recipes/tiny/short.yaml"]):
        stage.find_config(argv)
        assert stage.given_settings(argv)["max_length"] == 256
    with pytest.raises(FileNotFoundError, match="gone.yaml does not exist"):
        stage.find_config(["x", "--config", "gone.yaml"])


# --- the output folder


def test_output_dir(tmp_path, capsys):
    stage.check_output_dir(str(tmp_path / "new"))
    (tmp_path / "empty").mkdir()
    stage.check_output_dir(str(tmp_path / "empty"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        stage.check_output_dir(str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"holds \['empty', 'file'\]"):
        stage.check_output_dir(str(tmp_path))
    started = tmp_path / "started"
    started.mkdir()
    (started / "stage.json").write_text("{}")
    stage.check_output_dir(str(started))
    (started / "stage.json").unlink()
    (started / "checkpoint-3").mkdir()
    (started / "checkpoint-3" / "trainer_state.json").write_text("{}")
    stage.check_output_dir(str(started))


def test_finished_stage_is_left_alone_and_cleaned(tmp_path, capsys):
    manifest.write(tmp_path, stage="s", run="distill", config={}, inputs={}, metrics={})
    (tmp_path / "checkpoint-8").mkdir()
    with pytest.raises(SystemExit) as end:
        stage.check_output_dir(str(tmp_path))
    assert end.value.code == 0 and "already finished" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cascade.json"]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("why"), 2), (FileNotFoundError("why"), 2), (FloatingPointError("why"), 1)]
)
def test_run_script_ends_with_one_line(error, status, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.delenv("HF_CASCADE_TRACEBACK", raising=False)

    def main():
        raise error

    try:
        with pytest.raises(SystemExit) as end:
            stage.run_script(main, lambda: ())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == status and capsys.readouterr().err == "hf-cascade: error: why\n"


# --- scripts as processes


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a student, a teacher, a text, and the settings of a short stage."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, changes in {"student": {}, "teacher": {"hidden_size": 60}}.items():
        model = families.build("ministral3", dtype=None or families.torch.float32, num_hidden_layers=2, **changes)
        model.save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    tiny.tokenizer("zyxwvutsrqponmlkjihgfedcba .\n").save_pretrained(folder / "other-tokenizer")
    (folder / "other-tokenizer" / "config.json").write_text((folder / "teacher" / "config.json").read_text())
    rows = [json.dumps({"text": text}) for text in tiny.texts(COUNT)]
    (folder / "text.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "short.yaml").write_text(
        "datasets: [{path: json, data_files: text.jsonl, split: train, columns: [text]}]\n"
        "max_length: 16\nmax_steps: 12\nper_device_train_batch_size: 2\nlearning_rate: 1.0e-2\nsave_steps: 2\n"
        "logging_steps: 1\nsave_total_limit: 1\nreport_to: none\nbf16: false\ngradient_checkpointing: false\n"
        "use_cpu: true\ndisable_tqdm: true\n"
    )
    # Each step takes a while, so that a signal comes between two of them.
    (folder / "slow").mkdir()
    (folder / "slow" / "sitecustomize.py").write_text(
        "import time\nfrom hf_cascade.distill import packed\nreport = packed.progress.report\n"
        "def slow(*args, **kwargs):\n    time.sleep(0.3)\n    report(*args, **kwargs)\npacked.progress.report = slow\n"
    )
    return folder


def start(place: Path, out: str, *flags: str, slow=False, teacher="teacher", script="distill", launch=()):
    """Begin `trainers/{script}.py` in `place`."""
    models = {
        "distill": ["--model_name_or_path", "student", "--teacher_model_name_or_path", teacher],
        "pretrain": ["--model_name_or_path", "student"],
    }
    path = [str(place / "slow")] if slow else []
    path += [str(assets.root()), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [
            sys.executable,
            *launch,
            str(assets.root() / "trainers" / f"{script}.py"),
            "--config",
            "short.yaml",
            *models[script],
        ]
        + ["--output_dir", out, *flags],
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, status: int = 0) -> str:
    """Wait for the process; its stderr."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == status, err[-3000:]
    return err


def wait_for(path: Path, process) -> None:
    """Wait until the process has written `path`."""
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """The uninterrupted stage."""
    finish(start(place, "whole"))
    return place / "whole"


def test_stage_leaves_a_model_and_its_record(place, whole):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(whole)
    assert len(AutoTokenizer.from_pretrained(whole)) == len(tiny.tokenizer())
    leftovers = {"stage.json", "seconds.json", "training_args.bin"} | {path.name for path in whole.glob("checkpoint-*")}
    assert not leftovers & {path.name for path in whole.iterdir()}
    record = manifest.read(whole)
    assert record["run"] == "distill" and record["stage"] == "whole"
    assert record["inputs"] == {"model_name_or_path": "student", "teacher_model_name_or_path": "teacher"}
    assert not {"model_name_or_path", "teacher_model_name_or_path", "output_dir", "config"} & record["config"].keys()
    assert record["config"]["max_length"] == 16
    assert record["data"]["tokens"] == 12 * 2 * 16
    assert record["data"]["ledger"][0]["start"] == [0, 0]
    assert [entry["step"] for entry in json.loads((whole / "log.json").read_text())] == list(range(1, 13))


def test_finished_stage_given_again_does_nothing(place, whole):
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert "already finished" in finish(start(place, "whole"))
    assert before == {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}


def test_killed_stage_goes_on_to_the_same_bytes(place, whole):
    process = start(place, "killed", slow=True)
    wait_for(place / "killed" / "checkpoint-2" / "trainer_state.json", process)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    assert not manifest.is_finished(place / "killed")
    finish(start(place, "killed"))
    assert digest(place / "killed") == digest(whole)
    data, expected = (manifest.read(folder)["data"] for folder in (place / "killed", whole))
    assert {**data, "ledger": None} == {**expected, "ledger": None}


def test_sigterm_stops_after_a_checkpoint_and_the_same_command_goes_on(place, whole):
    process = start(place, "stopped", slow=True)
    wait_for(place / "stopped" / "checkpoint-2" / "trainer_state.json", process)
    process.terminate()
    assert "stopped after" in finish(process, stage.STOPPED)
    assert not manifest.is_finished(place / "stopped")
    assert stage.last_checkpoint(place / "stopped") is not None
    finish(start(place, "stopped"))
    assert digest(place / "stopped") == digest(whole)


def test_other_tokenizer_is_refused_before_anything_is_written(place):
    err = finish(start(place, "refused", teacher="other-tokenizer"), stage.BAD_INPUT)
    assert "different tokenizers: 26 tokens differ ('a': 4 and 29" in err and "Traceback" not in err
    assert not (place / "refused").exists()


def test_held_out_rows_are_measured_while_it_trains(place):
    err = finish(start(place, "blind", "--eval_strategy", "steps"), 2)
    assert "eval_strategy=steps needs held-out rows: set test_split_size" in err
    flags = ("--eval_strategy", "steps", "--eval_steps", "2", "--test_split_size", "0.3", "--max_steps", "2")
    finish(start(place, "measured", *flags))
    state = json.loads((place / "measured" / "log.json").read_text())
    assert state[-1]["step"] == 2
    assert manifest.read(place / "measured")["data"]["tokens"] == 2 * 2 * 16


def test_diverged_run_ends_with_a_message(place):
    flags = ["--learning_rate", "1e30", "--max_grad_norm", "0"]
    err = finish(start(place, "diverged", *flags), stage.DIVERGED)
    assert "hf-cascade: error: the loss is" in err and "Traceback" not in err
    assert not manifest.is_finished(place / "diverged")


def test_next_stage_continues_the_text(place, whole):
    finish(start(place, "next", "--data_after", "whole", "--max_steps", "2", script="pretrain"))
    ledger = manifest.read(place / "next")["data"]["ledger"]
    assert ledger[0]["end"] == ledger[1]["start"] and [entry["stage"] for entry in ledger] == ["whole", "next"]


@pytest.mark.slow
def test_sigterm_to_a_launcher_stops_after_a_checkpoint(place):
    """A launcher passes the signal on and ends with 1, whatever its processes end with."""
    flags = ["--per_device_train_batch_size", "1"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29534"]
    finish(start(place, "two-straight", *flags, launch=launch))
    process = start(place, "two-stopped", *flags, launch=launch, slow=True)
    wait_for(place / "two-stopped" / "checkpoint-2" / "trainer_state.json", process)
    process.terminate()
    assert "stopped after" in finish(process, 1)
    assert not manifest.is_finished(place / "two-stopped") and (place / "two-stopped" / "seconds.json").exists()
    finish(start(place, "two-stopped", *flags, launch=launch))
    assert digest(place / "two-stopped") == digest(place / "two-straight")


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(place, whole):
    """DDP over gloo: neighbouring rows, one cursor, one count of labels."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29533"]
    finish(start(place, "two", "--per_device_train_batch_size", "1", launch=launch))
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, place / "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
    data, expected = (manifest.read(folder)["data"] for folder in (place / "two", whole))
    assert {**data, "ledger": None} == {**expected, "ledger": None}
    kls = [
        [entry["loss"] for entry in json.loads((folder / "log.json").read_text())] for folder in (place / "two", whole)
    ]
    assert kls[0] == pytest.approx(kls[1], rel=1e-4)
