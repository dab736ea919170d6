"""Distillation on packed images: the projector and the decoder learn, the vision tower stays as it is, bit for bit."""

import copy

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig, TaskType
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config

from hf_cascade.distill.blank_images import keep_ranks_in_step
from hf_cascade.distill.checkpoint_weights import load_saved, saved_names
from hf_cascade.distill.freezing import check_same_images, freeze_vision_tower
from tests.data import tiny
from tests.distill import setting
from tests.distill.test_resume import Stop

INPUTS = ("input_ids", "position_ids", "attention_mask", "pixel_values", "image_sizes")
KIT = {"trainer": {"processing_class": tiny.processor()}}


def distiller(folder, model=None, parent=None, dataset=None, **settings):
    """A trainer on packed images, with a Mistral3 on both sides."""
    dataset = dataset or tiny.packed_images(settings.setdefault("max_length", 24))
    return setting.distiller(
        folder, model or setting.student("mistral3"), parent or setting.teacher("mistral3"), dataset, **KIT, **settings
    )


@torch.no_grad()
def plain_kl(model, parent, batch: dict) -> float:
    """Mean KL(parent || model) over the labels, from all logits, in float64."""
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    log_q, log_p = (
        copy.deepcopy(part).double().eval()(**inputs, use_cache=False).logits.log_softmax(-1)
        for part in (model, parent)
    )
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)[:, :-1]
    counts = batch["labels"][:, 1:] != -100
    return float(kl[counts].sum() / counts.sum())


def moved(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def parts(names) -> set[str]:
    """Which of the three parts of a Mistral3, and its head, `names` are of."""
    return {name.removeprefix("base_model.model.").removeprefix("model.").split(".")[0] for name in names}


def test_loss_is_the_kl_where_no_token_of_an_image_is_a_label(tmp_path):
    model, parent = setting.student("mistral3"), setting.teacher("mistral3")
    trainer = distiller(tmp_path, model, parent)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["pixel_values"]) > 1 and (batch["labels"] == -100).sum() > (batch["position_ids"] == 0).sum()
    expected = plain_kl(model, parent, batch)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)
    blind = plain_kl(model, parent, {**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])})
    assert abs(blind - expected) > 1e-3, "the images matter"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tower_stays_bit_for_bit(tmp_path, dtype):
    """With weight decay, and dropout in the tower, which would show in the loss."""
    model = setting.student("mistral3", dtype=dtype)
    for layer in model.model.vision_tower.transformer.layers:
        layer.attention.dropout = 0.9
    before, parent = setting.weights(model), setting.teacher("mistral3", dtype=dtype)
    trainer = distiller(tmp_path, model, parent, weight_decay=0.5, max_steps=4, learning_rate=1e-1)
    trainer.train()
    assert parts(moved(before, setting.weights(model))) == {"language_model", "multi_modal_projector", "lm_head"}
    assert all(parameter.requires_grad for parameter in model.model.multi_modal_projector.parameters())
    other = distiller(tmp_path, setting.student("mistral3", dtype=dtype), parent, max_steps=4, learning_rate=1e-1)
    other.train()
    assert setting.losses(trainer)[0] == setting.losses(other)[0]


def test_tower_can_be_trained(tmp_path):
    model = setting.student("mistral3")
    before = setting.weights(model)
    distiller(tmp_path, model, freeze_vision_tower=False).train()
    assert "vision_tower" in parts(moved(before, setting.weights(model)))


def test_stays_in_evaluation_and_keeps_no_graph():
    model = setting.student("mistral3")
    freeze_vision_tower(model)
    for part in (model, copy.deepcopy(model)):
        part.train()
        tower = part.model.vision_tower
        assert part.training and not any(module.training for module in tower.modules())
        part.enable_input_require_grads()  # as PEFT with gradient checkpointing does
        pixels = torch.randn(1, 3, 8, 8, dtype=torch.float64)
        output = tower(pixels, image_sizes=torch.tensor([[8, 8]])).last_hidden_state
        assert not output.requires_grad
        tower.patch_conv.weight.data.zero_()
        assert not torch.equal(output, tower(pixels, image_sizes=torch.tensor([[8, 8]])).last_hidden_state), "its own"


