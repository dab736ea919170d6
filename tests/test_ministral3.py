"""The paper's recipe: Algorithm 1's wiring, Table 1's shapes, its numbers cited, its flags the scripts' own."""

import json
import re
import runpy
import subprocess
import sys

import pytest
import yaml

from hf_cascade import ChildShape, assets
from hf_cascade.shape import count_parameters, count_total

FOLDER = assets.find("recipes/ministral3")
PARENT = "mistralai/Mistral-Small-3.1-24B-Base-2503"
STAGES = yaml.safe_load((FOLDER / "cascade.yaml").read_text())
SIZES = ("14b", "8b", "3b")
NUMBER = re.compile(r":\s*-?\d[\d.e+-]*}?\s*$")
# paper.md section 1: language model, with tower and projector, rope_theta
TABLE_1 = {
    "14b": (13_506_073_600, 13_945_031_680, 1e9),
    "8b": (8_489_553_920, 8_918_026_240, 1e6),
    "3b": (3_429_006_336, 3_849_090_048, 1e6),
}


def settings(stage: str) -> dict:
    """A stage's flags as its script gets them."""
    return yaml.safe_load((FOLDER / STAGES[stage]["config"]).read_text()) | STAGES[stage]["set"]


def test_stages_are_algorithm_1():
    assert list(STAGES) == [f"{size}{stage}" for size in SIZES for stage in ("-pruned", "-short", "")] + ["tables"]
    assert STAGES["tables"]["inputs"] == {"model": list(SIZES), "teacher": PARENT}
    source = PARENT
    for size in SIZES:
        pruned, short, long = (STAGES[f"{size}{stage}"] for stage in ("-pruned", "-short", ""))
        assert (pruned["run"], short["run"], long["run"]) == ("prune", "distill", "distill")
        assert pruned["inputs"] == {"model": source}
        assert short["inputs"]["model_name_or_path"] == f"{size}-pruned"
        assert long["inputs"]["model_name_or_path"] == f"{size}-short"
        source = f"{size}-short"  # the SHORT output is what the next prune starts from
    distilled = [stage for stage in STAGES.values() if stage["run"] == "distill"]
    assert {stage["inputs"]["teacher_model_name_or_path"] for stage in distilled} == {PARENT}


def test_no_token_is_read_twice():
    """Each distillation reads on after the one before it; the first begins."""
    distilled = [name for name in STAGES if STAGES[name]["run"] == "distill"]
    after = [STAGES[name]["inputs"].get("data_after") for name in distilled]
    assert after == [None, *distilled[:-1]]
    assert settings("14b-short")["datasets"] == settings("14b")["datasets"]  # the cursor speaks of one text
    tokens = [sum(settings(size + stage)["train_tokens"] for stage in ("-short", "")) for size in SIZES]
    assert [count / sum(tokens) for count in tokens] == pytest.approx([0.30, 0.30, 0.40])  # Figure 2


def test_shapes_are_table_1():
    config = json.loads((FOLDER / "parent_config.json").read_text())
    assert (count_parameters(config), count_total(config)) == (23_572_403_200, 24_011_361_280)
    for size in SIZES:
        flags = settings(f"{size}-pruned")
        names = ("num_hidden_layers", "hidden_size", "intermediate_size", "tie_word_embeddings")
        config = ChildShape(**{name: flags.get(name) for name in names}).apply(config)
        assert (count_parameters(config), count_total(config), flags["rope_theta"]) == TABLE_1[size]
    assert {"num_hidden_layers", "hidden_size"}.isdisjoint(settings("14b-pruned"))  # hop 1 prunes the FFN alone


def test_it_plans_offline(tmp_path):
    command = [sys.executable, "-m", "hf_cascade.cli", "run", "recipes/ministral3/cascade.yaml", "--dry_run"]
    plan = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert plan.returncode == 0, plan.stderr
    for language, _, _ in TABLE_1.values():
        assert f"{language:,}" in plan.stdout
    assert list(tmp_path.iterdir()) == []


def test_pruning_is_the_papers():
    from trl import TrlParser

    from hf_cascade.prune.config import METHODS, PruneArguments, PruneConfig

    for size in SIZES:
        flags = settings(f"{size}-pruned")
        config, arguments = TrlParser((PruneConfig, PruneArguments)).parse_dict(
            flags | {"model": PARENT, "output_dir": "out"}, allow_extra_keys=False
        )
        assert {name: getattr(config, name) for name in METHODS["paper"]} == METHODS["paper"]
        assert isinstance(config.rope_theta, float) and config.intermediate_size == flags["intermediate_size"]
        assert arguments.dtype == "bfloat16"


def prune_config(size: str):
    """The recipe's pruning of one hop, as the command parses it."""
    from trl import TrlParser

    from hf_cascade.prune.config import PruneArguments, PruneConfig

    flags = settings(f"{size}-pruned") | {"model": PARENT, "output_dir": "out"}
    return TrlParser((PruneConfig, PruneArguments)).parse_dict(flags, allow_extra_keys=False)[0]


