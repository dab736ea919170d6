"""Rows of a suite: means, intervals, comparisons; and how report and plot show them."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from hf_cascade.evaluate.suite import figures, kept, plot, published, report
from hf_cascade.evaluate.suite.completeness import data_label, shortfalls
from hf_cascade.evaluate.suite.suites import Row, Suite, load

PAPER = ("table3", "MMLU 5-shot")


def ran(value=0.7, stderr=0.01, metric="acc", k=1, generated=False, **more) -> dict:
    """What the runner says of a task."""
    found = {
        "status": "run",
        "reason": None,
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "within_problem": None,
    }
    found |= {"higher_is_better": True, "chance": 0.25, "num_fewshot": 5, "rows": 100, "rows_full": 100}
    found |= {"samples_per_row": k, "samples": 100 * k, "distinct": None, "unparsed": None, "unfinished": None}
    found |= {"truncated": None, "looped": None, "output_tokens": None, "thinking_tokens": None, "pass_at": {}}
    found |= {"maj_at": {}, "all": {metric: {"value": value, "stderr": stderr}}, "version": 1.0, "seconds": 2.0}
    found |= {"data": {"org/a/test": {"revision": None, "sha256": "abcdef0123", "rows": 100, "full_rows": 100}}}
    found |= {"protocol": {"chat": False, "temperature": None, "top_p": None, "max_gen_tokens": None}, "judge": None}
    if generated:
        found |= {"unparsed": 0.01, "unfinished": 0.02, "truncated": 0.03, "looped": 0.04, "output_tokens": 812.4}
        found |= {"protocol": {"chat": True, "temperature": 0.7, "top_p": 0.95, "max_gen_tokens": 32768}}
    return found | more


def one_row(task: dict | list, **settings) -> dict:
    tasks = task if isinstance(task, list) else [task]
    names = tuple(f"t{place}" for place in range(len(tasks)))
    suite = Suite("mine", "Mine", False, [Row("A", names, **settings)])
    return figures.rows_of(suite, dict(zip(names, tasks, strict=True)))["A"]


def test_a_row_is_its_task_in_percent():
    row = one_row(ran())
    assert (row["value"], row["stderr"], row["chance"]) == pytest.approx((70, 1, 25))
    assert (row["low"], row["high"]) == pytest.approx((70 - 1.96, 70 + 1.96))
    assert one_row(ran(2.5), scale=1)["value"] == 2.5


def test_a_mean_over_tasks():
    row = one_row([ran(0.6, 0.01), ran(0.8, 0.03)])
    assert (row["value"], row["stderr"], row["rows"], row["seconds"]) == pytest.approx((70, 2, 200, 4))
    other = {"org/b/test": {"revision": None, "sha256": "f", "rows": 100, "full_rows": 100}}  # independent errors
    assert one_row([ran(0.6, 0.03), ran(0.8, 0.04, data=other)])["stderr"] == pytest.approx(2.5)
    row = one_row([ran(0.6), {"status": "not run", "reason": "no folder"}])
    assert row == {"status": "not run", "reason": "t1: no folder"}  # no mean over a part
    lacking = [{"status": "not run", "reason": reason} for reason in ("a", "a", "b")]
    assert one_row(lacking)["reason"] == "t0, t1: a; t2: b" and one_row(lacking[:2])["reason"] == "a"


def test_another_metric_than_the_first():
    task = ran(all={"acc": {"value": 0.7, "stderr": 0.01}, "f1": {"value": 0.5, "stderr": 0.02}})
    row = one_row(task, metric="f1")
    assert (row["value"], row["stderr"], row["chance"]) == (50, 2, None)  # chance is the first metric's
    assert "no metric f2; it has acc, f1" in one_row(task, metric="f2")["reason"]


def test_judged_tasks_have_their_error_as_a_metric():
    judged = {"win_rate": {"value": 0.5, "stderr": None}, "win_rate_error": {"value": 0.02, "stderr": None}}
    judged |= {"judge_failures": {"value": 0.01, "stderr": None}, "swap_agreement": {"value": 0.8, "stderr": None}}
    row = one_row(ran(0.5, None, "win_rate", all=judged))
    assert row["stderr"] == 2 and row["high"] == pytest.approx(53.92)
    assert (row["judge_failures"], row["swap_agreement"]) == (0.01, 0.8)


def test_without_a_value_there_is_a_reason_and_never_zero():
    assert one_row([None]) == {"status": "not run", "reason": "the run ended before it"}
    assert one_row(ran(math.nan))["reason"] == "no verdict about any row"
    assert one_row(ran(None))["reason"] == "no verdict about any row"


def test_intervals():
    assert figures.interval(0.5, 0.1, 100) == pytest.approx((0.304, 0.696))
    assert figures.interval(0.5, None, 100) == figures.interval(0.5, math.nan, 100) == (None, None)
    low, high = figures.interval(1.0, 0.0, 30)  # Wilson's, by its formula at p = 1
    assert (low, high) == (pytest.approx(30 / (30 + 1.96**2)), 1.0)
    assert figures.interval(0.0, 0.0, 30) == (0.0, pytest.approx(1 - 30 / (30 + 1.96**2)))
    assert figures.interval(2.5, 0.0, 30) == (2.5, 2.5)  # no share
    assert figures.interval(0.1, 0.1, 9, share=True) == (0.0, pytest.approx(0.296))
    assert figures.interval(0.9, 0.1, 9, share=True) == (pytest.approx(0.704), 1.0)
    assert figures.interval(0.1, 0.1, 9)[0] < 0  # a score that may be


def beside(task: dict, parent: dict | None = None, published=PAPER, paper_row="Ministral 3 8B", **settings) -> dict:
    suite = Suite("mine", "Mine", False, [Row("A", ("t",), published=published, **settings)])
    rows = figures.rows_of(suite, {"t": task})
    theirs = None if parent is None else figures.rows_of(suite, {"t": parent})
    figures.set_beside(rows, suite, paper_row, theirs)
    return rows["A"]


def test_the_papers_figure_and_whether_it_is_inside():
    assert published.value(PAPER, "Ministral 3 8B") == 76.1
    row = beside(ran(0.75, 0.01))
    assert (row["paper"], row["difference"], row["inside"]) == (76.1, pytest.approx(-1.1), True)
    assert beside(ran(0.74, 0.01))["inside"] is False
    assert beside(ran(0.74, None))["inside"] is None
    assert beside(ran(), paper_row=None)["paper"] is None
    assert beside({"status": "not run", "reason": "x"})["difference"] is None


def test_on_fixed_problems_the_interval_is_that_of_samples():
    wide = {"stderr": 0.06, "within_problem": 0.016}
    assert beside(ran(0.70, **wide))["inside"] is False  # 6 points away, 1.96 x 1.6 allowed
    assert beside(ran(0.74, **wide))["inside"] is True
    assert beside(ran(0.70, **wide, rows=90))["inside"] is True  # not all problems: which ones differs too


def test_retention():
    row = beside(ran(0.6), ran(0.8))
    assert (row["parent"], row["retention"]) == pytest.approx((80, 75))
    loss = {"higher_is_better": False, "metric": "bits"}
    assert beside(ran(2.5, **loss), ran(2.0, **loss), scale=1)["retention"] == pytest.approx(80)
    assert beside(ran(0.6), ran(0.0))["retention"] is None
    assert beside(ran(0.6), {"status": "not run", "reason": "x"})["parent"] is None


def test_what_is_not_the_whole_benchmark():
    part = {"org/a/test": {"rows": 12, "full_rows": 14042}, "org/b/x/dev": {"rows": 5, "full_rows": 10}}
    part |= {"org/b/y/dev": {"rows": 10, "full_rows": 10}, "org/b/z/dev": {"rows": 3, "full_rows": 10}}
    part |= {"org/c/test": {"rows": 1, "full_rows": None}}
    assert shortfalls(part) == ["org/a test: 12 of 14,042 rows", "org/b dev: 8 of 20 rows"]
    whole = {f"edinburgh-dawg/mmlu-redux-2.0/{n}/test": {"rows": 100, "full_rows": 100} for n in range(57)}
    assert shortfalls(whole) == []
    whole.popitem()
    assert shortfalls(whole) == ["edinburgh-dawg/mmlu-redux-2.0 test: 56 of 57 configs"]
    assert one_row(ran())["short"] == []
    told = {"protocol": {"max_gen_tokens": 16, "task_max_gen_tokens": 2048}, "truncated": 0.25}
    cut = "25% of the responses cut off at 16 tokens, of which the task allows 2,048"
    assert one_row({**ran(), **told})["short"] == [cut] and one_row({**ran(), **told, "truncated": 0})["short"] == []
    lost = {"missing": 16, "asked": 80, "failure": "status 500"}
    assert one_row({**ran(), **lost})["short"] == [
        "16 of 80 answers did not come (the last error: status 500); the same command asks for them again"
    ]
    told["protocol"]["max_gen_tokens"] = 4096
    assert one_row({**ran(), **told})["short"] == []
    assert one_row(ran(rows=8))["short"] == ["figures of 8 of 100 rows"]
    label = data_label(
        {"org/a/test": {"revision": "0123456789ab"}, "org/b/test": {"revision": None, "sha256": "f" * 64}}
    )
    assert label == "org/a/test (revision 01234567), org/b/test (sha256 ffffffff)"


def results(suite: Suite, models: dict[str, dict[str, dict]], rows: dict[str, str], parent=None) -> dict:
    """results.json of models with these tasks, each set beside a model of the paper."""
    found = []
    for name, tasks in models.items():
        found.append({"name": name, "suites": {suite.name: {"rows": figures.rows_of(suite, tasks), "tasks": tasks}}})
    by_name = {model["name"]: model["suites"][suite.name]["rows"] for model in found}
    for name, mine in by_name.items():
        figures.set_beside(mine, suite, rows.get(name), by_name[parent] if parent and name != parent else None)
    return {"models": found, "suites": [asdict(suite)], "suite_parent": parent}


@pytest.fixture
def family() -> dict:
    suite = load("table3")
    tasks = {name: ran(0.8 - 0.01 * place) for place, name in enumerate(suite.tasks)}
    tasks["cascade_race_high"] = {"status": "not run", "reason": "there is no folder"}
    tasks["cascade_triviaqa"] = ran(0.5, generated=True)
    worse = {name: {**task, "value": task.get("value", 0) * 0.9} for name, task in tasks.items()}
    return results(
        suite,
        {"24b": tasks, "8b": worse, "14b": {**worse, "cascade_mbpp": {"status": "not run", "reason": "no sandbox"}}},
        {"8b": "Ministral 3 8B", "14b": "Ministral 3 14B", "24b": "Mistral Small 3.1 24B"},
        parent="24b",
    )


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_the_table(family):
    (section,) = report.sections(family)
    lines = cells(section)
    assert lines[0] == [
        *("benchmark", "24b", "Mistral Small 3.1 24B (paper)", "minus paper"),
        *("8b", "Ministral 3 8B (paper)", "minus paper", "of 24b"),
        *("14b", "Ministral 3 14B (paper)", "minus paper", "of 24b", "chance"),
    ]
    assert lines[2] == [
        *("MMLU 5-shot", "80.0 ± 2.0", "81.0", "−1.0 (inside)", "72.0 ± 2.0", "76.1", "−4.1 (outside)", "90.0%"),
        *("72.0 ± 2.0", "79.4", "−7.4 (outside)", "90.0%", "25.0"),
    ]
    race = next(line for line in lines if line[0] == "RACE High")
    assert race[:5] == ["RACE High", "not run", "52.1", "–", "not run"] and race[7] == "–"
    assert "- RACE High: there is no folder" in section and "- MBPP 3-shot (14b): no sandbox" in section
    assert "not comparable" not in section
    assert ["TriviaQA 5-shot", "5", "acc", "T 0.7, top_p 0.95, 32,768 tokens, chat", "1"] == next(
        line[:5] for line in lines if line[0] == "TriviaQA 5-shot" and line[1] == "5"
    )
    assert "5 shots, exact match" in section
    text = report.summary_text(family)
    assert "(paper)" in text and "of 24b" not in text and "not run: RACE High: there is no folder" in text
    assert "retention" not in (told := report.notes(family)) and "of 24b" in told and "2601.08584" in told


def test_sampled_rows_show_all_their_figures():
    suite = load("table5")
    sampled = ran(0.7, 0.06, "avg_at_k", 16, True, within_problem=0.016, distinct=0.95)
    sampled |= {"pass_at": {"1": 0.7, "16": 0.9}, "maj_at": {"1": 0.7, "16": 0.8}, "chance": 0.0}
    found = results(suite, {"mine": dict.fromkeys(suite.tasks, sampled)}, {"mine": "Ministral 3 3B"})
    (section,) = report.sections(found)
    lines = cells(section)
    assert lines[2] == ["AIME 2024", "70.0 ± 11.8 (± 3.1)", "77.5", "−7.5 (outside)", "0.0"]
    at = next(line for line in lines if line[:3] == ["AIME 2024", "mine", "16"])
    assert at[3:] == ["70.0", "90.0", "80.0", "1.60", "95.0%", "1.0%", "2.0%", "3.0%", "4.0%", "812", "–"]
    assert next(line for line in lines if line[1:3] == ["5", "avg@16"])[7] == "0 shots, avg@16"
    assert "unbiased" in report.notes(found)


def test_a_part_of_a_benchmark_is_not_compared():
    suite = load("table3")
    found = results(suite, {"8b": dict.fromkeys(suite.tasks, ran(rows=8))}, {"8b": "Ministral 3 8B"})
    (section,) = report.sections(found)
    assert cells(section)[2][1:4] == ["70.0 ± 2.0", "76.1", "not comparable"]
    assert "MBPP 3-shot" in section.split(": figures of 8 of 100 rows")[0] and "(8b)" not in section
    models = {"8b": dict.fromkeys(suite.tasks, ran(rows=8)), "3b": dict.fromkeys(suite.tasks, ran(rows=9))}
    models["3b"]["cascade_mbpp"] = ran()
    text = report.summary_text(mixed := results(suite, models, {}))
    assert f"not comparable: {len(suite.rows)} of {len(suite.rows)} rows" in text  # rows, not lines
    told = report.short(mixed, mixed["suites"][0])
    assert told[0].endswith("MathVista (8b): figures of 8 of 100 rows") and "MBPP" in told[0]
    assert told[1].endswith("MathVista (3b): figures of 9 of 100 rows") and "MBPP" not in told[1]
    assert "--paper_row" not in section
    found = results(suite, {"8b": dict.fromkeys(suite.tasks, ran())}, {})
    assert "| benchmark | 8b | chance |" in report.sections(found)[0] and "--paper_row" in report.sections(found)[0]


def test_rows_at_the_edge_show_wilsons_interval():
    suite = Suite("mine", "Mine", False, [Row("A", ("t",))])
    (section,) = report.sections(results(suite, {"m": {"t": ran(1.0, 0.0)}}, {}))
    assert cells(section)[2] == ["A", "100.0 [96.3, 100.0]", "25.0"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures, kept open instead of saved and closed."""
    figures_of: dict[str, plt.Figure] = {}
    monkeypatch.setattr(plot, "save", lambda figure, path: figures_of.update({path.name: figure}))
    yield figures_of
    plt.close("all")


