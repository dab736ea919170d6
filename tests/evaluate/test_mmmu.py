"""MMMU: prompts with images, and verdicts equal to the benchmark's own where that does not guess."""

import base64
import importlib.util
import json
import random
from pathlib import Path

import lm_eval
import pytest
from datasets import Dataset
from PIL import Image

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import data, mmmu
from hf_cascade.evaluate.benchmarks.data import MissingData
from hf_cascade.evaluate.benchmarks.final_part import final_part, number_in, says
from hf_cascade.evaluate.benchmarks.pictures import Picture, inline
from hf_cascade.evaluate.conformance.prove import prove
from hf_cascade.evaluate.suite.completeness import shortfalls
from tests.growth import check_growth, repeated

ARGUMENTS = {"repo": "MMMU/MMMU", "split": "validation", "shots_split": "dev"}
TWO = ["Math", "Electronics"]


@pytest.fixture
def docs(monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(assets.find("evals/rows")))
    return mmmu.load(**ARGUMENTS, subjects=TWO)["test"]


@pytest.fixture(scope="module")
def official():
    """The benchmark's own parser, as lm-eval has it."""
    path = Path(lm_eval.__file__).parent / "tasks/mmmu/utils.py"
    spec = importlib.util.spec_from_file_location("official_mmmu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda response, golds: module.eval_open(golds, module.parse_open_response(response))


@pytest.mark.parametrize(
    "response, gold, correct",
    [
        ("50", "50", 1),
        ("36 watts", "30", 0),
        ("8.400", "8.4", 1),
        ("The answer is 1,234.", "1234", 1),
        ("6.333333", "6.333", 1),
        ("v = -120 V", "-120", 1),
        ("v = 120 V", "-120", 0),
        ("Adding up gives 10.\nSo the result is 30", "30", 1),
        ("Transformation", "transformation", 1),
        ("The process is called a transformation", "Transformation", 1),
        ("MgS", "['$MgS$', 'MgS']", 1),
        ("CaS", "['$MgS$', 'MgS']", 0),
        ("The answer is 1/64", "1/64", 1),
        ("24/7 = 3.43", "['24/7', '3.429']", 1),
        ("1e3", "1000", 1),
        ("rb = ", "551", 0),
        ("image 2>", "50", 0),
    ],
)
def test_open_questions_equal_the_official_rule(official, response, gold, correct):
    doc = {"id": "x", "question_type": "open", "options": "[]", "answer": gold}
    assert mmmu.judge(doc, response).correct == correct
    assert official(response, mmmu.golds_of(doc)) == bool(correct)


@pytest.mark.parametrize(
    "response, gold",
    [
        ("It could be 10, 20, 30 or 40.", "30"),
        ("Between 20 and 30", "30"),
        ("art", "ar"),
        ("sinusoidal", "sinus"),
        ("It is not transformation.", "transformation"),
        ("The result is 30 at first.\nThe final answer is 40", "30"),
        ("median or mean", "mean"),
    ],
)
def test_open_questions_where_the_official_rule_is_deceived(official, response, gold):
    doc = {"id": "x", "question_type": "open", "options": "[]", "answer": gold}
    assert official(response, [gold]) and mmmu.judge(doc, response).correct == 0


@pytest.mark.parametrize("response, gold", [("$1,234.50", "1234.5"), ("30V", "30"), (r"5.51 \times 10^{2}", "551")])
def test_open_questions_that_the_official_rule_misses(official, response, gold):
    doc = {"id": "x", "question_type": "open", "options": "[]", "answer": gold}
    assert not official(response, [gold]) and mmmu.judge(doc, response).correct == 1


@pytest.mark.parametrize("gold", ("x = 5", "U.S.A.", "f(x) = x + 3", "A is B", "Mr. Smith", "3.0 x 10^8", "10:30"))
def test_answers_that_look_like_sentences(gold):
    doc = {"id": "x", "question_type": "open", "options": "[]", "answer": gold}
    assert mmmu.judge(doc, gold).correct == mmmu.judge(doc, f"**Answer:** {gold}").correct == 1
    assert mmmu.judge(doc, "x = 6").correct == 0


def test_an_open_question_may_have_a_letter_for_an_answer():
    doc = {"id": "validation_Basic_Medical_Science_10", "question_type": "open", "options": "[]", "answer": "C"}
    assert mmmu.judge(doc, "C").correct == mmmu.judge(doc, "The answer is C.").correct == 1
    assert mmmu.judge(doc, "Cell").correct == mmmu.judge(doc, "A").correct == 0


def test_choices_are_never_guessed():
    doc = {"id": "x", "question_type": mmmu.CHOICE, "options": str(list("abcdefghi")), "answer": "I"}
    before = random.getstate()
    assert [mmmu.judge(doc, text) for text in ("I", "(I)", "**I**", "I. i", "The answer is I")] == [(1.0, "I")] * 5
    assert [mmmu.judge(doc, text) for text in ("", "none", "J", "42")] == [(0.0, None)] * 4
    assert random.getstate() == before


@pytest.mark.parametrize(
    "response, letter",
    [
        ("The clues fit. So tertiary syphilis matches the presentation.", "A"),
        ("In this scan, one sees Lyme rather than syphilis.", "B"),
        ("It is Lyme or syphilis.", None),
        ("Lyme is less common than syphilis.", "B"),
        ("The plaques would be Lyme, since they are round.", "B"),
        ("It's Lyme because Lyme begins with a rash.", "B"),
        ("Lyme is excluded, so the answer is scurvy.", None),
        ("Option A: Syphilis\nOption B: Lyme\nOption C: None", None),
    ],
)
def test_options_by_their_text(response, letter):
    doc = {"id": "x", "question_type": mmmu.CHOICE, "options": "['Syphilis', 'Lyme', 'None']", "answer": "A"}
    assert mmmu.judge(doc, response).parsed == letter


def test_choices_with_images_as_options():
    doc = {"id": "x", "question_type": mmmu.CHOICE, "options": "['<image 1>', '<image 2>']", "answer": "B"}
    assert mmmu.judge(doc, "B").correct == 1 and mmmu.judge(doc, "A").correct == 0


def test_a_row_without_an_answer_has_no_verdict():
    for kind in (mmmu.CHOICE, "open"):
        doc = {"id": "x", "question_type": kind, "options": "['a', 'b']", "answer": "?"}
        assert mmmu.process_results(doc, [["B"]]) == {"unparsed": 0.0, "unfinished": 0.0}


def test_prompt_has_the_shots_and_a_mark_for_each_image(docs):
    figure = next(doc for doc in docs if doc["id"] == "validation_Math_3")
    assert mmmu.doc_to_text(figure) == (
        "Question: Which bar of <image> is the lowest?\n\n(A) red\n(B) green\n(C) blue\n\n"
        "Answer with the option's letter from the given choices directly.\nAnswer: C\n\n"
        "Question: <image> How many corners has this figure?\n\n"
        "Answer the question using a single word or phrase.\nAnswer: 5\n\n"
        "Question: Which of these figures has five corners?\n\n(A) <image>\n(B) <image>\n(C) <image>\n(D) <image>\n\n"
        "Answer with the option's letter from the given choices directly.\nAnswer:"
    )
    for doc in docs:
        used = mmmu.doc_to_image(doc)
        assert len(used) == mmmu.doc_to_text(doc).count("<image>") >= 3 and all(image.size for image in used)
        assert {shot["id"].split("_")[1] for shot in doc["shots"]} == {doc["subject"]}
        assert doc["id"] not in [shot["id"] for shot in doc["shots"]]


def test_images_stand_where_the_text_names_them():
    one, two = Picture(b"1", "one"), Picture(b"2", "two")
    assert inline("see <image 2>, <image 1>, <image 2>", {1: one, 2: two}, "x") == (
        "see <image>, <image>, <image>",
        [two, one, two],
    )
    assert inline("no mark, the tag <image>", {1: one, 2: None}, "x") == ("<image>\nno mark, the tag image", [one])
    with pytest.raises(ValueError, match="x: its text names image 2, but image_2 is empty"):
        inline("<image 2>", {1: one, 2: None}, "x")


def rows(folder, subject: str, image, split: str = "validation", count: int = 2) -> None:
    lines = [
        {"id": f"{split}_{subject}_{place}", "question": "q <image 1>", "options": ["a", "b"], "answer": "A"}
        | {"question_type": mmmu.CHOICE, "image_1": image}
        for place in range(count)
    ]
    path = folder / "MMMU/MMMU" / subject / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_images_as_paths_base64_and_bytes_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
    Image.new("RGB", (5, 4), "red").save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    text = base64.b64encode(content).decode()
    for image in (
        str(tmp_path / "a.png"),
        "../../../a.png",
        text,
        f"data:image/png;base64,{text}",
        {"path": "../../../a.png"},
    ):
        for split in ("validation", "dev"):
            rows(tmp_path, "Math", image, split)
        (doc, _) = mmmu.load(**ARGUMENTS, subjects=["Math"])["test"]
        assert doc["image_1"].content == content and doc["image_2"] is None
        assert len(mmmu.doc_to_image(doc)) == 3
    rows(tmp_path, "Math", "nothing.png")
    with pytest.raises(MissingData, match="row 0, image_1: no image .*nothing.png"):
        mmmu.load(**ARGUMENTS, subjects=["Math"])
    rows(tmp_path, "Math", base64.b64encode(b"no image at all").decode())
    (doc, _) = mmmu.load(**ARGUMENTS, subjects=["Math"])["test"]
    with pytest.raises(ValueError, match="row 0, image_1: 15 bytes that are no image"):
        mmmu.doc_to_image(doc)


def test_missing_rows_say_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
    with pytest.raises(MissingData):
        mmmu.load(**ARGUMENTS)
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    rows(tmp_path, "Art_Theory", str(tmp_path / "a.png"))
    with pytest.raises(MissingData):
        mmmu.load(**ARGUMENTS)
    rows(tmp_path, "Art_Theory", str(tmp_path / "a.png"), "dev", count=1)
    with pytest.raises(MissingData, match="dev has fewer than 2 rows of Art_Theory"):
        mmmu.load(**ARGUMENTS)
    rows(tmp_path, "Art_Theory", str(tmp_path / "a.png"), "dev", count=5)
    assert len(mmmu.load(**ARGUMENTS)["test"]) == 2 and "without Accounting" in caplog.text
    assert shortfalls({"MMMU/MMMU/Art_Theory/validation": data.used["MMMU/MMMU/Art_Theory/validation"]}) == [
        "MMMU/MMMU validation: 1 of 30 configs"
    ]
    assert mmmu.load(**ARGUMENTS, num_fewshot=0)["test"][0]["shots"] == []
    path = tmp_path / "MMMU/MMMU/Art_Theory/validation.jsonl"
    path.write_text('{"id": "validation_Art_Theory_1", "question": "q"}\n')
    with pytest.raises(ValueError, match=r"MMMU/MMMU \(Art_Theory\): no column options, answer, question_type"):
        mmmu.load(**ARGUMENTS)


def test_one_file_for_all_subjects_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))
    data.used.clear()
    for split in ("validation", "dev"):
        lines = [
            {"id": f"{split}_{subject}_{place}", "question": "q", "options": "['a', 'b']", "answer": "A"}
            | {"question_type": mmmu.CHOICE}
            for subject in ("Music", "Art")
            for place in range(2)
        ]
        (tmp_path / "MMMU/MMMU").mkdir(parents=True, exist_ok=True)
        Dataset.from_list(lines).to_parquet(tmp_path / f"MMMU/MMMU/{split}.parquet")
    found = mmmu.load(**ARGUMENTS)["test"]
    assert [doc["subject"] for doc in found] == ["Music", "Music", "Art", "Art"]
    assert found[2]["shots"][0]["id"] == "dev_Art_0"
    read = {key: entry for key, entry in data.used.items() if key.endswith("/validation")}
    assert shortfalls(read) == ["MMMU/MMMU validation: 120 of 27,000 rows"]


