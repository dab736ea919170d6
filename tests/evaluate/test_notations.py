"""benchmarks/notations.py: one answer in notations that math-verify takes for different ones, and what differs."""

import pytest

from hf_cascade.evaluate.benchmarks.maths import compare
from hf_cascade.evaluate.benchmarks.notations import readable, union
from tests.growth import check_growth, repeated

UNION = r"(-\infty, -2) \cup (3, \infty)"
COLUMN = r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}"
EQUAL = [
    (r"\frac{3}{4}", "¾"),
    (r"\frac{3}{4}", "3⁄4"),
    (r"\sqrt{15}", r"\sqrt 15"),
    (r"\sqrt{15}", "√15"),
    (r"1-\frac{2}{\pi}", r"1-\frac2\pi"),
    ("2", r"\text{two}"),
    ("2", r"\text{2 real roots}"),
    ("7", r"7 \pmod{10}"),
    ("10080", r"10\,080"),
    ("90", r"90 \degree"),
    ("3+4i", r"3 + 4\mathrm{i}"),
    ("(1,-2)", "P(1,-2)"),
    (r"(3,\frac{\pi}{2})", r"\bigl(3,\tfrac{\pi}{2}\bigr)"),
    ("(1,2),(3,4)", r"(1,2) \text{ or } (3,4)"),  # points
    (r"(1,2)\cup(3,4)", r"x\in(1,2) \text{ or } x\in(3,4)"),
    ("2,3,5", r"2, 3, \text{ and } 5"),
    (r"\text{A, B, D}", "A, B, D"),
    (r"\text{ellipse}", "an ellipse"),
    (r"\frac{448}{3}", r"149.\overline{3}"),
    (r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}", r"\frac{-1\pm\sqrt{17}}{2}"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5"),
    (COLUMN, "(-7, 16, 5)"),
    (COLUMN, r"\langle -7, 16, 5 \rangle"),
    (COLUMN, r"\left(\begin{array}{c} -7 \\ 16 \\ 5 \end{array}\right)"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\frac{1}{5}\begin{pmatrix} 1 \\ -18 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\[4pt] 3 & 4 \end{pmatrix}"),
    (UNION, r"x < -2 \text{ or } x > 3"),
    (UNION, r"(-\infty,-2) \text{ and } (3,\infty)"),
    (
        r"(-\infty,-\frac{5}{3})\cup(0,1)\cup(4,\infty)",
        r"x < -\frac{5}{3} \quad \text{或} \quad 0<x<1 \text{ or } 4 < x",
    ),
]
DIFFERENT = [
    (r"\sqrt{15}", r"\sqrt{1}5"),
    ("2", r"\text{two or three}"),
    ("70", r"70 \text{ or } 72"),
    ("70", r"70\pm 1"),
    (r"\sqrt{15}", r"\pm\sqrt{15}"),
    (COLUMN, "(7, 16, 5)"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}"),
    (UNION, r"x \le -2 \text{ or } x \ge 3"),
    (UNION, r"x < -2 \text{ and } x > 3"),
    (UNION, "-2 < x < 3"),
    (UNION, r"x < -2 \text{ or } y > 3"),
    (r"(1,2)\cup(3,4)", r"x\in(1,2) \text{ or } y\in(3,4)"),
    ("6", r"\text{6 plus two}"),
    ("6", r"\text{6 times seven}"),
    ("6", r"\text{6 dozen}"),
    ("(1,2)", "(1,2), (2,1)"),  # points, no intervals of which one is empty
    (r"\frac{448}{3}", "149.3"),
]


@pytest.mark.parametrize(("right", "given"), EQUAL)
def test_equal(right, given):
    assert compare(right, given) == (True, False)


@pytest.mark.parametrize(("right", "given"), DIFFERENT)
def test_different(right, given):
    assert compare(right, given) == (False, False)


def test_what_is_plain_stays_as_it_is():
    for answer in (r"\frac{1}{2}", "x^2-5x+6", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(2,3)", "1, 2", r"2\sqrt{3}"):
        assert readable(answer) == answer


@pytest.mark.parametrize(
    ("answer", "intervals"),
    [
        ("x<2 or x>=5", r"(-\infty, 2) \cup [5, \infty)"),
        (r"x<2 \text{ or } x\ge5", r"(-\infty, 2) \cup [5, \infty)"),
        (r"2>x \cup 3 \le x < \pi", r"(-\infty, 2) \cup [3, \pi)"),
        (r"x\in[0,1) \cup (2,3]", r"[0,1) \cup (2,3]"),
        ("x<2", None),
        ("1 or 2", None),
        ("x<2 or y", None),
        ("x<2 or y>3", None),
        ("(1,2) or (3,4)", None),
        (r"(1,2) or (3,\infty)", r"(1,2) \cup (3,\infty)"),
    ],
)
def test_unions(answer, intervals):
    assert union(answer) == intervals


@pytest.mark.parametrize("part", (" ", r"\quad ", " or", r"\text{ ", r"\text{or "))
def test_no_answer_takes_long(part):
    check_growth(readable, lambda length: f"x<2{repeated(part)(length)}y", 200)
