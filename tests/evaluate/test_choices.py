"""MMLU, MMLU-Redux, MMMLU, ARC-Challenge, RACE: prompts equal to those of their sources, labels, and odd rows."""

import importlib.util
import json
from pathlib import Path

import jinja2
import lm_eval
import pytest
import yaml
from lm_eval import evaluate

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import choices
from hf_cascade.evaluate.benchmarks.choices import CASES, LANGUAGES, corrected, place, question
from hf_cascade.evaluate.benchmarks.data import MissingData
from hf_cascade.evaluate.conformance.knowing import Knowing, Positional
from hf_cascade.evaluate.harness import open_tasks

STOCK = Path(lm_eval.__file__).parent / "tasks"
REDUX, MMMLU, ARC, RACE = "edinburgh-dawg/mmlu-redux-2.0", "openai/MMMLU", "allenai/ai2_arc", "ehovy/race"


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(assets.find("evals/rows")))


@pytest.fixture(scope="module")
def manager():
    return open_tasks([*CASES, "cascade_mmmlu", "cascade_mmmlu_european"], "evals/tasks")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(tmp_path))

    def write(path: str, rows: list[dict]):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("\n".join(map(json.dumps, rows)))

    return write


def shipped_rows(path: str) -> list[dict]:
    text = assets.find(f"evals/rows/{path}").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def stock(name: str) -> dict:
    """A stock task's YAML, without its functions."""
    text = (STOCK / name).read_text(encoding="utf-8")
    return yaml.safe_load("\n".join(line for line in text.splitlines() if "!function" not in line))


def stock_prompt(name: str, shots: list[dict], row: dict) -> str:
    """Stock lm-eval's text of a 5-shot question: its template, its delimiters."""
    template = jinja2.Template(stock(name)["doc_to_text"])
    asked = [f"{template.render(shot)} {'ABCD'[shot['answer']]}\n\n" for shot in shots]
    head = f"The following are multiple choice questions (with answers) about {row['subject'].replace('_', ' ')}.\n\n"
    return head + "".join(asked) + template.render(row)


def test_mmlus_prompts_are_stock_lm_evals():
    dev = shipped_rows("cais/mmlu/all/dev.jsonl")
    docs = choices.mmlu()["test"]
    assert len(docs) == 10 and len(set(docs["subject"])) == 2
    for doc in docs:
        shots = [row for row in dev if row["subject"] == doc["subject"]]
        assert len(shots) == 5 and doc["context"] == stock_prompt("mmlu/default/_default_template_yaml", shots, doc)
        assert doc["continuations"] == [" A", " B", " C", " D"] and doc["target"] == doc["answer"]


