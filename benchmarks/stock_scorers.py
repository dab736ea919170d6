"""What lm-eval's own tasks give a model that always answers correctly, beside ours on the same rows.

    python benchmarks/stock_scorers.py > benchmarks/results/stock_scorers.md

Nothing of the stock tasks is changed: each is loaded from the installed lm-eval, and where it asks the Hub for rows it
gets those that ship in `evals/rows`, at most 20. Each line is one form in which models give a right answer. Ours is the
task of the same benchmark, where it reads the same form.
"""

import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """A form of right answers to one benchmark, for a stock task and one of ours."""

    form: str
    stock: str  # lm-eval's task
    folder: str  # of lm_eval/tasks
    repo: str  # in evals/rows
    config: str | None
    splits: tuple[str, ...]
    metric: str  # lm-eval's, with its filter
    stock_answer: Callable[[dict], str]
    ours: str
    our_answer: Callable[[dict], str]


def boxed(solution: str) -> str:
    """Content of the last box of a solution."""
    from hf_cascade.rewards.maths import boxed

    return boxed(solution)


def plain(doc: dict) -> str:
    """The answer to an open question, or one of several that are right, bare."""
    return re.sub(r"^\['([^']*)'.*", r"\1", doc["answer"])


def lines() -> list[Line]:
    """All forms."""
    maths = ("hendrycks_math_algebra", "hendrycks_math", "EleutherAI/hendrycks_math", "algebra", ("train", "test"))
    maths += ("exact_match,none",)
    aime = ("aime25", "aime", "math-ai/aime25", None, ("test",), "exact_match,none")
    gpqa = "Idavidrein/gpqa", "gpqa_diamond", ("train",)
    cot = ("gpqa_diamond_cot_zeroshot", "gpqa/cot_zeroshot", *gpqa)
    redux = ("mmlu_redux_astronomy_generative", "mmlu-redux/generative", "edinburgh-dawg/mmlu-redux-2.0", "astronomy")
    redux += (("test",), "exact_match,default")
    trivia = ("triviaqa", "triviaqa", "mandarjoshi/trivia_qa", "rc.nocontext", ("train", "validation"))
    trivia += ("exact_match,remove_whitespace",)
    found = []
    for form, answer in {
        "its own solution": lambda doc: doc["solution"],
        "a sentence with \\boxed{}": lambda doc: f"So the answer is $\\boxed{{{boxed(doc['solution'])}}}$.",
        "the final answer is $..$": lambda doc: f"The final answer is ${boxed(doc['solution'])}$.",
    }.items():
        found.append(Line(form, *maths, answer, "cascade_math", answer))
    for form, answer in {
        "\\boxed{}": lambda doc: f"Hence \\boxed{{{doc['answer']}}}.",
        "**bold**": lambda doc: f"The answer is **{doc['answer']}**.",
        "\\boxed{}, three digits": lambda doc: f"\\boxed{{{int(doc['answer']):03d}}}",
    }.items():
        found.append(Line(form, *aime, answer, "cascade_aime25", answer))
    for form, text in {
        "Answer: C": "Answer: {}",
        "a chain of thought": "All four sound right. Comparing masses leaves one. A short check agrees.\nAnswer: {}",
    }.items():
        stock = lambda doc, text=text: text.format("ABCD"[doc["answer"]])  # noqa: E731
        found.append(Line(form, *redux, stock, "", stock))
    for form, text in {
        "Answer: C": "Answer: {}",
        "\\boxed{C}": "So it is \\boxed{{{}}}.",
        "**(C)**": "**({})**",
    }.items():
        stock = lambda doc, text=text: text.format(doc["answer"].strip("()"))  # noqa: E731
        ours = lambda doc, text=text: text.format(doc["right"][0])  # noqa: E731
        found.append(Line(form, *cot, "exact_match,flexible-extract", stock, "cascade_gpqa_diamond_cot", ours))
    shot = ("gpqa_diamond_n_shot", "gpqa/n_shot", *gpqa, "acc,none")
    likely = "log-likelihood of the option that is right in the request"
    ours = lambda doc: doc["right"][0]  # noqa: E731
    found.append(Line(likely, *shot, lambda doc: doc["answer"], "cascade_gpqa_diamond", ours))
    for form, text in {"the answer": "{}", "the X": "the {}"}.items():
        answer = lambda doc, text=text: text.format(doc["answer"]["value"])  # noqa: E731
        found.append(Line(form, *trivia, answer, "cascade_triviaqa", answer))
    agieval = ("agieval_math", "agieval", "hails/agieval-math", None, ("test",), "acc,none")
    for form, text in {"a sentence with \\boxed{}": "So it is $\\boxed{{{}}}$.", "Answer: x": "Answer: {}"}.items():
        answer = lambda doc, text=text: text.format(doc["answer"])  # noqa: E731
        found.append(Line(form, *agieval, answer, "cascade_agieval_math", answer))
    mmmu = ("mmmu_val_math", "mmmu", "MMMU/MMMU", "Math", ("dev", "validation"), "acc,none")
    for form, text in {"(B)": "({})", "\\boxed{B}": "\\boxed{{{}}}", "**B**": "**{}**"}.items():
        answer = lambda doc, text=text: text.format(doc["answer"]) if len(doc["answer"]) == 1 else plain(doc)  # noqa: E731
        found.append(Line(form, *mmmu, answer, "cascade_mmmu", answer))
    return found


