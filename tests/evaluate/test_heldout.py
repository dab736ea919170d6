"""Held-out figures: equal to a literal computation in float64, whatever the batches and chunks."""

import math

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from hf_cascade.evaluate import heldout
from hf_cascade.evaluate.heldout import IGNORED, Scorer, make_windows, measure
from hf_cascade.loading import check_same_tokenizer

from .conftest import tiny_model, train_tokenizer


@pytest.mark.parametrize("max_length", [1, 7, 64, 5000])
def test_every_token_is_a_label_once_and_documents_keep_apart(tokenizer, texts, max_length):
    windows = make_windows(tokenizer, texts, max_length)
    documents = [tokenizer(text)["input_ids"] for text in texts]
    assert windows.tokens == sum(len(ids) - 1 for ids in documents)
    assert windows.inputs.shape[1] <= max_length
    assert windows.bytes == sum(len(text.encode()) for text in texts)
    expected = sorted(
        (ids[a : a + max_length][: len(ids) - 1 - a], ids[a + 1 : a + 1 + max_length])
        for ids in documents
        for a in range(0, len(ids) - 1, max_length)
    )
    rows = [(row_inputs, labels) for row_inputs, labels in zip(windows.inputs, windows.labels, strict=True)]
    found = sorted((i[lab != IGNORED].tolist(), lab[lab != IGNORED].tolist()) for i, lab in rows)
    assert found == expected


def test_a_tokenizer_without_bos_gets_one_in_front(texts):
    with_bos, without = (train_tokenizer(texts, bos=bos) for bos in (True, False))
    a, b = (make_windows(tokenizer, texts, 32) for tokenizer in (with_bos, without))
    assert torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels)


def test_batches_cut_padding_and_lose_nothing(tokenizer, texts):
    windows = make_windows(tokenizer, texts, 50)
    batches = windows.batches(3)
    assert sum(int((labels != IGNORED).sum()) for _, labels in batches) == windows.tokens
    assert all((labels[0] != IGNORED).all() for _, labels in batches)


def literal(student, teacher, tokenizer, texts, max_length):
    """Document by document, window by window, without batches; float64 from the logits on."""
    nll = kl = agreed = tokens = 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids) - 1, max_length):
            inputs = torch.tensor([ids[start : start + max_length][: len(ids) - 1 - start]])
            labels = torch.tensor(ids[start + 1 : start + 1 + inputs.shape[1]])
            with torch.no_grad():
                p, q = (model(input_ids=inputs).logits[0].double().log_softmax(-1) for model in (teacher, student))
            nll -= q[torch.arange(len(labels)), labels].sum().item()
            kl += (p.exp() * (p - q)).sum().item()
            agreed += (p.argmax(-1) == q.argmax(-1)).sum().item()
            tokens += len(labels)
    return nll / tokens, kl / tokens, agreed / tokens


@pytest.mark.parametrize("max_length, batch_size, rows", [(40, 1, 3), (40, 5, 64), (300, 4, 1000)])
def test_figures_equal_a_literal_computation(tokenizer, texts, max_length, batch_size, rows, monkeypatch):
    monkeypatch.setattr(heldout, "CHUNK_ROWS", rows)
    monkeypatch.setattr(heldout, "CHUNK_BYTES", 0)
    student, teacher = tiny_model(1, intermediate_size=16), tiny_model(0)
    windows = make_windows(tokenizer, texts, max_length)
    teacher_scorer = Scorer(teacher, windows, batch_size, keep=True)
    measure(teacher_scorer, None, windows)  # fills the cache
    figures = measure(Scorer(student, windows, batch_size), teacher_scorer, windows)
    nll, kl, agreed = literal(student, teacher, tokenizer, texts, max_length)
    assert figures.nll == pytest.approx(nll, rel=1e-6)
    assert figures.perplexity == pytest.approx(math.exp(nll), rel=1e-5)
    assert figures.bits_per_byte == pytest.approx(nll * windows.tokens / windows.bytes / math.log(2), rel=1e-6)
    assert figures.kl == pytest.approx(kl, rel=1e-5)
    assert figures.top1_agreement == pytest.approx(agreed, abs=2 / windows.tokens)  # ties within fp32


def test_without_a_cache_the_teacher_says_the_same(tokenizer, texts, monkeypatch):
    windows = make_windows(tokenizer, texts, 64)
    student, teacher = tiny_model(1), tiny_model(0)
    cached = measure(Scorer(student, windows, 4), Scorer(teacher, windows, 4, keep=True), windows)
    monkeypatch.setattr(heldout, "CACHE_BYTES", 0)
    scorer = Scorer(teacher, windows, 4, keep=True)
    assert measure(Scorer(student, windows, 4), scorer, windows) == cached
    assert scorer._kept is None


def test_the_teacher_compared_with_itself(tokenizer, texts):
    windows = make_windows(tokenizer, texts, 64)
    scorer = Scorer(tiny_model(0), windows, 4, keep=True)
    figures = measure(scorer, scorer, windows)
    assert (figures.kl, figures.top1_agreement) == (0.0, 1.0)


def test_no_more_than_a_chunk_of_logits_is_held(tokenizer, texts, monkeypatch):
    monkeypatch.setattr(heldout, "CHUNK_ROWS", 16)
    monkeypatch.setattr(heldout, "CHUNK_BYTES", 0)
    windows = make_windows(tokenizer, texts, 300)
    scorer = Scorer(tiny_model(0), windows, 8)
    seen, log_probs = [], Scorer.log_probs
    monkeypatch.setattr(Scorer, "log_probs", lambda self, rows: seen.append(len(rows)) or log_probs(self, rows))
    assert measure(scorer, None, windows).kl is None
    assert max(seen) == 16 and sum(seen) == windows.tokens


def test_a_head_that_is_not_linear_is_refused(tokenizer, texts):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=320, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.01, initializer_range=1.0,
    )  # fmt: skip
    windows = make_windows(tokenizer, texts, 32)
    with pytest.raises(ValueError, match="linear head"):
        Scorer(Gemma2ForCausalLM(config), windows, 2)


def test_empty_text_is_refused(tokenizer):
    with pytest.raises(ValueError, match="empty"):
        make_windows(tokenizer, [""], 8)


def test_other_tokenizers_are_refused(tokenizer, texts):
    with pytest.raises(ValueError, match="differ"):
        check_same_tokenizer(tokenizer, train_tokenizer(texts, 300))