def test_every_hop_on_the_meta_device_ends_as_released():
    """The recipe's own prune stages on the parent's real shape: Table 1's sizes, and the released settings."""
    from transformers import AutoConfig

    from hf_cascade import extend_context, prune_model
    from hf_cascade.prune.parent import skeleton

    model = skeleton(AutoConfig.from_pretrained(FOLDER / "parent_config.json"))
    assert model.num_parameters() == 24_011_361_280
    long = settings("14b")
    for size in SIZES:
        model = prune_model(model, prune_config(size))
        language, total, rope_theta = TABLE_1[size]
        assert type(model).__name__ == "Mistral3ForConditionalGeneration" and model.num_parameters() == total
        tower = ("model.vision_tower", "model.multi_modal")
        parameters = {
            id(value): value.numel() for name, value in model.named_parameters() if not name.startswith(tower)
        }
        assert sum(parameters.values()) == language
        decoder, tied = model.config.text_config, size == "3b"
        assert (decoder.head_dim, decoder.num_attention_heads, decoder.num_key_value_heads) == (128, 32, 8)
        assert decoder.rope_parameters["rope_theta"] == rope_theta
        assert (model.config.tie_word_embeddings, decoder.tie_word_embeddings) == (tied, tied)
        released = extend_context(
            model.config, long["context_length"], long["original_context_length"], long["llama_4_scaling_beta"]
        ).text_config
        assert (released.model_type, released.max_position_embeddings) == ("ministral3", 262144)
        rope = {"rope_type": "yarn", "factor": 16, "original_max_position_embeddings": 16384, "rope_theta": rope_theta}
        rope |= {"beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 1, "llama_4_scaling_beta": 0.1}
        assert {name: released.rope_parameters[name] for name in rope} == rope


def test_every_hop_on_real_tensors_a_64th_as_wide(tmp_path):
    """All widths divided by 64, all 40 layers: the command, hop after hop, with the recipe's settings."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from hf_cascade.cli import main as hf_cascade
    from tests.prune.families import save_tokenizer

    widths = ("hidden_size", "intermediate_size", "vocab_size")
    config = json.loads((FOLDER / "parent_config.json").read_text())
    config["vision_config"] |= {"hidden_size": 16, "intermediate_size": 64, "head_dim": 4, "num_attention_heads": 4}
    config["vision_config"] |= {"num_hidden_layers": 2}
    config["text_config"] |= {name: config["text_config"][name] // 64 for name in (*widths, "head_dim")}
    torch.manual_seed(0)
    folder = tmp_path / "parent"
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.json").write_text(json.dumps(config))
    parent = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path / "config"))
    parent.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder, 2048)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{n}" for n in torch.randint(4, 2048, (1500,)).tolist()))

    for size in SIZES:
        flags = settings(f"{size}-pruned") | {"calibration": str(text), "calibration_samples": 20, "batch_size": 8}
        flags |= {"calibration_length": 64, "model": str(folder), "output_dir": str(tmp_path / size)}
        flags |= {name: flags[name] // 64 for name in widths if name in flags}
        assert (
            hf_cascade(["prune", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]) == 0
        )
        folder = tmp_path / size
        child = AutoModelForImageTextToText.from_pretrained(folder)
        found, tied = child.config, size == "3b"
        expected = {name: flags.get(name) for name in ("num_hidden_layers", *widths[:2]) if flags.get(name)}
        assert {name: getattr(found.text_config, name) for name in expected} == expected
        assert child.num_parameters() == count_total(json.loads((folder / "config.json").read_text()))
        assert found.text_config.rope_parameters["rope_theta"] == TABLE_1[size][2] and child.dtype == torch.bfloat16
        assert (
            found.tie_word_embeddings == tied and (child.lm_head.weight is child.get_input_embeddings().weight) == tied
        )
        for name, value in parent.model.vision_tower.state_dict().items():
            assert torch.equal(value.to(torch.bfloat16), child.model.vision_tower.state_dict()[name]), name


@pytest.mark.parametrize(("stage", "name"), [("14b-short", "short"), ("14b", "long")])
def test_distillation_flags_are_the_scripts_own(stage, name, tmp_path):
    parser = runpy.run_path(str(assets.find("trainers/distill.py")))["make_parser"]()
    flags = settings(stage)
    command = ["--config", str(FOLDER / f"{name}.yaml"), "--output_dir", str(tmp_path), "--bf16", "false"]
    parsed = parser.parse_args_and_config([*command, "--train_tokens", str(flags["train_tokens"])])
    training = parsed[0]
    values = {key: value for part in parsed for key, value in vars(part).items()}
    for key in flags.keys() - {"bf16", "datasets", "report_to", "accelerator_config"}:
        assert values[key] == flags[key], key
    if name == "short":
        assert training.accelerator_config.gradient_accumulation_kwargs == {"sync_each_batch": True}
    # eight processes, as fsdp2.yaml starts, with a row each; as sp_zero3.yaml starts, with a row together
    assert {"short": 8, "long": 1}[name] * training.tokens_per_step == 2**22
    assert training.max_steps == round(flags["train_tokens"] / training.tokens_per_step)
    assert [part.path for part in values["datasets"]] == ["HuggingFaceFW/finepdfs"]


def test_the_long_stage_makes_the_released_rope():
    from transformers import AutoConfig

    from hf_cascade.context import extend_context

    flags = settings("14b")
    parent = AutoConfig.from_pretrained(FOLDER / "parent_config.json")
    config = extend_context(
        parent, flags["context_length"], flags["original_context_length"], flags["llama_4_scaling_beta"]
    )
    decoder = config.text_config
    assert (decoder.model_type, decoder.max_position_embeddings, flags["max_length"]) == ("ministral3", 262144, 262144)
    released = {"factor": 16, "original_max_position_embeddings": 16384, "beta_fast": 32, "beta_slow": 1, "mscale": 1}
    released |= {"rope_type": "yarn", "mscale_all_dim": 1, "llama_4_scaling_beta": 0.1, "rope_theta": 1e9}
    assert {name: decoder.rope_parameters[name] for name in released} == released


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_every_number_says_where_it_is_from(path):
    numbers = [line for line in path.read_text().splitlines() if NUMBER.search(line.partition("#")[0])]
    assert numbers or path.name == "publish.yaml"  # names and folders alone
    for line in numbers:
        assert re.search(r"paper|released|ours", line.partition("#")[2]), f"no source beside {line.strip()}"
