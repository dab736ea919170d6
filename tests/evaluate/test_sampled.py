"""benchmarks/answers.py and sampled.py: what of a response is its answer, and the figures of k responses."""

import pytest
from lm_eval import evaluate

from hf_cascade import assets, completions
from hf_cascade.evaluate.benchmarks.answers import answer_of, is_unfinished
from hf_cascade.evaluate.benchmarks.sampled import KeepAll, Verdict, majority, once, several, within_problem
from hf_cascade.evaluate.conformance.cases import all_cases
from hf_cascade.evaluate.conformance.knowing import Responding
from hf_cascade.evaluate.harness import open_tasks
from tests.growth import check_growth, repeated

FINISHED = [  # (response, answer)
    ("4", "4"),
    ("", ""),
    (" 4 \n", " 4 \n"),
    ("[THINK]2 + 2[/THINK]4", "4"),
    ("<think>\n2 + 2\n</think>\n\n4\n", "4"),
    ("[THINK][/THINK]4", "4"),
    ("2 + 2</think>4", "4"),
    ("2 + 2\n[/THINK]\n4", "4"),
    ("first <think>a</think> then <think>b</think> 4", "first  then  4"),
    ("3 [THINK]no[/THINK] 4", "3  4"),
    ("<think>only</think>", ""),
    ("only</think>", ""),
    ("[THINK]a <think> b[/THINK]4", "4"),
    ("<think>a<think>b</think>4", "4"),
    ("<think>a</think>b</think>4", "4"),
    ("<think>```py\nx\n</think>4", "4"),
    ("[THINK]x[/THINK]Write `<think>` first.", "Write `<think>` first."),
    ("[THINK]x[/THINK]```\n<think>\n```\n4", "```\n<think>\n```\n4"),
    ("```\n[THINK]a[/THINK]\n```\n4", "```\n[THINK]a[/THINK]\n```\n4"),
    ("Use `</think>` at the end.", "Use `</think>` at the end."),
    ("a < b, [ THINK ], <THINK>", "a < b, [ THINK ], <THINK>"),
]
UNFINISHED = [
    "<think>",
    "[THINK]2 + 2 is 4",
    "4 [THINK]or is it",
    "<think>a</think>4 <think>b",
    "[THINK]a</think>4",
    "a</think>b<think>c",
    "<think>say `</think",
]


@pytest.mark.parametrize("response, answer", FINISHED)
def test_answer_is_what_stands_outside_the_thinking(response, answer):
    assert not is_unfinished(response)
    assert answer_of(response) == answer


@pytest.mark.parametrize("response", UNFINISHED)
def test_unfinished_thinking_has_no_answer(response):
    assert is_unfinished(response)
    assert answer_of(response) == ""


@pytest.mark.parametrize("response, answer", FINISHED[:12])
def test_rewards_and_benchmarks_see_one_answer(response, answer):
    assert completions.text_of(response).split() == answer.split()


@pytest.mark.parametrize("part", ["`", "```", "<think>", "</think>", "</think>`a`", "<think></think>", "[THINK]`\n"])
def test_no_loop_takes_long(part):
    check_growth(answer_of, repeated(part), 20_000)


def judge(answer: str) -> Verdict:
    return Verdict(float(answer == "4"), answer or None)


def test_once():
    assert once([["4"]], judge) == {"acc": 1.0, "unparsed": 0.0, "unfinished": 0.0}
    assert once(["<think>5</think>4"], judge)["acc"] == 1
    assert once([["[THINK]4"]], judge) == {"acc": 0.0, "unparsed": 0.0, "unfinished": 1.0}
    assert once([["<think>4</think>"]], judge) == {"acc": 0.0, "unparsed": 1.0, "unfinished": 0.0}
    assert once([["4"]], lambda answer: Verdict(None, "4")) == {"unparsed": 0.0, "unfinished": 0.0}


