"""`trainers/sft.py` as a user runs it: conversations, completions, images, adapters, stops, and what is refused."""

import json
import runpy
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from hf_cascade import assets, manifest, stage
from tests.data import tiny
from tests.distill import setting
from tests.prune import families

SETTINGS = {
    "max_length": 64,
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "assistant_only_loss": True,
}


def talk(number: int) -> list[dict]:
    return [
        {"role": "user", "content": "what " + "ab"[number % 2]},
        {"role": "assistant", "content": "c" * (number + 3)},
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with students, teachers and rows of every kind."""
    folder = tmp_path_factory.mktemp("sft")
    for name, family, changes in (
        ("student", "llama", {"attention_dropout": 0.1}),
        ("teacher", "llama", {"hidden_size": 60}),
        ("seeing", "mistral3", {}),
        ("seeing-teacher", "mistral3", {"hidden_size": 60}),
    ):
        model = families.build(family, seed=len(name), dtype=torch.float32, num_hidden_layers=2, **changes)
        model.save_pretrained(folder / name)
        kit = tiny.processor() if family == "mistral3" else tiny.tokenizer()
        kit.chat_template = tiny.CHAT
        kit.save_pretrained(folder / name)
    tiny.tokenizer("zyx").save_pretrained(folder / "other")
    mute = tiny.tokenizer()
    mute.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    mute.save_pretrained(folder / "mute")
    for name in ("other", "mute"):
        (folder / name / "config.json").write_text((folder / "teacher" / "config.json").read_text())
    for number in range(3):
        tiny.image(8 + 4 * number, 16, number).save(folder / f"{number}.png")
    write(folder / "talk.jsonl", [{"messages": talk(number)} for number in range(9)])
    write(folder / "pairs.jsonl", [{"prompt": "ab" * (n + 1), "completion": "cd" * (n + 1)} for n in range(8)])
    pictures = [{"messages": talk(n), "images": [str(folder / f"{n % 3}.png")] if n % 3 else None} for n in range(8)]
    write(folder / "pictures.jsonl", pictures)
    return folder


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def sft(place, monkeypatch):
    """Call the script: its output folder's name, rows, and flags; the exit status."""
    script = runpy.run_path(str(assets.find("trainers/sft.py")), run_name="sft")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(place)

    def run(out: str, rows: str = "talk", model: str = "student", teacher: str | None = "teacher", **flags) -> int:
        settings = {**SETTINGS, "datasets": [{"path": "json", "data_files": f"{rows}.jsonl"}], **flags}
        (place / "sft.yaml").write_text(json.dumps(settings))  # JSON is YAML
        argv = ["--config", "sft.yaml", "--model_name_or_path", model, "--output_dir", out]
        argv += ["--teacher_model_name_or_path", teacher] if teacher else []
        monkeypatch.setattr(sys, "argv", ["sft.py", *argv])
        return script["main"](*script["make_parser"]().parse_args_and_config(argv))

    yield run
    signal.signal(signal.SIGTERM, before)


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "log.json").read_text())]


def labelled(place, ids_and_counts, student="student", teacher="teacher") -> float:
    """Mean KL over the tokens that count, each row alone, in float64."""
    model, parent = (AutoModelForCausalLM.from_pretrained(place / name) for name in (student, teacher))
    total = count = 0
    for ids, counts in ids_and_counts:
        batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])}
        kl = setting.plain_kl(model, parent, batch, counts=torch.tensor([counts]))
        total, count = total + kl * sum(counts), count + sum(counts)
    return total / count


def test_assistant_alone_counts(place, sft):
    options = {"per_device_train_batch_size": 9, "max_steps": 1, "learning_rate": 1e-3}
    assert sft("assistant", **options) == 0
    kit, rows = tiny.tokenizer(), []
    for number in range(9):
        prompt = kit("what " + "ab"[number % 2] + "\n")["input_ids"]
        answer = [*kit("c" * (number + 3), add_special_tokens=False)["input_ids"], 2]
        rows.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    # attention dropout of the student is on while it trains: only near
    assert losses(place / "assistant")[0] == pytest.approx(labelled(place, rows), rel=0.05)
    record = manifest.read(place / "assistant")
    assert record["run"] == "sft" and record["data"] is None
    assert record["inputs"] == {"model_name_or_path": "student", "teacher_model_name_or_path": "teacher"}
    assert record["output"]["num_parameters"] == AutoModelForCausalLM.from_pretrained("student").num_parameters()
    assert AutoTokenizer.from_pretrained(place / "assistant").chat_template == tiny.CHAT


def test_prompt_completion_and_held_out_rows(place, sft):
    options = {"assistant_only_loss": False, "test_split_size": 0.25, "eval_strategy": "steps", "eval_steps": 1}
    assert sft("pairs", "pairs", per_device_train_batch_size=6, max_steps=2, **options) == 0
    kit, rows = tiny.tokenizer(), []
    from hf_cascade.data.conversations import load_conversations

    mixture = mixture_of("pairs")
    for row in load_conversations(mixture):
        prompt, answer = kit(row["prompt"])["input_ids"], kit(row["completion"], add_special_tokens=False)["input_ids"]
        rows.append((prompt + [*answer, 2], [False] * len(prompt) + [True] * (len(answer) + 1)))
    assert len(rows) == 6 and len(load_conversations(mixture, "test")) == 2
    assert losses(place / "pairs")[0] == pytest.approx(labelled(place, rows), rel=0.05)


