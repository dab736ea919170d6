"""Verbosity: tokens of thinking and answer, rewards within budgets against a literal computation, and the picture."""

import itertools
import json
import random
from statistics import fmean

import pytest

from hf_cascade import plots
from hf_cascade.completions import without_thinking
from hf_cascade.evaluate import tables, verbosity, verbosity_plot
from hf_cascade.evaluate.preference_figures import interval
from hf_cascade.evaluate.preference_samples import Response
from hf_cascade.rewards.answers import opening_tag
from tests.test_plots import drawn, touching  # noqa: F401 (a fixture)

from .conftest import tiny_model
from .test_preference import TEMPLATE, answered, run, sampled  # noqa: F401 (a fixture)


def response(row: int, tokens: int, thinking: int = 0, unfinished: bool = False) -> Response:
    ids = [5] * tokens
    return Response(row, [1], ids, "", False, False, thinking_tokens=thinking, unfinished=unfinished)


@pytest.fixture(params=["spelt", "special"])
def thinker(request, texts):
    """Tokenizers to which a tag is many tokens, and one token."""
    from .conftest import train_tokenizer

    tokenizer = train_tokenizer(texts)
    if request.param == "special":
        tokenizer.add_special_tokens({"extra_special_tokens": ["[THINK]", "[/THINK]"]})
    return tokenizer


@pytest.mark.parametrize(
    "opened, text, thinking",
    [
        ("", "[THINK]a bé c[/THINK]", "all"),
        ("", "<think>it is</think>", "all"),
        ("[THINK]", "a b[/THINK]", "all"),
        ("", "opened in the prompt, unknown to us</think>", "all"),
        ("", "[THINK]a[/THINK] b [THINK]c[/THINK]", "all"),
        ("", "no thinking, and 3 < 4", None),
        ("", "[THINK]never closes", "unfinished"),
        ("<think>", "never closes", "unfinished"),
        ("", "[THINK]a[/THINK] b [THINK]c", "unfinished"),
    ],
)
def test_thinking_is_counted_in_tokens(opened, text, thinking, thinker):
    ids = thinker(text)["input_ids"][1:]
    rest = thinker(" So it is 4.")["input_ids"][1:]
    found = verbosity.thinking_tokens(ids + rest, thinker, opened)
    if thinking == "unfinished":
        assert found == (len(ids + rest), True) and without_thinking(opened + text + " So it is 4.") != "So it is 4."
    else:
        assert found == (len(ids) if thinking else 0, False)
        if thinking:  # what is counted is what rewards do not see
            assert without_thinking(opened + text + " So it is 4.").removeprefix("b").strip() == "So it is 4."


def test_a_prompt_that_opens_the_thinking(tokenizer):
    """Its tag is put before messages' text, so that rewards see an unclosed thinking."""
    assert opening_tag("[INST]Hi[/INST][THINK]") == "[THINK]"
    assert opening_tag("Hi <think>\n") == "<think>" and opening_tag("[THINK] Hi") == ""
    (found,) = sampled(tiny_model(5), tokenizer, ["Hi<think>"])
    assert (found.opened, found.unfinished, found.thinking_tokens) == ("<think>", True, len(found.token_ids))


def test_spending_by_hand():
    group = [response(0, 10, 8), response(0, 20, 20, True), response(1, 3)]
    found = verbosity.spending(group)
    assert found["tokens"] == interval([10, 20, 3], [0, 0, 1]) and found["tokens"]["rate"] == (15 + 3) / 2
    assert (found["thinking_tokens"], found["answer_tokens"]) == pytest.approx((28 / 3, 5 / 3))
    assert found["unfinished_rate"] == pytest.approx(1 / 3)


