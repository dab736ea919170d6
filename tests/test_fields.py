"""Flags read from source are those of the real classes, and values are judged as the stages would judge them."""

import dataclasses
import importlib
import runpy
import subprocess
import sys
from enum import Enum

import pytest

from hf_cascade import assets, fields
from hf_cascade.run import SCRIPTS

RUNS = sorted([*fields.DATACLASSES, *fields.COMMANDS])


def real_fields(run: str) -> dict[str, dataclasses.Field]:
    found = {}
    for path in (fields.DATACLASSES | fields.COMMANDS)[run]:
        module, _, name = path.rpartition(".")
        found |= {part.name: part for part in dataclasses.fields(getattr(importlib.import_module(module), name))}
    return found


@pytest.mark.parametrize("run", RUNS)
def test_names_and_choices_are_the_real_classes(run):
    real, read = real_fields(run), fields.flags(run)
    assert set(read) == set(real)
    for name, part in real.items():
        choices = part.metadata.get("choices")
        if isinstance(choices, list):  # the rest are enums, and a dict's keys that source does not write out
            assert read[name].choices == tuple(choices), name


@pytest.mark.parametrize("run", RUNS)
def test_every_default_is_allowed(run):
    """The strongest check of the kinds: what the class itself chose must pass."""
    checked = 0
    for name, part in real_fields(run).items():
        default = part.default if part.default_factory is dataclasses.MISSING else part.default_factory()
        if default is not dataclasses.MISSING:
            value = default.value if isinstance(default, Enum) else default
            assert fields.flags(run)[name].complaint(value) is None, name
            checked += 1
    assert checked >= 6


@pytest.mark.parametrize("run", RUNS)
def test_help_and_defaults_are_the_real_classes(run):
    for name, part in real_fields(run).items():
        flag = fields.flags(run)[name]
        assert flag.help == part.metadata.get("help", ""), name
        default = part.default if part.default_factory is dataclasses.MISSING else part.default_factory()
        if default is dataclasses.MISSING:
            assert flag.default == fields.NEEDED, name
        elif default in (None, [], "") or isinstance(default, dict):
            assert flag.default == "", name
        elif flag.owner.startswith("hf_cascade."):
            shown = " ".join(default) if isinstance(default, list) else str(default)
            assert flag.default == (shown.lower() if isinstance(default, bool) else shown), name
        elif name == "optim":  # by what is installed
            assert flag.default == ""
        else:
            assert flag.default not in ("", fields.NEEDED), name


@pytest.mark.parametrize("run", SCRIPTS)
def test_dataclasses_are_the_scripts(run):
    parser = runpy.run_path(str(assets.find(f"trainers/{run}.py")))["make_parser"]()
    names = [f"{part.__module__}.{part.__name__}" for part in parser.dataclass_types]
    assert [name.rpartition(".")[2] for name in names] == [p.rpartition(".")[2] for p in fields.DATACLASSES[run]]


def test_enums_are_the_librarys():
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    flags = fields.flags("distill")
    for name, enum in (
        ("eval_strategy", IntervalStrategy),
        ("save_strategy", SaveStrategy),
        ("lr_scheduler_type", SchedulerType),
        ("optim", OptimizerNames),
    ):
        assert flags[name].choices == tuple(member.value for member in enum), name


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("learning_rate", "1e-5"),  # YAML 1.1 reads it as text; the scripts as a number
        ("learning_rate", 1),
        ("learning_rate", 1.0e-5),
        ("logging_steps", 5),
        ("eval_strategy", "no"),
        ("save_strategy", "steps"),
        ("lr_scheduler_type", "warmup_stable_decay"),
        ("report_to", "none"),
        ("report_to", ["wandb", "tensorboard"]),
        ("lr_scheduler_kwargs", {"min_lr_rate": 0.1}),
        ("lr_scheduler_kwargs", '{"min_lr_rate": 0.1}'),
        ("datasets", [{"path": "json"}]),
        ("bf16", False),
        ("train_tokens", None),
        ("dtype", "bfloat16"),
        ("teacher_window", "mask"),
    ],
)
def test_allowed(flag, value):
    assert fields.flags("distill")[flag].complaint(value) is None


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("eval_strategy", False, ("False is not one of no, steps, epoch", "quote it")),
        ("save_strategy", False, ("is not one of no,", "quote it")),
        ("run_name", False, ("str | None", "quote it")),
        ("eval_strategy", "sometimes", ("'sometimes' is not one of no, steps, epoch",)),
        ("lr_scheduler_type", "linaer", ("is not one of linear,",)),
        ("teacher_window", "hide", ("'hide' is not one of mask, extrapolate, refuse",)),
        ("max_steps", True, ("True is bool; allowed is int",)),
        ("max_steps", 2.5, ("2.5 is float; allowed is int",)),
        ("max_steps", "100", ("'100' is str; allowed is int",)),
        ("train_tokens", "2e5", ("allowed is int | None",)),
        ("learning_rate", True, ("True is bool; allowed is float",)),
        ("learning_rate", "fast", ("'fast' is str; allowed is float",)),
        ("learning_rate", None, ("no value; allowed is float",)),
        ("learning_rate", [1e-5], ("is list; allowed is float",)),
        ("bf16", "yes", ("'yes' is str; allowed is bool",)),
        ("bf16", 1, ("1 is int; allowed is bool",)),
        ("run_name", 7, ("7 is int; allowed is str | None",)),
        ("datasets", "openstax.jsonl", ("is str; allowed is list[DatasetConfig]",)),
        ("datasets", {"path": "json"}, ("is dict; allowed is list[DatasetConfig]",)),
        ("lora_target_modules", "all-linear", ("is str; allowed is list[str] | None",)),
        ("lora_target_modules", ["q_proj", False], ("every entry must be text", "quote")),
    ],
)
def test_refused(flag, value, words):
    complaint = fields.flags("distill")[flag].complaint(value)
    assert complaint is not None
    for word in words:
        assert word in complaint


def test_quoting_is_not_advised_where_it_does_not_help():
    assert "quote" not in fields.flags("distill")["max_steps"].complaint(True)


def test_source_that_leads_nowhere():
    with pytest.raises(LookupError, match="neither defines nor imports Nothing"):
        fields.class_fields("hf_cascade.data.config", "Nothing")
    with pytest.raises(LookupError, match="no_such_package is not installed"):
        fields.class_fields("no_such_package.config", "Nothing")
    with pytest.raises(LookupError, match="no source file"):
        fields.class_fields("hf_cascade.no_such_module", "Nothing")


def test_nothing_is_imported():
    code = (
        "import sys; from hf_cascade import fields; "
        "assert all(fields.flags(run)[flag] for run, flag in "
        "(('prune', 'method'), ('pretrain', 'tokenizer'), ('distill', 'learning_rate'), ('evaluate', 'tasks'))); "
        "print(sorted({'torch', 'transformers', 'trl', 'datasets', 'accelerate'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
