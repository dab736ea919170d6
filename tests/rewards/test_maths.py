r"""
rewards/maths.py: right answers in any notation get 1, all others 0, and no answer holds the trainer up.

The right answers of MATH rows are from MATH-500 (Hendrycks et al., 2021; MIT).
"""

import os
import signal
import threading
import time

import pytest

from hf_cascade.rewards.maths import MathsReward, boxed, gold
from hf_cascade.rewards.verifiable import load_reward
from tests.growth import check_growth, repeated

REWARD = MathsReward(seconds=20, workers=1)  # patient: the machine may be busy

RIGHT = [  # (right, boxed)
    ("18", "18"),
    ("18", "18.0"),
    ("18", "+18"),
    ("18", "18."),
    ("18", "$18$"),
    ("18", r"\(18\)"),
    ("18", "x = 18"),
    ("18", "18 eggs"),
    ("18", r"18\text{ dollars}"),
    ("18", r"\$18"),
    ("18", "2 \\cdot 9"),
    ("33", "033"),
    ("-3", "−3"),
    ("1/2", "0.5"),
    ("1/2", r"\frac12"),
    ("0.5", r"\dfrac{1}{2}"),
    ("1/2", "½"),
    (r"\frac43", r"\frac{4}{3}"),
    (r"1\frac{4}{5}", "9/5"),
    (r"137 \frac{1}{2}", "137.5"),
    (r"-\frac{35}{9}", r"\frac{-35}{9}"),
    (".35625", "0.35625"),
    ("50\\%", "50%"),
    ("50\\%", "0.5"),
    ("50", r"50\%"),
    ("1000", "1,000"),
    ("1000", "1 000"),
    (r"11,\! 111,\! 111,\! 100", "11111111100"),
    (r"\$32,\!348", "32348"),
    ("1500", r"1.5 \times 10^3"),
    ("1500", "1.5 x 10^3"),
    ("1024", "2**10"),
    (r"\pi", "π"),
    (r"288 \pi", r"\pi \cdot 288"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (r"11\sqrt2", "11√2"),
    ("6 - 5i", "-5i+6"),
    (r"90^\circ", "90"),
    (r"90^\circ", "90°"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"5.4 \text{ cents}", "5.4"),
    ("52_8", "52_{8}"),
    ("6+9i", "9 i + 6"),
    ("2 pi", r"2\pi"),
    ("5", "5cm"),
    ("5", "5 m"),
    ("2m", r"m \cdot 2"),
    ("1000", "1 000 litres"),
    ("x^3+3x-6", "3x - 6 + x^3"),
    ("(a+5)(b+2)", "ab + 2a + 5b + 10"),
    (r"\frac{11+9a}{20}", r"\frac{9a}{20} + \frac{11}{20}"),
    (r"\cot x", r"\frac{\cos x}{\sin x}"),
    ("y = 2x + 3", "2x+3"),
    ("5x - 7y + 11z + 4 = 0", "10x - 14y + 22z + 8 = 0"),
    ("x=5", "5"),
    ("1,-2", r"\{-2, 1\}"),
    ("3, 5, 7", "7, 5, 3"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    ("(3,4]", r"\left(3, 4\right]"),
    ("(3,4]", r"3 < x \le 4"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty) \cup (-\infty,2)"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"\emptyset", r"\varnothing"),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}", r"\begin{bmatrix}-\frac13\\\frac23\\\frac53\end{bmatrix}"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{even}", r"\textbf{Even}"),
    ("even function", r"\text{even  function.}"),
    (r"\text{(C)}", "C"),
    ("C", r"\text{(C)}"),
    ("She makes $9 * 2 = <<9*2=18>>18.\n#### 18", "18"),
    ("#### 1,080", "1080"),
    (r"We have $x = 4$, hence $\boxed{\frac{1}{4}}$.", "0.25"),
    (18, "18"),
    (0.25, r"\frac14"),
]
WRONG = [
    ("18", "17"),
    ("18", "-18"),
    ("18", "1.8"),
    ("18", "1 8"),
    ("18", r"1\ 8"),
    ("18", "18 \\text{ or } 19"),
    ("18", "17, 18"),
    ("18", r"18 \text{ or maybe nineteen}"),
    ("18", r"18 \text{ eggs, not hens}"),
    ("18", r"\le 18"),
    ("18", "x < 18"),
    ("18", "18x"),
    ("2", "2ab"),
    ("2ab", "2"),
    ("2", "2 pi"),
    ("2 pi", "2"),
    ("2", "2 sin x"),
    ("2", "2 + eggs"),
    ("2m", "2"),
    ("2m", "3m"),
    ("6+9i", "6-9i"),
    ("18", "eighteen"),
    ("18", ""),
    ("18", "{}"),
    ("18", r"\frac{18"),
    ("18", r"\text{the answer}"),
    ("1/3", "0.33"),
    ("1/2", "2"),
    ("50\\%", "5\\%"),
    ("3,5", "3.5"),
    ("2k", "2k+1"),
    ("x=5", "y=5"),
    ("1,-2", "1,2"),
    ("(1,2)", "(2,1)"),
    ("(3,4]", "(3,4)"),
    ("(3,4]", "[3,4]"),
    (r"\infty", r"-\infty"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    ("52_8", "42"),
    (r"\text{even}", "neve"),
    (r"\text{even}", "odd"),
    (r"\text{(C)}", "B"),
    (r"\text{(C)}", "ABCDE"),
    ("C", "D"),
    ("#### 18", "19"),
    ("x^5 - x^4 + x^3 - x^2 + x - 1", "x^5 + x^4 + x^3 + x^2 + x + 1"),
    ("1", "9" * 1999),
    ("1", "+1" * 1001),  # longer than an answer
    ("1", r"\frac{1}{" * 100 + "2" + "}" * 100),
    ("1", r"\left(" * 300),
    ("1", "(" * 500 + "1" + ")" * 500),  # deeper than an answer
    ("1", "[" * 1999),
    ("1", "\x00\ud800"),
    ("1", "1/0"),
]
HOSTILE = [
    "10^{10^{10}}",
    "9^{9^{9^{9}}}",
    "(10^{9})!",
    r"\prod_{n=1}^{10^8} n",
    "(a+b+c+d)^{60}",
]


def message(text, **keys):
    return [{"role": "assistant", "content": text, **keys}]


def reward_of(completion, right, reward=REWARD, **columns):
    (given,) = reward(["prompt"], [completion], [right], **columns)
    return given


@pytest.mark.parametrize(("right", "given"), RIGHT)
def test_right(right, given):
    assert reward_of(f"So it is $\\boxed{{{given}}}$.", right) == 1


@pytest.mark.parametrize(("right", "given"), WRONG)
def test_wrong(right, given):
    assert reward_of(f"So it is $\\boxed{{{given}}}$.", right) == 0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"[THINK]\boxed{4}[/THINK]\boxed{5}", 1),
        (r"<think>\boxed{5}</think>\boxed{4}", 0),
        (r"<think>\boxed{5}</think>It is five.", 0),
        (r"[THINK]so \boxed{5}", 0),  # cut off inside its thinking
        (r"\boxed{4} no, \boxed{5}", 1),
        (r"\boxed{5} no, \boxed{4}", 0),
        (r"\boxed{5}, to check: \boxed{", 1),
        (r"it is \boxed{5", 0),
        ("it is 5", 0),
        ("", 0),
        (message(r"\boxed{5}", reasoning_content=r"\boxed{4}"), 1),
        (message("five", reasoning_content=r"\boxed{5}"), 0),
        (message([{"type": "thinking", "thinking": "4"}, {"type": "text", "text": r"\boxed{5}"}]), 1),
        (message(None, tool_calls=[]), 0),
        (message(r"\boxed{4}") + [{"role": "tool", "content": r"\boxed{4}"}] + message(r"\boxed{5}"), 1),
        (message(r"\boxed{5}") + [{"role": "tool", "content": r"\boxed{5}"}] + message("done"), 0),
        ([], 0),
    ],
)
def test_the_last_box_of_the_answer_counts(completion, expected):
    assert reward_of(completion, "5") == expected


