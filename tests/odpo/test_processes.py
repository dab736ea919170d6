"""Two processes train, judge and evaluate as one does, however unevenly dropped pairs are spread."""

import pytest

from tests.odpo import processes
from tests.online.processes import compare, read, run_two

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    return run_two(processes, policy, tmp_path_factory)


@pytest.mark.parametrize(("form", "dropped"), processes.CASES)
def test_two_processes_are_one(folder, policy, form, dropped):
    processes.run(policy, folder / "one" / f"{form} {dropped}", form, dropped, 1)
    log, evaluations, expected, alone = compare(folder, f"{form} {dropped}", processes.drifted(policy))
    assert log[0]["odpo/dropped_rate"] == len(processes.DROPPED[dropped]) / 4
    same = [key for key in expected[0] if key == "loss" or key.startswith(("odpo/", "rewards/"))]
    same.remove("odpo/kl_per_token")  # a mean over micro-batches
    for entry, other in zip(log, expected, strict=True):
        assert {key: entry[key] for key in same} == pytest.approx({key: other[key] for key in same}, rel=1e-3)
    same = ["eval_loss", *(key for key in alone[0] if key.startswith("eval_odpo/"))]
    found = {key: evaluations[0][key] for key in same}
    assert found == pytest.approx({key: alone[0][key] for key in same}, rel=1e-3)
    assert found["eval_odpo/win_rate"] != 0.5 and found["eval_odpo/length_drift_tokens"] != 0
    assert 0 < evaluations[1]["eval_odpo/win_rate"] < 1  # three prompts on two processes


def test_the_comparison_can_fail(folder):
    """Weights of another choice of pairs differ by far more than rounding."""
    some, all_pairs = (read(folder / "two" / f"pair {dropped}")[0] for dropped in ("one", "none"))
    assert max((some[name] - all_pairs[name]).abs().max() for name in some) > 1e-2
