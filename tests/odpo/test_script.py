"""`trainers/odpo.py` as a user runs it: every kind of judge, adapters, SIGTERM and resuming, and what is refused."""

import json
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from hf_cascade import assets, manifest, stage
from hf_cascade.data.chat import SHIPPED
from hf_cascade.data.image_text import load_processor
from tests.data import tiny
from tests.online.scene import PROMPTS, REWARDS
from tests.prune import families
from tests.rewards import scene

SETTINGS = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "max_completion_length": 8,
    "loop_min_tokens": 6,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 100,
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "disable_tqdm": True,
}
HELD_OUT = {"test_split_size": 0.25, "eval_strategy": "steps", "eval_steps": 1}
MORE = """
def spread(completions, **columns):
    return [float(sum(map(ord, str(completion))) % 7) for completion in completions]

async def wait(completions, **columns):
    return [1.0] * len(completions)

def never(completions, **columns):
    return [None] * len(completions)

def look(word: str) -> str:
    '''
    Look a word up.

    Args:
        word: the word.
    '''
    return word
"""


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def says(content: str) -> list[dict]:
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def place(policy, tmp_path_factory) -> Path:
    """A folder with a policy, one that always loops, a reward model, rewards, and prompts."""
    folder = tmp_path_factory.mktemp("odpo")
    shutil.copytree(policy, folder / "policy")
    looping = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():
        looping.model.embed_tokens.weight.fill_(1)
        for layer in looping.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        looping.lm_head.weight.zero_()
        looping.lm_head.weight[100] = 10
    shutil.copytree(policy, folder / "looping")
    looping.save_pretrained(folder / "looping")
    scene.save(folder / "pwrm")
    (folder / "rewards.py").write_text(REWARDS + MORE)
    write(folder / "texts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    write(folder / "talk.jsonl", [{"prompt": says(prompt)} for prompt in PROMPTS])
    families.build("mistral3", dtype=torch.float32, num_hidden_layers=2).save_pretrained(folder / "seeing")
    tiny.processor().save_pretrained(folder / "seeing")
    tiny.image(16, 16).save(folder / "one.png")
    pictures = [{"prompt": says(text), "images": ["one.png"] * (n % 3) or None} for n, text in enumerate("abcdefgh")]
    write(folder / "pictures.jsonl", pictures)
    write(folder / "answered.jsonl", [{"prompt": [*says("a"), {"role": "assistant", "content": "b"}]}] * 8)
    write(folder / "empty.jsonl", [{"prompt": "a"}, {"prompt": ""}])
    write(folder / "columns.jsonl", [{"question": "a"}] * 8)
    return folder


@pytest.fixture
def odpo(place, monkeypatch):
    """Call the script: its output folder, rows, and flags; the exit status."""
    script = runpy.run_path(str(assets.find("trainers/odpo.py")), run_name="odpo")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(place)

    def run(out: str, rows: str = "texts", model: str | None = "policy", **flags) -> int:
        given = {"reward_model", "judge_url", "reward_funcs"} & flags.keys()
        settings = {**SETTINGS, **({} if given else {"reward_funcs": ["rewards.py:count_a"]}), **flags}
        settings["datasets"] = [{"path": "json", "data_files": f"{rows}.jsonl"}]
        settings = {key: value for key, value in settings.items() if value is not None}
        (place / "odpo.yaml").write_text(json.dumps(settings))  # JSON is YAML
        argv = ["--config", "odpo.yaml", "--output_dir", out, *(["--model_name_or_path", model] if model else [])]
        monkeypatch.setattr(sys, "argv", ["odpo.py", *argv])
        return script["main"](*script["make_parser"]().parse_args_and_config(argv))

    yield run
    signal.signal(signal.SIGTERM, before)


def test_reward_functions_and_held_out_prompts(place, odpo):
    flags = {"reward_funcs": ["rewards.py:count_a", "rewards.py:wait"], "log_completions": True, **HELD_OUT}
    assert odpo("functions", **flags) == 0
    folder = place / "functions"
    record = manifest.read(folder)
    assert record["run"] == "odpo" and record["inputs"] == {"model_name_or_path": "policy"}
    assert 0 <= record["metrics"]["eval_odpo/win_rate"] <= 1
    entries = json.loads((folder / "progress.json").read_text())
    evaluated = [entry["step"] for entry in entries if "eval_odpo/win_rate" in entry]
    assert evaluated == [1, 2, 3] and (folder / "progress.png").stat().st_size > 10_000
    assert {entry["step"] for entry in entries if "odpo/loop_rate" in entry} == {1, 2, 3}
    assert list((folder / "completions").glob("*.parquet"))
    moved = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    before = AutoModelForCausalLM.from_pretrained(place / "policy").state_dict()
    assert any(not torch.equal(moved[name], before[name]) for name in before)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained("policy").get_vocab()


@pytest.mark.parametrize("rows", ["texts", "talk"])
def test_a_pairwise_reward_model(place, odpo, rows):
    template = {"chat_template_path": "mistral"} if rows == "talk" else {}
    assert odpo(f"pwrm-{rows}", rows, reward_model="pwrm", max_steps=2, **template) == 0
    folder = place / f"pwrm-{rows}"
    assert manifest.read(folder)["inputs"] == {"model_name_or_path": "policy", "reward_model": "pwrm"}
    entries = json.loads((folder / "progress.json").read_text())
    assert any(0 < entry.get("rewards/pwrm/std", 0) < 1 for entry in entries)
    saved = AutoTokenizer.from_pretrained(folder)
    assert (saved.chat_template is not None) == (rows == "talk")
    if rows == "talk":
        assert saved.response_template["fields"]["tool_calls"]


def test_a_response_template_that_the_policy_lacked_is_saved(place, odpo):
    shutil.copytree(place / "policy", place / "talking")
    tokenizer = AutoTokenizer.from_pretrained(place / "talking")
    tokenizer.chat_template = SHIPPED["mistral"].read_text()
    tokenizer.save_pretrained(place / "talking")
    assert AutoTokenizer.from_pretrained(place / "talking").response_template is None
    assert odpo("talked", "talk", model="talking", max_steps=1) == 0
    assert AutoTokenizer.from_pretrained(place / "talked").response_template["fields"]["tool_calls"]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_adapter_is_merged_and_kept(place, odpo, dtype):
    out = f"lora-{dtype}"
    flags = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "down_proj"], "dtype": dtype}
    assert odpo(out, learning_rate=1e-1, **flags) == 0
    assert {path.name for path in (place / out / "adapter").iterdir()} >= {"adapter_model.safetensors"}
    merged, base = (load_file(place / name / "model.safetensors") for name in (out, "policy"))
    moved = {name for name in base if not torch.equal(merged[name].float(), base[name].to(merged[name].dtype).float())}
    assert moved and all("q_proj" in name or "down_proj" in name for name in moved)
    assert AutoModelForCausalLM.from_pretrained(place / out).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("adapter", [{}, {"use_peft": True, "lora_target_modules": ["q_proj", "linear_1"]}])
