"""`hf-cascade plan`: what a person sees in 80 columns, what a program reads, and times recorded before."""

import io
import json
import re

import pytest
from rich.console import Console

from hf_cascade import assets, cli, manifest, plan_report
from hf_cascade.estimate import Record
from hf_cascade.machines import find_machine
from hf_cascade.plan import make_plan
from hf_cascade.plan_report import find_records
from hf_cascade.recipe import load_recipe
from hf_cascade.shape import count_parameters
from hf_cascade.stage_setup import MFU, Options


def said(monkeypatch, *words: str, width: int = 80) -> str:
    """What `hf-cascade plan` prints on a terminal of this width."""
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    monkeypatch.setattr(plan_report, "make_console", lambda: console)
    assert cli.main(["plan", *words]) == 0
    return console.file.getvalue()


def row(text: str, stage: str, number: int) -> list[str]:
    """Cells of a stage's row in the `number`-th table."""
    rows = [line.split() for line in text.splitlines() if line.split()[:1] == [stage]]
    return rows[number]


@pytest.mark.parametrize("machine", ["8xh100-80gb", "64xh100-80gb", "h200", "8xrtx4090"])
def test_the_papers_run_in_80_columns(machine, monkeypatch):
    text = said(monkeypatch, "recipes/ministral3", "--machine", machine)
    assert max(len(line) for line in text.splitlines()) <= 80
    for number in range(2):  # nothing is cut
        assert row(text, "14b-short", number + 1)[0] == "14b-short"
    assert "…" not in text
    flat = " ".join(text.split())
    for words in ("27B", "arXiv 2407.21783", "NVIDIA's", "and not measured", "An upper bound", "vision tower", "host"):
        assert words in flat, words


def test_post_training_in_80_columns(monkeypatch):
    """Upper bounds are called so, and hours of writing say what they suppose."""
    text = said(monkeypatch, "recipes/ministral3/instruct.yaml", "--machine", "8xh100-80gb")
    assert max(len(line) for line in text.splitlines()) <= 80 and "…" not in text
    assert len(row(text, "14b-instruct", 1)) == len(row(text, "14b-sft", 1)) == 9  # "91.2 h"
    assert re.search(r"stage +written +writing +passes +judging +short\n", text.replace(" \n", "\n"))
    hours = row(text, "14b-instruct", 2)
    assert hours[1::2][:3] == ["155M", "h", "h"] and float(hours[2]) + float(hours[4]) < float(
        row(text, "14b-instruct", 1)[6]
    )
    assert row(text, "14b-instruct", 3)[-1] == "yes"
    flat = " ".join(text.split())
    for words in (
        "14b-sft, 8b-sft, 3b-sft, pwrm: at most: every row as if it had max_length tokens.",
        "3b-instruct: at most: every row as if it had vllm_max_model_length tokens.",
        "the reward model on both whole responses of a pair in both orders",
        "3.35 TB/s of h100-80gb. Written together",
        "judging: the reward model. short: all of it with responses 25% as long",
    ):
        assert words in flat, words
    assert "refilled" not in flat and "FSDP2 gathers the weights again" not in flat
    words = [f"--set={size}-instruct.{flag}" for size in ("14b", "8b", "3b") for flag in ("use_vllm=false",)]
    slow = " ".join(said(monkeypatch, "recipes/ministral3/instruct.yaml", "--machine", "8xh100-80gb", *words).split())
    assert "for each token of which FSDP2 gathers the weights again" in slow
    assert "both orders" not in said(monkeypatch, "recipes/ministral3", "--machine", "8xh100-80gb")


