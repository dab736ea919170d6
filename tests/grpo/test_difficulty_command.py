"""`hf-cascade difficulty` with the tiny parent and with a server of this process: rates, resuming, refusals."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_cascade import assets, cli, manifest, progress
from hf_cascade.data.prompts import load_prompts
from hf_cascade.evaluate.preference_samples import sample
from hf_cascade.grpo import difficulty_command as command
from hf_cascade.grpo import difficulty_samples as samples
from hf_cascade.grpo.difficulty_report import histogram
from hf_cascade.rewards.programs import program_reward
from hf_cascade.rewards.running import SandboxUnavailable
from tests.rewards.chat_server import serving

PARENT = str(assets.find("recipes/tiny/parent").resolve())
PROMPTS = ["The cell is", "Rust has", "def add(", "A force of", "Water and", "The sun", "In 1776", "Let x be"]
LENGTH_IS_EVEN = """
def even(completions, **columns):
    return [float(len(text) % 2 == 0) for text in completions]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "even.py").write_text(LENGTH_IS_EVEN)
    write(tmp_path, [{"prompt": text} for text in PROMPTS])
    return tmp_path


def write(folder, rows):
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*flags, model=PARENT, reward="even.py:even", out="out", **settings):
    words = ["--prompts", "prompts.jsonl", "--reward", reward, "--output_dir", out, *flags]
    words += ["--model", model] if model else []
    settings = {"max_completion_length": 6, "samples_per_prompt": 4, "batch_size": 8} | settings
    return command.main([*words, *(str(word) for flag, value in settings.items() for word in (f"--{flag}", value))])


def refused(capsys, *flags):
    assert cli.main(["difficulty", *flags]) == 2
    return capsys.readouterr().err


