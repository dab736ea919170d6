"""What the gate's tests share: targets, and what a folder's decision is asked."""

import json

from hf_cascade.evaluate.suite import published, suites
from hf_cascade.publish.gate import decide
from hf_cascade.publish.targets import Targets
from hf_cascade.publish.verdict import Line
from tests.publish.finished import judged, sampled, task

TINY = Targets(suites=("tiny",), retention={"perplexity": 0.8, "continuation": 0.8, "bits per byte": 0.8})
REASONING = Targets(suites=("reasoning",))
INSTRUCT = Targets(suites=("instruct",), retention={})
TABLE3 = Targets(suites=("table3",))
SMALLEST = "Ministral 3 3B"


def change(folder, name: str, **changes) -> dict:
    """Top keys of a JSON file, replaced."""
    found = {**json.loads((folder / name).read_text()), **changes}
    (folder / name).write_text(json.dumps(found))
    return found


def failed(folder, targets: Targets = TINY) -> dict[str, Line]:
    """Name to failed line; each says all that it should."""
    decision = decide(folder, targets)
    lines = {line.name: line for line in decision.failed}
    assert decision.passed == (not lines)
    for line in lines.values():
        assert line.figure and line.limit and line.remedy, line
        assert all(text in decision.text() for text in (line.name, line.figure, line.limit, line.remedy))
    return lines


def only(folder, name: str, *words: str, targets: Targets = TINY) -> Line:
    """The one line that fails, with its words."""
    lines = failed(folder, targets)
    assert list(lines) == [name], lines
    for word in words:
        assert word in f"{lines[name].figure} | {lines[name].limit} | {lines[name].remedy}", lines[name]
    return lines[name]


def table5(**changes) -> dict[str, dict]:
    """Figures of all tasks of Table 5, at the paper's figures for its 3B."""
    found = {}
    for row in suites.load("table5").rows:
        value = published.value(row.published, SMALLEST) / 100
        found[row.tasks[0]] = sampled(value, 5 if "LiveCode" in row.label else 16)
    found["cascade_aime24"] |= changes
    return found


def table4(**changes) -> dict[str, dict]:
    """Of Table 4."""
    found = {"cascade_arena_hard": judged(0.4, "win_rate", agreement=0.9), "cascade_wildbench": judged(0.5, "wb_score")}
    found |= {"cascade_math_maj1": sampled(0.8, 1, metric="acc"), "cascade_mm_mt_bench": judged(0.7, "mm_mt_score")}
    found["cascade_arena_hard"] |= changes
    return found


def table3(value: float = 0.9, **changes) -> dict[str, dict]:
    """Of Table 3, by log-likelihood for once."""
    suite = suites.load("table3")
    told = {task: published.load("table3").protocol[row.label]["shots"] for row in suite.rows for task in row.tasks}
    found = {name: task(value, num_fewshot=shots) for name, shots in told.items()}
    found["cascade_mmlu"] |= changes
    return found
