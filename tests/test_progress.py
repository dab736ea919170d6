"""Progress lines: only where a runner listens, seldom, the last always, and never the end of a training."""

import json

import pytest

from hf_cascade import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests turn, and a module that has reported nothing yet."""
    time = {"now": 1000.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: time["now"])
    monkeypatch.setattr(progress, "_state", {"last": 0.0, "start": None, "complained": False})
    return time


@pytest.fixture
def events(tmp_path, monkeypatch):
    path = tmp_path / "events"
    monkeypatch.setenv(progress.EVENTS_VARIABLE, str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_silent_unless_a_runner_listens(clock, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(progress.EVENTS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    progress.report(1, 2, tokens=5, loss=1.0, label="KL")
    progress.report(2, 2)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_one_line_an_event(clock, events):
    progress.report(1, 4, tokens=100, loss=2.5, label="KL")
    assert events() == [{"step": 1, "total": 4, "tokens": 100, "loss": 2.5, "tokens_per_second": None, "label": "KL"}]


def test_at_most_four_a_second_and_always_the_last(clock, events):
    for step in range(1, 1001):
        clock["now"] += 0.01
        progress.report(step, 1000)
    steps = [event["step"] for event in events()]
    assert steps[0] == 1 and steps[-1] == 1000
    assert len(steps) == pytest.approx(10 / progress.SECONDS_BETWEEN, abs=2)


def test_the_last_is_written_right_after_another(clock, events):
    progress.report(9, 10)
    progress.report(10, 10)
    assert [event["step"] for event in events()] == [9, 10]


def test_tokens_per_second_count_from_the_first_event(clock, events):
    """A resumed stage begins with tokens it has not just read."""
    progress.report(50, 100, tokens=5000)
    clock["now"] += 2.0
    progress.report(51, 100, tokens=5300)
    clock["now"] += 2.0
    progress.report(52, 100, tokens=5600)
    assert [event["tokens_per_second"] for event in events()] == [None, 150.0, 150.0]


def test_losses_of_any_number_type(clock, events):
    import numpy

    progress.report(1, 1, loss=numpy.float32(0.5))
    assert events()[0]["loss"] == 0.5


def test_an_unwritable_file_is_said_once_and_ends_nothing(clock, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(progress.EVENTS_VARIABLE, str(tmp_path / "no_such_folder" / "events"))
    for step in range(1, 4):
        progress.report(step, 3)
        clock["now"] += 1.0
    said = capsys.readouterr().err
    assert said.count("progress cannot be reported") == 1 and "no_such_folder" in said