def test_gain_by_hand():
    group = [response(0, 10), response(0, 20), response(1, 3), response(1, 30), response(2, 8)]
    found = verbosity.gain([1, 0, 1.1, 0.2, None], group, [2, 3, 10, 20, 30])
    assert (found["right_tokens"], found["wrong_tokens"], found["binary"]) == (6.5, 25, False)
    assert found["budget"] == pytest.approx([0, 0.55 / 2, (0.5 + 0.55) / 2, 1.05 / 2, (0.5 + 0.65) / 2])
    assert found["rate"] == found["budget"][-1] and found["judged"] == 4
    assert verbosity.gain([1, 0, 1, 0, 0], group, [9])["binary"]
    assert verbosity.gain([1, 0, 1, -0.1, 0], group, [9])["budget"] is None
    nothing = verbosity.gain([None] * 5, group, [9])
    assert nothing["rate"] is None and nothing["budget"] is None and nothing["right_tokens"] is None


def test_budget_curves_rise_to_the_mean():
    draw = random.Random(3)
    group = [response(row // 4, draw.randint(1, 500)) for row in range(200)]
    rewards = [draw.choice([0, 0.1, 1, 1.1, None]) for _ in group]
    budgets = verbosity.budget_grid([fmean(len(r.token_ids) for r in group), 900], 500)
    assert budgets == sorted(set(budgets)) and 30 <= budgets[0] <= 65 and budgets[-1] == 500
    found = verbosity.gain(rewards, group, budgets)
    assert found["budget"] == sorted(found["budget"]) and found["budget"][-1] == pytest.approx(found["rate"])
    assert verbosity.budget_grid([7.0], 1) == [1] and verbosity.budget_grid([900.0], 100)[-1] == 100


def test_top_p_leaves_the_tail_out(tokenizer):
    model = tiny_model(5)
    settings = {"per_prompt": 300, "batch_size": 300, "max_length": 1, "temperature": 1.0}
    few, all_ = (sampled(model, tokenizer, ["The cell"], **settings, top_p=p) for p in (0.05, 1.0))
    assert len({r.token_ids[0] for r in few}) < 10 < len({r.token_ids[0] for r in all_})


def test_verbosity_end_to_end(answered, tokenizer, monkeypatch):  # noqa: F811
    """Everything in results.json follows from completions.jsonl."""
    monkeypatch.chdir(answered)
    (answered / "reward.py").write_text(
        "def short(prompts, completions, **columns):\n    return [float(len(c) % 2) for c in completions]\n"
        "def odd(prompts, completions, **columns):\n    return [len(c) % 3 - 1.0 for c in completions]\n"
    )
    argv = ["--model", "small-short", "small", "tiny", "--prompts", "prompts.jsonl", "--samples_per_prompt", "2"]
    argv += ["--reward", "similarity", "reward.py:short", "reward.py:odd", "--max_completion_length", "24"]
    results, found, lines = run(answered, *argv, "--top_p", "0.95")
    assert [model["previous"] for model in results["models"]] == [None, "small-short", "small-short"]
    told = results["comparison"]
    assert told["top_p"] == 0.95 and told["budgets"][-1] == 24
    for name, one in found.items():
        own = [line for line in lines if line["model"] == name]
        spent = one["verbosity"]
        assert spent["tokens"]["rate"] == pytest.approx(fmean(line["tokens"] for line in own))
        assert spent["thinking_tokens"] == 0 and spent["unfinished_rate"] == 0
        assert spent["answer_tokens"] == pytest.approx(one["tokens"])
        assert {key: gain["binary"] for key, gain in spent["rewards"].items()} == {
            "similarity": False,
            "short": True,
            "odd": False,
        }
        short = spent["rewards"]["short"]
        right = [line for line in own if line["rewards"]["short"] == 1]
        assert 0 < len(right) < 16 and short["right_tokens"] == pytest.approx(fmean(line["tokens"] for line in right))
        for budget, value in zip(told["budgets"], short["budget"], strict=True):
            assert value == pytest.approx(sum(line["tokens"] <= budget for line in right) / 16)
        assert short["rate"] == pytest.approx(one["rewards"]["short"]) and short["low"] < short["high"]
        assert spent["rewards"]["odd"]["budget"] is None
        assert spent["rewards"]["similarity"]["judged"] == 12
    report = (answered / "out" / "report.md").read_text()
    assert "## Verbosity" in report and "](verbosity.png)" in report and "top_p 0.95" in report
    assert (answered / "out" / "verbosity.png").stat().st_size > 5000
    header, rows = tables.verbosity(results)
    assert len(rows) == 9 and all(len(row) == len(header) for row in rows)


def test_rewards_see_the_thinking_that_a_template_opens(answered, monkeypatch):  # noqa: F811
    """As raw text in messages; never as an answer."""
    monkeypatch.chdir(answered)
    (answered / "small" / "chat_template.jinja").write_text(TEMPLATE + "<think>")
    argv = ["--model", "small", "--prompts", "messages.jsonl", "--max_completion_length", "16", "--limit", "3"]
    results, found, lines = run(answered, *argv, "--reward", "exact_match", "format_reward")
    spent = found["small"]["verbosity"]
    assert spent["unfinished_rate"] == 1 and spent["answer_tokens"] == 0 and all(line["unfinished"] for line in lines)
    assert found["small"]["rewards"] == {"exact_match": 0.0, "format_reward": 0.0}


def test_columns_that_a_reward_wants_are_asked_for_before_any_work(answered, monkeypatch):  # noqa: F811
    from hf_cascade.evaluate.command import main

    monkeypatch.chdir(answered)
    monkeypatch.setattr("hf_cascade.evaluate.command.load_model", None)
    (answered / "bare.jsonl").write_text(json.dumps({"prompt": "x"}) + "\n")
    argv = ["--model", "small", "--prompts", "bare.jsonl", "--output_dir", "out"]
    with pytest.raises(ValueError, match="stem_reward needs a column"):
        main([*argv, "--reward", "stem_reward"])
    with pytest.raises(ValueError, match="top_p=0.0"):
        main([*argv, "--reward", "format_reward", "--top_p", "0"])


def made_up(points: dict[str, tuple[float, float]], longest: int = 32768, binary: bool = True) -> dict:
    """results.json of models with a mean of tokens and of a reward, each made from the one before."""
    budgets = verbosity.budget_grid([tokens for tokens, _ in points.values()], longest)
    models = []
    for name, (tokens, rate) in points.items():
        gain = {"rate": rate, "low": rate - 0.05, "high": rate + 0.05, "binary": binary}
        gain["budget"] = [rate * min(1, budget / tokens / 2) for budget in budgets]
        spent = {"rate": tokens, "low": 0.95 * tokens, "high": 1.05 * tokens}
        record = {"tokens": spent, "rewards": {"maths_reward": gain, "stem_reward": gain}}
        models.append({"name": name, "previous": models[-1]["name"] if models else None})
        models[-1]["preference"] = {"verbosity": record}
    return {"comparison": {"budgets": budgets}, "models": models}


LINE = {"base": (70, 0.08), "3b-sft": (2500, 0.35), "3b-stem-32k": (9000, 0.62), "3b-stem-80k": (14000, 0.7)}
CROWD = {f"ministral-3-{size}b-{stage}": (900 + size, 0.5) for size, stage in itertools.product((3, 8, 14), "abc")}


@pytest.mark.parametrize(
    "points",
    [LINE, {"sft": (16, 0.3), "offline-dpo": (8, 0.4), "odpo": (7.8, 0.41)}, {"one": (30000, 0)}, CROWD],
    ids=["stages", "near", "one", "crowd"],
)
def test_the_picture_is_legible(points, drawn, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(verbosity_plot, "save", plots.save)
    results = made_up(points, 48 if "odpo" in points else 32768)
    assert verbosity_plot.verbosity(results, tmp_path) == [tmp_path / "verbosity.png"]
    figure = drawn["verbosity.png"]
    assert touching(figure) == []
    written = {text.get_text() for axes in figure.axes for text in axes.texts}
    written |= {text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().texts}
    assert set(points) <= written


def test_without_rewards_nothing_is_drawn(tmp_path):
    results = made_up(LINE)
    for model in results["models"]:
        model["preference"]["verbosity"]["rewards"] = {}
    assert verbosity_plot.verbosity(results, tmp_path) == []
    assert verbosity_plot.verbosity({"comparison": None}, tmp_path) == []
