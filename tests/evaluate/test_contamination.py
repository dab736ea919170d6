"""Overlap with training text: equal to a literal search, whatever the layout; boilerplate, short rows and scripts."""

import json
import random

import numpy as np
import pytest

from hf_cascade import manifest
from hf_cascade.cli import main
from hf_cascade.evaluate.contamination.grams import GramIndex, numbers_of, roll, words_of
from hf_cascade.evaluate.contamination.overlap import CHUNK_WORDS, Overlap
from hf_cascade.evaluate.contamination.sources import of_file, of_model, read

WORDS = [f"w{number}" for number in range(60)]


def sentence(seed: int, words: int, vocabulary=WORDS) -> str:
    return " ".join(random.Random(seed).choices(vocabulary, k=words))


@pytest.mark.parametrize("length", [8, 13])
def test_found_grams_are_those_of_a_literal_search(length):
    known, text = words_of(sentence(1, 400, WORDS[:2])), words_of(sentence(2, 3000, WORDS[:2]))
    grams = {tuple(known[place : place + length]) for place in range(len(known) - length + 1)}
    literal = [place for place in range(len(text) - length + 1) if tuple(text[place : place + length]) in grams]
    places, _ = GramIndex(roll(numbers_of(known), length)).find(roll(numbers_of(text), length))
    assert places.tolist() == literal and len(literal) > 3


def test_the_order_of_words_counts():
    forward = roll(numbers_of(["a", "b", "c"] * 5), 13)
    assert not set(forward.tolist()) & set(roll(numbers_of(["c", "b", "a"] * 5), 13).tolist())
    assert len(np.unique(roll(numbers_of([str(number) for number in range(2000)]), 13))) == 2000 - 12


def test_a_row_is_found_through_case_punctuation_and_unicode():
    row = {"question": "Which of the ﬁve planets — named below — has THE largest known moon, and why does it?"}
    overlap = Overlap({"a/b/test": [row, {"question": sentence(3, 40)}]})
    overlap.read(
        ["x " * 50 + "which of the five planets, named below, has the largest known moon and why does it"], "text"
    )
    (split,) = overlap.report()["splits"].values()
    assert (split["rows"], split["overlapping"], split["mostly"]) == (2, 1, 1)
    assert split["examples"][0]["row"] == "row 0" and split["examples"][0]["where"] == "text, document 0"
    assert split["examples"][0]["text"].startswith("which of the five planets")


def test_thirteen_words_are_needed_and_of_a_short_row_all():
    long, short = sentence(4, 30), sentence(5, 9)
    rows = [{"question": long, "choices": ["yes", "no"]}, {"question": short}, {"question": "too short to say"}]

    def overlapping(text: str) -> list[str]:
        overlap = Overlap({"a/b/test": rows})
        overlap.read([text], "text")
        (split,) = overlap.report()["splits"].values()
        assert split["too_short"] == 1
        return [example["row"] for example in split["examples"]]

    words = long.split()
    assert overlapping(" ".join(words[:12])) == []
    assert overlapping(" ".join(words[:13])) == ["row 0"]
    assert overlapping(" ".join(short.split()[:8])) == []
    assert overlapping(f"before {short} after") == ["row 1"]


def test_text_of_two_columns_is_not_one_gram():
    first, second = sentence(6, 7), sentence(7, 7)
    overlap = Overlap({"a/b/test": [{"question": first, "answer": second}]})
    overlap.read([f"{first} {second}"], "text")
    assert overlap.report()["splits"]["a/b/test"]["too_short"] == 1


def test_wording_that_many_rows_share_does_not_count():
    wording = "answer the following question with the letter of the one right option and nothing else please"
    overlap = Overlap({"a/b/test": [{"question": f"{wording} {sentence(seed, 20)}"} for seed in range(12)]})
    overlap.read([wording], "text")
    assert overlap.report()["splits"]["a/b/test"]["overlapping"] == 0


def test_scripts_without_spaces_are_looked_through_by_character():
    text = "太阳系中最大的行星是哪一颗请选择正确的答案"
    overlap = Overlap({"a/b/test": [{"Question": text}]})
    overlap.read([f"他说，{text[3:18]}吗"], "text")
    assert overlap.report()["splits"]["a/b/test"]["overlapping"] == 1


