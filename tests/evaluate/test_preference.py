"""Answers compared: sampling, KL, loops and win-rates against a literal computation, and `--prompts` end to end."""

import json
import math
import shutil

import pytest
import torch

from hf_cascade import manifest, progress
from hf_cascade.completions import find_loop
from hf_cascade.evaluate import preference_figures as figures
from hf_cascade.evaluate import preference_samples as samples
from hf_cascade.evaluate.command import main
from hf_cascade.rewards.comparison import Comparison
from hf_cascade.rewards.pairwise import PairwiseRewardModel
from hf_cascade.rewards.verifiable import similarity

from .conftest import tiny_model

WORDS = ["The cell", "Rust has", "def add(x", "A force of nature", "W", "The sun is a star that", "In 1776 it was", "x"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def quiet(_share):
    pass


def sampled(model, tokenizer, prompts, **settings):
    settings = {"max_length": 12, "temperature": 0.7, "per_prompt": 1, "batch_size": 3, "report": quiet} | settings
    return samples.sample(model, tokenizer, [tokenizer(text)["input_ids"] for text in prompts], **settings)


def literal_log_prob(model, response) -> float:
    """One row, full logits, float64."""
    ids = response.prompt_ids + response.token_ids
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logs[place - 1, ids[place]].item() for place in range(len(response.prompt_ids), len(ids)))


def test_greedy_answers_are_those_of_a_literal_loop(tokenizer):
    """Left padding, sorting and batches change nothing; the model's own generation config is not used."""
    model = tiny_model(5)
    model.generation_config.repetition_penalty = 9.0
    with torch.no_grad():
        expected, every = [], []
        for text in WORDS:
            ids = tokenizer(text)["input_ids"]
            for _ in range(20):
                ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
            every.append(ids[-20:])
    end = every[0][3]  # a token that ends some of them
    model.generation_config.eos_token_id = [end, 318]
    for answer in every:
        stop = answer.index(end) + 1 if end in answer else 20
        expected.append(answer[:stop])
    found = sampled(model, tokenizer, WORDS, max_length=20, temperature=0.0)
    assert [response.token_ids for response in found] == expected
    assert [response.row for response in found] == list(range(8))
    assert any(len(answer) < 20 for answer in expected) and any(len(answer) == 20 for answer in expected)
    for response in found:
        ended = response.token_ids[-1] == end
        assert response.looped == (not ended and find_loop(response.token_ids) is not None)
        assert response.truncated == (not ended and not response.looped)


def test_sampling_is_seeded_and_follows_the_temperature(tokenizer):
    model, prompts = tiny_model(5), ["The cell"]
    with torch.no_grad():
        model.lm_head.weight *= 3  # far from uniform
    first, again = (sampled(model, tokenizer, prompts, per_prompt=2000, batch_size=500, max_length=1) for _ in "ab")
    assert [r.token_ids for r in first] == [r.token_ids for r in again]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokenizer("The cell")["input_ids"]])).logits[0, -1]
    p = float((logits / 0.7).softmax(-1).max())
    share = sum(r.token_ids == [int(logits.argmax())] for r in first) / 2000
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 2000)
    assert abs(p - float(logits.softmax(-1).max())) > 8 * math.sqrt(
        p * (1 - p) / 2000
    )  # so that 0.7 can be told from 1


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_log_probs_are_the_literal_ones(tokenizer, batch_size):
    model, other = tiny_model(5), tiny_model(6)
    model.generation_config.eos_token_id = list(range(20, 60))  # answers of different lengths
    responses = sampled(model, tokenizer, WORDS, per_prompt=2, max_length=9)
    assert len({len(response.token_ids) for response in responses}) > 2
    for scored in (model, other):
        expected = [literal_log_prob(scored, response) for response in responses]
        assert samples.log_probs(scored, responses, batch_size) == pytest.approx(expected, abs=1e-4)


def test_special_tokens_leave_the_text_but_thinking_stays(tokenizer):
    ids = tokenizer("<s>a[THINK]b[/THINK]c</s>")["input_ids"]
    response = samples._response(0, [0], ids, {tokenizer.eos_token_id}, tokenizer)
    assert response.text == "a[THINK]b[/THINK]c" and not response.truncated and not response.looped


