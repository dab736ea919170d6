"""benchmarks/physics.py: formulas are right in every notation, EED scores are those of its definition."""

import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import data, physics
from hf_cascade.evaluate.benchmarks.edit_distance import edit_distance, same, score, size, tree, whole_cost
from hf_cascade.evaluate.benchmarks.expressions import Unreadable, read
from hf_cascade.evaluate.conformance.knowing import Responding

READ = [  # (LaTeX, what sympy prints)
    (r"\frac{2 m g \sin\theta}{\mu_0 I_0}", "2*g*m*sin(theta)/(I_0*mu_0)"),
    (r"v_{\text{max}} = \sqrt{2gM}", "sqrt(2)*sqrt(M*g)"),
    (r"x_0 e^{-\gamma t}", "x_0*exp(-gamma*t)"),
    (r"\frac{k e^2}{r}", "e**2*k/r"),
    (r"a\cos^2\alpha", "a*cos(alpha)**2"),
    (r"\left(\frac{a}{b}\right)^{1/3}", "(a/b)**(1/3)"),
    (r"\sin 2\theta\cos\phi", "sin(2*theta)*cos(phi)"),
    (r"3.2\,\mathrm{m/s}", "16/5"),
    (r"1.6\times 10^{-19}\ \text{C}", "1/6250000000000000000"),
    (r"\frac12 m v_0^2", "m*v_0**2/2"),
    (r"v^2_0", "v_0**2"),
    (r"\sin^{-1}(x)", "asin(x)"),
    (r"\sqrt[3]{x}", "x**(1/3)"),
    ("2π√(l/g)", "2*pi*sqrt(l/g)"),
    ("2*pi*sqrt(l/g)", "2*pi*sqrt(l/g)"),
    ("A cos(omega t)", "A*cos(omega*t)"),
    (r"\lambda'", "lambda'"),
    (r"30^\circ", "pi/6"),
    (r"\frac\alpha2", "alpha/2"),
    (r"m g\left[1-\cos\frac{\theta}{2}\right]", "g*m*(1 - cos(theta/2))"),
    (r"T=2\pi \quad(k>0)", "2*pi"),
    ("1,000", "1000"),
    ("$$ -x^2 $$", "-x**2"),
]
EQUAL = [
    (r"\sin\theta", r"\cos(\frac{\pi}{2}-\theta)"),
    (r"\frac{\sin 2x}{2}", r"\sin x\cos x"),
    (r"\ln a - \ln b", r"\ln\frac{a}{b}"),
    (r"\phi", r"\varphi"),
    (r"\frac{1}{4\pi\epsilon_0}", r"\frac{1}{4 \pi \varepsilon_{0}}"),
    (r"v_{\text{max}}", "v_{max}"),
    (r"m_1m_2", "m_{1} m_{2}"),
    (r"\sqrt{\frac{a}{b}}", r"\frac{\sqrt{a b}}{b}"),
    (r"(a+b)^2", "a^2+2ab+b^2"),
    (r"x\ln(2) t", r"\ln 2 \cdot x t"),
    (r"\frac{1}{\sqrt{a(1+b)-b}}", r"\sqrt{\frac{1}{a(b+1)-b}}"),  # of two signs where the root is not real
    (r"\sqrt{\frac{1+r}{1+r-r^2}}", r"\frac{1}{\sqrt{1-\frac{r^2}{1+r}}}"),
    (r"\frac{2}{\sqrt{a^2-r^2}}", r"\sigma(r)=\frac{2}{a\sqrt{1-(r/a)^2}},\quad r<a"),
    (r"\frac{2}{\sqrt{a^2-r^2}}", r"\frac{2}{\sqrt{a^2-r^2}} \text{ for } r<a"),
    (r"5m\omega^2R", r"F=5m\omega^2 R \text{ (at } \theta = 0)"),
    (r"\frac{2}{5}", r"40\%"),
    (r"\sqrt{2gh}", r"\;v=\sqrt{2gh}\;"),
    (r"|a-b|", r"\sqrt{(a-b)^2}"),
    (r"\sqrt{|a-b|}", r"|a-b|^{1/2}"),
]
UNEQUAL = [
    (r"\frac{2gM}{m+M}", r"\frac{2gm}{m+m}"),
    (r"\theta", r"\Theta"),
    ("2E", "2e"),
    (r"\gamma", "0.5772156649"),
    ("v_1", "v_2"),
    ("x", "-x"),
    (r"\sqrt2", "1.41421356"),
    ("x", "x, y"),
    ("x", "y = 1, x = x"),
    (r"x", r"x \text{ or } 2x"),
    (r"\sqrt{x^2-y^2}", r"\sqrt{y^2-x^2}"),
    (r"\sqrt{a-b}", r"\sqrt{|a-b|}"),
    (r"\ln(1-x)", r"\ln|1-x|"),
    ("x", "((((("),
    ("x", ""),
]


@pytest.mark.parametrize("latex, printed", READ)
def test_reader(latex, printed):
    assert str(read(latex)) == printed


PARTIAL = r"\frac{\partial f}{\partial x}"


@pytest.mark.parametrize("latex", ["", r"\int x dx", r"\frac{1}{", "a, b", PARTIAL, "(" * 50, "x" * 3000])
def test_what_has_no_one_value_is_unreadable(latex):
    with pytest.raises(Unreadable):
        read(latex)


@pytest.mark.parametrize("right, given", EQUAL)
def test_equal_formulas(right, given):
    assert physics.compare(right, given)["equal"]
    assert physics.compare(given, right) == {"equal": True, "eed": 100.0, "form": None}


