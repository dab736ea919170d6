"""benchmarks/maths.py: what a response states, what equals it, the rows, and the tasks run by lm-eval itself."""

import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks import data, maths
from hf_cascade.evaluate.benchmarks.maths import Judge, gold_of, stated
from hf_cascade.evaluate.benchmarks.sampled import KeepAll
from hf_cascade.evaluate.conformance.knowing import Responding
from hf_cascade.evaluate.harness import open_tasks
from hf_cascade.rewards.maths import MathsReward
from tests.growth import check_growth, repeated

STATED = [
    (r"so $\boxed{70}$", "70"),
    (r"\boxed{1}, no: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed 5.", "5"),
    (r"\fbox{5}", "5"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"$\boxed{1}$ and $\boxed{-2}$", "1, -2"),
    (r"\boxed{5} or \boxed{5}", "5"),
    (r"\boxed{x=5}" "\n\n" r"\boxed{5}", "5"),
    (r"\boxed{6}. Final Answer: The final answer is $5$. I hope it is correct.", "5"),
    (r"\boxed{5}. I hope this answer is correct.", "5"),
    ("The final answer is $0.5$. I hope it is correct.", "0.5"),
    (r"The final answer is $\$18.90$. I hope", r"\$18.90"),
    ("The answer is therefore **70**.", "70"),
    ("**Answer**: 70", "70"),
    ("ANSWER:\n\n$$70$$", "70"),
    ("The answers are $1$ and $2$.", "1, 2"),
    ("My answer is 70, since 7 * 10 = 70.", "70"),
    ("answer: -5", "-5"),
    ("70", "70"),
    ("**70**", "70"),
    (r"\(\frac12\)", r"\frac12"),
    ("$$70$$", "70"),
    (r"\boxed{70", None),
    (r"\boxed{}", None),
    ("", None),
    ("There are 12, then 70", None),
    ("We answered: 70 is a number" * 10, None),
    ("70 71", None),
    ("I do not have the answers, sorry; 70", None),
    # in the manner of models: closings, headers, languages, notes and corrections after the answer
    ("The answer is $56$, since 7 and 8 are the only ones.", "56"),
    ("The answer is $56$, because $7 \\cdot 8 = 56$ and $2 + 2 = 4$.", "56"),
    ("The answer is $56$, and we are done.", "56"),
    ("The answer is $56$ (we discard the negative root).", "56"),
    ("The answer is 56, not 12.", "56"),
    ("Answer: There are 56 ways.", "56"),
    ("**Answer:** The area is $56$ square units.", "56"),
    ("This gives a final answer of $56$.", "56"),
    ("The answer comes out to $56$.", "56"),
    ("### Final Answer\n\n$$\n56\n$$", "56"),
    ("**Final Answer**\n\n56", "56"),
    ("#### 56", "56"),
    ("<answer>56</answer>", "56"),
    ('{"reasoning": "7 times 8", "answer": "56"}', "56"),
    (r"\boxed{\text{Final Answer: } 56}", "56"),
    (r"\boxed{\textbf{56}}", "56"),
    (r"$\boxed{56}$" "\n\nNote: write it as $\\boxed{}$. The answer is unique.", "56"),
    (r"\boxed{12}" "\n\nWait, I forgot a factor. So the answer is $56$.", "56"),
    (r"\boxed{56}" "\n\nTo check our answer: $7 \\cdot 8 = 56$.", "56"),
    ("Die Antwort ist $56$.", "56"),
    ("La respuesta final es 56.", "56"),
    ("La réponse est donc $56$.", "56"),
    ("Risposta: $56$", "56"),
    ("Resposta final: **56**", "56"),
    ("所以答案是56。", "56"),
    ("最终答案：$56$", "56"),
    ("したがって、答えは56です。", "56"),
    ("따라서 정답은 $56$입니다.", "56"),
    (r"The answer is $2^{25} \cdot 26!$", r"2^{25} \cdot 26!"),
    ("If the answer is $56$, then seven divides it.", None),
    ("I thought the answer is $56$, but that is wrong.", None),
    ("The answer is $56$ times $2$.", "$56$ times $2$"),
    ("The answer is at least 56 ways.", "at least 56 ways"),
    # boxes, sentences and ends as base models, distilled reasoners and public solutions have them
    (r"are: \[ \boxed{-2} \quad \text{and} \quad \boxed{1}. \]", "-2, 1"),
    (r"$x = \boxed{1}$ or $x = \boxed{3}$", "1, 3"),
    (r"$5 + 75 + 1 = \boxed{\textbf{(081) }}$." "\n~a user", "(081)"),
    (r"$\boxed{\textbf{(C) } 70}$", "70"),
    (r"\boxed{\color{blue}{70}}", "70"),
    (r"$\boxed{\text{The answer is } 70}$", "70"),
    (r"\boxed{\text{2, 3, 5}}", "2, 3, 5"),
    ('{"answer": 70}', "70"),
    ("**Answer:** `204`", "204"),
    ("The answers are 2, 3, and 5.", "2, 3, 5"),
    ("The answer is the point $(2,3)$.", "(2,3)"),
    ("Final Answer: The largest $n$ is 34.", "34"),
    ("Final Answer: The volume of $ABCDEFGH$ is 120", "120"),
    ("the answer is 42 and we are done", "42"),
    ("the answer is $5$. <|im_start|>user\nAnother: $\\boxed{8}$", "5"),
    (r"The answer is 5.<|eot_id|> The answer is 6.", "5"),
    (r"Is the answer 4?<|end|><|start|>assistant<|channel|>final<|message|>$\boxed{5}$", "5"),
    # without a statement: what the last sentence concludes, or a last line in bold
    ("Therefore, the probability that Alice wins the game is 2/3. <|im_start|>user", "2/3"),
    ("Therefore, there are 12 distinct sequences that meet the conditions. I hope it is correct.", "12"),
    ("$y = 2.8$ So, the ordered pair $(x, y)$ that solves it is $(7, 6)$.", "(7, 6)"),
    ("So the smallest such n is **7**.", "7"),
    ("Hence, n = 7.", "n = 7"),
    ("The number of ways is\n\n**70**", "70"),
    ("**−984**", "−984"),
    ("Thus 7 is too small. The next candidate is 8.", None),
    ("Therefore, there are at least 7 integers.", None),
    ("So it can't be 7.", None),
    ("Therefore, 40 daps equal 42 baps.", None),
    ("Therefore, 7 is a lower bound.", None),
    ("So $48$ students and $12$ teachers came.", None),
    ("So n = 7!", None),
    ("Therefore, the solutions are $-1$ and $4$.", "-1, 4"),
    ("Thus there are 7 cases to consider:", None),
    ("$a$ is odd and $b$", None),
    ("So we find that $x = 5$.", "x = 5"),
    ("Therefore, there are 5 ways.", "5"),
    ("Hence the area is 12 square units.", "12"),
]
NO_CONCLUSIONS = [  # denied, supposed, of a case, on the way, or a number that the sentence is not about
    "So 5 fails.",
    "So $n=4$ is impossible.",
    "Thus, $x = 5$ does not work.",
    "Therefore $5$ is too small.",
    "We get 7, so the answer cannot be 7.",
    "So it could be 5.",
    "So let us check n = 5.",
    "So, is it 5?",
    "So the average is then 12 but that seems wrong.",
    "So the claim is false for n = 4.",
    "So the formula holds for n = 4.",
    "Step 2: so the first term is 7.",
    "If n is 4, then 12 remain, so the remainder is 0.",
    "So the total so far is 7.",
    "We choose it so that the sum is 5.",
    "Thus Alice has 5 apples.",
    "So $5$ divides it.",
    "So the sum is 5 in the first case.",
    "Therefore, there are 3 cases.",
]
RIGHT_70 = [
    "70",
    "070",
    "70.",
    "$70$",
    "**70**",
    "Answer: 70",
    "The answer is 70 apples.",
    r"\boxed{070}",
    r"\boxed{70.0}",
]
RIGHT_70 += [r"\boxed{n = 70}", r"\boxed{70^\circ}", r"\boxed{\text{70}}", r"\boxed{2 \cdot 35}", r"\boxed{+70}"]
BASES = [("2220_5", "2220_{5}", True), ("2220_5", "2220_6", False), ("2220_5", "2220", True)]
BASES += [("52_8", r"52_{\text{eight}}", True), ("52_8", "42 = 52_8", True), ("52_8", "52_{10}", False)]
AGAIN = "I hope it is correct. Note: this is wrong. Final Answer: The final answer is $71$. I hope it is correct."
WRONG_70 = ["The answer is not 70.", "The answer is 7 or 70", "70 71", "answer: 170", "answer: 70.5", r"\boxed{70, 71}"]
WRONG_70 += [
    r"\boxed{69} and \boxed{70}",
    r"\boxed{-70}",
    r"\boxed{70i}",
    r"\boxed{70x}",
    r"\boxed{7 0}",
    r"\boxed{x>70}",
]
WRONG_70 += [
    r"\boxed{70\pm 1}",
    r"\boxed{70!}",
    "The answer is between 60 and 70.",
    r"\boxed{70\text{ or }71}",
    "7",
    "",
]


