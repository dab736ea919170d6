"""The paper's reasoning line as a recipe: section 5's order and numbers, both length stages, the scripts' own flags."""

import json
import runpy
import subprocess
import sys

import pytest
import yaml

from hf_cascade import assets, cli
from hf_cascade.plan import make_plan
from hf_cascade.recipe import load_recipe
from hf_cascade.shape import count_parameters

FOLDER = assets.find("recipes/ministral3")
NAME = "recipes/ministral3/reasoning.yaml"
RECIPE = load_recipe(NAME)
STAGES = {stage.name: stage for stage in RECIPE.stages}
SIZES = ("14b", "8b", "3b")
STEPS = ("sft", "prompts", "stem-32k", "stem-80k", "general", "reasoning", "report", "maths")
RUNS = ("sft", "difficulty", "grpo", "grpo", "grpo", "odpo", "evaluate", "evaluate")
PARAMETERS = {"14b": 13_506_073_600, "8b": 8_489_553_920, "3b": 3_429_006_336}  # paper.md section 1
K = 1024


def test_every_size_goes_the_papers_way():
    assert sorted(STAGES) == sorted(["pwrm", "tables", *(f"{size}-{step}" for size in SIZES for step in STEPS)])
    assert STAGES["tables"].inputs == {"model": [f"{size}-reasoning" for size in SIZES]}
    for size in SIZES:
        sft, difficulty, short, long, general, odpo, report, maths = (STAGES[f"{size}-{step}"] for step in STEPS)
        assert tuple(STAGES[f"{size}-{step}"].run for step in STEPS) == RUNS
        # the long-context base, and not the model that Online DPO left
        assert sft.inputs["model_name_or_path"] == f"mistralai/Ministral-3-{size.upper()}-Base-2512"
        assert difficulty.inputs == {"model": sft.name}
        assert short.inputs == {"model_name_or_path": sft.name, "prompts_from": difficulty.name}
        assert long.inputs == {"model_name_or_path": short.name, "prompts_from": difficulty.name}
        assert general.inputs == {"model_name_or_path": long.name}
        assert odpo.inputs == {"model_name_or_path": general.name, "reward_model": "pwrm"}
        models = [sft.name, short.name, long.name, general.name, odpo.name]
        assert report.inputs == {"model": models, "baseline": models[0], "reward_model": "pwrm"}
        assert maths.inputs == {"model": models} and maths.settings["samples_per_prompt"] == 16  # Table 5


def test_only_the_3b_has_a_teacher():
    """Plain fine-tuning made the 3B brittle, verbose and looping (paper section 5)."""
    teachers = {size: STAGES[f"{size}-sft"].inputs.get("teacher_model_name_or_path") for size in SIZES}
    assert teachers == {"14b": None, "8b": None, "3b": "mistralai/Magistral-Small-2509"}
    assert [STAGES[f"{size}-sft"].settings.get("plain_sft") for size in SIZES] == [True, True, None]
    sft = STAGES["14b-sft"].settings
    assert sft["filters"] == ["format", "repetition", "language"] and 0 < sft["long_fraction"] < 1


def test_numbers_of_section_5():
    for size in SIZES:
        stem, long, general = (STAGES[f"{size}-{step}"].settings for step in ("stem-32k", "stem-80k", "general"))
        lengths = [part["max_completion_length"] for part in (stem, long, general)]
        assert lengths == [32 * K, 80 * K, 80 * K]
        for part in (stem, long, general):
            assert (part["beta"], part["temperature"], part["length_penalty"]) == (0.0, 1.0, 0.1)
            assert part["epsilon_high"] in (0.28, 0.3) and part["length_scope"] == "group"
            assert part["length_cache"] == part["max_completion_length"] // 5
            assert part["vllm_max_model_length"] == part["max_completion_length"] + 4 * K
            assert part["per_device_train_batch_size"] == 1  # a row of 80K fits no more
            assert part["vllm_importance_sampling_mode"] == "token_truncate"  # a response's product leaves any bound
        assert (stem["reward_funcs"], general["reward_funcs"]) == (["stem_reward"], ["rubric_reward"])
        odpo = STAGES[f"{size}-reasoning"].settings
        assert (odpo["strip_thinking"], odpo["loss_form"], odpo["max_completion_length"]) == (True, "weight", 80 * K)
        report = STAGES[f"{size}-report"].settings
        assert (report["sampling_temperature"], report["top_p"]) == (0.7, 0.95)  # the released card
        difficulty = STAGES[f"{size}-prompts"].settings
        assert difficulty["max_completion_length"] == stem["max_completion_length"]


