"""WildBench: the score against the leaderboard's own figures, its JSON verdicts, conversations of several turns."""

import json
import random

import pytest

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import judged, wildbench
from hf_cascade.evaluate.benchmarks.conversations import messages_of
from hf_cascade.rewards.endpoint import UnusableAnswer
from tests.evaluate.judge_server import judging, run, says, text_of

TASK = "cascade_wildbench"
ROWS = "evals/rows/allenai/WildBench/v2/test.jsonl"


def rating(score):
    return says(json.dumps({"strengths": "s", "weaknesses": "w", "score": score}))


def rows():
    return [json.loads(line) for line in assets.find(ROWS).read_text(encoding="utf-8").splitlines()]


def test_the_weights_give_the_leaderboards_score():
    """gpt-4o-2024-05-13 in leaderboard/data_dir/score.json of allenai/WildBench: groups' scores, their macro mean."""
    groups = {
        "Coding & Debugging": 6.0473933649289116,
        "Creative Tasks": 5.912144702842378,
        "Information/Advice seeking": 5.861386138613861,
        "Planning & Reasoning": 6.020958083832337,
        "Math & Data Analysis": 5.729083665338646,
    }
    values = [judged.Figure(score, [group]) for group, score in groups.items() for _ in range(3)]
    assert wildbench.wb_score(values) == pytest.approx(5.929817880351956)


def test_the_score_is_the_leaderboards_rule():
    """A row counts once in each group of its tags; (mean - 5) x 2, here / 10."""
    rng, tags = random.Random(1), list(wildbench.GROUPS)
    docs = [
        {"primary_tag": rng.choice(tags), "secondary_tags": rng.choices(tags, k=rng.randrange(4))} for _ in range(300)
    ]
    scores = [float(rng.randint(1, 10)) for _ in docs]
    own = {}
    for doc, score in zip(docs, scores, strict=True):
        for group in {wildbench.GROUPS[tag] for tag in [doc["primary_tag"], *doc["secondary_tags"]]}:
            own.setdefault(group, []).append(score)
    means = {group: (sum(found) / len(found) - 5) * 2 for group, found in own.items()}
    expected = sum(means[group] * weight for group, weight in wildbench.WEIGHTS.items()) / sum(
        wildbench.WEIGHTS.values()
    )
    record = {"asked": True, "reason": None, "prompt_tokens": 1, "completion_tokens": 1, "cost": None}
    figures = [
        wildbench.process_results(doc, [[{**record, "score": score}]]) for doc, score in zip(docs, scores, strict=True)
    ]
    values = [figure["wb_score"] for figure in figures]
    assert wildbench.wb_score(values) == pytest.approx(expected / 10)
    assert wildbench.low(values) < expected / 10 < wildbench.high(values) and wildbench.error(values) > 0
    assert [figure["wb_score_raw"] for figure in figures] == [score / 10 for score in scores]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"strengths": "a", "weaknesses": "b", "score": "7"}', "7"),
        ('Analysis {x}.\n```json\n{\n  "strengths": "a",\n  "weaknesses": "b",\n  "score": 10\n}\n```', "10"),
        ('{"score": "[8]"}', "8"),
        ('{"score": "8/10"}', "8"),
        ('{"score": 6.5, "strengths": ""}', "6.5"),
        ('{"strengths": "it says \\"score\\": \\"10\\"", "weaknesses": "w", "score": "2"}', "2"),
        ('{"strengths": "a\nb", "score": "3"}', "3"),
        ('It wrote {"score": "10"}.\n\n{"strengths": "", "weaknesses": "", "score": "2"}', "2"),
        ('First {"score": "4"}\n```json\n{"weaknesses": "it says {\\"score\\": \\"10\\"}", "score": "5"}\n```', "5"),
        ('{"weaknesses": "it wrote "score": "10"", "score": "2"}', "2"),
        ('{"weaknesses": "it wrote "score": "10", no more", "score": "2"}', None),
        ('{"score": "11"}', None),
        ('{"score": "0"}', None),
        ('{"score": "high"}', None),
        ("It is good.\n\n**Score: 9/10**", "9"),
        ("{'strengths': 'a', 'weaknesses': 'b', 'score': '6'}", "6"),
        ('{"Score": "5 (fair)"}', "5"),
        ("{“strengths”: “a”, “score”: “7”}", "7"),
        ("I would give it 7 of 10.", None),
        ('"strengths":\n1.\n2.', None),
        ('{"strengths": "a", "weaknesses": "cut o', None),
        ("", None),
    ],
)
def test_verdicts(text, score):
    if score is None:
        with pytest.raises(UnusableAnswer):
            wildbench.Judge().verdict(text)
    else:
        assert wildbench.Judge().verdict(text) == score


def test_all_turns_reach_the_model_and_the_judge(monkeypatch):
    with judging(monkeypatch, lambda body, number: rating(8)) as server:
        metrics, samples = run(TASK, lambda doc: f"answer to {doc['session_id']}")
    for sample, row in zip(sorted(samples, key=lambda sample: sample["doc_id"]), rows(), strict=True):
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["conversation_input"]]
        context = sample["arguments"][0][0]
        assert messages_of(context) == turns if len(turns) > 1 else context == turns[0]["content"]
        (body,) = [body for body in server.bodies if f"answer to {row['session_id']}\n" in text_of(body)]
        assert all(item in text_of(body) for item in row["checklist"])
        assert "A reference that the judge does not see." not in text_of(body)
        assert ("ASSISTANT: " in text_of(body)) == (len(turns) > 1)
    assert metrics["wb_score"] == pytest.approx(0.6) and metrics["wb_score_raw"] == pytest.approx(0.8)
    assert metrics["wb_score_micro"] == pytest.approx(0.6) and metrics["judge_failures"] == 0


def test_missing_is_left_out_and_the_worst_is_not_shown(monkeypatch):
    def answer(body, number):
        return says("?") if "written-00" in text_of(body) else rating(9)

    with judging(monkeypatch, answer) as server:
        metrics, samples = run(TASK, lambda doc: "" if doc["session_id"] == "written-01" else doc["session_id"])
    assert len(server.bodies) == len(rows()) - 1
    assert metrics["wb_score_raw"] == pytest.approx((13 * 0.9 + 0.1) / 14)
    assert metrics["judge_failures"] == pytest.approx(1 / 14)
    assert sum("wb_score" not in sample for sample in samples) == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda row: row.pop("checklist"), "no column checklist"),
        (lambda row: row.update(primary_tag="Cooking"), "'Cooking'; known are Creative Writing"),
        (
            lambda row: row["conversation_input"].append({**row["conversation_input"][0], "role": "assistant"}),
            "ends in a turn",
        ),
        (lambda row: row.update(conversation_input=[]), "conversation_input of written-00"),
        (lambda row: row["conversation_input"][0].update(content=None), "conversation_input of written-00"),
    ],
)
def test_rows_that_do_not_fit(monkeypatch, tmp_path, change, match):
    row = rows()[0]
    change(row)
    folder = tmp_path / "allenai/WildBench/v2"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with judging(monkeypatch, lambda body, number: None):
        monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
        with pytest.raises(ValueError, match=match):
            wildbench.load("allenai/WildBench", "test", "v2")