@pytest.mark.parametrize("response, expected", STATED)
def test_stated(response, expected):
    assert stated(response) == expected


@pytest.mark.parametrize("response", NO_CONCLUSIONS)
def test_what_concludes_nothing(response):
    assert stated(response) is None


@pytest.mark.parametrize("part", ("1,", r"\(1\),", "(1),"))
def test_no_list_takes_long(part):
    """Few parts: were each read in two ways, thirty would take minutes."""
    check_growth(lambda text: stated(f"The answer is that the list is {text}N,... and it goes on"), repeated(part), 20)


@pytest.mark.parametrize("response", RIGHT_70)
def test_integers_in_every_notation(response):
    assert Judge("70")(response) == (1, "70") and Judge("070")(response) == (1, "70")


@pytest.mark.parametrize("response", WRONG_70)
def test_what_is_not_the_integer(response):
    assert Judge("70")(response).correct == 0


def test_wrong_answers_vote_by_value():
    judge = Judge("1/2")
    votes = [judge(rf"\boxed{{{answer}}}").parsed for answer in (r"\frac13", "1/3", r"\frac{2}{6}", "0.5", "7", "007")]
    assert len(set(votes[:3])) == 1 and votes[4] == votes[5]
    assert len({votes[0], votes[3], votes[4]}) == 3