def test_pass_rates_are_the_models_probabilities(here):
    """One token long, with the likeliest as the answer: a response passes with that token's probability."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(PARENT), AutoTokenizer.from_pretrained(PARENT)
    rows, expected = [], []
    for text in PROMPTS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        words = [tokenizer.decode([token]).strip() for token in range(len(logits))]
        answer = words[max(range(len(words)), key=lambda token: logits[token] if words[token] else -math.inf)]
        rows.append({"prompt": text, "answer": answer, "kind": len(rows)})
        p = logits.softmax(-1)
        expected.append(float(p[[token for token, word in enumerate(words) if word == answer]].sum()))
    write(here, rows)
    count = 256
    run(reward="exact_match", max_completion_length=1, samples_per_prompt=count, batch_size=512, max_pass_rate=0.1)
    kept, dropped = read(here / "out" / "prompts.jsonl"), read(here / "out" / "dropped.jsonl")
    assert len(kept) > 1 and len(dropped) > 1
    rates = {row["kind"]: row["pass_rate"] for row in kept + dropped}
    for number, p in enumerate(expected):
        assert abs(rates[number] - p) < 4.5 * math.sqrt(p * (1 - p) / count) + 1e-9
    assert all(0.01 <= row["pass_rate"] <= 0.1 and row["samples"] == count for row in kept)
    assert {row["reason"] for row in dropped} <= {"too_easy", "too_hard", "contradicted"}
    assert all({key: row[key] for key in ("prompt", "answer", "kind")} == rows[row["kind"]] for row in kept)


def test_what_is_left_and_said(here, monkeypatch, capsys):
    monkeypatch.setenv(progress.EVENTS_VARIABLE, str(here / "events"))
    write(here, [{"prompt": text, "answer": "x"} for text in [*PROMPTS, "", "Rust  has"]])
    assert run() == 0
    out = here / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        *("cascade.json", "difficulty.json", "difficulty.png", "dropped.jsonl", "prompts.jsonl", "report.md"),
        "samples.jsonl",
    ]
    results, record = json.loads((out / "difficulty.json").read_text()), manifest.read(out)
    assert results["outcomes"]["bad_prompt"] == results["outcomes"]["duplicate"] == 1
    assert sum(results["outcomes"].values()) == results["rows"] == 10
    assert sum(bar["prompts"] for bar in results["histogram"]) == 8
    assert results["responses"]["asked"] == results["responses"]["judged"] == 32
    assert record["run"] == "difficulty" and record["inputs"] == {"model": PARENT}
    assert record["metrics"]["kept"] == len(read(out / "prompts.jsonl")) == results["outcomes"]["kept"]
    assert record["lineage"][-1]["folder"] == "parent"
    report = (out / "report.md").read_text()
    assert "| duplicate | 1 | 10.0% |" in report and "How responses end" in report
    assert json.loads((here / "events").read_text().splitlines()[-1])["total"] == 8
    assert "prompts (kept" in capsys.readouterr().out


def test_a_killed_run_ends_as_one_that_was_not(here, monkeypatch):
    run(out="whole")
    add, calls = samples.Journal.add, []

    def killed(journal, found, seconds):
        add(journal, found, seconds)
        calls.append(found)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(samples.Journal, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        run(out="two")
    with open(here / "two" / "samples.jsonl", "a") as file:
        file.write('{"row": 7, "samp')  # torn
    run(out="two")
    assert [len(found) for found in calls] == [2] * 4  # 8 responses at once: two prompts; none twice
    for name in ("prompts.jsonl", "dropped.jsonl"):
        assert (here / "whole" / name).read_bytes() == (here / "two" / name).read_bytes()
    whole, two = (read(here / name / "samples.jsonl") for name in ("whole", "two"))
    assert [{**line, "seconds": 0} for line in whole] == [{**line, "seconds": 0} for line in two]
    sampling = sum(line["seconds"] for line in two[1:])  # of both processes
    assert manifest.read(here / "two")["metrics"]["seconds"] > sampling > 0


def test_another_window_takes_the_same_responses(here, monkeypatch):
    run(max_pass_rate=0.5)
    before = read(here / "out" / "prompts.jsonl")
    monkeypatch.setattr(samples, "load_model", None)
    run(max_pass_rate=1.0, batch_size=3)
    after = read(here / "out" / "prompts.jsonl")
    assert len(after) > len(before) and all(row in after for row in before)
    with pytest.raises(ValueError, match="samples_per_prompt: 4 then, 5 now"):
        run(samples_per_prompt=5)
    write(here, [{"prompt": "Other"}])
    with pytest.raises(ValueError, match="prompts_sha256"):
        run()


def test_a_finished_folder_is_not_made_again(here, monkeypatch, capsys):
    run()
    monkeypatch.setattr(command.DifficultyFilter, "sample", None)
    assert run() == 0 and "already finished" in capsys.readouterr().out
    write(here, [{"prompt": "Other"}])
    with pytest.raises(ValueError, match="prompts_sha256"):
        run()


def test_nothing_kept_says_why(here, capsys):
    write(here, [{"prompt": text, "answer": "no model says this"} for text in PROMPTS])
    flags = ["--prompts", "prompts.jsonl", "--reward", "exact_match", "--model", PARENT, "--output_dir", "out"]
    said = refused(capsys, *flags, "--samples_per_prompt", "2", "--max_completion_length", "3")
    (line,) = [line for line in said.splitlines() if line.startswith("hf-cascade: error:")]
    for words in ("none of 8 prompts stays: too_hard: 8", "by pass rate: 0: 8", "cut off", "a stronger model"):
        assert words in line
    names = {path.name for path in (here / "out").iterdir()}
    assert "report.md" in names and not names & {"prompts.jsonl", "cascade.json"}
    write(here, [{"prompt": text, "answer": ""} for text in PROMPTS])
    said = refused(capsys, *flags[:-1], "empty")
    assert "no_answer: 8" in said and "give the rows what the reward needs" in said


def test_grpo_reads_what_stays(here):
    from trl import DatasetMixtureConfig

    run()
    kept = read(here / "out" / "prompts.jsonl")
    assert load_prompts(DatasetMixtureConfig(), prompts_from="out")["prompt"] == [row["prompt"] for row in kept]
    split = DatasetMixtureConfig(test_split_size=0.5)
    parts = [load_prompts(split, part, "out") for part in ("train", "test")]
    assert sum(map(len, parts)) == len(kept) and len(parts[1])
    with pytest.raises(ValueError, match="are both given"):
        load_prompts(DatasetMixtureConfig(datasets=[{"path": "json"}]), prompts_from="out")
    with pytest.raises(FileNotFoundError, match="name a folder that `hf-cascade difficulty` made"):
        load_prompts(DatasetMixtureConfig(), prompts_from="nowhere")


QUESTIONS = [
    {"prompt": [{"role": "user", "content": "easy"}], "answer": "1"},
    {"prompt": [{"role": "user", "content": "hard"}], "answer": "2"},
    {"prompt": [{"role": "user", "content": "some"}], "answer": "\\frac{1}{2}"},
    {"prompt": [{"role": "user", "content": "wrong"}], "answer": "4"},
    {"prompt": [{"role": "user", "content": "silent"}], "answer": "5"},
]


def reply(body, _):
    """By question and seed: right, never right, right at times, agreed on 3/4, not at all."""
    name, number = body["messages"][0]["content"], body["seed"]
    if name == "silent":
        return 400, "I refuse"
    said = {"easy": "1.0", "hard": str(100 + number), "some": ["0.5", "7", "8", "1/2"][number % 4]}
    text = said.get(name, ["3/4", "0.75", "4.1", r"\frac34"][number % 4])
    message = {"content": f"so \\boxed{{{text}}}", "reasoning_content": "Hm."}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 9}}


@pytest.mark.parametrize("reward", ["maths_reward", "stem_reward"])
def test_a_server_answers(here, reward):
    write(here, QUESTIONS)
    with serving(reply) as server:
        how = ["--url", f"http://127.0.0.1:{server.server_port}/v1", "--served_model", "org/m"]
        assert run(*how, model=None, reward=reward) == 0
        bodies = server.bodies
    assert {(body["temperature"], body["max_tokens"], body["model"]) for body in bodies} == {(1.0, 6, "org/m")}
    for question in QUESTIONS:
        seeds = [body["seed"] for body in bodies if body["messages"] == question["prompt"]]
        assert len(set(seeds)) == len(seeds) == 4
    (kept,) = read(here / "out" / "prompts.jsonl")
    figures = {"pass_rate": 0.5, "samples": 4, "majority_answer": kept["majority_answer"]}
    assert kept == QUESTIONS[2] | figures and kept["majority_answer"] in ("0.5", "1/2")
    dropped = {row["prompt"][0]["content"]: row for row in read(here / "out" / "dropped.jsonl")}
    assert {name: row["reason"] for name, row in dropped.items()} == {
        "easy": "too_easy",
        "hard": "too_hard",
        "wrong": "contradicted",
        "silent": "unjudged",
    }
    assert dropped["wrong"]["majority_answer"] == "3/4" and dropped["silent"]["pass_rate"] is None
    assert "| wrong | 4 | 3/4 |" in (here / "out" / "report.md").read_text()
    assert json.loads((here / "out" / "difficulty.json").read_text())["responses"]["tokens"] == 9


def test_a_server_that_goes_away(here):
    """The prompts that were answered are kept; those that were not are asked again."""
    write(here, QUESTIONS[:4])
    alive = [True]
    with serving(lambda body, number: reply(body, number) if alive[0] and number <= 8 else (400, "no")) as server:
        how = ["--url", f"http://127.0.0.1:{server.server_port}/v1", "--served_model", "m"]
        with pytest.raises(ConnectionError, match="m at http://127.0.0.1"):
            run(*how, model=None, reward="maths_reward", batch_size=1)
        first = len(server.bodies)
        server.answer = reply
        run(*how, model=None, reward="maths_reward", batch_size=1)
        assert first == 12 and len(server.bodies) == first + 8
    assert len(read(here / "out" / "prompts.jsonl")) == 1


def test_a_server_that_does_not_sample(here, capsys):
    write(here, QUESTIONS[:3])
    greedy = reply({"messages": QUESTIONS[0]["prompt"], "seed": 0}, 0)
    with serving(lambda body, number: greedy) as server:
        how = ["--url", f"http://127.0.0.1:{server.server_port}/v1", "--served_model", "m"]
        with pytest.raises(ValueError, match="none of 3 prompts stays.*do_sample: true"):
            run(*how, model=None, reward="maths_reward")
    assert capsys.readouterr().err.count("warning: so far every prompt got one and the same response") == 1


@pytest.mark.parametrize("text", ["thought</think>\\boxed{1}", "<think>thought</think>\\boxed{1}"])
def test_a_template_may_open_the_thinking(text):
    drawn = samples.read_response({"choices": [{"message": {"content": text}, "finish_reason": "length"}]})
    content = "<think>thought</think>\\boxed{1}"
    assert drawn == samples.Drawn([{"role": "assistant", "content": content}], None, True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", PARENT, "--url", "http://h/v1"], "give one of --model"),
        ([], "neither given"),
        (["--url", "http://h/v1"], "a server needs both"),
        (["--model", PARENT, "--served_model", "m"], "a server needs both"),
        (["--url", "ftp://h", "--served_model", "m", "--prompts", "chat.jsonl"], "http://host:port/v1"),
        (["--url", "http://h/v1", "--served_model", "m"], "a chat server answers messages"),
        (["--model", "./gone"], "gone"),
        (["--model", PARENT, "--prompts", "gone.jsonl"], "gone.jsonl"),
        (["--model", PARENT, "--prompts", "text.jsonl"], "has no column `prompt`"),
        (["--model", PARENT, "--prompts", "chat.jsonl"], "has no chat template"),
        (["--model", PARENT, "--prompts", "images.jsonl"], "the prompts have images"),
        (["--model", PARENT, "--reward", "exact_mach"], "reward 'exact_mach'"),
        (["--model", PARENT, "--reward", "exact_match"], "needs the columns answer"),
        (["--model", PARENT, "--reward", "rubric_reward"], "has no judge: trainers/grpo.py takes one"),
        (["--model", PARENT, "--reward", "program_reward", "--prompts", "code.jsonl"], "no sandbox today"),
        (["--model", PARENT, "--reward", "stem_reward"], "stem_reward needs a column"),
        (["--model", PARENT, "--samples_per_prompt", "0"], "samples_per_prompt=0"),
        (["--model", PARENT, "--limit", "0"], "limit=0"),
        (["--model", PARENT, "--sampling_temperature", "0"], "give more than 0"),
        (["--model", PARENT, "--min_pass_rate", "0.9"], "the first not above the second"),
        (["--model", PARENT, "--majority_share", "2"], "majority_share=2"),
        (["--model", PARENT, "--max_completion_length", "999999"], "the longest prompt takes"),
        (["--model", PARENT, "--output_dir", "full"], "holds thesis.tex"),
        (["--model", PARENT, "--output_dir", "even.py"], "is a file"),
    ],
)
def test_bad_input(here, capsys, monkeypatch, flags, words):
    monkeypatch.setattr(samples, "load_model", None)  # refused before weights are read
    (here / "text.jsonl").write_text('{"text": "a"}\n')
    (here / "images.jsonl").write_text('{"prompt": "a", "images": ["cat.png"]}\n')
    (here / "chat.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "Hi"}]}) + "\n")
    (here / "code.jsonl").write_text('{"prompt": "a", "tests": ["assert f() == 1"]}\n')

    def check(backend):
        raise SandboxUnavailable("no sandbox today")

    monkeypatch.setattr(type(program_reward.backend), "check", check)
    (here / "full").mkdir()
    (here / "full" / "thesis.tex").write_text("mine")
    defaults = ["--prompts", "prompts.jsonl", "--reward", "even.py:even", "--output_dir", "out"]
    said = refused(capsys, *defaults, *flags)
    lines = [line for line in said.splitlines() if line.startswith("hf-cascade: error:")]
    assert len(lines) == 1 and words in lines[0] and not (here / "out").exists()


def test_histograms():
    rates = [(0.0, "too_hard"), (0.5, "kept"), (0.5, "contradicted"), (1.0, "too_easy")]
    assert [(bar["pass_rate"], bar["prompts"], bar["kept"], bar["contradicted"]) for bar in histogram(rates, 2)] == [
        (0.0, 1, 0, 0),
        (0.5, 2, 1, 1),
        (1.0, 1, 0, 0),
    ]
    assert len(histogram(rates, 16)) == 17 and len(histogram(rates, 100)) == 21 and len(histogram(rates, 1)) == 2


def test_seeds_differ_and_repeat():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(PARENT), AutoTokenizer.from_pretrained(PARENT)
    ids, how = [tokenizer("The cell")["input_ids"]], (6, 1.0, 4, 4)
    first, again, other = (
        [one.token_ids for one in sample(model, tokenizer, ids, *how, report=lambda _: None, seed=seed)]
        for seed in (3, 3, 4)
    )
    assert first == again != other
