"""Launch files and cluster examples: they parse, they mean what they say, and they name what exists."""

import os
import re
import runpy
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from accelerate import ParallelismConfig
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import launch

from hf_cascade import assets, manifest

FILES = sorted(assets.find("recipes/accelerate").glob("*.yaml"))
CLUSTERS = assets.find("recipes/launch").resolve()
FLAGS = re.compile(r"--(\w+)")
# name: engine, mixed precision, processes that share a row
EXPECTED = {
    "single_gpu": ("NO", "bf16", 1),
    "ddp": ("MULTI_GPU", "bf16", 1),
    "fsdp2": ("FSDP", "bf16", 1),
    "fsdp2_fp8": ("FSDP", "fp8", 1),
    "fsdp2_cp": ("FSDP", "bf16", 8),
    "zero3": ("DEEPSPEED", "bf16", 1),
    "sp_zero3": ("DEEPSPEED", "bf16", 8),
}


def launched(path: Path, monkeypatch) -> dict[str, str]:
    """The environment that `accelerate launch` gives to a script."""
    monkeypatch.setattr(launch, "is_fp8_available", lambda: True)
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "x.py"]))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""
        return launch.prepare_deepspeed_cmd_env(arguments)[1]
    if arguments.use_fsdp or arguments.multi_gpu:
        return launch.prepare_multi_gpu_env(arguments)
    return launch.prepare_simple_launcher_cmd_env(arguments)[1]


def test_every_file_is_known():
    assert {path.stem for path in FILES} == EXPECTED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_launch_files_are_accelerates(path, monkeypatch):
    kind, precision, shared = EXPECTED[path.stem]
    config = load_config_from_file(str(path))  # refuses unknown keys, but only at the top level
    known = {action.dest for action in launch_command_parser()._actions}
    given = {*config.fsdp_config, *config.deepspeed_config, *config.parallelism_config}
    assert not (given | {f"fp8_{name}" for name in config.fp8_config}) - known
    assert (config.distributed_type.value, config.mixed_precision) == (kind, precision)

    environment = launched(path, monkeypatch)
    assert environment["ACCELERATE_MIXED_PRECISION"] == precision
    assert environment.get("ACCELERATE_USE_FSDP") == ("true" if kind == "FSDP" else None)
    assert environment.get("FSDP_VERSION") == ("2" if kind == "FSDP" else None)
    assert environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == ("3" if kind == "DEEPSPEED" else None)
    for name, value in environment.items():
        if name.startswith("PARALLELISM_CONFIG_"):
            monkeypatch.setenv(name, value)
    parallelism = ParallelismConfig()
    assert parallelism.non_data_parallel_size == shared
    assert parallelism.total_size in (1, config.num_processes)


def test_long_stage_attends_as_its_launch_file_does(monkeypatch):
    environment = launched(assets.find("recipes/accelerate/sp_zero3.yaml"), monkeypatch)
    settings = yaml.safe_load(assets.find("recipes/ministral3/long.yaml").read_text())
    assert environment["PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION"] == settings["attn_implementation"]
    sharing = int(environment["PARALLELISM_CONFIG_SP_SIZE"])
    assert settings["max_length"] % sharing == 0 and settings["per_device_train_batch_size"] == 1
    assert settings["gradient_accumulation_steps"] % sharing == 0, "two groups of eight GPUs are possible too"
    assert "recipes/accelerate/sp_zero3.yaml" in assets.find("recipes/ministral3/long.yaml").read_text()


def test_fp8_reaches_accelerate(monkeypatch):
    environment = launched(assets.find("recipes/accelerate/fsdp2_fp8.yaml"), monkeypatch)
    assert environment["ACCELERATE_FP8_BACKEND"] == "AO"
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false", "accelerate refuses it beside torchao"


# --- clusters


def named_files(text: str) -> set[str]:
    """Paths of this repository in a text."""
    return set(re.findall(r"\b(?:recipes|trainers)/[\w/.]+\w", text))


def script_flags(*names: str) -> set[str]:
    """Flags of training scripts and of `accelerate launch`."""
    parsers = [runpy.run_path(str(assets.find(f"trainers/{name}.py")))["make_parser"]() for name in names]
    return {action.dest for part in (*parsers, launch_command_parser()) for action in part._actions}