def test_prompts_with_images(place, odpo, adapter):
    out, flags = f"pictures-{len(adapter)}", {"learning_rate": 1e-1, "weight_decay": 0.5, **HELD_OUT, **adapter}
    assert odpo(out, "pictures", "seeing", reward_funcs=["rewards.py:spread"], **flags) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (place / "seeing", place / out))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and moved == {"language_model", "multi_modal_projector"}
    AutoModelForImageTextToText.from_pretrained(place / out)
    assert load_processor(str(place / out)).chat_template == tiny.CHAT
    assert 0 <= manifest.read(place / out)["metrics"]["eval_odpo/win_rate"] <= 1


KINDS = {
    "plain": {"max_steps": 4},
    "weight": {
        "max_steps": 4,
        "loss_form": "weight",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
    },  # fmt: skip
    "lora": {"max_steps": 4, "use_peft": True, "lora_target_modules": ["q_proj", "up_proj"], "lora_dropout": 0.1},
    "offline": {"max_steps": 4, "sample_from": "reference"},
}
QUICK = ("plain",)


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_stopped_and_resumed_is_the_uninterrupted_run(place, odpo, kind):
    """Bit for bit, the starting policy's answers and the win-rates included."""
    flags = {**KINDS[kind], **HELD_OUT}
    assert odpo(f"{kind}-whole", **flags) == 0
    (place / "stop").touch()
    assert odpo(f"{kind}-broken", **flags) == stage.STOPPED
    assert not manifest.is_finished(place / f"{kind}-broken") and not (place / "stop").exists()
    assert odpo(f"{kind}-broken", **flags) == 0
    whole, broken = (place / f"{kind}-{how}" for how in ("whole", "broken"))
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    entries = [json.loads((folder / "progress.json").read_text()) for folder in (whole, broken)]
    kept = [[{k: v for k, v in entry.items() if "time" not in k} for entry in one] for one in entries]
    assert kept[0] == kept[1] and sum("eval_odpo/win_rate" in entry for entry in kept[0]) == 4