@pytest.mark.parametrize("right, given", UNEQUAL)
def test_unequal_formulas(right, given):
    assert not physics.compare(right, given)["equal"]


def test_answers_without_one_value_are_left_to_math_verify():
    assert physics.compare(r"\int f(x) dx", r"\int f(x)dx")["equal"]
    assert physics.compare("1, 2", "2, 1")["equal"]
    assert not physics.compare("1, 2", "2, 3")["equal"]


def test_eed_by_hand():
    """a + b c has five nodes: a change costs 1 of 5; a subtree that is put in costs its nodes, above five less."""
    right = tree(read("a + b c"))
    assert size(right) == 5
    assert score(tree(read("a + b d")), right) == pytest.approx(40)
    assert score(tree(read("a + d f")), right) == pytest.approx(20)
    assert score(right, right) == 100
    assert score(tree(read("u")), right) == 0
    assert edit_distance(tree(read("a")), right) == 4  # the root, b c with three nodes
    assert [whole_cost(nodes) for nodes in (1, 5, 6, 10)] == [1, 5, pytest.approx(5.6), 8]


def test_a_large_subtree_costs_less_than_its_nodes():
    star = ("f", tuple((name, ()) for name in "abcdefghi"))  # ten nodes
    one, two = ("Add", (("x", ()), ("y", ()))), ("Add", (("x", ()), star, ("y", ())))
    assert edit_distance(one, two) == edit_distance(two, one) == pytest.approx(8)


def test_distance_is_zhangs_and_shashas_where_no_subtree_is_large():
    """Their paper's example: f(d(a c(b)) e) and f(c(d(a b)) e) are 2 apart."""
    one = ("f", (("d", (("a", ()), ("c", (("b", ()),)))), ("e", ())))
    two = ("f", (("c", (("d", (("a", ()), ("b", ()))),)), ("e", ())))
    assert edit_distance(one, two) == 2


def test_same_asks_for_equal_values_everywhere():
    assert same(read("(x^2-1)/(x-1)"), read("x+1"))
    assert not same(read(r"\sqrt{(a-b)^2}"), read("a-b"))


def test_bombs_end_in_time_and_are_wrong(monkeypatch):
    monkeypatch.setattr(physics, "WORKER", physics.FormulaWorker(2.0))
    assert physics.judge("x + 17", r"\boxed{10^{10^{10}}}").correct == 0
    assert physics.judge("x + 17", r"\boxed{x + 17}").correct == 1
    assert physics.judge("x + 17", r"\boxed{17 + x}").correct == 1  # with a new worker


def test_votes_are_counted_by_value():
    responses = [r"\boxed{2ab}", r"\boxed{b a \cdot 2}", r"\boxed{a+a}", r"\boxed{2a}", r"\boxed{c}", "[THINK]x"]
    found = physics.process_phybench({"answer": "2a"}, [responses])
    assert found["avg_at_k"] == pytest.approx(2 / 6)
    assert found["maj_at_k"] == 0.5  # 2ab twice, 2a twice
    assert 0 < found["eed"] < 1 and found["eed"] > found["avg_at_k"]


def rows():
    path = assets.find("evals/rows/Eureka-Lab/PHYBench/train.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_conformance_responses():
    path = assets.find("evals/conformance/cascade_phybench.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) >= 6 and {line["correct"] for line in lines} == {0, 1}
    for line in lines:
        found = physics.process_phybench(line["doc"], [[line["response"]]])
        assert found["avg_at_k"] == line["correct"], line["response"]


@pytest.mark.parametrize("kind, expected", [("right", 1.0), ("wrong", 0.0)])
def test_oracles_through_lm_eval(monkeypatch, kind, expected):
    monkeypatch.setenv(data.VARIABLE, str(assets.find("evals/rows")))
    manager = TaskManager(include_path=str(assets.find("evals/tasks")), include_defaults=False)
    case = physics.CASES["cascade_phybench"]
    answers = getattr(case, kind)
    model = Responding(lambda doc, sample: answers(doc)[sample % len(answers(doc))])
    found = simple_evaluate(model, tasks=["cascade_phybench"], task_manager=manager, bootstrap_iters=0)
    assert found["results"]["cascade_phybench"]["avg_at_k,none"] == expected
    assert found["n-samples"]["cascade_phybench"] == {"original": 10, "effective": 10}


def test_loader_takes_each_answered_row_once(tmp_path, monkeypatch):
    folder = tmp_path / physics.REPO
    folder.mkdir(parents=True)
    known, asked = rows()[0], {**rows()[1], "answer": None, "solution": None}
    (folder / "PHYBench-fullques_v1.json").write_text(json.dumps([known]))
    (folder / "PHYBench-onlyques_v1.json").write_text(json.dumps([asked]))
    edited = known | {"content": known["content"] + "  "}  # one problem, in words of another day
    (folder / "PHYBench-questions_v1.json").write_text(json.dumps([edited, asked]))
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    assert physics.load_phybench(version=1.0)["test"]["content"] == [known["content"]]
    assert physics.prompt(known).endswith("Answer:") and "\\boxed{}" in physics.prompt(known)


def test_rows_without_an_id_are_told_apart_by_their_content(tmp_path, monkeypatch):
    folder = tmp_path / physics.REPO
    folder.mkdir(parents=True)
    given = [row | {"id": None} for row in rows()[:3]]
    (folder / "train.json").write_text(json.dumps([*given, given[0]]))
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    assert physics.load_phybench()["test"]["content"] == [row["content"] for row in given]