def mixture_of(rows: str):
    from trl import DatasetMixtureConfig
    from trl.scripts.utils import DatasetConfig

    return DatasetMixtureConfig([DatasetConfig("json", data_files=f"{rows}.jsonl")], test_split_size=0.25)


def test_images_train_the_projector_and_leave_the_tower(place, sft):
    options = {"learning_rate": 1e-1, "weight_decay": 0.5}
    assert sft("pictures", "pictures", "seeing", "seeing-teacher", **options) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (place / "seeing", place / "pictures"))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and moved == {"language_model", "multi_modal_projector"}
    AutoModelForImageTextToText.from_pretrained(place / "pictures")
    from hf_cascade.data.image_text import load_processor

    assert load_processor(str(place / "pictures")).chat_template == tiny.CHAT


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapter_is_merged_and_kept(place, sft, dtype):
    out = f"lora-{dtype}"
    flags = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "down_proj"], "dtype": dtype}
    assert sft(out, "pictures", "seeing", "seeing-teacher", **flags) == 0
    folder = place / out
    files = {path.name for path in (folder / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    names = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert names and not [name for name in names if "vision_tower" in name]
    merged = AutoModelForImageTextToText.from_pretrained(folder)
    base = AutoModelForImageTextToText.from_pretrained(place / "seeing", dtype=dtype)
    assert merged.dtype == base.dtype
    before = setting.weights(base)
    after = setting.weights(merged)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("language_model" in name and ("q_proj" in name or "down_proj" in name) for name in moved)
    for name in moved:
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        up, down = (names[f"{key}{side}.weight"].double() for side in "BA")
        exact = before[name].double() + (32 / 2) * up @ down  # lora_alpha / lora_r
        torch.testing.assert_close(
            after[name], exact.to(merged.dtype), rtol=0.004 if dtype == "bfloat16" else 1e-6, atol=1e-7
        )
    record = manifest.read(folder)
    assert record["output"]["num_parameters"] == merged.num_parameters()
    assert not [path for path in folder.iterdir() if path.name.startswith(("adapter_", "checkpoint"))]


def test_packed_conversations(place, sft):
    assert sft("packed", packing=True, padding_free=True, max_length=32) == 0
    assert losses(place / "packed")[-1] < losses(place / "packed")[0]


def test_without_a_teacher(place, sft):
    assert sft("plain", teacher=None, plain_sft=True) == 0
    assert manifest.read(place / "plain")["inputs"] == {"model_name_or_path": "student"}
    assert manifest.read(place / "plain")["config"]["plain_sft"] is True


PARENT = "recipes/tiny/parent"  # a Ministral 3, whose tokenizer has Mistral's markers and no chat template
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def tool_rows() -> list[dict]:
    """Conversations with tools, whose arguments differ, and with thinking."""
    rows = []
    for number, arguments in enumerate(({"place": "sea"}, {"time": 3, "deep": [{"a": None}]}) * 2):
        call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
        messages = [
            {"role": "user", "content": f"What is there, {number}?"},
            {"role": "assistant", "reasoning_content": "Let me look.", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "look", "content": "a ship"},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "So."}, {"type": "text", "text": "Ship."}],
            },
        ]
        rows.append({"messages": messages, "tools": [TOOL]})
    return rows


@pytest.mark.parametrize("teacher", [None, PARENT])
def test_tools_and_thinking(place, sft, monkeypatch, teacher):
    write(place / "tools.jsonl", tool_rows())
    seen, train = [], stage.train
    monkeypatch.setattr(
        stage, "train", lambda trainer, *args, **kwargs: seen.append(trainer) or train(trainer, *args, **kwargs)
    )
    out, flags = f"tools-{teacher is None}", {"plain_sft": teacher is None, "max_length": 256}
    assert sft(out, "tools", PARENT, teacher, chat_template_path="mistral", **flags) == 0
    kit = AutoTokenizer.from_pretrained(place / out)  # not the trainer's: what a later stage opens
    written = (place / out / "chat_template.jinja").read_text()
    assert written == assets.find("hf_cascade/data/templates/mistral.jinja").read_text()
    for row, tokens in zip(tool_rows(), seen[0].train_dataset, strict=True):
        calls = row["messages"][1]["tool_calls"]
        arguments = json.dumps(calls[0]["function"]["arguments"])
        answers = [f"[THINK]Let me look.[/THINK][TOOL_CALLS]look[ARGS]{arguments}</s>", "[THINK]So.[/THINK]Ship.</s>"]
        ids, labels = tokens["input_ids"], tokens["labels"]
        assert kit.decode([token for token in labels if token != -100]) == "".join(answers)
        assert [token for token, label in zip(ids, labels, strict=True) if label != -100] == [
            label for label in labels if label != -100
        ]
        prompt = kit.apply_chat_template(row["messages"][:1], tools=row["tools"], return_dict=False)
        assert ids[: len(prompt)] == prompt and f"[AVAILABLE_TOOLS]{json.dumps([TOOL])}" in kit.decode(prompt)
        message = kit.parse_response(kit(answers[0], add_special_tokens=False)["input_ids"], prefix=prompt)
        assert message == {"role": "assistant", "reasoning_content": "Let me look.", "tool_calls": calls}
    assert manifest.read(place / out)["config"]["chat_template_path"] == "mistral"


