"""evaluate/metrics.py: figures of sampled benchmarks against their definitions; and our `evaluate` modules, offline."""

import itertools
import json
import math
import os
import random
import subprocess
import sys
from fractions import Fraction
from statistics import fmean

import pytest

from hf_cascade import assets
from hf_cascade.evaluate import metrics

MODULES = sorted(path.name for path in assets.find("evals/metrics").iterdir() if path.is_dir())


def majority_by_definition(answers, verdicts, k):
    scores = []
    for chosen in itertools.combinations(range(len(answers)), k):
        votes = {}
        for place in chosen:
            if answers[place] is not None:
                votes[answers[place]] = votes.get(answers[place], 0) + 1
        tied = [answer for answer in votes if votes[answer] == max(votes.values())]
        right = [fmean(v for a, v in zip(answers, verdicts, strict=True) if a == answer) for answer in tied]
        scores.append(fmean(right) if right else 0.0)
    return fmean(scores)


@pytest.mark.parametrize(
    "samples, correct, k", [(16, 3, 4), (16, 0, 16), (16, 16, 1), (10, 7, 4), (5, 1, 5), (200, 1, 7)]
)
def test_pass_at_k_is_its_formula(samples, correct, k):
    exact = 1 - Fraction(math.comb(samples - correct, k), math.comb(samples, k))
    assert metrics.pass_at_k(samples, correct, k) == pytest.approx(float(exact), abs=1e-15)


def test_pass_at_k_is_the_mean_over_choices():
    verdicts = [1, 0, 0, 1, 0, 0]
    found = fmean(max(chosen) for chosen in itertools.combinations(verdicts, 3))
    assert metrics.pass_at_k(6, 2, 3) == pytest.approx(found)


def test_pass_at_k_of_many_samples_neither_overflows_nor_rounds_away():
    assert metrics.pass_at_k(10**6, 1, 10**5) == pytest.approx(0.1)
    assert metrics.pass_at_k(10**9, 1, 1) == pytest.approx(1e-9, rel=1e-9)
    assert metrics.pass_at_k(10**6, 9 * 10**5, 10**5) == 1.0


