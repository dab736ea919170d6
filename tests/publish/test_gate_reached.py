"""The gate: what a model must reach, of its parent, of the paper, and of the recipe's own floors."""

import pytest

from hf_cascade.evaluate.suite import published
from hf_cascade.publish.gate import decide
from hf_cascade.publish.targets import Targets
from tests.publish.finished import record, tiny_tasks
from tests.publish.gate_lines import REASONING, SMALLEST, TABLE3, change, failed, only, table3, table5


def test_retention(folder):
    tasks = tiny_tasks()
    tasks["cascade_tiny_continuation"]["value"] = 0.3901  # a point below 80% of 50, and a little more
    record(folder, tasks=tasks)
    assert not failed(folder)
    tasks["cascade_tiny_continuation"]["value"] = 0.3899
    record(folder, tasks=tasks)
    only(folder, "continuation: of the parent's", "39.0", "80% of 50.0 − 1.0 = 39.0", "retention: {continuation: ...}")
    tasks = tiny_tasks()
    tasks["cascade_tiny_bits"]["value"] = 2.6  # of a loss more is worse
    record(folder, tasks=tasks)
    only(folder, "bits per byte: of the parent's", "2.600", "at most 2.000 over 80% + 0.010 = 2.510")
    record(folder, parent={"continuation": 50.0})
    only(folder, "bits per byte: of the parent's", "no figure of the parent", "--teacher PARENT")
    record(folder, retention=79.0)
    only(folder, "held-out perplexity: of the parent's", "retention 79.0%", "at least 80.0%")
    record(folder, retention=None)
    only(folder, "held-out perplexity: of the parent's", "no held-out text", "--dataset HELD_OUT_TEXT")
    record(folder)
    wrong = Targets(suites=("tiny",), retention={"continuatoin": 0.8})
    only(folder, "continuatoin: of the parent's", "no such row; there are continuation, bits per byte", targets=wrong)


def test_one_retention_for_all_rows(folder):
    assert not failed(folder, Targets(retention=0.9))
    names = ["continuation: of the parent's", "bits per byte: of the parent's", "held-out perplexity: of the parent's"]
    assert list(failed(folder, Targets(retention=0.97))) == names
    record(folder, retention=None)
    assert not failed(folder, Targets(retention=0.9))  # held-out text was not measured, and nobody named it


def test_sampling_may_explain_more_than_a_point(folder, of_the_papers_size):
    paper = published.value(("table5", "AIME 2024"), SMALLEST)
    assert paper == 77.5
    record(folder, "reasoning", table5(value=0.7651))
    assert not failed(folder, REASONING)
    record(folder, "reasoning", table5(value=0.75))
    only(folder, "AIME 2024: the paper's", "75.0", "Ministral 3 3B's 77.5 − 1.0 = 76.5", targets=REASONING)
    record(folder, "reasoning", table5(value=0.75, within_problem=0.016))  # two errors are 3.2 points
    assert not failed(folder, REASONING)
    record(folder, "reasoning", table5(value=0.74, within_problem=0.016))
    only(folder, "AIME 2024: the paper's", "− 3.2 = 74.3", targets=REASONING)
    assert not failed(folder, Targets(suites=("reasoning",), points=4))


def test_the_papers_protocol(folder, of_the_papers_size):
    record(folder, "reasoning", table5(samples_per_row=4, samples=120))
    only(folder, "AIME 2024: the paper's", "4 samples, not 16", "without --samples", targets=REASONING)
    record(folder, "table3", table3(num_fewshot=0))
    only(folder, "MMLU 5-shot: the paper's", "0 shots, not 5", targets=TABLE3)
    record(folder, "table3", table3())
    held = [line.name for line in decide(folder, TABLE3).lines if line.name.endswith("the paper's")]
    assert len(held) == 12
    unknown = {"ARC-Challenge", "RACE High", "MathVista"}  # whose protocol the paper does not tell
    assert not {name.removesuffix(": the paper's") for name in held} & unknown
    low = table3()
    for name in ("cascade_arc_challenge", "cascade_race_high", "cascade_mathvista"):
        low[name]["value"] = 0.01
    record(folder, "table3", low)
    assert not failed(folder, TABLE3)
    parent = Targets(suites=("table3",), retention={"ARC-Challenge": 0.9})
    record(folder, "table3", low, parent={"ARC-Challenge": 91.6})
    only(folder, "ARC-Challenge: of the parent's", "1.0", "90% of 91.6", targets=parent)


def test_other_sizes_are_not_held_to_the_papers_figures(folder):
    record(folder, "reasoning", table5(value=0.1))
    only(folder, "rows have a target", "nothing says", "retention: {}", targets=REASONING)
    assert not failed(folder, Targets(suites=("reasoning",), retention={}))


def test_floors(folder):
    floors = Targets(suites=("tiny",), retention={}, floors={"continuation": 50, "maths_reward": 0.5})
    record(folder, preference={"rewards": {"maths_reward": 0.4}})
    lines = failed(folder, floors)
    assert list(lines) == ["continuation: the recipe's floor", "maths_reward: the recipe's floor"]
    assert [line.figure for line in lines.values()] == ["45.0", "0.400"]
    only(folder, "win: the recipe's floor", "there are continuation, bits per byte, maths_reward",
         targets=Targets(retention={}, floors={"win": 1}))  # fmt: skip
    assert not failed(folder, Targets(retention={}, floors={"continuation": 46, "maths_reward": 0.4}))


@pytest.mark.parametrize(
    "suites", [{"tiny": {}}, {"tiny": {"rows": {}, "tasks": {"a": {}}}}, {"tiny": 3}, [1], {"tiny": {"rows": []}}]
)
def test_an_evaluation_of_another_form(folder, suites):
    change(folder, "evals.json", suites=suites)
    assert "evaluation can be read" in failed(folder)
