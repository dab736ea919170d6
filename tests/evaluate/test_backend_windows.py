"""The window of a model, where its config calls it something else or has none."""

import pytest
from lm_eval.api.instance import Instance
from transformers import BloomConfig, GPT2Config, MambaConfig, MambaForCausalLM, Mistral3Config, MistralConfig

from hf_cascade.evaluate.backends.hf import HFBackend
from hf_cascade.evaluate.backends.windows import ENDLESS, window_of
from hf_cascade.evaluate.command import main


def test_windows_by_any_name():
    assert window_of(GPT2Config(n_positions=77)) == 77
    assert window_of(Mistral3Config(text_config=MistralConfig(max_position_embeddings=123))) == 123
    assert window_of(BloomConfig(seq_length=2048)) == 2048
    assert window_of(BloomConfig()) == 2048  # lm-eval's
    assert window_of(MambaConfig()) is None


@pytest.fixture
def mamba(tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    return MambaForCausalLM(MambaConfig(vocab_size=320, bos_token_id=0, eos_token_id=1, **sizes))


def test_a_model_without_a_window_reads_every_prompt_whole(mamba, tokenizer):
    lm = HFBackend(mamba, tokenizer, batch_size=2)
    assert lm.max_length == ENDLESS
    long = "word " * 1500
    assert len(tokenizer(long)["input_ids"]) > 2048  # what lm-eval takes for the window of such a model
    asked = (long, {"max_gen_toks": 2, "until": []})
    (response,) = lm.generate_until([Instance("generate_until", {}, asked, 0, ("t", 0, 1))])
    assert not response.cut_prompt and not response.clipped
    ((value, _),) = lm.loglikelihood([Instance("loglikelihood", {}, (long, " a"), 0, ("t", 0, 1))])
    assert value < 0 and not lm.cut


def test_it_is_evaluated_as_any_other(mamba, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mamba.save_pretrained("mamba")
    tokenizer.save_pretrained("mamba")
    (tmp_path / "text.jsonl").write_text('{"text": "the old man and the sea"}\n')
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the old", "answer": "man"}\n' * 2)
    asked = ["--dataset", "text.jsonl", "--long_max_length", "4096", "--prompts", "prompts.jsonl"]
    asked += ["--reward", "exact_match", "--max_completion_length", "4", "--suite", "tiny", "--limit", "2"]
    assert main(["--model", "mamba", *asked, "--output_dir", "out"]) == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.startswith("# 1 model, measured") and "Not run" not in report
