"""Prompts for online training: TRL's `solution` is an answer, and an answer that is there stays."""

import json

import pytest
from trl import DatasetMixtureConfig
from trl.scripts.utils import DatasetConfig

from hf_cascade.data.prompts import load_prompts
from hf_cascade.evaluate.preference_samples import load_rows

ROWS = [{"prompt": "What is 2 + 3?", "solution": "5"}, {"prompt": "What is 1 + 1?", "solution": "2"}]


def write(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_solution_is_an_answer(tmp_path, streaming):
    file = write(tmp_path, ROWS)
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path="json", data_files=file)], streaming=streaming)
    expected = [row | {"answer": row["solution"]} for row in ROWS]
    assert list(load_prompts(mixture)) == expected
    assert load_rows(file) == expected


def test_an_answer_stays(tmp_path):
    rows = [row | {"answer": "written"} for row in ROWS]
    file = write(tmp_path, rows)
    assert list(load_prompts(DatasetMixtureConfig(datasets=[DatasetConfig(path="json", data_files=file)]))) == rows
    assert load_rows(file) == rows