def race_of_stock():
    """The functions of stock lm-eval's `race`, and our rows in the layout it reads: an article with its problems."""
    spec = importlib.util.spec_from_file_location("preprocess_race", STOCK / "race/preprocess_race.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    articles = {}
    for row in shipped_rows("ehovy/race/high/test.jsonl"):
        problems = articles.setdefault(row["article"], [])
        problems.append({name: row[name] for name in ("question", "answer", "options")})
    return module, [{"article": article, "problems": repr(problems)} for article, problems in articles.items()]


def test_races_prompts_are_stock_lm_evals():
    module, articles = race_of_stock()
    docs = choices.race(RACE, "high")["test"]
    assert len(docs) == len(articles) == 4
    for doc, article in zip(docs, articles, strict=True):
        assert doc["context"] == module.doc_to_text(article)
        assert doc["continuations"] == module.doc_to_choice(article) and doc["target"] == module.doc_to_target(article)
    assert any("streets were quieter\n" in doc["context"] for doc in docs)  # a blank that is filled


@pytest.mark.parametrize("name", CASES)
def test_scores_at_the_ends_and_at_chance(name, manager):
    loaded = manager.load([name])
    task = loaded["tasks"][name]

    def score(model) -> float:
        return evaluate(model, loaded, bootstrap_iters=0, log_samples=False)["results"][name]["acc,none"]

    assert score(Knowing(True, CASES[name].gold)) == 1 and score(Knowing(False, CASES[name].gold)) == 0
    for position in range(3):
        share = sum(doc["target"] == position for doc in task.eval_docs) / len(task.eval_docs)
        assert score(Positional(position)) == pytest.approx(share)
    assert task.config.metadata["chance"] == CASES[name].chance == 0.25
    assert task.config.metadata["num_fewshot"] == (0 if name == "cascade_race_high" else 5)


def test_groups_are_means_over_languages(manager):
    for group, languages in (("cascade_mmmlu", list(LANGUAGES)), ("cascade_mmmlu_european", "de es fr it pt".split())):
        loaded = manager.load([group])
        assert set(loaded["tasks"]) == {f"cascade_mmmlu_{name}" for name in languages}
        results = evaluate(Positional(0), loaded, bootstrap_iters=0, log_samples=False)["results"]
        values = [results[f"cascade_mmmlu_{name}"]["acc,none"] for name in languages]
        assert results[group]["acc,none"] == pytest.approx(sum(values) / len(values))


def test_redux_labels():
    asked = {doc["question"]: doc for doc in choices.mmlu_redux(REDUX)["test"]}
    rows = shipped_rows(f"{REDUX}/astronomy/test.jsonl") + shipped_rows(f"{REDUX}/prehistory/test.jsonl")
    assert len(rows) == 20 and len(asked) == 13
    for row in rows:
        assert (row["question"] in asked) == (corrected(row) is not None)
    expected = {
        "moons does Mars": "Two",
        "dwarf planet": "Ceres",
        "Earth's tides": "The Moon",
        "Obsidian": "a volcanic glass",
    }
    expected |= {"came first": "Fire use", "Stonehenge": "England"}
    for text, answer in expected.items():
        (doc,) = [doc for name, doc in asked.items() if text in name]
        assert doc["choices"][doc["target"]] == answer
        assert doc["context"].count("\nAnswer:") == 6


@pytest.mark.parametrize(
    ("label", "options", "expected"),
    [
        ("D", "wxyz", 3),
        ("(a)", "wxyz", None),
        ("E", "wxyz", None),
        ("E", "vwxyz", 4),
        (" b ", "wxyz", None),
        ("4", "wxyz", None),
        ("-1", "wxyz", None),
        (2, "wxyz", 2),
        ("²", "wxyz", None),
        ("A or B", "wxyz", None),
        ("", "wxyz", None),
        (None, "wxyz", None),
        ("Y", "wxyz", 2),
        ("x", ["w", "x", "x", "z"], None),
        ("1", ["1", "2", "3", "4"], None),
        ("B", ["B", "A", "0", "AB"], None),
    ],
)
def test_a_corrected_label_must_have_one_reading(label, options, expected):
    row = {"question": "?", "choices": list(options), "answer": 0, "correct_answer": label}
    assert corrected({**row, "error_type": "wrong_groundtruth"}) == expected
    assert corrected({**row, "error_type": "ok"}) == 0
    for error in ("no_correct_answer", "multiple_correct_answers", "bad_question_clarity", "expert"):
        assert corrected({**row, "error_type": error}) is None


def test_redux_may_be_one_file(folder):
    files = {name: shipped_rows(f"{REDUX}/{name}/test.jsonl") for name in ("astronomy", "prehistory")}
    folder("cais/mmlu/all/dev.jsonl", shipped_rows("cais/mmlu/all/dev.jsonl"))
    folder(f"{REDUX}/test.jsonl", [{**row, "subject": name} for name, rows in files.items() for row in rows])
    one = choices.mmlu_redux(REDUX)["test"].to_list()
    folder(f"{REDUX}/test.jsonl", files["astronomy"])
    with pytest.raises(ValueError, match="no column subject"):
        choices.mmlu_redux(REDUX)
    assert len(one) == 13 and {row["subject"] for row in one} == set(files)


def test_no_question_of_mmmlu_is_its_own_shot():
    for config in LANGUAGES.values():
        rows = choices.mmmlu(MMMLU, config)["test"].to_list()
        assert len(rows) == 7
        for row in rows:
            assert row["context"].count(f"\nA. {row['A']}\nB. {row['B']}") == 1
            assert row["context"].endswith(question(row["Question"], [row[letter] for letter in "ABCD"]))
            assert row["context"].count("\nAnswer: ") == 5 and "about astronomy." in row["context"]
        assert len({row["context"].rsplit("\n\n", 1)[0] for row in rows}) == 6  # five first rows, and all others alike


def test_mmmlus_file_names_for_subjects_and_few_rows(folder):
    rows = shipped_rows(f"{MMMLU}/ZH_CN/test.jsonl")
    folder(f"{MMMLU}/ZH_CN/test.jsonl", [{**row, "Subject": "astronomy_test.csv_zh-CN.csv", "D": 4} for row in rows])
    docs = choices.mmmlu(MMMLU, "ZH_CN")["test"]
    assert set(docs["Subject"]) == {"astronomy"} and set(docs["D"]) == {"4"}
    folder(f"{MMMLU}/ZH_CN/test.jsonl", rows[:5])
    with pytest.raises(MissingData, match="5 shots need 6 rows about astronomy"):
        choices.mmmlu(MMMLU, "ZH_CN")


def test_arcs_labels_may_be_digits_and_its_options_three_to_five(folder):
    def row(texts, labels, key):
        return {"id": key, "question": "Q?", "choices": {"text": texts, "label": labels}, "answerKey": key}

    rows = [
        row(list("vwxyz"), list("12345"), "5"),
        row(list("xyz"), list("ABC"), "C"),
        row(list("wxyz"), list("ABCD"), "A"),
    ]
    folder(f"{ARC}/ARC-Challenge/test.jsonl", rows)
    docs = choices.arc_challenge(ARC, "ARC-Challenge")["test"].to_list()
    assert [doc["target"] for doc in docs] == [4, 2, 0]
    assert [len(doc["continuations"]) for doc in docs] == [5, 3, 4]
    assert docs[0]["context"].endswith("Q?\nA. v\nB. w\nC. x\nD. y\nE. z\nAnswer:")
    assert docs[0]["context"].startswith("George wants to warm his hands") and docs[0]["context"].count("Answer:") == 6
    folder(f"{ARC}/ARC-Challenge/test.jsonl", [row(list("xyz"), list("ABC"), "D")])
    with pytest.raises(ValueError, match="answerKey 'D' is none of the labels"):
        choices.arc_challenge(ARC, "ARC-Challenge")


def test_mmlu_without_shots_or_columns(folder):
    rows = shipped_rows("cais/mmlu/all/test.jsonl")
    folder("cais/mmlu/all/test.jsonl", rows)
    with pytest.raises(MissingData, match="no split 'dev'"):
        choices.mmlu()
    folder("cais/mmlu/all/dev.jsonl", shipped_rows("cais/mmlu/all/dev.jsonl")[:9])
    with pytest.raises(MissingData, match="5 shots about 'prehistory' are needed; split dev has 4"):
        choices.mmlu()
    folder("cais/mmlu/all/test.jsonl", [{"question": "?", "options": ["a"], "answer": 0}])
    with pytest.raises(
        ValueError, match="cais/mmlu all: no column subject, choices; the columns are question, options"
    ):
        choices.mmlu()


def test_an_answer_is_an_index_or_a_letter():
    assert [place(answer, list("abcde"), "x") for answer in (0, "E", "e", 4)] == [0, 4, 4, 4]
    for answer in (5, -1, "F", "", None, 1.0, "AB"):
        with pytest.raises(ValueError, match="is not one of 5 options"):
            place(answer, list("abcde"), "x")
    with pytest.raises(ValueError, match="must be a list"):
        place(0, "['a', 'b']", "x")
    assert len(choices.SUBJECTS) == len(set(choices.SUBJECTS)) == 57