def test_boxed():
    assert boxed(r"a \boxed{\frac{1}{2}} b") == r"\frac{1}{2}"
    assert boxed(r"\boxed {\{x : x > \sqrt{2}\}}") == r"\{x : x > \sqrt{2}\}"
    assert boxed(r"\boxed{\left\{ 1 \right.}") == r"\left\{ 1 \right."
    assert boxed(r"\boxed{\boxed{3}}") == "3"
    assert boxed(r"\boxed 5 and \boxed{") is None
    assert boxed(r"{ \boxed{1} } \boxed{2} \\{3}} \}") == "2"
    assert boxed(r"\boxed{" * 100_000 + "5" + "}") == "5"
    assert boxed(r"\boxed{" * 100_000) is None and boxed(r"\boxed{5}" * 100_000) == "5"
    for part in (r"\boxed{", r"\boxed{5}"):
        check_growth(boxed, repeated(part), 50_000)
    assert gold("a #### b\n#### -1,000 ") == "-1,000"


def test_rows_without_an_answer_and_metrics():
    logged = {}
    completions = [r"\boxed{1}", r"\boxed{1}", "1", r"\boxed{2}", r"\boxed{1}"]
    given = REWARD(
        [""] * 5, completions, [None, "1", "1", "1.0", r"\frac{("], log_metric=logged.__setitem__, tests=None
    )
    assert given == [None, 1, 0, 0, None]  # nobody can read the last right answer
    assert logged == {"maths_reward/missing": 0.25, "maths_reward/timeout": 0, "maths_reward/failed_rate": 0.25}
    assert REWARD([], [], []) == []
    assert REWARD([""], [""], [None], log_metric=None) == [None]


