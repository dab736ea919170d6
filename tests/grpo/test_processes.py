"""Two processes train as one does, however unevenly dead groups are spread, and refill the same prompts."""

import pytest

from tests.grpo import processes
from tests.online.processes import compare, read, run_two

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    return run_two(processes, policy, tmp_path_factory)


@pytest.mark.parametrize("case", processes.CASES)
def test_two_processes_are_one(folder, policy, case):
    processes.run(policy, folder / "one" / case, case, 1)
    log, _, expected, _ = compare(folder, case, processes.drifted(policy))
    _, rounds, dead = processes.CASES[case]
    groups = 1 if case == "one group on both" else 4
    assert log[0]["grpo/kept_groups"] == (groups if rounds else groups - len(processes.DEAD[dead]))
    assert (log[0]["grpo/refill_rounds"] > 0) == bool(rounds)
    same = ["loss", "grpo/kept_groups", "grpo/advantage_std"]  # a refill may draw more on two processes
    same += [] if rounds else [key for key in expected[0] if key.startswith(("grpo/", "rewards/"))]
    for entry, other in zip(log, expected, strict=True):
        assert {key: entry[key] for key in same} == pytest.approx({key: other[key] for key in same}, rel=1e-3, abs=1e-6)


def test_the_comparison_can_fail(folder):
    """Weights of another choice of groups differ by far more than rounding."""
    some, every = (read(folder / "two" / case)[0] for case in ("dead", "plain"))
    assert max((some[name] - every[name]).abs().max() for name in some) > 1e-2