def test_blank_images_change_nothing():
    """What keeps sharded ranks in step; `sharded_images.py` has two of them."""
    model = setting.student("mistral3")
    freeze_vision_tower(model)
    stream = tiny.packed_images(24)
    rows = list(stream.held_out())
    for number, chosen in enumerate(([row for row in rows if not row["images"]][:2], rows[:4])):
        batch = {name: value for name, value in stream.collator()(chosen).items() if name in INPUTS}
        assert ("pixel_values" in batch) == bool(number)
        plain, kept = model, copy.deepcopy(model)
        keep_ranks_in_step(kept)
        outputs = [part.base_model(**batch, use_cache=False).last_hidden_state for part in (plain, kept)]
        assert torch.equal(*outputs)
        outputs[1].sum().backward()
        gradients = [parameter.grad for parameter in kept.model.multi_modal_projector.parameters()]
        assert all(gradient is not None and bool(gradient.any()) == bool(number) for gradient in gradients)


def test_text_alone_leaves_the_projector_out(tmp_path):
    """It would get no gradient, for which DDP waits."""
    model = setting.student("mistral3")
    trainer = setting.distiller(tmp_path, model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert parts(frozen) == {"vision_tower", "multi_modal_projector"}
    trainer.train()
    trainer = setting.distiller(tmp_path, setting.student("llama"))
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_resumed_is_bitwise_equal(tmp_path):
    def run(folder, callback=None, resume=None):
        model = setting.student("mistral3", dtype=torch.float32, attention_dropout=0.1)
        parent = setting.teacher("mistral3", dtype=torch.float32)
        trainer = distiller(
            folder, model, parent, max_steps=6, per_device_train_batch_size=1, gradient_accumulation_steps=2
        )
        if callback:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume)
        return setting.weights(model), trainer.data_state

    straight, state = run(tmp_path / "straight")
    run(tmp_path / "broken", Stop(3))
    resumed, resumed_state = run(tmp_path / "broken", resume=True)
    assert setting.differ(straight, resumed) == 0 and state == resumed_state and state["tokens"] == 6 * 2 * 24


def test_best_model_is_loaded_at_the_end(tmp_path):
    """Transformers would find none of its weights and keep the last ones."""
    model = setting.student("mistral3", dtype=torch.float32)
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = setting.distiller(
        tmp_path,
        model,
        setting.teacher("mistral3", dtype=torch.float32),
        trainer={"eval_dataset": tiny.packed(count=8, seed=5)},
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first is the worst, and is to come back
        **options,
    )
    trainer.train()
    first = setting.student("mistral3", dtype=torch.float32)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    load_saved(saved_names(first), tmp_path / "checkpoint-1")
    assert setting.differ(setting.weights(first), setting.weights(model)) == 0


@pytest.mark.parametrize("tied", [False, True])
def test_weights_come_back_under_their_saved_names(tmp_path, tied):
    one, other = (setting.student("mistral3", torch.float32, tie_word_embeddings=tied) for _ in range(2))
    one.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for parameter in other.parameters():
        parameter.data.zero_()
    load_saved(saved_names(other), tmp_path)
    assert setting.differ(setting.weights(one), setting.weights(other)) == 0