def test_several():
    found = several([["4", "4", "5", "[THINK]4", "<think>4</think>", "6", "7", "8"]], judge)
    assert found == {
        "avg_at_k": 0.25,
        "pass_at_k": 1.0,
        "maj_at_k": 1.0,
        "unparsed": 0.125,
        "unfinished": 0.125,
        "within_problem": [1, 1, 0, 0, 0, 0, 0, 0],
    }


def test_unfinished_thinking_is_never_shown_to_the_scorer():
    with pytest.raises(ZeroDivisionError):
        several([["4"]], lambda answer: 1 / 0)
    assert several([["<think>4"]], lambda answer: 1 / 0)["avg_at_k"] == 0


def test_verdicts_that_are_missing_are_left_out():
    found = several([["4", "?"]], lambda answer: Verdict(None, None) if answer == "?" else judge(answer))
    assert (found["avg_at_k"], found["maj_at_k"], found["within_problem"]) == (1, 1, [1])
    assert set(several([["?"]], lambda answer: Verdict(None, None))) == {"unparsed", "unfinished", "within_problem"}


def test_majority_of_ties_and_of_nothing():
    assert majority([Verdict(1, "4"), Verdict(0, "5")]) == 0.5
    assert majority([Verdict(0, None)]) == 0
    assert majority([]) == 0


def test_within_problem_leaves_out_problems_without_verdicts():
    assert within_problem([[1, 0], [], [1, 1]]) == within_problem([[1, 0], [1, 1]])


def test_keep_all_keeps_every_response():
    assert KeepAll().apply([("a", "b"), ["c"]], []) == [["a", "b"], ["c"]]


def test_what_a_server_did_not_stop_at_is_cut_off():
    keep = KeepAll(until=["\nQ:", "###"])
    assert keep.apply([(" 4\nQ: 5?\nA: 5", "4 ### 5\nQ:", "4")], []) == [[" 4", "4 ", "4"]]


def test_a_model_that_goes_on_is_scored_up_to_where_it_should_have_stopped(monkeypatch):
    monkeypatch.setenv("HFC_EVAL_DATA", str(assets.find("evals/rows")))
    asked = []
    for name, case in all_cases().items():
        if not name.startswith("cascade_") or case.gold or case.judge or "sandbox" in case.needs:
            continue
        task = open_tasks([name], "evals/tasks").load([name])["tasks"][name]
        for stop in task.config.filter_list[0]["filter"][0].get("until", []):
            assert stop in task.config.generation_kwargs["until"]
            asked.append(name)
            model = Responding(lambda doc, _, case=case, stop=stop: case.right(doc)[0] + stop + case.wrong(doc)[0])
            result = evaluate(model, {"tasks": {name: task}}, limit=2, bootstrap_iters=0)["results"][name]
            assert result[f"{case.metric},none"] == case.oracle, (name, stop)
    assert len(asked) == 8  # two stops of MathVista and two of MATH among them


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        ("70\nQ: and now?\nQ: more", "70"),
        ("<think>They ask\nQ: what?</think>70\nQ: next", "<think>They ask\nQ: what?</think>70"),
        ("They ask\nQ: what?</think>70\nQ: next", "They ask\nQ: what?</think>70"),  # the prompt opened it
        ("[THINK]a\nQ: b[/THINK]c<think>d\nQ: e</think>f\nQ: g", "[THINK]a\nQ: b[/THINK]c<think>d\nQ: e</think>f"),
        ("70\nQ: x <think>\nQ: y", "70"),
        ("<think>\nQ: never closed", "<think>\nQ: never closed"),
        ("70", "70"),
    ],
)
def test_stops_cut_the_answer_and_not_the_thinking(response, kept):
    assert KeepAll(until=["\nQ:"]).apply([[response]], [{}]) == [[kept]]


def test_a_thousand_stops_in_thinking_take_no_time():
    response = "<think>" + "\nQ: again" * 30_000 + "</think>" + "<think>x</think>" * 5_000 + "70\nQ: next"
    assert KeepAll(until=["\nQ:"]).apply([[response]], [{}])[0][0].endswith("</think>70")