@pytest.mark.parametrize("options", ("no list", "['a'", str(["x"] * 27), "7", "(" * 5000))
def test_options_that_are_none(options):
    with pytest.raises(ValueError, match="x: options are"):
        mmmu.options_of({"id": "x", "options": options})


@pytest.mark.parametrize(
    "answer, stated",
    [
        ("B", "B"),
        ("The answer is **12 cm**.", "12 cm"),
        ("**Final Answer:** 12", "12"),
        ("### Answer\nfirst\n\nAnswer: second", "second"),
        (r"Thus \boxed{\frac{1}{2}}. I hope this helps!", r"\frac{1}{2}"),
        ("So x = 3 + 4 = 7.", "7"),
        ("There are 5 objects left.\n\nLet me know if you have any other questions.", "5 objects left"),
        ("The perimeter is 2 + 2 + 2 = **6 inches**.\n\nDo you have other questions for me?", "6 inches"),
        ("There are 5 bars.\n\nWould you like me to describe **each**?", "5 bars"),
        ("Five?", "Five?"),
        ("Clearly, tertiary syphilis matches", "Clearly, tertiary syphilis matches"),
        ("The answer to the blank is 2.\n\n```python\nprint(3)\n```", "2"),
        ("答案是 12。", "12"),
        ("He was painted by Mr. Smith. That was in 1802.\n\nAnswer: Mr. Smith", "Mr. Smith"),
        ("", ""),
        ("***", ""),
    ],
)
def test_the_part_that_states_the_answer(answer, stated):
    assert final_part(answer) == stated


