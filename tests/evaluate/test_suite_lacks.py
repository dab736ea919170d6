"""A task that lacks something says so in a line; the trace of a fault is for faults."""

import pytest

from hf_cascade.evaluate.conformance.knowing import Knowing
from hf_cascade.evaluate.suite.run import run_suite
from hf_cascade.evaluate.suite.settings import SuiteSettings

ROW = {"wrong columns": '{"q": "x"}\n', "torn": '{"question": "x", ', "empty": ""}


@pytest.mark.parametrize("case, told", (("wrong columns", "no column"), ("torn", "no JSON"), ("empty", "no rows")))
def test_unusable_rows_are_told_without_a_trace(case, told, tmp_path, caplog):
    folder = tmp_path / "allenai/ai2_arc/ARC-Challenge"
    folder.mkdir(parents=True)
    for split in ("test", "train"):
        (folder / f"{split}.jsonl").write_text(ROW[case])
    settings = SuiteSettings(data=str(tmp_path), tasks_path="evals/tasks/cascade")
    found = run_suite(Knowing(True), ["cascade_arc_challenge"], settings, tmp_path)["cascade_arc_challenge"]
    assert found["status"] == "not run" and told in found["reason"] and "Error" not in found["reason"]
    assert not [record for record in caplog.records if record.exc_info]
