"""How far a task is, where nobody listens and there is no terminal."""

import pytest
from lm_eval.api.instance import Instance

from hf_cascade.evaluate.backends.hf import HFBackend
from hf_cascade.evaluate.suite import samples
from hf_cascade.evaluate.suite.samples import Progress

from .conftest import tiny_model


@pytest.mark.parametrize("seconds, told", ((60.0, 0), (0.0, 4)))
def test_a_log_gets_a_line_now_and_then(seconds, told, monkeypatch, capsys):
    monkeypatch.setattr(samples, "EVERY_SECONDS", seconds)
    progress = Progress("task")
    progress.start(1005, 1002)
    for _ in range(3):
        progress.step()
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == told
    if lines:
        assert lines[0] == "task: 1,002 of 1,005 answers" and lines[3] == "task: 1,005 of 1,005 answers"
        assert lines[1].startswith("task: 1,003 of 1,005 answers, 0:0") and lines[1].endswith(" left")


def test_a_batch_is_told_at_once():
    """Its first answer alone would make the rest of the task look as long as many batches."""
    told = []
    progress = Progress("task", lambda share, label: told.append((share, label.split(",")[0])))
    progress.start(4, 0)
    for following in (2, 1, 0, 0):
        progress.step(following)
    assert told == [(0.0, "task: 0 of 4 answers"), (0.75, "task: 3 of 4 answers"), (1.0, "task: 4 of 4 answers")]


def test_the_back_end_says_what_follows(tokenizer):
    lm, seen = HFBackend(tiny_model(0), tokenizer, batch_size=3, identity="x"), []
    lm.on_response = lambda *_: seen.append(lm.following)
    asked = [(text, {"max_gen_toks": 1, "until": []}) for text in ("a", "b", "c", "d", "e")]
    lm.generate_until([Instance("generate_until", {}, one, 0, ("t", 0, 1)) for one in asked])
    assert seen == [2, 1, 0, 1, 0]


def test_other_processes_say_nothing(monkeypatch, capsys):
    monkeypatch.setattr(samples, "EVERY_SECONDS", 0.0)
    progress = Progress("task", shown=False)
    progress.start(2, 0)
    progress.step()
    assert capsys.readouterr().err == ""