def test_grpo_in_80_columns(monkeypatch):
    """Both phases of a stage, what its hours suppose and between what they lie, and prompts that are not counted."""
    words = ["recipes/ministral3/reasoning.yaml", "--machine", "8xh100-80gb"]
    text = said(monkeypatch, *words)
    assert max(len(line) for line in text.splitlines()) <= 80 and "…" not in text
    training, lines = row(text, "14b-stem-80k", 3), text.splitlines()
    assert training[-1] == "no" and sum(map(float, training[1:6])) == pytest.approx(float(training[6]), abs=0.3)
    place = next(number for number, line in enumerate(lines) if line.split()[:1] == ["14b-stem-80k"] and "no" in line)
    writing = lines[place + 1].split()
    assert writing[0] == "writing" and writing[-2:] == ["71.2", "yes"] and "44.0" in writing
    assert {line[:80].split()[-1] for line in lines if line.startswith(" 14b-reasoning")} >= {"no"}  # nothing is cut
    flat = " ".join(text.split())
    for part in (
        "an upper bound in lengths, every response at its longest",
        "stage written writing passes judging short refilled",
        "refilled: all of it with every group replaced max_refill_rounds times",
        "- --gpus 32 (78 GB)",
        "- --machine 8xh200-141gb (105 GB)",
        "at most 20,000 prompts, 16 responses of at most 32,768 tokens to each, 1.9e16 FLOPs a prompt",
        "in the row under FlashAttention, else to the whole row",
    ):
        assert part in flat, part
    assert row(text, "14b-stem-80k", 2)[1] == "4.19B" and "\n   writing" in text
    assert "\n   writing" not in said(monkeypatch, "recipes/ministral3", "--machine", "8xh100-80gb")


def test_figures_of_a_stage(monkeypatch):
    text = said(monkeypatch, "recipes/ministral3", "--machine", "8xh100-80gb", width=120)
    assert "13,506,073,600" in text and "Mistral-Small" in text
    assert row(text, "14b-short", 1)[1:5] == ["4.19M", "6,437", "5.2e21", "29%"]
    memory = row(text, "14b-short", 2)
    assert memory[-1] == "yes" and sum(map(float, memory[1:6])) == pytest.approx(float(memory[6]), abs=0.3)
    assert row(text, "3b-short", 2)[-1] == "yes"
    flat = " ".join(text.split())
    assert "Does not fit:" in text and "--sequence_parallel 8" in flat
    unsynced = ["--machine", "8xh100-80gb", "--set", "14b-short.accelerator_config={}"]
    text = said(monkeypatch, "recipes/ministral3", *unsynced, width=120)
    assert row(text, "14b-short", 2)[-1] == "no" and "sync_each_batch: true}} (63 GB)" in " ".join(text.split())
    changes = {"attn_implementation": "flash_attention_2", "gradient_accumulation_steps": 8}
    words = ["recipes/ministral3", "--machine", "64xb200"]
    for stage in ("14b", "8b", "3b"):
        words += ["--sequence_parallel", f"{stage}=8"]
        words += [word for flag, value in changes.items() for word in ("--set", f"{stage}.{flag}={value}")]
    fits = said(monkeypatch, *words)
    assert "Does not fit" not in fits and "fsdp2.yaml" in fits and "sp_zero3.yaml" in fits


