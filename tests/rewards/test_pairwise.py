"""`PairwiseRewardModel` against plain forward passes and `pipeline("decision")`; batches, padding, order, refusals."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, pipeline

from hf_cascade.loading import load_model
from hf_cascade.rewards.comparison import request
from hf_cascade.rewards.pairwise import PairwiseRewardModel
from tests.rewards import scene

COLUMNS = [list(column) for column in zip(*scene.TEXTS, strict=True)]


@torch.no_grad()
def plain_difference(model, comparison, *texts) -> float:
    """First label's logit minus the second's, from all logits of one row without padding."""
    ids = torch.tensor([comparison.encode(*texts)])
    last = model.double().eval()(input_ids=ids, use_cache=False).logits[0, -1]
    return float(last[comparison.label_ids[0]] - last[comparison.label_ids[1]])


@pytest.mark.parametrize("family", ["llama", "ministral3", "gemma"])
@pytest.mark.parametrize("chat", [False, True])
def test_probabilities_are_those_of_plain_passes(family, chat):
    scorer = scene.scorer(family, chat, temperature=0.5, batch_size=3)
    got = scorer.compare(*COLUMNS)
    differences = [
        [plain_difference(scorer.model, scorer.comparison, history, *order) for order in ((a, b), (b, a))]
        for history, a, b in scene.TEXTS
    ]
    wanted = [1 / (1 + torch.tensor(-(one - other) / 2 / 0.5).exp().item()) for one, other in differences]
    assert got == pytest.approx(wanted, abs=1e-6)
    assert max(abs(p - 0.5) for p in got) > 0.01
    shown = torch.sigmoid(torch.tensor(differences) / 0.5)
    assert scorer.last_metrics == {
        "position_disagreement": pytest.approx(sum((one > 0) == (other > 0) for one, other in differences) / 5),
        "position_bias": pytest.approx(float(shown.mean()) - 0.5, abs=1e-6),
        "truncated_rate": 0.0,
        "failed_rate": 0.0,
    }


@pytest.mark.parametrize("family", ["llama", "ministral3"])
def test_batches_and_padding_change_nothing(family):
    wanted = scene.scorer(family, batch_size=1).log_odds(scene.TEXTS)
    for size in (2, 3, 16):
        scorer = scene.scorer(family, batch_size=size)
        assert torch.allclose(scorer.log_odds(scene.TEXTS), wanted, atol=1e-5)
        assert torch.allclose(scorer.log_odds(scene.TEXTS[::-1]).flip(0), wanted, atol=1e-5)
        scorer.comparison.tokenizer.pad_token = "z"
        assert torch.allclose(scorer.log_odds(scene.TEXTS), wanted, atol=1e-5)


def test_swapped_responses_get_the_complement():
    scorer = scene.scorer()
    prompts, first, second = COLUMNS
    one, other = scorer.compare(prompts, first, second), scorer.compare(prompts, second, first)
    assert [p + q for p, q in zip(one, other, strict=True)] == pytest.approx([1.0] * 5, abs=1e-6)
    assert one[3] == pytest.approx(0.5, abs=1e-6)  # equal responses


def test_only_the_last_positions_logits_are_made(monkeypatch):
    scorer, kept = scene.scorer(), []
    forward = scorer.model.forward

    def watched(*args, **kwargs):
        out = forward(*args, **kwargs)
        kept.append(out.logits.shape[1])
        return out

    monkeypatch.setattr(scorer.model, "forward", watched)
    scorer.compare(*COLUMNS)
    assert kept and set(kept) == {1}


def test_as_a_reward_function_and_with_messages():
    scorer, logged = scene.scorer(), {}
    ask = [{"role": "user", "content": "what is it"}]
    completions = [[{"role": "assistant", "content": text}] for text in ("a stone", "<think>no</think>no idea")]
    rewards = scorer([ask, ask], completions, log_metric=logged.__setitem__)
    assert rewards == pytest.approx([p := scorer.compare(["[user]\nwhat is it"], ["a stone"], ["no idea"])[0], 1 - p])
    assert "pwrm/position_bias" in logged and scorer.compare([], [], []) == []


@pytest.mark.parametrize("chat", [False, True])
def test_transformers_pipeline_gives_the_same(tmp_path, chat):
    scene.save(tmp_path, chat, temperature=0.7)
    scorer = PairwiseRewardModel.from_pretrained(tmp_path, device="cpu")
    decide = pipeline("decision", model=str(tmp_path), device="cpu")
    for texts in scene.TEXTS:
        history, first, second = texts
        shown = decide(request(history, first, second))["preference"]["probabilities"]["first"]
        swapped = decide(request(history, second, first))["preference"]["probabilities"]["first"]
        odds = (torch.logit(torch.tensor([shown, swapped], dtype=torch.float64)) * torch.tensor([0.5, -0.5])).sum()
        assert scorer.compare([history], [first], [second])[0] == pytest.approx(torch.sigmoid(odds).item(), abs=1e-5)


def test_an_adapters_folder_opens(tmp_path):
    scene.save(tmp_path / "base")
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    scene.tokenizer().save_pretrained(tmp_path / "adapter")
    scene.scorer().comparison.save_pretrained(tmp_path / "adapter")
    got = PairwiseRewardModel.from_pretrained(tmp_path / "adapter", device="cpu").log_odds(scene.TEXTS)
    wanted = PairwiseRewardModel(model.merge_and_unload(), scene.scorer().comparison).log_odds(scene.TEXTS)
    base = PairwiseRewardModel(load_model(str(tmp_path / "base")), scene.scorer().comparison).log_odds(scene.TEXTS)
    assert torch.allclose(got, wanted, atol=1e-5) and not torch.allclose(got, base, atol=1e-2)


def test_text_that_is_left_out_is_counted(tmp_path, capsys):
    scene.save(tmp_path)
    assert PairwiseRewardModel.from_pretrained(tmp_path, device="cpu").max_length == 300
    scorer = PairwiseRewardModel.from_pretrained(tmp_path, device="cpu", max_length=130)
    for _ in range(2):
        scorer.compare(["x" * 500, "x"], ["a", "a"], ["b", "b"])
        assert scorer.last_metrics["truncated_rate"] == 0.5
    assert capsys.readouterr().err.count("1 of 2 comparisons are longer than 130 tokens") == 1
    with pytest.raises(ValueError, match="max_length=20 is too short"):
        PairwiseRewardModel.from_pretrained(tmp_path, device="cpu", max_length=20)
    with pytest.raises(ValueError, match="batch_size=0"):
        PairwiseRewardModel.from_pretrained(tmp_path, device="cpu", batch_size=0)


def test_another_model_is_refused(tmp_path):
    scene.save(tmp_path)
    (tmp_path / "decision.json").unlink()
    with pytest.raises(ValueError, match="no pairwise reward model of trainers/pwrm.py"):
        PairwiseRewardModel.from_pretrained(tmp_path)
