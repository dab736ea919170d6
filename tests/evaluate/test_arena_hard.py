"""Arena Hard: the win rate against the benchmark's own rule, both orders, a biased judge, files of both versions."""

import json
import random
import re

import numpy as np
import pytest

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import arena_hard, data
from hf_cascade.evaluate.benchmarks.data import MissingData
from hf_cascade.rewards.endpoint import UnusableAnswer
from tests.evaluate.judge_server import judging, run, says, text_of

LABELS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
TASK = "cascade_arena_hard"


def shown(body):
    """What stands as A and as B."""
    return [re.search(rf"<answer_{name} \w+>\n(.*?)\n</", text_of(body), re.DOTALL)[1] for name in "AB"]


def record(label, verdict):
    score, weight = arena_hard.Judge().score(verdict, label)
    return {"label": label, "asked": True, "verdict": verdict, "score": score, "weight": weight, "reason": None} | {
        "prompt_tokens": 0, "completion_tokens": 0, "cost": None}  # fmt: skip


def pair(first, last):
    return [record(arena_hard.BASELINE_FIRST, first), record(arena_hard.MODEL_FIRST, last)]


def test_the_win_rate_is_the_benchmarks_own():
    """Its rule as show_result.py has it: each label is a list of battles, those of game 0 are turned round."""
    battles = {"A>B": [1], "A>>B": [1] * 3, "A=B": [0.5], "B>A": [0], "B>>A": [0] * 3}
    rng = random.Random(5)
    games = [(rng.choice(LABELS), rng.choice(LABELS)) for _ in range(200)]
    own = [one for first, last in games for one in battles[last] + [1 - score for score in battles[first]]]
    values = [arena_hard.process_results({}, [pair(*game)])["win_rate"] for game in games]
    assert arena_hard.win_rate(values) == pytest.approx(np.mean(own))
    low, high, error = arena_hard.low(values), arena_hard.high(values), arena_hard.error(values)
    assert low < np.mean(own) < high
    assert high - low == pytest.approx(2 * 1.645 * error, rel=0.1)
    assert arena_hard.low(values) == low  # the same draws


def test_one_row_and_the_ends():
    for verdicts, expected in (
        (("B>>A", "A>>B"), 1),
        (("A>>B", "B>>A"), 0),
        (("A=B", "A=B"), 0.5),
        (("B>A", "B>>A"), 0.25),
    ):
        figures = arena_hard.process_results({}, [pair(*verdicts)])
        assert float(figures["win_rate"]) == arena_hard.win_rate([figures["win_rate"]]) == expected
        assert arena_hard.low([figures["win_rate"]]) == expected


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("My final verdict is: [[A>>B]]", "A>>B"),
        ("[[A>B]] at first sight.\nBut: **[[B>A]]**\n", "B>A"),
        ("1. [[A>>B]] 2. [[A>B]]\n\nVerdict: [[A=B]]\n\nThank you.", "A=B"),
        ("Final: [B>>A]", "B>>A"),
        ("[[B<A]]", "B<A"),
        ("B says [[A>>B]].\nI disagree: [[B>>A]] [[B>>A]]", "B>>A"),
        ("[[A>B]] or [[B>A]]", None),
        ("A is better.", None),
        ("", None),
        ("[[A]] [[<>=]] [[AB]]", None),
        ("**Final verdict:** [[ b >> a ]]", "B>>A"),
        ("\\[\\[A&gt;B\\]\\]", "A>B"),
        ("The loop ends where A>B.\n\n**My final verdict is: B>A**", "B>A"),
        ("The loop ends where A>B.\n\nBoth are right.", None),
        ('```json\n{"explanation": "A>B in speed", "verdict": "B>>A"}\n```', "B>>A"),
        ("[[A>B", None),
        ("[[A>B]] or, said otherwise, [[A > B]]", "A>B"),
        ("[[A≫B]], that is [[a>>b]]", "A>>B"),
        ("list [ab]\nverdict A>B", "A>B"),
        ("x[A>B] is a mask, [a>b] another.\nMy final verdict is: B>A", "B>A"),
        ("[[A>B]]\nNo: [A>>>B]\nNo: [[AB]]", None),
        ("My final verdict is AB", None),
    ],
)
def test_verdicts(text, verdict):
    if verdict is None:
        with pytest.raises(UnusableAnswer):
            arena_hard.Judge().verdict(text)
    else:
        assert arena_hard.Judge().verdict(text) == verdict


def test_both_orders_are_asked_and_the_judge_sees_only_what_it_should(monkeypatch):
    with judging(monkeypatch, lambda body, number: says("[[A=B]]")) as server:
        run(TASK, lambda doc: f"[THINK]a secret[/THINK]answer to {doc['uid']}")
        rows = list(arena_hard.load("arena-hard-v2.0", "hard_prompt", "o3-mini-2025-01-31")["test"])
    assert len(server.bodies) == 2 * len(rows) == 28
    assert not any(
        "secret" in text_of(body) or row["uid"] in body["messages"][0]["content"]
        for body in server.bodies
        for row in rows
    )
    pairs = {tuple(shown(body)) for body in server.bodies}
    clean = {row["uid"]: row["baseline"] for row in rows if "<" not in row["baseline"]}
    for uid, baseline in clean.items():
        assert {(f"answer to {uid}", baseline), (baseline, f"answer to {uid}")} <= pairs


def test_a_judge_that_likes_the_first_is_seen(monkeypatch):
    """Its win rate is a half, which says nothing; the agreement of the orders says why."""
    with judging(monkeypatch, lambda body, number: says("[[A>B]]")):
        metrics, _ = run(TASK, lambda doc: "answer")
    assert metrics["win_rate"] == 0.5 and metrics["swap_agreement"] == 0 and metrics["position_bias"] == 0.5
    with judging(monkeypatch, lambda body, number: says("[[B>>A]]")):
        metrics, _ = run(TASK, lambda doc: "answer")
    assert metrics["win_rate"] == 0.5 and metrics["swap_agreement"] == 0 and metrics["position_bias"] == -0.5