def stock_score(line: Line) -> float:
    """The score of lm-eval's task."""
    import lm_eval
    from datasets import DatasetDict
    from lm_eval.api import task as task_module
    from lm_eval.tasks import TaskManager

    from hf_cascade.evaluate.benchmarks import data

    rows = {}
    for split in line.splits:
        try:
            rows[split] = data.read(line.repo, split, line.config)
        except data.MissingData:  # a train split, which the task loads and does not score
            rows[split] = data.read(line.repo, line.splits[-1], line.config)

    before = task_module.datasets.load_dataset
    folder = Path(lm_eval.__file__).parent / "tasks" / line.folder
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task_module.datasets.load_dataset = lambda *_, **__: DatasetDict(rows)
    try:
        task = manager.load([line.stock])["tasks"][line.stock]
    finally:
        task_module.datasets.load_dataset = before
    return run(task, line.stock, line.stock_answer, line.metric)


def run(task, name: str, answer: Callable[[dict], str], metric: str) -> float:
    """The score of a model that answers so."""
    from lm_eval import evaluate

    from hf_cascade.evaluate.conformance.knowing import Knowing, Responding

    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(1234)
    generates = task.OUTPUT_TYPE == "generate_until"
    model = Responding(lambda doc, sample: answer(doc)) if generates else Knowing(True, answer)
    results = evaluate(model, {"tasks": {name: task}}, bootstrap_iters=0)
    return results["results"][name][metric]


def our_score(line: Line) -> float:
    """The score of our task."""
    from hf_cascade.evaluate.conformance.cases import all_cases
    from hf_cascade.evaluate.harness import open_tasks

    task = open_tasks([line.ours], "evals/tasks").load([line.ours])["tasks"][line.ours]
    return run(task, line.ours, line.our_answer, f"{all_cases()[line.ours].metric},none")


def main() -> int:
    from hf_cascade import assets
    from hf_cascade.evaluate.harness import quiet
    from hf_cascade.evaluate.suite.settings import SuiteSettings

    print("# A model that is always right, scored by lm-eval's tasks and by ours\n")
    print(f"`python benchmarks/stock_scorers.py`, lm-eval {metadata.version('lm_eval')}, rows of `evals/rows`.")
    print("lm-eval's GPQA and MMMU draw at random: their figures change from run to run.\n")
    print("| lm-eval's task | right answers, written as | lm-eval | ours |\n|---|---|---:|---:|")
    with SuiteSettings(data=str(assets.find("evals/rows"))).environment(), quiet():
        for line in lines():
            stock = stock_score(line)
            ours = f"{our_score(line):.2f}" if line.ours else "by log-likelihood"
            print(f"| `{line.stock}` | {line.form} | {stock:.2f} | {ours} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