@pytest.mark.parametrize("samples, correct, k", [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_numbers(samples, correct, k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        metrics.pass_at_k(samples, correct, k)


def test_maj_at_k_is_the_mean_over_all_choices():
    draw = random.Random(0)
    for _ in range(60):
        answers = [draw.choice(["a", "b", "c", None]) for _ in range(draw.randint(1, 8))]
        verdicts = [float(answer == "a") if draw.random() < 0.8 else draw.random() for answer in answers]
        for k in range(1, len(answers) + 1):
            expected = majority_by_definition(answers, verdicts, k)
            assert metrics.maj_at_k(answers, verdicts, k) == pytest.approx(expected, abs=1e-12)


def test_maj_at_k_by_hand():
    assert metrics.maj_at_k(["a", "a", "b"], [1, 1, 0]) == 1
    assert metrics.maj_at_k(["a", "b"], [1, 0]) == 0.5
    assert metrics.maj_at_k(["a", "b", "b", None], [1, 0, 0, 0]) == 0
    assert metrics.maj_at_k([None, None], [0, 0]) == 0
    assert metrics.maj_at_k(["a", "a", "b"], [1, 1, 0], 1) == pytest.approx(2 / 3)


def test_maj_at_k_refuses_what_does_not_go_together():
    with pytest.raises(ValueError, match="k is 3"):
        metrics.maj_at_k(["a", "b"], [1, 0], 3)
    with pytest.raises(ValueError, match="1 verdicts"):
        metrics.maj_at_k(["a", "b"], [1])


def test_within_problem_error_is_that_of_repeated_runs():
    draw, shares, k = random.Random(1), [0.2, 0.5, 0.9, 1.0], 16
    runs = [[[float(draw.random() < p) for _ in range(k)] for p in shares] for _ in range(3000)]
    averages = [fmean(map(fmean, run)) for run in runs]
    spread = math.sqrt(fmean((average - fmean(averages)) ** 2 for average in averages))
    assert fmean(map(metrics.within_problem_error, runs[:500])) == pytest.approx(spread, rel=0.06)
    assert metrics.within_problem_error([[1, 0], [1, 1]]) == pytest.approx(math.sqrt(0.25 / 2) / 2)
    assert math.isnan(metrics.within_problem_error([[]]))


def test_interval_of_shares_is_wilsons():
    low, high = metrics.mean_interval([1] * 9 + [0])  # Wilson, 9 of 10: 0.596 to 0.982
    assert (low, high) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))
    assert metrics.mean_interval([1.0] * 30)[0] == pytest.approx(0.8865, abs=1e-3)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_interval_of_other_scores_is_students(n):
    stats = pytest.importorskip("scipy.stats")
    scores = [2.5 + math.sin(place) for place in range(n)]
    low, high = stats.t.interval(0.95, n - 1, loc=fmean(scores), scale=stats.sem(scores))
    assert metrics.mean_interval(scores) == (pytest.approx(low, rel=5e-3), pytest.approx(high, rel=5e-3))
    with pytest.raises(ValueError, match="1 scores"):
        metrics.mean_interval(scores[:1])


CALLS = {
    "avg_at_k": ({"predictions": [[1, 0, 1, 1], [0, 0, 0, 0]]}, {"avg_at_k": 0.375}),
    "pass_at_k": ({"predictions": [[1, 0, 0, 0], [0, 0, 0, 0]], "k": [1, 2]}, {"pass_at_1": 0.125, "pass_at_2": 0.25}),
    "maj_at_k": ({"predictions": [["4", "4", "5"], ["", "7", "8"]], "references": ["4", "7"]}, {"maj_at_k": 0.75}),
    "within_problem_error": ({"predictions": [[1, 0], [1, 1]]}, {"within_problem_error": math.sqrt(0.125) / 2}),
    "loop_rate": ({"predictions": [[5, 6, 2], [8, 9] * 100], "eos_token_ids": [2]}, {"loop_rate": 0.5}),
    "unfinished_thinking": ({"predictions": ["<think>2</think>4", "[THINK]so"]}, {"unfinished_thinking": 0.5}),
    "maths_verify": (
        {"predictions": ["[THINK]3[/THINK]$\\boxed{\\frac12}$", "no idea"], "references": ["0.5", "3"]},
        {"accuracy": 0.5, "unparsed": 0.5},
    ),
    "letter_choice": (
        {"predictions": ["The answer is (B).", "?"], "references": ["B", "A"], "options": [["red", "blue"]] * 2},
        {"accuracy": 0.5, "unparsed": 0.5},
    ),
    "verbosity": (
        {"predictions": [[1, 2, 3, 4], [4, 4]], "tokenizer": "TOKENIZER"},
        {"output_tokens": 3.0, "thinking_tokens": 1.5, "answer_tokens": 1.5, "unfinished_thinking": 0.0},
    ),
}

LOAD = """
import json, sys
import evaluate
from hf_cascade import assets

found = {}
for name, arguments in json.load(open(sys.argv[1])).items():
    found[name] = evaluate.load(str(assets.find(f"evals/metrics/{name}"))).compute(**arguments)
print(json.dumps(found))
"""


def test_every_module_loads_offline_from_another_folder(tmp_path):
    """In a process of its own: `evaluate` reads its settings when it is imported."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    assert MODULES == sorted(CALLS)
    words = {"?": 0, "<think>": 1, "hm": 2, "</think>": 3, "4": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(tmp_path / "tokenizer")
    calls = {name: dict(arguments) for name, (arguments, _) in CALLS.items()}
    calls["verbosity"]["tokenizer"] = str(tmp_path / "tokenizer")
    (tmp_path / "calls.json").write_text(json.dumps(calls))
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", LOAD, "calls.json"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, (_, expected) in CALLS.items():
        assert {key: found[name][key] for key in expected} == pytest.approx(expected), name


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_card_that_says_how_to_open_it(name):
    card = (assets.find(f"evals/metrics/{name}") / "README.md").read_text(encoding="utf-8")
    assert f'assets.find("evals/metrics/{name}")' in card and "metric.compute(" in card