def test_readme_names_what_exists():
    text = assets.find("trainers/README.md").read_text()
    scripts = {path.stem for path in assets.find("trainers").glob("*.py")}
    assert set(re.findall(r"^\| `(\w+)\.py`", text, re.MULTILINE)) == scripts
    assert set(re.findall(r"^\| `(\w+)\.yaml`", text, re.MULTILINE)) == EXPECTED.keys()
    for file in named_files(text):
        assert assets.find(file).exists(), file
    assert not set(FLAGS.findall(text)) - script_flags(*scripts) - {"machine", "nodes", "config"}


@pytest.mark.parametrize("name", ["slurm.sbatch", "skypilot.yaml"])
def test_clusters_name_what_exists(name):
    text = (CLUSTERS / name).read_text()
    files = named_files(text)
    assert {"trainers/distill.py", "recipes/accelerate/fsdp2.yaml"} <= files
    for file in files:
        assert assets.find(file).exists(), file
    outside = {"env", "quiet", "signal", "config", "job", "nodes", "ntasks", "gpus", "cpus", "time", "requeue", "open"}
    assert not set(FLAGS.findall(text)) - script_flags("distill") - outside - {"output"}


def test_skypilot_task():
    task = yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text())
    for script in (task["setup"], task["run"]):
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    used = set(re.findall(r"\$\{?([A-Z][A-Z0-9_]*)", task["run"]))
    assert {name for name in used if not name.startswith("SKYPILOT_")} == task["envs"].keys()
    assert [f"{place}/$STAGE" in task["run"] for place in task["file_mounts"]] == [True]


@pytest.fixture
def slurm(tmp_path):
    """A folder in which slurm.sbatch can run: Slurm's commands and accelerate are scripts that note their words."""
    scripts = {
        "scontrol": 'if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >> requeued; fi',
        "srun": 'SLURM_NODEID=1 exec "$@"',
        "scancel": 'echo "$@" >> signalled; touch signal',
        # as a launcher: its processes stop when they are told, and then it fails
        "accelerate": 'printf "%s\\n" "$@" > launched; touch started\n'
        'case "$MODE" in finish) mkdir -p out && touch out/cascade.json ;; fail) exit 3 ;;\n'
        "stop) while [ ! -e signal ]; do sleep 0.05; done; exit 1 ;; esac",
    }
    (tmp_path / "bin").mkdir()
    for name, body in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def start(mode: str, *flags: str) -> subprocess.Popen:
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "MODE": mode}
        environment |= {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "41000", "SLURM_NNODES": "2"}
        command = ["bash", str(CLUSTERS / "slurm.sbatch"), *flags]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    return tmp_path, start


def test_slurm_job_that_finishes(slurm):
    folder, start = slurm
    assert start("finish", "--config", "recipes/tiny/short.yaml", "--output_dir", "out").wait(20) == 0
    assert not (folder / "requeued").exists()
    words = (folder / "launched").read_text().splitlines()
    assert words[0] == "launch"
    arguments = launch_command_parser().parse_args(words[1:])
    assert (arguments.num_machines, arguments.num_processes, arguments.machine_rank) == (2, 16, 1)
    assert (arguments.main_process_ip, arguments.main_process_port) == ("node7", 21000)
    assert arguments.config_file == "recipes/accelerate/fsdp2.yaml"
    assert arguments.training_script == "trainers/distill.py"
    assert arguments.training_script_args == ["--config", "recipes/tiny/short.yaml", "--output_dir", "out"]
    assert manifest.FILE == "cascade.json", "by which the job knows that the stage has finished"


def test_slurm_job_at_its_limit_is_queued_again(slurm):
    folder, start = slurm
    job = start("stop", "--output_dir=out")
    for _ in range(400):
        if (folder / "started").exists():
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 0
    assert (folder / "signalled").read_text() == "--signal=TERM 41000.0\n"
    assert (folder / "requeued").read_text() == "requeue 41000\n"


def test_slurm_job_that_fails_stays_down(slurm):
    folder, start = slurm
    assert start("fail", "--output_dir", "out").wait(20) == 3
    assert not (folder / "requeued").exists()
    job = start("finish", "--config", "x.yaml")
    assert job.wait(20) == 2 and "give --output_dir" in job.stderr.read()


def test_directives_are_read():
    """Slurm stops reading them at the first command."""
    lines = (CLUSTERS / "slurm.sbatch").read_text().splitlines()
    body = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert directives and all(line in lines[:body] for line in directives)
    assert "#SBATCH --signal=B:TERM@600" in directives and "#SBATCH --requeue" in directives