def test_golds():
    assert gold_of(r"so $\boxed 2$.") == "2"
    assert gold_of(r"\boxed{1} then \fbox{\text{B}}") == r"\text{B}"
    assert gold_of("none") is None


def test_bombs_end_in_time_and_are_wrong(monkeypatch):
    monkeypatch.setattr(maths, "REWARD", MathsReward(seconds=2, workers=1))
    maths.compare.cache_clear()
    assert Judge("83")(r"\boxed{10^{10^{10}}}").correct == 0
    assert Judge("83")(r"\boxed{\frac{166}{2}}").correct == 1  # with a new worker


LOOPS = [r"\boxed{", "answer is ", "$", r"\boxed{1},", r"\boxed ", "{", "answer*", "answer is $1$,", "1,", "(", "`"]
LOOPS += ["therefore ", "so 1 or ", r"\quad", "\n**1"]


@pytest.mark.parametrize("part", LOOPS)
def test_no_loop_takes_long(part):
    check_growth(lambda text: maths.process_competition({"answer": "83"}, [[text]]), repeated(part), 20_000)


def run(task: str, model, monkeypatch) -> dict:
    monkeypatch.setenv(data.VARIABLE, str(assets.find("evals/rows")))
    manager = TaskManager(include_path=str(assets.find("evals/tasks")), include_defaults=False)
    return simple_evaluate(model, tasks=[task], task_manager=manager, bootstrap_iters=0)


@pytest.mark.parametrize("task", maths.CASES)
def test_oracles_through_lm_eval(monkeypatch, task):
    case = maths.CASES[task]
    for answers, expected in ((case.right, 1.0), (case.wrong, 0.0)):
        places = {}

        def respond(doc, sample, answers=answers, places=places):
            place = places.setdefault(doc["problem"], len(places)) + sample
            return answers(doc)[place % len(answers(doc))]

        found = run(task, Responding(respond), monkeypatch)
        assert found["results"][task][f"{case.metric},none"] == expected
        assert found["n-samples"][task]["original"] == {"cascade_hmmt25": 8, "cascade_math": 20}.get(
            task, 20 if "math" in task else 6
        )


