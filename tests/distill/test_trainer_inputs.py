"""The distillation trainer on TRL's kinds of dataset, in evaluation, and with other students: PEFT, vision, tied."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, TaskType
from transformers import GPT2Config, GPT2LMHeadModel

from hf_cascade.data.packing import PackedCollator
from tests.data import tiny
from tests.distill import setting


def test_ordinary_text(tmp_path):
    data = Dataset.from_dict({"text": tiny.texts(6, longest=12)})
    model, parent = setting.student(), setting.teacher()
    trainer = setting.distiller(tmp_path, model, parent, data, max_steps=1, per_device_train_batch_size=6)
    (batch,) = trainer.get_train_dataloader()
    expected = setting.plain_kl(model, parent, batch)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)
    assert trainer.state.log_history[0]["num_tokens"] == int(batch["attention_mask"].sum())


def test_only_completions_count(tmp_path):
    data = Dataset.from_dict({"prompt": ["abc", "defgh"], "completion": [" ijk", " lm"]})
    model, parent = setting.student(), setting.teacher()
    trainer = setting.distiller(tmp_path, model, parent, data, max_steps=1)
    (batch,) = trainer.get_train_dataloader()
    counts = batch["labels"] != -100
    assert sorted(counts.sum(-1).tolist()) == [4, 5], "the completion's characters and EOS"
    expected = setting.plain_kl(model, parent, batch)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)
    everywhere = setting.plain_kl(setting.student(), parent, {**batch, "labels": batch["input_ids"]})
    assert abs(expected - everywhere) > 1e-3


def test_only_the_assistant_counts(tmp_path):
    kit = tiny.tokenizer()
    kit.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '</s>' }}{% endgeneration %}"
        "{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}"
    )
    data = Dataset.from_dict(
        {"messages": [[{"role": "user", "content": "abcd"}, {"role": "assistant", "content": "xyz"}]] * 2}
    )
    model, parent = setting.student(), setting.teacher()
    trainer = setting.distiller(
        tmp_path, model, parent, data, {"processing_class": kit}, max_steps=1, assistant_only_loss=True
    )
    (batch,) = trainer.get_train_dataloader()
    assert (batch["labels"] != -100).sum(-1).tolist() == [4, 4]
    expected = setting.plain_kl(model, parent, batch)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)


def test_trl_packing_agrees(tmp_path):
    data = Dataset.from_dict({"text": tiny.texts(12, longest=12)})
    model, parent = setting.student(), setting.teacher()
    trainer = setting.distiller(tmp_path, model, parent, data, max_steps=1, packing=True)
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["position_ids"] == 0).sum() > 2
    expected = setting.plain_kl(model, parent, batch)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)


# --- evaluation


@pytest.mark.parametrize("make", [setting.sft, setting.distiller])
def test_evaluates_packed_text(tmp_path, make):
    trainer = make(tmp_path, per_device_eval_batch_size=4, dataset=tiny.packed())
    held_out = tiny.packed(count=8, seed=5)
    measured = trainer.evaluate(held_out)
    rows = list(held_out.held_out())
    assert len(rows) % 4 != 0
    batches = [PackedCollator()(rows[start : start + 4]) for start in range(0, len(rows), 4)]
    if make is setting.distiller:
        kls = [setting.plain_kl(trainer.model, trainer.teacher.model, batch) for batch in batches]
        counts = [float((batch["labels"] != -100).sum()) for batch in batches]
        expected = sum(kl * count for kl, count in zip(kls, counts, strict=True)) / sum(counts)
        assert measured["eval_loss"] == pytest.approx(expected, rel=0.02), "the Trainer weighs batches, not tokens"
        assert measured["eval_distill/kl"] == pytest.approx(sum(kls) / len(kls), rel=1e-6)
    assert trainer.data_state["tokens"] == 0
    before = setting.weights(trainer.model)
    trainer.evaluate(held_out)
    assert setting.differ(before, setting.weights(trainer.model)) == 0


def test_evaluates_while_it_trains(tmp_path):
    trainer = setting.distiller(
        tmp_path, trainer={"eval_dataset": tiny.packed(count=8, seed=5)}, eval_strategy="steps", eval_steps=1
    )
    trainer.train()
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 3 and evaluated[-1] < evaluated[0]
    assert trainer.data_state["tokens"] == 96


def test_evaluates_ordinary_text(tmp_path):
    data = Dataset.from_dict({"text": tiny.texts(6, longest=12)})
    trainer = setting.distiller(tmp_path, dataset=data, trainer={"eval_dataset": data}, per_device_eval_batch_size=6)
    (batch,) = trainer.get_eval_dataloader()
    expected = setting.plain_kl(trainer.model, trainer.teacher.model, batch)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_packed_training_refuses_other_text_for_evaluation(tmp_path):
    data = Dataset.from_dict({"text": tiny.texts(6)})
    with pytest.raises(ValueError, match="evaluates on packed text"):
        setting.distiller(tmp_path, trainer={"eval_dataset": data})
    with pytest.raises(ValueError, match="evaluates on packed text"):
        setting.distiller(tmp_path).evaluate(data)


# --- other students


def test_lora_changes_the_adapter_only(tmp_path):
    model, parent = setting.student(), setting.teacher()
    before = setting.weights(model)
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type=TaskType.CAUSAL_LM)
    expected = setting.plain_kl(model, parent, setting.first_batch())
    trainer = setting.distiller(tmp_path, model, parent, trainer={"peft_config": lora}, max_steps=20)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-5)
    assert setting.plain_kl(trainer.model.get_base_model(), parent, setting.first_batch()) < expected
    after = setting.weights(trainer.model.get_base_model())
    for name, tensor in before.items():
        place = name if name in after else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(after[place], tensor), name
    adapters = [tensor for name, tensor in after.items() if "lora_B" in name]
    assert len(adapters) == 4 and all(tensor.abs().max() > 0 for tensor in adapters)


def test_prompt_learning_is_refused(tmp_path):
    prompt = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    with pytest.raises(ValueError, match="prompt learning"):
        setting.distiller(tmp_path, trainer={"peft_config": prompt})


@pytest.mark.parametrize("parent_family", ["mistral3", "ministral3"])
def test_vision_language_student_on_text(tmp_path, parent_family):
    model, parent = setting.student("mistral3"), setting.teacher(parent_family)
    before = setting.weights(model)
    expected = setting.plain_kl(model, parent, setting.first_batch())
    trainer = setting.distiller(tmp_path, model, parent, max_steps=4)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-5)
    after = setting.weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if "vision_tower" in name or "projector" in name]
    assert [name for name in before if "vision_tower" in name]
    assert moved == {name for name in before if "language_model" in name or "lm_head" in name}


def test_tied_student(tmp_path):
    model = setting.student(tie_word_embeddings=True)
    trainer = setting.distiller(tmp_path, model, max_steps=6)
    trainer.train()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert setting.losses(trainer)[-1] < setting.losses(trainer)[0]


class Wrapped(torch.nn.Module):
    """Stands for DDP: adds itself to the forward, and passes everything on."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("peft", [False, True])
def test_gradient_goes_through_the_wrapper(tmp_path, peft, monkeypatch):
    """DDP and FSDP hang on the forward of what they wrap; with PEFT that is not the student."""
    lora = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type=TaskType.CAUSAL_LM)} if peft else {}
    trainer = setting.distiller(tmp_path, trainer=lora)
    monkeypatch.setattr(trainer.accelerator, "unwrap_model", lambda model, **_: getattr(model, "module", model))
    outer, batch = Wrapped(trainer.model), setting.first_batch()
    expected = float(trainer.compute_loss(trainer.model, dict(batch)))
    assert float(trainer.compute_loss(outer, dict(batch))) == pytest.approx(expected, rel=1e-12)
    assert outer.calls == 1


def test_gpt2_works_too(tmp_path):
    """Any family whose logits are hidden states times head."""
    config = GPT2Config(vocab_size=97, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).double().eval()
    expected = setting.plain_kl(model, setting.teacher(), setting.first_batch())
    trainer = setting.distiller(tmp_path, model)
    assert float(trainer.compute_loss(model, setting.first_batch())) == pytest.approx(expected, rel=1e-6)
