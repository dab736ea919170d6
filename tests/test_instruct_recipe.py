"""The paper's instruct line as a recipe: section 4's order and numbers, released shapes, and the scripts' own flags."""

import json
import runpy
import subprocess
import sys

import pytest
import yaml

from hf_cascade import assets
from hf_cascade.plan import make_plan
from hf_cascade.recipe import load_recipe
from hf_cascade.shape import count_parameters, count_total

FOLDER = assets.find("recipes/ministral3")
RECIPE = load_recipe(str(FOLDER / "instruct.yaml"))
STAGES = {stage.name: stage for stage in RECIPE.stages}
SIZES = ("14b", "8b", "3b")
# paper.md section 1: language model, with tower and projector, rope_theta
TABLE_1 = {
    "14b": (13_506_073_600, 13_945_031_680, 1e9),
    "8b": (8_489_553_920, 8_918_026_240, 1e6),
    "3b": (3_429_006_336, 3_849_090_048, 1e6),
}
ROWS = {"pwrm": 2 * 0.98 * 77_016, "odpo": 2 * 37_775}  # comparisons and responses, of the sets' cards


def test_every_size_is_fine_tuned_then_preferred_then_measured():
    assert sorted(STAGES) == sorted(
        ["pwrm", "tables", *(size + part for size in SIZES for part in ("-sft", "-instruct", "-report"))]
    )
    assert STAGES["tables"].inputs == {"model": [f"{size}-instruct" for size in SIZES]}
    for size in SIZES:
        sft, odpo, report = (STAGES[size + part] for part in ("-sft", "-instruct", "-report"))
        assert (sft.run, odpo.run, report.run) == ("sft", "odpo", "evaluate")
        assert sft.inputs["model_name_or_path"] == f"mistralai/Ministral-3-{size.upper()}-Base-2512"
        assert "teacher_model_name_or_path" in sft.inputs and not sft.settings.get("plain_sft")
        assert odpo.inputs == {"model_name_or_path": f"{size}-sft", "reward_model": "pwrm"}
        models = [f"{size}-sft", f"{size}-instruct"]
        assert report.inputs == {"model": models, "baseline": models[0], "reward_model": "pwrm"}


def test_numbers_of_section_4():
    sft, odpo = STAGES["14b-sft"].settings, STAGES["14b-instruct"].settings
    assert (sft["teacher_dtype"], sft["freeze_vision_tower"], sft["next_token_weight"]) == ("fp8", True, 0.0)
    assert (odpo["num_generations"], odpo["sampling_temperature"], odpo["soft_labels"]) == (2, 0.7, True)
    assert STAGES["14b-report"].settings["sampling_temperature"] == odpo["sampling_temperature"]


def test_nothing_is_ranked_by_what_it_was_calibrated_on():
    paths = {name: {part["path"] for part in STAGES[name].settings["datasets"]} for name in ("pwrm", "14b-instruct")}
    assert not paths["pwrm"] & paths["14b-instruct"]


def test_shapes_are_the_released_ones():
    from transformers import AutoConfig

    from hf_cascade.context import extend_context

    planned = {part.stage.name: part for part in make_plan(RECIPE)}
    parent = AutoConfig.from_pretrained(FOLDER / "parent_config.json")
    long = yaml.safe_load((FOLDER / "long.yaml").read_text())
    released = [long[name] for name in ("context_length", "original_context_length", "llama_4_scaling_beta")]
    for size, (language, total, rope_theta) in TABLE_1.items():
        file = FOLDER / "configs" / f"Ministral-3-{size.upper()}-Base-2512.json"
        config = json.loads(file.read_text())
        assert planned[f"{size}-sft"].source == config
        assert (count_parameters(config), count_total(config)) == (language, total)
        read = AutoConfig.from_pretrained(file).text_config
        parent.text_config.rope_parameters["rope_theta"] = rope_theta
        expected = extend_context(parent, *released).text_config
        assert (read.model_type, read.max_position_embeddings) == ("ministral3", expected.max_position_embeddings)
        assert read.rope_parameters == expected.rope_parameters
    assert count_parameters(planned["14b-sft"].teacher) == 23_572_403_200
    assert planned["3b-instruct"].reward == planned["pwrm"].config


@pytest.mark.parametrize("words", [["run", "--dry_run"], ["plan", "--machine", "8xh100-80gb"]])
def test_it_plans_offline(words, tmp_path):
    word, *flags = words
    command = [sys.executable, "-m", "hf_cascade.cli", word, "recipes/ministral3/instruct.yaml", *flags]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "14b-instruct" in said.stdout and "Does not fit" not in said.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sft", "pwrm", "odpo"])
def test_flags_are_the_scripts_own(name, tmp_path):
    parser = runpy.run_path(str(assets.find(f"trainers/{name}.py")))["make_parser"]()
    file = FOLDER / f"{name}.yaml"
    here = {"bf16": "false", "use_cpu": "true"} | ({"teacher_dtype": "auto"} if name == "sft" else {})
    words = [word for key, value in here.items() for word in (f"--{key}", value)]
    parsed = parser.parse_args_and_config(["--config", str(file), "--output_dir", str(tmp_path), *words])
    values = {key: value for part in parsed for key, value in vars(part).items()}
    flags = yaml.safe_load(file.read_text())
    for key in flags.keys() - here.keys() - {"datasets", "report_to", "accelerator_config"}:
        assert values[key] == flags[key], key
    training = parsed[0]
    assert training.accelerator_config.gradient_accumulation_kwargs == {"sync_each_batch": True}
    rows = 8 * training.train_batch_size * training.gradient_accumulation_steps
    assert rows == {"sft": 128, "pwrm": 128, "odpo": 256}[name]
    if name in ROWS:  # once through, not twice
        assert ROWS[name] - rows <= training.max_steps * rows <= ROWS[name]