def test_of_two_shots_answers_the_first_in_their_form_counts(monkeypatch):
    """As Minerva reads them; what a base model goes on with is nobody's answer."""
    monkeypatch.setenv(data.VARIABLE, str(assets.find("evals/rows")))
    task = open_tasks(["cascade_math"], "evals/tasks").load(["cascade_math"])["tasks"]["cascade_math"]
    until = task.config.generation_kwargs["until"]
    (kept,) = KeepAll(until).apply([[f"Final Answer: The final answer is $70$. {AGAIN}"]], [{}])
    assert maths.process_math({"answer": "70"}, [kept])["acc"] == 1


@pytest.mark.parametrize("task", maths.CASES)
def test_every_format_thinking_and_unfinished_thinking(task):
    case = maths.CASES[task]
    path = assets.find(f"evals/conformance/{task}.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) >= 6 and {line["correct"] for line in lines} == {0, 1}
    process = maths.process_math if case.metric == "acc" else maths.process_competition
    for line in lines:
        assert process(line["doc"], [[line["response"]]])[case.metric] == line["correct"], line["response"]
    for line in lines[:: len(lines) // 4]:
        for answers, expected in ((case.right, 1), (case.wrong, 0)):
            for response in answers(line["doc"]):
                for whole in (response, f"[THINK]\\boxed{{3}}[/THINK]{response}", f"hm \\boxed{{3}}</think>{response}"):
                    assert process(line["doc"], [[whole]])[case.metric] == expected, whole
                assert process(line["doc"], [[f"<think>{response}"]])[case.metric] == 0


def write(folder, repo: str, name: str, rows: list[dict]) -> None:
    (folder / repo).mkdir(parents=True, exist_ok=True)
    (folder / repo / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_math_from_one_file_is_read_once(tmp_path, monkeypatch):
    row = {"problem": "2 + 2?", "solution": r"It is $\boxed{4}$.", "answer": "other"}
    write(tmp_path, maths.MATH, "test.jsonl", [row, row])
    monkeypatch.setattr(data, "used", {})
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    found = maths.load_math(version=1.0)["test"]
    assert found["answer"] == ["4", "4"]
    assert [name for name in data.used if name.startswith(maths.MATH)] == [f"{maths.MATH}/test"]
    prompt = maths.two_shots(found[0])
    assert prompt.count("Problem:") == 3 and prompt.endswith("Problem:\n2 + 2?\n\nSolution:")
    assert maths.instruction(found[0]).startswith("2 + 2?\n\nPlease reason")


def test_math_with_a_config_missing_or_a_row_without_answer(tmp_path, monkeypatch):
    write(tmp_path, f"{maths.MATH}/algebra", "test.jsonl", [{"problem": "1", "solution": r"\boxed{1}"}])
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    with pytest.raises(data.MissingData, match="counting_and_probability"):
        maths.load_math()
    write(tmp_path, maths.MATH, "test.jsonl", [{"problem": "2", "solution": r"\boxed{2}"}])
    with pytest.raises(data.MissingData, match="or one with all rows"):
        maths.load_math()
    write(tmp_path / "other", maths.MATH, "test.jsonl", [{"problem": "1", "solution": "1"}])
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="row 0"):
        maths.load_math()


def test_competitions_in_other_spellings(tmp_path, monkeypatch):
    write(tmp_path, "a/b", "train.jsonl", [{"ID": "I-1", "Problem": "1?", "Solution": "", "Answer": 25}])
    write(tmp_path, "a/c", "train.jsonl", [{"question": "1?", "answer": "1"}])
    write(tmp_path, "a/d", "train.jsonl", [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": None}])
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    assert maths.load_competition("a/b", "train")["test"][0]["answer"] == "25"
    with pytest.raises(ValueError, match="a/c: no column problem"):
        maths.load_competition("a/c", "train")
    with pytest.raises(ValueError, match="row 1: no answer"):
        maths.load_competition("a/d", "train")


@pytest.mark.parametrize("right, given, equal", BASES)
def test_a_number_has_its_base(right, given, equal):
    assert maths.compare(right, given)[0] is equal
