"""What a person sees of a run, from the events of its stages."""

import io

import pytest
from rich.console import Console

from hf_cascade import display, manifest, progress
from hf_cascade.display import Display, clock, closing_summary, last_event


@pytest.fixture
def events(tmp_path, monkeypatch):
    """A fresh process's reports, in this file."""
    file = tmp_path / "stage.events"
    monkeypatch.setenv(progress.EVENTS_VARIABLE, str(file))
    monkeypatch.setattr(progress, "_state", {"last": 0.0, "start": None, "complained": False})
    return file


def console(**how) -> Console:
    return Console(file=io.StringIO(), width=100, highlight=False, _environ={}, **how)


def test_an_event_arrives(events):
    assert last_event(events) is None
    progress.report(1, 10, tokens=100, loss=2.5, label="KL")
    event = last_event(events)
    assert {name: event[name] for name in ("step", "total", "tokens", "loss", "label")} == {
        "step": 1,
        "total": 10,
        "tokens": 100,
        "loss": 2.5,
        "label": "KL",
    }


@pytest.mark.parametrize("tail", ['{"step": 3, "to', '{"step": 3, "to\n', "\n", "", "\xff\n", "x" * 3900 + "\n"])
def test_a_torn_line_breaks_nothing(events, tail):
    progress.report(1, 1)
    whole = last_event(events)
    with open(events, "a") as file:
        file.write(tail)
    assert last_event(events) == whole


def test_clock():
    assert [clock(seconds) for seconds in (0, 5.4, 65, 3600, 3725)] == ["0:00", "0:05", "1:05", "1:00:00", "1:02:05"]


def test_time_left_counts_from_where_a_stage_resumed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    screen = console()
    shown = Display(screen, ["a"], {})
    shown.start("a")
    event = {"step": 900, "total": 1000, "tokens": None, "loss": None, "tokens_per_second": None, "label": None}
    now[0] = 20.0  # loading
    shown.update(event)
    now[0] = 30.0
    shown.update(event | {"step": 910, "loss": 0.25})
    assert screen.file.getvalue().splitlines()[-1] == "a:  91%  loss 0.250  1:30 left"  # one second a step, 90 to go


def test_on_a_terminal_the_list_is_live():
    screen = console(force_terminal=True, legacy_windows=False, force_interactive=True)
    with Display(screen, ["a", "b", "c"], {"a": "done"}) as shown:
        shown.start("b")
        event = {"step": 5, "total": 10, "tokens": 9, "loss": 0.5, "tokens_per_second": 2600.0, "label": "KL"}
        shown.update(event)
        shown.live.refresh()
        said = screen.file.getvalue()
        assert all(word in said for word in ("done before", "50%", "KL 0.500", "2,600 tokens/s", "waits", "\x1b["))
        shown.finish("b", event)
        assert "0:00, KL 0.500" in shown.notes["b"].plain
    assert screen.file.getvalue().endswith("\x1b[2K")  # it leaves no trace: the summary follows


def test_a_dumb_terminal_gets_plain_lines():
    screen = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert Display(screen, ["a"], {}).live is None


def test_the_summary_shows_report_sizes_and_places(tmp_path):
    for name, output in (("14b", {"num_parameters": 1_184_352}), ("report", None)):
        (tmp_path / name).mkdir()
        manifest.write(
            tmp_path / name, stage=name, run="x", config={}, inputs={}, metrics={"seconds": 65.0}, output=output
        )
    (tmp_path / "report" / "report.md").write_text(
        "# The family\n\n| model | perplexity |\n|---|---:|\n| 14b | 20.9 |\n\n![plot](plot.png)\n"
    )
    screen = console()
    closing_summary(screen, tmp_path, ["14b", "report"], 130.0)
    said = screen.file.getvalue()
    assert all(word in said for word in ("The family", "20.9", "1,184,352 parameters", "1:05", "2:10"))
    assert "plot.png" not in said and "|---" not in said
    assert str(tmp_path / "14b") in said.replace("\n", "")