def test_a_gram_across_two_chunks_is_found():
    row = sentence(8, 13)
    overlap = Overlap({"a/b/test": [{"question": row}]})
    overlap.read(["x " * (CHUNK_WORDS - 6) + row], "text")
    assert overlap.report()["splits"]["a/b/test"]["overlapping"] == 1


def stage(folder, name: str, inputs: dict, **config):
    (folder / name).mkdir()
    manifest.write(folder / name, stage=name, run="distill", config=config, inputs=inputs, metrics={})
    return str(folder / name)


def test_the_text_of_all_stages_is_read_and_what_is_unknown_is_said(tmp_path):
    for name in ("short", "long", "prompts"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name, "messages": [{"content": f"{name} said"}]}))

    def part(name):
        return [{"path": "json", "data_files": str(tmp_path / f"{name}.jsonl"), "split": "train", "columns": ["text"]}]

    short = stage(tmp_path, "a", {"model_name_or_path": "org/parent"}, datasets=part("short"))
    kept = stage(tmp_path, "kept", {"model": short}, prompts=str(tmp_path / "prompts.jsonl"))
    last = stage(tmp_path, "b", {"model_name_or_path": short, "prompts_from": kept}, datasets=part("long"))
    sources, unknown = of_model(last)
    assert {name.rsplit("/", 1)[-1] for name in sources} == {"long.jsonl, train", "short.jsonl, train", "prompts.jsonl"}
    assert unknown == ["org/parent"]
    assert sorted(text for source in sources.values() for text in read(source)) == [
        "long\nlong said",
        "prompts\nprompts said",
        "short\nshort said",
    ]


def test_all_text_of_each_folder_is_read(tmp_path):
    """Two folders are two sources, though their builder or their files have one name; a `fraction` counts whole."""
    for name in ("one", "two", "three", "four"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text(
            "".join(json.dumps({"text": f"{name} {row}"}) + "\n" for row in (0, 1))
        )
    whole = [{"path": "json", "data_dir": str(tmp_path / name), "split": "train"} for name in ("one", "two")]
    files = [{"path": str(tmp_path / name), "data_files": "a.jsonl", "split": "train"} for name in ("three", "four")]
    folder = stage(tmp_path, "a", {}, datasets=[part | {"fraction": 0.25} for part in whole + files])
    sources, _ = of_model(folder)
    found = sorted(text for source in sources.values() for text in read(source))
    assert found == sorted(f"{name} {row}" for name in ("one", "two", "three", "four") for row in (0, 1))


def test_the_command_reports_planted_rows(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data" / "cais" / "mmlu" / "all"
    data.mkdir(parents=True)
    rows = [
        {"question": sentence(seed, 25), "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 0}
        for seed in range(8)
    ]
    for split in ("test", "dev"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in ["nothing", f"see {rows[3]['question']}"]))
    arguments = ["--train", str(corpus), "--tasks", "cascade_mmlu", "--output_dir", str(tmp_path / "out")]
    assert main(["contamination", *arguments, "--data", str(tmp_path / "data")]) == 0
    record = json.loads((tmp_path / "out" / "contamination.json").read_text())
    assert record["splits"]["cais/mmlu/all/test"]["overlapping"] == 1
    assert record["splits"]["cais/mmlu/all/test"]["examples"][0]["row"] == "row 3"
    assert "row 3, first in" in (tmp_path / "out" / "contamination.md").read_text()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["contamination", *arguments[:-1], str(tmp_path / "other"), "--data", str(tmp_path)]) == 2
    assert "no benchmark's rows are here" in capsys.readouterr().err and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "cascade_mmlu"], "nothing to look through"),
        (["--train", "a.jsonl"], "nothing to look for"),
        (["--model", "no/such/model", "--tasks", "cascade_mmlu"], "does not exist"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(["contamination", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_an_unknown_kind_is_refused(tmp_path):
    (tmp_path / "text.xml").write_text("<a/>")
    with pytest.raises(ValueError, match="may end in .jsonl"):
        of_file(str(tmp_path / "text.xml"))