def test_a_fair_judge_agrees_with_itself(monkeypatch):
    def fair(body, number):
        return says("[[A>>B]]" if "good" in shown(body)[0] else "[[B>>A]]")

    with judging(monkeypatch, fair):
        metrics, samples = run(TASK, lambda doc: "good answer")
    assert metrics["win_rate"] == metrics["swap_agreement"] == 1 and metrics["position_bias"] == 0
    assert metrics["judge_failures"] == 0 and metrics["judge_prompt_tokens"] == 100 * 28
    (records,) = samples[0]["filtered_resps"]
    assert [one["verdict"] for one in records] == ["B>>A", "A>>B"] and records[0]["answer"] == "[[B>>A]]"
    json.dumps(samples, default=str)


def test_a_row_with_one_order_counts_in_neither(monkeypatch):
    """As in the benchmark's own script; the rest has the score."""

    def half(body, number):
        a, b = shown(body)
        if "odd" in a:
            return says("no verdict")
        return says("[[A>B]]" if "odd" in a or "even" in a else "[[B>A]]")

    rows = []
    with judging(monkeypatch, half):
        metrics, samples = run(TASK, lambda doc: rows.append(doc) or ("odd" if len(rows) % 2 else "even"))
    assert metrics["win_rate"] == 1 and metrics["judge_failures"] == pytest.approx(7 / 28)
    assert sum("win_rate" in sample for sample in samples) == 7


def test_unfinished_and_empty_responses_lose_unasked(monkeypatch):
    responses = iter(["[THINK]long", "", "good"] * 5)
    with judging(monkeypatch, lambda body, number: says("[[A=B]]")) as server:
        metrics, samples = run(TASK, lambda doc: next(responses))
    assert len(server.bodies) == 2 * 4
    assert metrics["win_rate"] == pytest.approx(4 * 2 * 0.5 / (4 * 2 + 10 * 2 * 3))
    assert (metrics["unfinished"], metrics["unparsed"]) == pytest.approx((5 / 14, 5 / 14))
    assert metrics["swap_agreement"] == 1 and metrics["judge_failures"] == 0


def test_creative_prompts_and_v01(monkeypatch):
    """The judge of creative prompts does not write its own answer first; v0.1 has another schema."""
    with judging(monkeypatch, lambda body, number: says("[[A=B]]")) as server:
        _, creative = run("cascade_arena_hard_creative", lambda doc: "answer")
        assert not any("your own answer" in body["messages"][0]["content"] for body in server.bodies)
        del server.bodies[:]
        _, old = run("cascade_arena_hard_v01", lambda doc: "answer")
        assert all("your own answer" in body["messages"][0]["content"] for body in server.bodies)
    assert {sample["doc"]["category"] for sample in creative} == {"creative_writing"}
    assert old[0]["doc"]["prompt"] == old[0]["arguments"][0][0] and old[0]["doc"]["baseline"].startswith("In short")
    used = data.used[f"{arena_hard.REPO}/arena-hard-v0.1/question"]
    assert used["rows"] == 4 and used["full_rows"] == 500 and len(used["sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("question", lambda rows: [{"uid": 1, "category": "hard_prompt"}], "no column prompt"),
        ("question", lambda rows: [{**rows[0], "prompt": " "}], "has no prompt"),
        (
            "question",
            lambda rows: [row for row in rows if row["category"] != "hard_prompt"],
            "no prompt of the category hard",
        ),
        ("question", lambda rows: ["text"], "must be a JSON object"),
        ("question", lambda rows: [{"question_id": "q", "turns": []}], "q has no turns with content"),
        ("question", lambda rows: rows + [{**rows[0], "uid": "new"}], "no answer to 1 of 15 prompts, new first"),
        ("answer", lambda rows: [{**rows[0], "messages": []}], "a line of model_answer has no uid and messages"),
        ("answer", lambda rows: [{**rows[0], "messages": [{"content": None}]}], "a line of model_answer"),
        ("answer", None, "has no file .*model_answer/o3-mini-2025-01-31.jsonl: put it there"),
    ],
)
def test_files_that_do_not_fit(monkeypatch, tmp_path, name, change, match):
    files = {"question": "question.jsonl", "answer": "model_answer/o3-mini-2025-01-31.jsonl"}
    for key, file in files.items():
        source = assets.find("evals/rows") / arena_hard.REPO / "data/arena-hard-v2.0" / file
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        target = tmp_path / source.relative_to(assets.find("evals/rows"))
        target.parent.mkdir(parents=True, exist_ok=True)
        if key != name or change:
            target.write_text("\n".join(map(json.dumps, change(rows) if key == name else rows)), encoding="utf-8")
    with judging(monkeypatch, lambda body, number: None):
        monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
        with pytest.raises((ValueError, MissingData), match=match):
            arena_hard.load("arena-hard-v2.0", "hard_prompt", "o3-mini-2025-01-31")


def test_without_rows_and_hub(monkeypatch):
    with judging(monkeypatch, lambda body, number: None):
        monkeypatch.setenv("HFC_EVAL_DATA", "no/such/folder")
        with pytest.raises(MissingData, match="no/such/folder"):
            arena_hard.load("arena-hard-v2.0", "hard_prompt", "o3-mini-2025-01-31")
        monkeypatch.delenv("HFC_EVAL_DATA")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(MissingData, match="Set HFC_EVAL_DATA"):
            arena_hard.load("arena-hard-v2.0", "hard_prompt", "o3-mini-2025-01-31")