@pytest.mark.parametrize("given", HOSTILE)
def test_no_answer_takes_longer_than_the_limit(given):
    reward, logged = MathsReward(seconds=0.5, workers=1), {}
    (worker,) = reward._workers.queue
    assert reward_of(r"\boxed{2/4}", "0.5", reward) in (
        1,
        None,
    )  # it runs now; half a second is short on a busy machine
    start = time.monotonic()
    assert reward_of(f"\\boxed{{{given}}}", "5", reward, log_metric=logged.__setitem__) is None
    assert time.monotonic() - start < 60  # 0.5, and a start where the first one was late
    assert logged["maths_reward/timeout"] == logged["maths_reward/failed_rate"] == 1
    assert worker.process is None


def test_a_killed_worker_is_started_anew():
    reward = MathsReward(seconds=20, workers=1)
    assert reward_of(r"\boxed{2/4}", "0.5", reward) == 1
    (worker,) = reward._workers.queue
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    logged = {}
    assert reward_of(r"\boxed{3/6}", "0.5", reward, log_metric=logged.__setitem__) is None
    assert logged["maths_reward/failed_rate"] == 1 and logged["maths_reward/timeout"] == 0
    assert reward_of(r"\boxed{3/6}", "0.5", reward) == 1


def test_in_a_thread_and_once_for_equal_answers(monkeypatch):
    """math-verify alone refuses threads."""
    reward, asked = MathsReward(seconds=20, workers=2), []
    for worker in reward._workers.queue:
        monkeypatch.setattr(worker, "compare", lambda *pair: asked.append(pair) or (pair == ("4", "2+2"), False))
    given = []
    completions = [r"\boxed{2+2}", r"\boxed{2+3}"] * 8
    thread = threading.Thread(target=lambda: given.extend(reward([""] * 16, completions, ["4"] * 16)))
    thread.start()
    thread.join()
    assert given == [1, 0] * 8
    assert sorted(asked) == [("4", "2+2"), ("4", "2+3")]

    thread = threading.Thread(target=lambda: given.append(reward_of(r"\boxed{2+2}", "4")))
    thread.start()
    thread.join()
    assert given[-1] == 1


def test_by_name_and_bad_numbers(monkeypatch):
    assert load_reward("maths_reward") is load_reward("hf_cascade.rewards.maths.maths_reward")
    for numbers in ({"seconds": 0}, {"workers": -1}, {"seconds": float("nan")}):
        with pytest.raises(ValueError, match="give a time above 0, and 1 or more"):
            MathsReward(**numbers)
    reward = MathsReward(workers=1)
    reward._workers.queue[0].command = ["false"]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="did not start"):
            reward_of(r"\boxed{2/4}", "0.5", reward)
