"""MM-MT-Bench: a row for each turn, references replayed, the image in the judge's request, ratings."""

import base64
import io
import json

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

from hf_cascade.evaluate.benchmarks import mm_mt_bench
from hf_cascade.evaluate.benchmarks.conversations import messages_of
from hf_cascade.rewards.endpoint import UnusableAnswer
from tests.evaluate.judge_server import judging, run, says, text_of

TASK, REPO = "cascade_mm_mt_bench", "mistralai/MM-MT-Bench"
QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
ANSWER = {"role": "assistant", "content": "A cat."}


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[5]]", "5"),
        ("[[10]] would be too much.\n\nRating: [[7.5]]", "7.5"),
        ("Rating: **[[8/10]]**", "8"),
        ("[[ 9 ]]", "9"),
        ("[[3]] or [[4]]", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("It is right.\n\n**Rating:** 8/10", "8"),
        ("Rating: [7]", "7"),
        ("\\[\\[7\\]\\]", "7"),
        ('```json\n{"explanation": "It is 3.", "rating": 8}\n```', "8"),
        ("My final rating is 8.", "8"),
        ("(Rating: 3)", "3"),
        ("It is right.\n\n**9/10**", "9"),
        ("The image shows these numbers:\n4", None),
        ("Step\n3)", None),
        ("1. It is right.\n2.", None),
        ("my rating: -3", None),
        ("Rating #3", None),
        ("The rating\nis 3", None),
        ("Rating 3)", None),
        ("There are 7.\nI give a rating of 6.", None),
        ("Rating: [[9", None),
        ("[[rating]]", None),
        ("", None),
    ],
)
def test_ratings(text, rating):
    if rating is None:
        with pytest.raises(UnusableAnswer):
            mm_mt_bench.Judge().verdict(text)
    else:
        assert mm_mt_bench.Judge().verdict(text) == rating


def test_each_turn_is_asked_with_the_references_before_it(monkeypatch):
    with judging(monkeypatch, lambda body, number: says("Rating: [[8]]")) as server:
        metrics, samples = run(TASK, lambda doc: f"answer {doc['conversation']} {doc['turn']}")
        drawing = mm_mt_bench.images(mm_mt_bench.load(REPO, "eval")["test"][5])[0]
    samples.sort(key=lambda sample: sample["doc_id"])
    docs = [sample["doc"] for sample in samples]
    assert [(doc["conversation"], doc["turn"]) for doc in docs] == [
        (0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2), (3, 0), (4, 0), (4, 1)
    ]  # fmt: skip
    for sample in samples:
        doc, (context, _, seen) = sample["doc"], sample["arguments"][0]
        assert context.count("<image>") == 1 and len(seen["visual"]) == 1 and doc["reference"] not in context
        assert (messages_of(context) or [{"role": "user", "content": context}]) == doc["messages"]
        before = [other["reference"] for other in docs if other["conversation"] == doc["conversation"]][: doc["turn"]]
        assert [turn["content"] for turn in doc["messages"][1::2]] == before
    assert [metrics[name] for name in ("mm_mt_score", "first_turn", "later_turns")] == pytest.approx([0.8] * 3)
    (body,) = [body for body in server.bodies if "answer 2 2" in text_of(body)]
    image, _ = body["messages"][-1]["content"]
    file = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Pillow.open(io.BytesIO(file)).convert("RGB").tobytes() == drawing.convert("RGB").tobytes()
    assert "Ensemble, Ann et Bob en ont 10." in text_of(body) and "Reference answer: Bob has 7." in text_of(body)
    assert body["max_tokens"] == 2048 and body["temperature"] == 0


def test_a_judge_that_reads_text_alone(monkeypatch):
    with judging(monkeypatch, lambda body, number: says("[[2]]"), images="false") as server:
        metrics, _ = run(TASK, lambda doc: "answer")
    assert all(isinstance(body["messages"][1]["content"], str) for body in server.bodies)
    assert "not shown" in server.bodies[0]["messages"][0]["content"]
    assert metrics["mm_mt_score"] == pytest.approx(0.2)


def test_missing_is_left_out_and_the_worst_is_not_shown(monkeypatch):
    def answer(body, number):
        return says("fine") if "mute" in text_of(body) else says("[[9]]")

    words = {(0, 0): "mute", (0, 1): "<think>on and on", (1, 0): " "}
    with judging(monkeypatch, answer) as server:
        metrics, _ = run(TASK, lambda doc: words.get((doc["conversation"], doc["turn"]), "answer"))
    assert len(server.bodies) == 7
    assert metrics["mm_mt_score"] == pytest.approx((6 * 0.9 + 2 * 0.1) / 8)
    assert metrics["judge_failures"] == pytest.approx(1 / 7)
    assert (metrics["unfinished"], metrics["unparsed"]) == pytest.approx((1 / 9, 1 / 9))


@pytest.mark.parametrize(
    ("conversation", "match"),
    [
        ("not json", "conversation of row 0"),
        ("[]", "it has nothing"),
        (json.dumps([QUESTION]), "must take turns"),
        (json.dumps([ANSWER, QUESTION]), "must take turns"),
        (json.dumps([{**QUESTION, "content": "What?"}, ANSWER]), "image must stand in the first turn"),
        (json.dumps([QUESTION, ANSWER, QUESTION, ANSWER]), "image must stand in the first turn, once"),
        (json.dumps([{"role": "user"}, ANSWER]), "conversation of row 0"),
        (None, "row 0 has no conversation"),
    ],
)
def test_rows_that_do_not_fit(monkeypatch, tmp_path, conversation, match):
    load(monkeypatch, tmp_path, json.dumps([QUESTION, ANSWER]))
    with pytest.raises(ValueError, match=match):
        load(monkeypatch, tmp_path, conversation)


def test_a_missing_column(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no column category"):
        load(monkeypatch, tmp_path, json.dumps([QUESTION, ANSWER]), "kind")


def load(monkeypatch, tmp_path, conversation, category="category"):
    file = io.BytesIO()
    Pillow.new("RGB", (4, 4), "red").save(file, "PNG")
    row = {"image": {"bytes": file.getvalue(), "path": None}, "conversation": conversation, category: "general"}
    features = Features({"image": Image(), "conversation": Value("string"), category: Value("string")})
    (tmp_path / REPO).mkdir(parents=True, exist_ok=True)
    Dataset.from_list([row], features=features).to_parquet(tmp_path / REPO / "eval.parquet")
    with judging(monkeypatch, lambda body, number: None):
        monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
        return mm_mt_bench.load(REPO, "eval")
