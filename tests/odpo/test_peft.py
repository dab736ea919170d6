"""Adapters: the reference is the model without the adapter that is trained, or with the one it came with."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.odpo.reference import Prefer, by_hand, gradients, longer
from tests.online.reference import distance, log_probs
from tests.online.scene import PROMPTS

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], lora_dropout=0.0)
SHAPES = {
    "pair": {"per_device_train_batch_size": 8},
    "weight": {"loss_form": "weight", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
}


def move(model, seed):
    """The trained adapter away from zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B.default" in name:
                weight += 0.2 * torch.randn_like(weight)


@pytest.mark.parametrize("form", SHAPES)
def test_the_reference_is_the_model_without_its_adapter(make_trainer, policy, form):
    trainer = make_trainer(Prefer(longer), trainer={"peft_config": LORA}, **SHAPES[form])
    move(trainer.model, 1)
    loss, ours, buffered = gradients(trainer, trainer.args.gradient_accumulation_steps)
    expected, theirs = by_hand(policy, trainer.model, buffered)
    assert loss == pytest.approx(expected, rel=1e-4) and loss != pytest.approx(0.6931 / 0.1, rel=1e-3)
    assert distance(ours, theirs) < 1e-4
    assert all("lora_" in name for name in ours)


def test_a_model_with_an_adapter_of_its_own_has_it_as_reference(make_trainer, policy):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(policy), LORA)
    move(model, 1)
    start = {name: weight.clone() for name, weight in model.named_parameters() if "default" in name}
    trainer = make_trainer(Prefer(longer), model=model, **SHAPES["pair"])
    move(trainer.model, 2)
    loss, ours, buffered = gradients(trainer)

    twin = get_peft_model(AutoModelForCausalLM.from_pretrained(policy), LORA)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            if name in start:
                weight.copy_(start[name])
    expected, theirs = by_hand(lambda *row, **images: log_probs(twin, *row, **images), trainer.model, buffered)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert distance(ours, theirs) < 1e-4
    assert all(".default." in name for name in ours)  # "ref" is not trained


def uniform(model):
    """Through the adapter alone: what comes before the head becomes large noise, the head gives nearly uniform."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B.default" in name:
                weight += 3 * torch.randn_like(weight)


@pytest.mark.parametrize("source", ["policy", "reference"])
def test_offline_the_model_without_the_adapter_writes(make_trainer, source):
    trainer = make_trainer(Prefer(longer), trainer={"peft_config": LORA}, sample_from=source, **SHAPES["pair"])
    uniform(trainer.model)
    _, _, (batch,) = gradients(trainer)
    with torch.no_grad():
        ratios = trainer._log_ratios(trainer.model, batch)[0]
    assert (ratios.mean() > 0) == (source == "policy")  # the writer finds its own text likelier
    assert not trainer.model.active_adapters == []  # and the adapter is on again


def test_win_rate_is_against_the_model_without_the_adapter(make_trainer, monkeypatch):
    trainer = make_trainer(
        Prefer(longer), trainer={"peft_config": LORA, "eval_dataset": Dataset.from_dict({"prompt": PROMPTS[:2]})}
    )
    uniform(trainer.model)
    seen = []
    generate = type(trainer.model.get_base_model()).generate

    def watched(model, *args, **kwargs):
        layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj
        seen.append(layer.disable_adapters)
        return generate(model, *args, **kwargs)

    monkeypatch.setattr(type(trainer.model.get_base_model()), "generate", watched)
    found = trainer.evaluate()
    assert seen == [False, True] and 0 <= found["eval_odpo/win_rate"] <= 1
    trainer.evaluate()
    assert seen == [False, True, False]  # the start answers once


def test_trains_and_the_saved_adapter_opens(make_trainer, policy, tmp_path):
    trainer = make_trainer(Prefer(longer), trainer={"peft_config": LORA}, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy), str(tmp_path / "adapter"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, trainer.model.eval()(ids).logits)