def test_the_plot_has_every_benchmark_and_no_touching_labels(family, drawn):
    assert plot.suites(family, Path("there")) == [Path("there/suite_table3.png")]
    figure = drawn["suite_table3.png"]
    (axes,) = figure.axes
    figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [row["label"] for row in family["suites"][0]["rows"] if row["label"] != "RACE High"]
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    boxes += [axes.get_legend().get_window_extent(), axes._left_title.get_window_extent()]
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[place + 1 :])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        *("24b", "8b", "14b", "the paper's", "chance")
    }
    diamonds = sorted(line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D")
    expected = [published.value(("table3", label), name) for label in labels for name in published.SIZES]
    assert len(diamonds) == 14 * 3 and set(diamonds) <= set(expected)


def test_long_names_fit_the_legend(drawn):
    suite, names = load("table5"), ["a-model-with-a-long-name-8b", "an-organisation/another-model", "third"]
    found = results(
        suite,
        dict.fromkeys(names, dict.fromkeys(suite.tasks, ran(metric="avg_at_k", k=16))),
        {"third": "Ministral 3 3B"},
    )
    plot.suites(found, Path("there"))
    figure = drawn["suite_table5.png"]
    figure.canvas.draw()
    (axes,) = figure.axes
    legend = axes.get_legend().get_window_extent()
    assert legend.x1 <= figure.bbox.width and not legend.overlaps(axes._left_title.get_window_extent())


def test_other_units_have_their_own_panel(drawn):
    suite = load("tiny")
    tasks = {"cascade_tiny_continuation": ran(0.4, 0.03, "acc_bytes")}
    tasks["cascade_tiny_bits"] = ran(2.0, 0.1, "bits_per_byte", higher_is_better=False, chance=None)
    plot.suites(results(suite, {"parent": tasks, "child": tasks}, {}, parent="parent"), Path("there"))
    first, second = drawn["suite_tiny.png"].axes
    assert first.get_xlabel() == "percent, higher is better →"
    assert second.get_xlabel() == "bits per byte, ← lower is better"
    nothing = dict.fromkeys(suite.tasks, {"status": "not run", "reason": "x"})
    assert plot.suites(results(suite, {"m": nothing}, {}), Path("there")) == []


NEW = {"weights_sha256": "w", "heldout": None, "tasks": {}, "preference": None}
NEW |= {"suites": {"table3": {"rows": {}, "tasks": {}}}}


def test_earlier_figures_of_the_same_weights_are_kept(tmp_path):
    assert kept.merge(NEW, tmp_path) == (NEW, [])
    earlier = {"weights_sha256": "w", "heldout": {"perplexity": 9.0}, "retention": 90.0, "teacher": "p", "long": None}
    earlier |= {
        "conformance": {"scorers_sha256": None},
        "suites": {"table2": {"rows": {"A": {}}}, "table3": {"rows": {}, "tasks": {}}},
    }
    (tmp_path / "evals.json").write_text(json.dumps(earlier))
    merged, lines = kept.merge(NEW, tmp_path)
    assert lines == [] and merged["suites"] == {"table2": {"rows": {"A": {}}}, "table3": {"rows": {}, "tasks": {}}}
    assert merged["conformance"] == {"scorers_sha256": None} and merged["heldout"] == {"perplexity": 9.0}
    merged, lines = kept.merge({**NEW, "weights_sha256": "other"}, tmp_path)
    assert merged["suites"] == NEW["suites"] and "conformance" not in merged
    (line,) = lines
    assert line.startswith(f"{tmp_path}/evals.json: table2, held-out text dropped: they were measured on other weights")
    (tmp_path / "evals.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        kept.merge(NEW, tmp_path)


def test_figures_of_another_tokenizer_or_template_are_dropped(tmp_path):
    def evals(suite: str, template: str) -> dict:
        parts = {"tokenizer": {"files": "t", "opened": None}, "chat template": {"files": template, "opened": None}}
        return {**NEW, "suites": {suite: {"rows": {}, "tasks": {}}}, "companions": parts}

    (tmp_path / "evals.json").write_text(json.dumps(evals("table4", "c")))
    assert list(kept.merge(evals("table5", "c"), tmp_path)[0]["suites"]) == ["table4", "table5"]
    merged, lines = kept.merge(evals("table5", "other"), tmp_path)
    assert list(merged["suites"]) == ["table5"]
    (line,) = lines
    assert line.startswith(f"{tmp_path}/evals.json: table4 dropped: since they were measured: chat template changed")
    (tmp_path / "evals.json").write_text(json.dumps(NEW))  # of a version that did not record it
    merged, lines = kept.merge(evals("table5", "c"), tmp_path)
    assert list(merged["suites"]) == ["table5"] and "was not recorded" in lines[0]


def test_a_trial_does_not_replace_a_whole_run(tmp_path):
    def evals(**rows):
        return {**NEW, "suites": {"table3": {"rows": rows, "tasks": {}}}}

    whole, part = ({"status": "run", "rows": rows, "rows_full": 100, "value": rows} for rows in (100, 4))
    again, missing = {**whole, "value": 7}, {"status": "not run", "reason": "no folder"}
    earlier = evals(a=whole, b=whole, c=whole, d=part, e=missing, f=whole)
    (tmp_path / "evals.json").write_text(json.dumps(earlier))
    merged, _ = kept.merge(evals(a=part, b=missing, c=again, d=whole, e=part), tmp_path)
    assert merged["suites"]["table3"]["rows"] == {"a": whole, "b": whole, "c": again, "d": whole, "e": part, "f": whole}
    short = {**whole, "short": ["2 of 57 configs"]}
    merged, _ = kept.merge(evals(a=short), tmp_path)
    assert merged["suites"]["table3"]["rows"]["a"] == whole


def test_figures_of_other_scorers_are_dropped(tmp_path):
    rows = {"MATH": {"status": "run", "rows": 5, "rows_full": 5, "short": []}}
    proof = {"tasks": {"cascade_math": {"status": "green", "reason": None}}}

    def figures(suite: str, scorers: str) -> dict:
        evals = {"heldout": None, "suites": {suite: {"rows": rows, "tasks": {}}}, "weights_sha256": "same"}
        return evals | {"conformance": {"scorers_sha256": scorers, **proof}}

    (tmp_path / kept.EVALS).write_text(json.dumps(figures("table2", "old")))
    merged, lines = kept.merge(figures("table4", "old"), tmp_path)
    assert list(merged["suites"]) == ["table2", "table4"] and not lines
    merged, lines = kept.merge(figures("table4", "new"), tmp_path)
    assert list(merged["suites"]) == ["table4"] and merged["conformance"]["scorers_sha256"] == "new"
    assert "table2 dropped: they were scored otherwise" in lines[0]