def test_wins_by_hand():
    assert figures.share_of_wins([1, 0, 2, None, 1], [0, 1, 2, 1, None]) == [1, 0, 0.5, None, None]
    # prompts' means: 0.75, 0, 1; the fourth prompt has no judgement
    found = figures.interval([1, 0.5, 0, None, 1, None], [0, 0, 1, 1, 2, 3])
    assert found["rate"] == pytest.approx(1.75 / 3) and found["judged"] == 4
    assert found["low"] == 0 and found["high"] == 1  # 1 of 27 draws is all of one prompt: more than 2.5%
    assert figures.interval([None], [0]) == {"rate": None, "low": None, "high": None, "judged": 0}
    assert figures.mean_reward([1, None, 0]) == 0.5 and figures.mean_reward([None]) is None


def test_the_interval_is_that_of_the_normal_distribution():
    """Of 400 independent fair wins: 0.5 +- 1.96 * 0.5 / 20; ten answers to each of 40 prompts that agree: wider."""
    found = figures.interval([1, 0] * 200, list(range(400)))
    assert (found["low"], found["high"]) == pytest.approx((0.451, 0.549), abs=0.006)
    found = figures.interval(([1] * 10 + [0] * 10) * 20, [place // 10 for place in range(400)])
    assert (found["low"], found["high"]) == pytest.approx((0.345, 0.655), abs=0.02)


def test_divergence_by_hand():
    found = figures.divergence([-1.0, -2.0], [-4.0, -3.0], [3, 5])
    assert found == {"kl_response": 2.0, "kl_token": 0.5}


@pytest.fixture
def answered(family, tokenizer, tmp_path):
    """A family, a reward model, and prompts of both kinds."""
    tiny_model(11).save_pretrained(family / "pwrm")
    tokenizer.save_pretrained(family / "pwrm")
    Comparison.new(tokenizer).save_pretrained(family / "pwrm")
    rows = [{"prompt": text, "answer": text.upper() if len(text) > 1 else None} for text in WORDS]
    (family / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    rows[0]["prompt"].insert(0, {"role": "system", "content": "Be brief.", "name": "x"})
    (family / "messages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return family


def run(family, *argv):
    assert main([*argv, "--output_dir", "out"]) == 0
    results = json.loads((family / "out" / "results.json").read_text())
    lines = [json.loads(line) for line in (family / "out" / "completions.jsonl").read_text().splitlines()]
    return results, {model["name"]: model["preference"] for model in results["models"]}, lines


def test_answers_end_to_end(answered, tokenizer, monkeypatch, capsys):
    events = []
    monkeypatch.setattr(progress, "report", lambda step, total, **_: events.append(step / total))
    monkeypatch.chdir(answered)
    argv = [
        "--model",
        "small",
        "tiny",
        "--prompts",
        "prompts.jsonl",
        "--reward_model",
        "pwrm",
        "--reward",
        "similarity",
    ]
    argv += ["--samples_per_prompt", "2", "--max_completion_length", "24", "--batch_size", "5"]
    results, found, lines = run(answered, *argv)
    assert results["comparison"]["baseline"] == "small" and results["heldout"] is None
    assert list(found) == ["small", "tiny"] and len(lines) == 32
    texts = {name: [line["completion"] for line in lines if line["model"] == name] for name in found}
    prompts = [line["prompt"] for line in lines if line["model"] == "tiny"]
    assert prompts == [text for text in WORDS for _ in range(2)]

    # the reward model alone, on what was written down
    pwrm = PairwiseRewardModel.from_pretrained("pwrm", dtype="float32")
    by_pwrm = pwrm.compare(prompts, texts["tiny"], texts["small"])
    answers = [text.upper() if len(text) > 1 else None for text in prompts]
    scores = {name: similarity(prompts, texts[name], answers) for name in found}
    by_score = [(a > b) + (a == b) / 2 for a, b in zip(scores["tiny"], scores["small"], strict=True) if a is not None]
    wins = found["tiny"]["wins"]
    assert wins["pwrm"]["rate"] == pytest.approx(sum(by_pwrm) / 16, abs=1e-6) and wins["pwrm"]["judged"] == 16
    assert wins["similarity"]["rate"] == pytest.approx(sum(by_score) / 12) and wins["similarity"]["judged"] == 12
    for win in wins.values():
        assert win["low"] < win["rate"] < win["high"]
    assert found["small"]["wins"] == {} and found["small"]["tokens_drift"] == 0
    known = [score for score in scores["tiny"] if score is not None]
    assert found["tiny"]["rewards"] == {"similarity": pytest.approx(sum(known) / 12)}

    # tokens, loops and KL from the same sampling, by hand
    models = {"small": tiny_model(3, intermediate_size=16), "tiny": tiny_model(5, num_hidden_layers=1)}
    settings = {"max_length": 24, "per_prompt": 2, "batch_size": 5}
    for name, model in models.items():
        responses = sampled(model, tokenizer, WORDS, **settings)
        assert [response.text for response in responses] == texts[name]
        own, theirs = (sum(literal_log_prob(m, r) for r in responses) for m in (model, models["small"]))
        tokens = [len(response.token_ids) for response in responses]
        assert found[name]["tokens"] == sum(tokens) / 16
        assert found[name]["kl_response"] == pytest.approx((own - theirs) / 16, rel=1e-4, abs=1e-9)
        assert found[name]["kl_token"] == pytest.approx((own - theirs) / sum(tokens), rel=1e-4, abs=1e-9)
        unended = [r for r in responses if r.token_ids[-1] not in (1, 2)]  # the tokenizer's EOS and the config's
        looped = [r for r in unended if find_loop(r.token_ids)]
        assert found[name]["loop_rate"] == len(looped) / 16
        assert found[name]["truncated_rate"] == (len(unended) - len(looped)) / 16
    assert found["tiny"]["kl_token"] > 0.01 and 0 < found["small"]["truncated_rate"] < 1
    drift = found["tiny"]["tokens"] - found["small"]["tokens"]
    assert found["tiny"]["tokens_drift"] == pytest.approx(drift)
    assert found["tiny"]["tokens_drift_percent"] == pytest.approx(100 * drift / found["small"]["tokens"])

    report = (answered / "out" / "report.md").read_text()
    assert "| small (baseline) | – |" in report and "win: pwrm" in report and "](preference.png)" in report
    assert (answered / "out" / "preference.png").stat().st_size > 5000
    assert (
        f"{100 * wins['pwrm']['rate']:.1f}% [" in report
        and f"{100 * wins['pwrm']['rate']:.1f}% [" in capsys.readouterr().out
    )
    record = manifest.read(answered / "out")
    assert record["inputs"]["reward_model"] == "pwrm" and record["config"]["samples_per_prompt"] == 2
    assert json.loads((answered / "tiny" / "evals.json").read_text())["preference"] == found["tiny"]
    assert events == sorted(events) and events[-1] == 1
    again, *_ = run(answered, *argv)  # an earlier report is written over; the same seed, the same answers
    assert again == results


def test_loops_are_counted(answered, tokenizer, monkeypatch):
    """Greedy answers of a tiny random model with tied embeddings run in circles."""
    monkeypatch.chdir(answered)
    argv = ["--model", "small", "tiny-pruned", "--prompts", "prompts.jsonl", "--reward", "exact_match"]
    _, found, lines = run(answered, *argv, "--sampling_temperature", "0", "--max_completion_length", "100")
    assert 0 < sum(line["looped"] for line in lines) < 16
    for name in found:
        mine = [line for line in lines if line["model"] == name]
        assert found[name]["loop_rate"] == sum(line["looped"] for line in mine) / 8
        assert all(line["tokens"] == 100 for line in mine if line["looped"])
    assert found["tiny-pruned"]["wins"]["exact_match"] == {
        "rate": 0.5,
        "low": 0.5,
        "high": 0.5,
        "judged": 6,
    }  # all are wrong


def test_messages_go_through_the_template_and_text_is_measured_beside(answered, texts, monkeypatch):
    monkeypatch.chdir(answered)
    for name in ("parent", "small"):
        (answered / name / "chat_template.jinja").write_text(TEMPLATE)
    (answered / "reward.py").write_text(
        "seen = []\n"
        "def last(prompts, completions, answer, **columns):\n"
        "    seen.append((prompts, completions, sorted(columns)))\n"
        "    return [float(len(c[-1]['content'])) for c in completions]\n"
    )
    (answered / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:4]))
    argv = ["--model", "small", "--baseline", "parent", "--prompts", "messages.jsonl", "--reward", "reward.py:last"]
    argv += ["--dataset", "text.jsonl", "--max_length", "64", "--max_completion_length", "16"]
    results, found, lines = run(answered, *argv, "--limit", "3")
    assert list(found) == ["parent", "small"] and results["comparison"]["baseline"] == "parent"
    assert results["models"][1]["heldout"]["perplexity"] > 1
    assert len(lines) == 6 and lines[3]["model"] == "small"
    assert lines[0]["prompt"][1] == {"role": "user", "content": "The cell"}
    lengths = [len(line["completion"]) for line in lines]
    wins = [(a > b) + (a == b) / 2 for a, b in zip(lengths[3:], lengths[:3], strict=True)]
    assert found["small"]["wins"]["last"]["rate"] == pytest.approx(sum(wins) / 3)
    assert samples.prompt_tokens(*_prompt(answered)) == _by_hand(answered)


def _prompt(family):
    from hf_cascade.loading import load_tokenizer

    return load_tokenizer(str(family / "small")), [{"role": "user", "content": "Hi"}]


def _by_hand(family):
    tokenizer, _ = _prompt(family)
    return tokenizer("<s>[user]Hi[assistant]", add_special_tokens=False)["input_ids"]


def test_other_tokenizers_have_no_kl(answered, texts, monkeypatch):
    from .conftest import train_tokenizer

    monkeypatch.chdir(answered)
    shutil.copytree("small", "foreign")
    (answered / "foreign" / "cascade.json").unlink()
    train_tokenizer(texts[:3]).save_pretrained(answered / "foreign")
    argv = ["--model", "parent", "foreign", "--prompts", "prompts.jsonl", "--reward", "similarity"]
    _, found, _ = run(answered, *argv, "--max_completion_length", "8")
    assert found["foreign"]["kl_token"] is None and found["foreign"]["wins"]["similarity"]["rate"] is not None
    assert found["parent"]["kl_token"] == 0


P = ["--prompts", "prompts.jsonl"]
BAD = {
    "nothing that ranks": (P, "nothing ranks the answers"),
    "no prompts": (["--reward", "similarity", "--tasks", "cascade_tiny"], "give --prompts too"),
    "a baseline without prompts": (["--baseline", "parent", "--tasks", "cascade_tiny"], "give --prompts too"),
    "no prompt column": (
        ["--prompts", "text.jsonl", "--reward", "similarity"],
        "no column `prompt`: it has \\['text'\\]",
    ),
    "a missing file": (["--prompts", "no.jsonl", "--reward", "similarity"], "no.jsonl is no file"),
    "a text file": (["--prompts", "a.txt", "--reward", "similarity"], "allowed are .jsonl"),
    "an empty prompt": (["--prompts", "empty.jsonl", "--reward", "similarity"], "row 1: a prompt is text"),
    "an answered prompt": (["--prompts", "answered.jsonl", "--reward", "similarity"], "what is to be answered"),
    "no template": (["--prompts", "messages.jsonl", "--reward", "similarity"], "small has no chat template"),
    "no reward model": ([*P, "--reward_model", "tiny"], "tiny is no pairwise reward model"),
    "an unknown reward": ([*P, "--reward", "bleu"], "bleu.*allowed are exact_match"),
    "a column missing": (["--prompts", "bare.jsonl", "--reward", "similarity"], "needs the columns answer"),
    "a missing baseline": ([*P, "--reward", "similarity", "--baseline", "./nowhere"], "nowhere"),
    "too long": ([*P, "--reward", "similarity", "--max_completion_length", "512"], "512 positions"),
    "no samples": ([*P, "--reward", "similarity", "--samples_per_prompt", "0"], "at least 1"),
    "equal samples": (
        [*P, "--reward", "similarity", "--samples_per_prompt", "2", "--sampling_temperature", "0"],
        "all answers are equal",
    ),
    "a temperature below 0": ([*P, "--reward", "similarity", "--sampling_temperature", "-1"], "greedy"),
    "a reward twice": ([*P, "--reward", "similarity", "similarity"], "more than once"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(case, answered, monkeypatch):
    argv, message = BAD[case]
    monkeypatch.chdir(answered)
    monkeypatch.setattr("hf_cascade.evaluate.command.load_model", None)
    files = {"text": [{"text": "x"}], "empty": [{"prompt": "x"}, {"prompt": ""}], "bare": [{"prompt": "x"}]}
    files["answered"] = [{"prompt": [{"role": "assistant", "content": "x"}]}]
    for name, rows in files.items():
        (answered / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (answered / "a.txt").write_text("x")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(["--model", "small", *argv, "--output_dir", "out"])
    assert not (answered / "out").exists()