def test_totals_are_sums(monkeypatch, capsys):
    assert cli.main(["plan", "recipes/ministral3", "--machine", "8xh100-80gb", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    stages = {stage["name"]: stage for stage in plan["stages"] if stage["run"] != "evaluate"}  # its time is not known
    assert plan["machine"]["gpus"] == 8 and plan["mfu"] == 0.4 and len(stages) == 9
    assert plan["total_seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages.values()))
    assert plan["total_gpu_seconds"] == pytest.approx(
        sum(stage["seconds"] * (1 if stage["run"] == "prune" else 8) for stage in stages.values())
    )
    short = stages["14b-short"]
    assert short["parameters"] == 13_506_073_600 and short["fits"] is True
    assert stages["14b"]["fits"] is False and stages["14b"]["advice"]
    assert short["flops"] == pytest.approx(short["tokens"] * short["per_token"]["executed"])
    assert short["memory"]["total"] == pytest.approx(short["device_bytes"])
    assert any("2407.21783" in line for line in plan["basis"])
    hours = said(monkeypatch, "recipes/ministral3", "--machine", "8xh100-80gb")
    total = re.search(r"total .* ([\d,]+) h +([\d,]+)", hours)
    assert int(total[1].replace(",", "")) == round(plan["total_seconds"] / 3600)
    assert int(total[2].replace(",", "")) == round(plan["total_gpu_seconds"] / 3600)


def test_set_and_a_machine_in_numbers(monkeypatch):
    words = ["recipes/ministral3", "--gpus", "8", "--tflops", "100", "--memory", "200", "--mfu", "0.5"]
    text = said(monkeypatch, *words, "--set", "14b-short.train_tokens=1000000000", width=120)
    assert "8 x GPU of a machine that was not named, 200 GB each" in text and "1,000,000,000" in text
    assert "0.5, as you set it" in text and "--tflops" in text
    assert row(text, "14b-short", 2)[-1] == "yes"
    nothing = said(monkeypatch, "recipes/ministral3", width=120)
    assert "time " in nothing and "give --machine, or --tflops." in nothing and "total" in nothing


def test_the_demo_on_a_cpu_takes_what_it_took(monkeypatch, tmp_path):
    """Recorded seconds of the recipe's authors; nothing is run to know them."""
    cpu = ["recipes/tiny", "--machine", "cpu", "--output_dir", str(tmp_path)]
    text = said(monkeypatch, *cpu)
    results = json.loads(assets.find("recipes/tiny/results/results.json").read_text())["models"]
    seconds = {model["name"]: model["seconds"] for model in results}
    assert f"{seconds['14b-short']:.0f} s" in " ".join(row(text, "14b-short", 1)) and "GPU" not in text
    assert "results.json, in proportion to the tokens" in " ".join(text.split())
    assert "report: depends on its tasks and texts" in text
    twice = said(monkeypatch, *cpu, "--set", "14b-short.train_tokens=360000")
    assert f"{2 * seconds['14b-short']:.0f} s" in " ".join(row(twice, "14b-short", 1))
    other = said(monkeypatch, *cpu, "--set", "3b-pruned.intermediate_size=128")
    assert "3b-pruned, 3b-short, 3b: how fast cpu multiplies in float32 is not known" in " ".join(other.split())
    assert re.search(r"14b-short .* \d+ s", said(monkeypatch, *cpu, "--tflops", "0.05"))


def test_a_finished_run_goes_before_what_others_recorded(tmp_path):
    recipe = load_recipe("recipes/tiny")
    planned = make_plan(recipe)
    stage = next(part for part in planned if part.stage.name == "14b-short")
    folder = tmp_path / "14b-short"
    folder.mkdir()
    data = {"cursor": {"document": 1, "token": 2}, "tokens": 1000, "ledger": []}
    manifest.write(folder, stage="14b-short", run="distill", config={}, inputs={}, metrics={"seconds": 5.0}, data=data)
    others = find_records(recipe, planned, tmp_path)["14b-short"]
    assert others.seconds != 5.0  # made with other settings
    record = json.loads((folder / manifest.FILE).read_text())
    (folder / manifest.FILE).write_text(json.dumps(record | {"fingerprint": stage.stage.fingerprint}))
    assert find_records(recipe, planned, tmp_path)["14b-short"] == Record(5.0, 1000, f"{tmp_path}/*/{manifest.FILE}")
    hardware = record["hardware"] | {"accelerator": "a GPU"}
    on_gpu = record | {"fingerprint": stage.stage.fingerprint, "hardware": hardware}
    (folder / manifest.FILE).write_text(json.dumps(on_gpu))
    assert find_records(recipe, planned, tmp_path)["14b-short"] == others


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--machine", "h1000"], "--machine h1000: allowed are h100-80gb"),
        (["--gpus", "0"], "--gpus 0: it must be a number above 0"),
        (["--mfu", "40"], "--mfu 40.0: a share of the peak"),
        (["--sharding", "zero2"], "--sharding zero2: allowed are none, fsdp2, zero3"),
        (["--sequence_parallel", "14c=2"], "write N, or STAGE=N with a stage of 14b-pruned, 14b-short"),
        (["--sequence_parallel", "two"], "--sequence_parallel two: write N"),
        (["--machine", "8xh200", "--sequence_parallel", "3"], "8 GPUs cannot be divided into groups of 3"),
        (["--set", "14b-short.hidden=3"], "unknown key"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    assert cli.main(["plan", "recipes/tiny", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.startswith("hf-cascade: error: ")
    assert len(captured.err.splitlines()) == 1


def test_the_command_lines_default_is_the_estimates():
    assert cli.make_parser().parse_args(["plan", "recipes/tiny"]).mfu == MFU


def test_every_stage_of_every_recipe_is_planned():
    for recipe in ("recipes/tiny", "recipes/tiny/parent.yaml", "recipes/ministral3"):
        planned = make_plan(load_recipe(recipe))
        costs = [plan_report.estimate(part, Options(find_machine("8xh200"))) for part in planned]
        assert [cost.name for cost in costs if not cost.seconds and cost.run != "evaluate"] == []
        sizes = [count_parameters(part.config) for part in planned if part.config]
        assert sizes and all(cost.flops for cost in costs if cost.run != "evaluate")