def test_checkpoint_that_is_not_whole(tmp_path):
    model = setting.student("mistral3", dtype=torch.float32)
    assert saved_names(setting.student("llama")) is None
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    load_saved(saved_names(model), tmp_path)
    save_file({**weights, "more": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds more, which the model lacks"):
        load_saved(saved_names(model), tmp_path)
    del weights["language_model.lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks 1 weights, language_model.lm_head.weight among them"):
        load_saved(saved_names(model), tmp_path)


def test_padding_free_and_workers_change_nothing(tmp_path):
    losses = []
    for number, options in enumerate(({}, {"padding_free": True}, {"dataloader_num_workers": 1})):
        trainer = distiller(tmp_path / str(number), **options)
        trainer.train()
        losses.append(setting.losses(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6) and losses[2] == losses[0]


def test_evaluates_packed_images(tmp_path):
    held_out = tiny.packed_images(24, rows=tiny.image_rows(12, seed=9))
    trainer = distiller(tmp_path, per_device_eval_batch_size=50)
    batch = held_out.collator()(list(held_out.held_out()))
    measured = trainer.evaluate(held_out)["eval_loss"]
    assert measured == pytest.approx(plain_kl(trainer.model, trainer.teacher.model, batch), rel=1e-6)


def test_lora_leaves_adapters_in_the_tower_alone(tmp_path):
    """`q_proj` is the name of the tower's projections too."""
    lora = LoraConfig(r=2, target_modules=["q_proj", "linear_1"], task_type=TaskType.CAUSAL_LM)
    model = setting.student("mistral3")
    trainer = setting.distiller(
        tmp_path,
        model,
        setting.teacher("mistral3"),
        tiny.packed_images(24),
        {**KIT["trainer"], "peft_config": lora},
        max_length=24,
    )
    before = setting.weights(trainer.model)
    assert any("vision_tower" in name and "lora" in name for name in before)
    trainer.train()
    names = moved(before, setting.weights(trainer.model))
    assert parts(names) == {"language_model", "multi_modal_projector"} and all("lora" in name for name in names)


# --- TRL's datasets with images


def conversations(count: int = 4) -> Dataset:
    """Half of the rows without an image."""
    rows = [
        {
            "messages": [{"role": "user", "content": "what"}, {"role": "assistant", "content": "that" * (number + 1)}],
            "images": [tiny.image(8 + number, 16, number)] if number % 2 else None,
        }
        for number in range(count)
    ]
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_list(rows, features=Features({"messages": List(message), "images": List(Image())}))


@pytest.mark.parametrize("assistant_only_loss", [False, True])
def test_conversations_with_images(tmp_path, assistant_only_loss):
    model, parent = setting.student("mistral3"), setting.teacher("mistral3")
    before = setting.weights(model)
    options = {"assistant_only_loss": assistant_only_loss, "per_device_train_batch_size": 4, "max_length": 64}
    trainer = distiller(tmp_path, model, parent, conversations(), **options)
    (batch,) = trainer.get_train_dataloader()
    labels = batch["labels"]
    assert len(batch["pixel_values"]) == 2 and not set(labels.unique().tolist()) & {3, 4, 5}
    assert ((labels == -100) & (batch["attention_mask"] == 1)).any()
    answers = sum(4 * (number + 1) + 1 for number in range(4))
    assert int((labels != -100).sum()) == (answers if assistant_only_loss else answers + 4 * 6)
    expected = plain_kl(model, parent, batch)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)
    assert parts(moved(before, setting.weights(model))) == {"language_model", "multi_modal_projector", "lm_head"}


def test_completions_to_prompts_with_images(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": "what"}], "completion": [{"role": "assistant", "content": "that" * n}]}
        for n in (1, 2)
    ]
    rows = [{**row, "images": [tiny.image(8, 16, number)]} for number, row in enumerate(rows)]
    model, parent = setting.student("mistral3"), setting.teacher("mistral3")
    trainer = distiller(tmp_path, model, parent, Dataset.from_list(rows), max_length=64, max_steps=1)
    (batch,) = trainer.get_train_dataloader()
    assert sorted((batch["labels"] != -100).sum(-1).tolist()) == [5, 9], "the answers and EOS"
    expected = plain_kl(model, parent, batch)
    trainer.train()
    assert setting.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)


# --- what is refused


def test_models_that_read_images_differently():
    ours, theirs = (setting.student("mistral3").config for _ in range(2))
    check_same_images(ours, theirs)
    theirs.spatial_merge_size = 1
    with pytest.raises(ValueError, match="spatial_merge_size is 2 and 1"):
        check_same_images(ours, theirs)
    theirs.spatial_merge_size, theirs.vision_config.patch_size = 2, 14
    with pytest.raises(ValueError, match="vision_config.patch_size is 4 and 14"):
        check_same_images(ours, theirs)
    with pytest.raises(ValueError, match="the teacher .llama. reads none"):
        check_same_images(ours, setting.student("llama").config)


def test_tower_of_an_unknown_family_is_not_passed_over():
    class Unknown(torch.nn.Module):
        config, input_modalities = Gemma3Config(), ("image", "text")

    with pytest.raises(ValueError, match="Unknown reads images.*freeze_vision_tower: false"):
        freeze_vision_tower(Unknown())