def test_the_length_stages_differ_in_length_alone():
    for size in SIZES:
        short, long = (STAGES[f"{size}-stem-{limit}"].settings for limit in ("32k", "80k"))
        raised = {"max_completion_length", "vllm_max_model_length", "length_cache", "max_steps"}
        assert {name for name in short if short[name] != long[name]} == raised and short.keys() == long.keys()


def test_shapes_are_followed_without_the_hub():
    planned = {part.stage.name: part for part in make_plan(RECIPE)}
    for size in SIZES:
        for step in STEPS[:1] + STEPS[2:6]:
            assert count_parameters(planned[f"{size}-{step}"].config) == PARAMETERS[size], step
        assert planned[f"{size}-reasoning"].reward == planned["pwrm"].config
    assert count_parameters(planned["3b-sft"].teacher) == 23_572_403_200


def test_a_dry_run_offline(tmp_path):
    command = [sys.executable, "-m", "hf_cascade.cli", "run", NAME, "--dry_run"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "14b-stem-80k" in said.stdout and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("machine", "too_large"),
    [
        ("8xh100-80gb", {"14b-stem-80k", "14b-general", "14b-reasoning", "8b-reasoning"}),
        ("8xh200-141gb", set()),
        ("8xb200-180gb", set()),
    ],
)
def test_what_fits_where(machine, too_large, capsys):
    assert cli.main(["plan", NAME, "--machine", machine, "--json"]) == 0
    stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert {name for name, stage in stages.items() if stage["fits"] is False} == too_large
    assert all(stages[name]["advice"] for name in too_large)
    for name, stage in stages.items():
        if stage["run"] in ("grpo", "odpo"):
            times = stage["times"]
            assert stage["seconds"] == pytest.approx(times["writing"] + times["passes"] + times["judging"]), name
            assert times["short"] < stage["seconds"] and stage["flops"] and stage["written"]
            assert (times["judging"] > 0) == (times["refilled"] is None) == (stage["run"] == "odpo")
            assert times["refilled"] is None or times["refilled"] > stage["seconds"]
            parts = stage["memory"]
            assert parts["total"] == pytest.approx(sum(parts[part] for part in parts if part != "total"))
            assert stage["device_bytes"] == max(parts["total"], stage["writing_memory"]["total"])
    assert stages["14b-stem-80k"]["written"] == 100 * 512 * 80 * K


def values_of(script: str, file: str, stage: str, folder, **here) -> dict:
    """What a script's own parser makes of a stage's file and `set`."""
    parser = runpy.run_path(str(assets.find(f"trainers/{script}.py")))["make_parser"]()
    written = yaml.safe_load((FOLDER / file).read_text())
    changed = {name: value for name, value in STAGES[stage].settings.items() if written.get(name) != value} | here
    words = [word for name, value in changed.items() for word in (f"--{name}", str(value).lower())]
    parsed = parser.parse_args_and_config(["--config", str(FOLDER / file), "--output_dir", str(folder), *words])
    return {name: value for part in parsed for name, value in vars(part).items()}


@pytest.mark.parametrize(
    ("script", "file", "stage", "responses"),
    [
        ("sft", "reasoning_sft.yaml", "14b-sft", 128),
        ("grpo", "stem.yaml", "14b-stem-32k", 512),
        ("grpo", "stem.yaml", "8b-stem-80k", 512),
        ("grpo", "general.yaml", "3b-general", 512),
        ("odpo", "reasoning_odpo.yaml", "14b-reasoning", 256),
    ],
)
def test_flags_are_the_scripts_own(script, file, stage, responses, tmp_path):
    here = {"bf16": False, "use_cpu": True}
    values, flags = values_of(script, file, stage, tmp_path, **here), STAGES[stage].settings
    for name in flags.keys() - here.keys() - {"datasets", "report_to", "accelerator_config"}:
        assert values[name] == flags[name], name
    assert values["accelerator_config"].gradient_accumulation_kwargs == {"sync_each_batch": True}
    rows = 8 * values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    assert rows == responses
    if script == "grpo":
        assert rows // 8 % values["num_generations"] == 0  # a process refills whole groups


def test_flags_of_difficulty_and_evaluate(tmp_path):
    from trl import TrlParser

    from hf_cascade.evaluate.config import EvaluateArguments
    from hf_cascade.grpo.difficulty_arguments import DifficultyArguments

    for kind, stage in ((DifficultyArguments, "14b-prompts"), (EvaluateArguments, "14b-report")):
        flags = STAGES[stage].settings
        given = flags | STAGES[stage].inputs | {"output_dir": str(tmp_path)}
        (parsed,) = TrlParser((kind,)).parse_dict(given, allow_extra_keys=False)
        assert {name: getattr(parsed, name) for name in flags} == flags