def test_later_stage_finds_the_template(place, sft):
    write(place / "tools.jsonl", tool_rows())
    flags = {"teacher": None, "plain_sft": True, "max_length": 256, "max_steps": 1}
    assert sft("first", "tools", PARENT, chat_template_path="mistral", **flags) == 0
    assert sft("second", "tools", "first", **flags) == 0
    for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
        assert (place / "first" / name).read_bytes() == (place / "second" / name).read_bytes()


# --- stopped runs


class StopAt:
    """SIGTERM in the middle of a run."""

    def __init__(self, monkeypatch, step: int):
        def on_step_end(callback, args, state, control, **kwargs):
            if state.global_step == step:
                control.should_save = control.should_training_stop = True

        monkeypatch.setattr(stage.StopOnRequest, "on_step_end", on_step_end)


KINDS = {
    "epochs": {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2},
    "steps": {"max_steps": 7},
    "packed": {"max_steps": 6, "packing": True, "padding_free": True, "max_length": 32},
    "lora": {"max_steps": 6, "use_peft": True, "lora_target_modules": ["q_proj", "up_proj"], "lora_dropout": 0.2},
    "plain": {"max_steps": 6, "plain_sft": True, "teacher": None},
    "images": {"rows": "pictures", "model": "seeing", "teacher": "seeing-teacher", "max_steps": 6},
    "lora on images": {
        **{"rows": "pictures", "model": "seeing", "teacher": "seeing-teacher", "max_steps": 6},
        **{"use_peft": True, "lora_target_modules": ["q_proj", "linear_1"], "lora_dropout": 0.2},
    },
    "workers": {"max_steps": 6, "dataloader_num_workers": 1},
}


QUICK = ("epochs", "images", "lora on images")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_stopped_and_resumed_is_bitwise_equal(place, sft, monkeypatch, kind):
    assert sft(f"{kind}-whole", **KINDS[kind]) == 0
    with monkeypatch.context() as patch:
        StopAt(patch, 3)
        assert sft(f"{kind}-broken", **KINDS[kind]) == stage.STOPPED
    assert not manifest.is_finished(place / f"{kind}-broken")
    assert sft(f"{kind}-broken", **KINDS[kind]) == 0
    whole, broken = (place / f"{kind}-{how}" for how in ("whole", "broken"))
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    assert losses(whole) == losses(broken) and len(losses(whole)) >= 6


@pytest.mark.parametrize(
    "kind", ["epochs", pytest.param("steps", marks=pytest.mark.slow), pytest.param("lora", marks=pytest.mark.slow)]
)
def test_killed_after_the_last_step_trains_no_further(place, sft, monkeypatch, kind):
    """The last checkpoint is there, and no manifest."""
    options = {**KINDS[kind], "save_strategy": "steps", "save_steps": 1}
    assert sft(f"{kind}-unhurt", **options) == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        sft(f"{kind}-killed", **options)
    assert sft(f"{kind}-killed", **options) == 0
    unhurt, killed = (place / f"{kind}-{how}" / "model.safetensors" for how in ("unhurt", "killed"))
    assert unhurt.read_bytes() == killed.read_bytes()


# --- what is refused, before anything is written


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"teacher": None}, "give either a teacher, one of teacher_model_name_or_path, .* or plain_sft: true"),
        ({"plain_sft": True}, "give either a teacher"),
        ({"teacher": "other"}, "different tokenizers"),
        ({"rows": "odd"}, r"columns \['answer', 'question'\], and one of these is needed: messages; .*; text"),
        ({"eval_strategy": "steps"}, "eval_strategy=.*needs held-out rows: set test_split_size"),
        ({"rows": "pictures"}, "the data has images, and the student .llama. reads none"),
        ({"rows": "pictures", "model": "seeing"}, "the data has images, and the teacher .llama. reads none"),
        ({"load_in_4bit": True}, "load_in_4bit and load_in_8bit are not supported"),
        ({"rows": "pairs"}, "assistant_only_loss=True.*not conversational"),
        ({"rows": "nothing"}, "nothing.jsonl"),
        ({"model": "other"}, "the tokenizer of other has no chat template.*set chat_template_path to mistral"),
        ({"model": "mute"}, "the chat template of mute does not say which tokens are the assistant's.*generation"),
        ({"chat_template_path": "none.jinja"}, "chat template none.jinja: allowed are mistral .shipped."),
    ],
)
def test_refusals(place, sft, flags, message):
    write(place / "odd.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sft("refused", **flags)
    assert not (place / "refused").exists()