@pytest.mark.parametrize(
    "stated, number",
    [
        ("12 cm", "12"),
        ("about $1,200", "1,200"),
        ("a total of **3** items that sold less than 5 units", "3"),
        ("In 2010 the bars total 45", "45"),
        ("3 or 4", ""),
        ("3, 4, 5", ""),
        ("between 3 and 4", ""),
        ("from 3 to 4", ""),
        ("It rose from 1.5 to 4, a change of 2.5", "2.5"),
        ("not 3", ""),
        ("three small objects", "3"),
        ("−5", "-5"),
        ("no number", ""),
        ("H2O", ""),
    ],
)
def test_the_number_in_it(stated, number):
    assert number_in(stated) == number


def test_words_in_it():
    assert says("The cell", "cell") and says("R1 (10 ohm)", "r1") and says("1/64", "1/64")
    assert not any(
        (says("cells", "cell"), says("no cell", "cell"), says("-1/64", "1/64"), says("a or b", "b"), says("", ""))
    )


PARTS = ("answer ", "is is is ", "**", "1,", " ", "9", ". ", "a\n", "answer to ", "答案是")


@pytest.mark.parametrize("start", ("", "answer"))
@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
def test_no_response_takes_long(part, start):
    def judge(text):
        for kind, options in ((mmmu.CHOICE, "['a', 'b']"), ("open", "[]")):
            mmmu.judge({"id": "x", "question_type": kind, "options": options, "answer": "B"}, start + text)

    check_growth(judge, repeated(part), 20_000)


def test_conformance():
    (proved,) = prove(["cascade_mmmu"]).values()
    assert proved["status"] == "green", proved["failed"]