# --- what is refused, in one line, before anything is generated or written


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"reward_funcs": None}, "nothing given to rank responses: set one of reward_model, judge_url, reward_funcs"),
        ({"reward_model": "pwrm", "judge_url": "http://localhost:1/v1"}, "reward_model and judge_url given to rank"),
        ({"judge_url": "http://localhost:1/v1"}, "without judge_model: name the model"),
        ({"judge_url": "localhost", "judge_model": "judge"}, "localhost"),
        ({"reward_model": "policy"}, "policy"),
        ({"reward_model": "nothing"}, "nothing"),
        ({"reward_funcs": ["rewards.py:nothing"]}, "no function 'nothing'"),
        ({"reward_funcs": ["elsewhere.py:count_a"]}, "elsewhere.py"),
        ({"reward_funcs": ["rubric_reward"]}, "rubric_reward has no judge: .*as file.py:name, a RubricReward"),
        ({"reward_funcs": ["stem_reward"]}, "stem_reward needs a column"),
        ({"rows": "columns"}, r"the dataset has the columns \['question'\], and `prompt` is needed"),
        ({"rows": "answered"}, "row 0: the prompt ends with the role 'assistant'"),
        ({"rows": "empty"}, "row 1 has an empty prompt"),
        ({"rows": "nothing"}, "nothing.jsonl"),
        ({"rows": "talk"}, "has no chat template, and conversations need one: set chat_template_path"),
        ({"rows": "talk", "chat_template_path": "lost.jinja"}, "chat template lost.jinja: allowed are mistral"),
        ({"chat_template_path": "mistral"}, "chat_template_path=mistral and prompts of text, to which no template is"),
        ({"tools": ["rewards.py:look"]}, "tools need prompts of messages, and they are text"),
        ({"rows": "talk", "chat_template_path": "mistral", "tools": ["rewards.py:never"]}, "never cannot be described"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_strategy=steps needs held-out rows: set test_split_size"),
        ({"model": None}, "give model_name_or_path"),
        ({"model": "lost"}, "lost cannot be opened as a model"),
        (
            {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
            "per_device_train_batch_size=3: must be",
        ),
        ({"per_device_train_batch_size": 32}, "8 prompts, and one generation batch takes 16"),
        ({"load_in_4bit": True}, "load_in_4bit and load_in_8bit are not supported"),
    ],
)
def test_refusals(place, odpo, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        odpo("refused", **flags)
    assert "\n" not in str(caught.value)
    assert not (place / "refused").exists()


@pytest.mark.parametrize(
    ("flags", "rates"),
    [({"model": "looping"}, "loop_both_rate 1.00"), ({"reward_funcs": ["rewards.py:never"]}, "unjudged_rate 1.00")],
)
def test_nothing_to_learn_from_ends_the_run(place, odpo, flags, rates):
    with pytest.raises(ValueError, match=f"2 generation batches in a row had no pair to learn from .*{rates}"):
        odpo("barren", max_barren_batches=2, **flags)
    shutil.rmtree(place / "barren")
