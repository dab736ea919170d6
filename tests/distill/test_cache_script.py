"""`trainers/cache_teacher.py` as a user runs it, and `trainers/sft.py` on the cache it made, from one config."""

import json
import re
import runpy
import sys

import pytest
import torch

from hf_cascade import assets, manifest
from tests.data import tiny
from tests.prune import families

SETTINGS = {
    "max_length": 64,
    "max_steps": 4,
    "per_device_train_batch_size": 3,
    "optim": "sgd",  # Adam's first steps are signs: rounding would decide them
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "disable_tqdm": True,
}


def talk(number: int) -> list[dict]:
    return [
        {"role": "user", "content": "what " + "ab"[number % 2]},
        {"role": "assistant", "content": "c" * (number + 3)},
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with students, teachers and rows."""
    folder = tmp_path_factory.mktemp("script")
    for name, family, width in (
        *(("student", "llama", 48), ("teacher", "llama", 60)),
        *(("seeing", "mistral3", 48), ("seeing-teacher", "mistral3", 60)),
    ):
        model = families.build(family, seed=len(name), dtype=torch.float32, num_hidden_layers=2, hidden_size=width)
        model.save_pretrained(folder / name)
        kit = tiny.processor() if family == "mistral3" else tiny.tokenizer()
        kit.chat_template = tiny.CHAT
        kit.save_pretrained(folder / name)
    for number in range(3):
        tiny.image(8 + 4 * number, 16, number).save(folder / f"{number}.png")
    rows = {
        "talk": [{"messages": talk(number)} for number in range(8)],
        "pictures": [
            {"messages": talk(n), "images": [str(folder / f"{n % 3}.png")] if n % 3 else None} for n in range(8)
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = {**SETTINGS, "datasets": [{"path": "json", "data_files": str(folder / f"{name}.jsonl")}]}
        (folder / f"{name}.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return folder


@pytest.fixture
def run(place, monkeypatch):
    """Run a script in this process: its name, a config's name, and flags; the exit status."""
    monkeypatch.chdir(place)

    def call(script: str, config: str = "talk", **flags) -> int:
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        monkeypatch.setattr(sys, "argv", [f"{script}.py", "--config", f"{config}.yaml", *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(assets.find(f"trainers/{script}.py")), run_name="__main__")
        return stop.value.code

    return call


@pytest.mark.parametrize(
    "config, student, teacher, flags",
    [
        ("talk", "student", "teacher", {"assistant_only_loss": True}),
        ("talk", "student", "teacher", {"packing": True, "max_length": 128}),
        ("pictures", "seeing", "seeing-teacher", {"assistant_only_loss": True}),
    ],
    ids=["assistant", "packed", "images"],
)
def test_a_stage_on_the_cache_is_the_stage_on_the_teacher(place, run, tmp_path, config, student, teacher, flags):
    cache = {name: value for name, value in flags.items() if name != "packing"}
    cache |= {"teacher_model_name_or_path": teacher, "top_k": families.VOCABULARY, "output_dir": tmp_path / "cache"}
    assert run("cache_teacher", config, model_name_or_path=student, **cache) == 0
    stage = {"model_name_or_path": student, "seed": 3, "num_train_epochs": 2, **flags}
    assert run("sft", config, teacher_model_name_or_path=teacher, output_dir=tmp_path / "own", **stage) == 0
    assert run("sft", config, teacher_cache=tmp_path / "cache", output_dir=tmp_path / "read", **stage) == 0
    own, read = (
        torch.tensor([entry["loss"] for entry in json.loads((tmp_path / name / "log.json").read_text())])
        for name in ("own", "read")
    )
    assert len(own) == SETTINGS["max_steps"]
    torch.testing.assert_close(read, own, rtol=2e-3, atol=1e-4)
    assert manifest.read(tmp_path / "read")["inputs"]["teacher_cache"] == str(tmp_path / "cache")


def test_makes_checks_and_refuses(place, run, tmp_path, capsys):
    cache, whole = tmp_path / "cache", {"teacher_model_name_or_path": "teacher", "top_k": 8}
    assert run("cache_teacher", **whole, output_dir=cache) == 0
    record = manifest.read(cache)
    assert record["run"] == "cache_teacher" and record["inputs"] == {"teacher_model_name_or_path": "teacher"}
    assert record["metrics"]["sequences"] == 8 and record["metrics"]["bytes_per_token"] > 4 * 8 + 2
    capsys.readouterr()
    assert run("cache_teacher", **whole, verify=cache, output_dir=tmp_path / "none") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sequences"] == 8 and 0 < report["largest_distance"] < 1e-3
    assert not (tmp_path / "none").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    for flags, words in (
        ({"output_dir": cache}, "give teacher_model_name_or_path"),
        ({**whole, "output_dir": cache, "top_k": 9}, "another k (k: 8 there, 9 here)"),
        ({**whole, "output_dir": cache, "teacher_model_name_or_path": "student"}, "another teacher_sha256"),
        ({**whole, "output_dir": tmp_path / "mine"}, "is no cache of a teacher"),
        ({**whole, "output_dir": tmp_path / "new", "top_k": 0}, "allowed is 1 to 97"),
        ({**whole, "verify": cache, "max_length": 6}, "is not in the cache"),
        ({**whole, "verify": tmp_path / "mine"}, "holds no cache"),
    ):
        assert run("cache_teacher", **flags) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert re.fullmatch(rf"hf-cascade: error: .*{re.escape(words)}.*", last), last
