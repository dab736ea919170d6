"""The runner: lm-eval's own figures, nothing asked twice, one task's trouble is not the others'."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from lm_eval import evaluate
from lm_eval.api.model import LM

from hf_cascade.evaluate import metrics
from hf_cascade.evaluate.backends.asking import Asking, Response
from hf_cascade.evaluate.backends.hf import HFBackend
from hf_cascade.evaluate.conformance.knowing import Knowing
from hf_cascade.evaluate.harness import open_tasks, quiet
from hf_cascade.evaluate.suite.run import run_suite
from hf_cascade.evaluate.suite.settings import SuiteSettings

from .conftest import tiny_model

TINY = ["cascade_tiny_bits", "cascade_tiny_continuation", "cascade_tiny_copy"]
CODE = """
from datasets import Dataset

from hf_cascade.evaluate.benchmarks import data
from hf_cascade.evaluate.benchmarks.judge_settings import JudgeSettings
from hf_cascade.evaluate.benchmarks.sampled import Verdict, once, several

WORDS = ["sea", "man", "old", "house", "light", "river", "stone"]


def load(**_):
    rows = [{"question": f"the {word} was {'very ' * place}", "answer": "e"} for place, word in enumerate(WORDS)]
    return {"test": Dataset.from_list(rows)}


def missing(**_):
    raise data.MissingData("no rows here: get them")


def broken(**_):
    raise ZeroDivisionError("a fault")


def verdict(response):
    first = next((letter for letter in response if letter.isalpha()), None)
    return Verdict(float(first in ("e", "t", "a")), first)


def score(doc, results):
    return once(results, verdict)


def score_all(doc, results):
    return several(results, verdict)


def judged(doc, results):
    JudgeSettings.from_environment()
    return {"acc": 1.0}


def image(doc):
    return [None]
"""
YAML = """
task: {name}
custom_dataset: !function toy.{load}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
num_fewshot: 0
repeats: {repeats}
generation_kwargs: {{max_gen_toks: 8, until: [], do_sample: {sample}, temperature: {temperature}}}
filter_list: [{{name: none, filter: [{{function: keep_all}}]}}]
process_results: !function toy.{score}
metric_list:
{metrics}
metadata: {{version: 2.0, num_fewshot: 3, chance: 0.1}}
{more}
"""


def write_tasks(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "toy.py").write_text(CODE)
    one, many = ["acc", "unparsed", "unfinished"], ["avg_at_k", "pass_at_k", "maj_at_k", "unparsed", "unfinished"]

    def write(name, load="load", score="score", names=one, repeats=1, temperature=0.0, more=""):
        lines = [f"  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}" for metric in names]
        if repeats > 1:
            aggregation = "!function hf_cascade.evaluate.benchmarks.sampled.within_problem"
            lines.append(f"  - {{metric: within_problem, aggregation: {aggregation}, higher_is_better: false}}")
        fields = {"name": name, "load": load, "score": score, "repeats": repeats, "temperature": temperature}
        text = YAML.format(**fields, sample=str(temperature > 0).lower(), metrics="\n".join(lines), more=more)
        (folder / f"{name}.yaml").write_text(text)

    write("toy_greedy")
    write("toy_sampled", score="score_all", names=many, repeats=6, temperature=1.0)
    write("toy_missing", load="missing")
    write("toy_broken", load="broken")
    write("toy_judged", score="judged")
    write("toy_image", more="doc_to_image: !function toy.image")
    return str(folder)


@pytest.fixture(scope="session")
def path(tmp_path_factory) -> str:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model():
    return tiny_model(3, max_position_embeddings=1024)


@pytest.fixture
def lm(model, tokenizer):
    return HFBackend(model, tokenizer, batch_size=4)


class Counting(Asking, LM):
    """Answers from a function of prompt and repeat; counts what it is asked, stops after `patience`."""

    identity = "counting"

    def __init__(self, answer=lambda context, repeat: f"e {repeat}", patience=None):
        super().__init__()
        self.answer, self.patience, self.asked = answer, patience, []

    def generate_until(self, requests):
        found = []
        for request in requests:
            if self.patience is not None and len(self.asked) >= self.patience:
                raise KeyboardInterrupt
            self.asked.append((request.args[0], request.repeat))
            text = self.answer(*self.asked[-1])
            found.append(None if text is None else Response(text, tokens=len(text), finish="stop", looped=False))
            self.answered(request, found[-1])
        return found

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def plain(results: dict) -> dict:
    """Without the seconds."""
    return {name: {key: value for key, value in found.items() if key != "seconds"} for name, found in results.items()}


def test_figures_are_lm_evals(lm, path, tmp_path):
    """Value and standard error of every metric, log-likelihood and generation."""
    for tasks, tasks_path in ((TINY, "evals/tasks/tiny"), (["toy_greedy"], path)):
        with quiet():
            stock = evaluate(lm, open_tasks(tasks, tasks_path).load(tasks), limit=10, bootstrap_iters=1000)
        ours = run_suite(lm, tasks, SuiteSettings(limit=10, tasks_path=tasks_path), tmp_path)
        for task in tasks:
            assert ours[task]["status"] == "run" and ours[task]["rows"] == stock["n-samples"][task]["effective"]
            assert ours[task]["rows_full"] == stock["n-samples"][task]["original"]
            for metric, figure in ours[task]["all"].items():
                assert figure["value"] == stock["results"][task][f"{metric},none"], metric
                assert figure["stderr"] == stock["results"][task][f"{metric}_stderr,none"], metric
    found = ours["toy_greedy"]
    assert (found["metric"], found["chance"], found["num_fewshot"], found["version"]) == ("acc", 0.1, 3, 2.0)
    assert found["protocol"]["temperature"] == 0 and found["protocol"]["max_gen_tokens"] == 8
    assert found["protocol"]["task_max_gen_tokens"] == 8
    fewer = SuiteSettings(limit=2, tasks_path=path, max_gen_tokens=5)
    told = run_suite(lm, ["toy_greedy"], fewer, tmp_path)["toy_greedy"]["protocol"]
    assert (told["max_gen_tokens"], told["task_max_gen_tokens"]) == (5, 8)
    assert found["samples"] == found["rows"] == 7 and found["output_tokens"] <= 8 and found["truncated"] is not None


def test_one_run_gives_every_sampled_figure(path, tmp_path):
    texts = ["e", "x", "e", "t", "x x", "."]
    lm = Counting(lambda context, repeat: texts[(repeat + len(context)) % 6] if "sea" in context else texts[repeat])
    found = run_suite(lm, ["toy_sampled"], SuiteSettings(tasks_path=path), tmp_path)["toy_sampled"]
    correct, parsed = [1, 0, 1, 1, 0, 0], ["e", "x", "e", "t", "x", None]
    assert found["metric"] == "avg_at_k" and found["value"] == 0.5 and found["unparsed"] == pytest.approx(1 / 6)
    assert found["pass_at"] == {str(k): pytest.approx(metrics.pass_at_k(6, 3, k)) for k in (1, 2, 4, 6)}
    assert found["maj_at"] == {str(k): pytest.approx(metrics.maj_at_k(parsed, correct, k)) for k in (1, 2, 4, 6)}
    assert found["within_problem"] == pytest.approx((0.25 / (7 * 6)) ** 0.5)
    assert found["distinct"] == pytest.approx(5 / 6) and found["samples"] == 42 and found["samples_per_row"] == 6
    lines = [json.loads(line) for line in (tmp_path / "samples/toy_sampled.jsonl").read_text().splitlines()]
    assert len(lines) == 42 and lines[7]["correct"] == 0.0 and lines[7]["parsed"] == "x" and lines[7]["repeat"] == 1
    assert lines[6]["metrics"]["avg_at_k"] == 0.5 and len(lines[6]["doc_sha256"]) == 64


def test_a_stopped_run_goes_on_where_it_was(path, tmp_path):
    settings = SuiteSettings(tasks_path=path)
    first = Counting(patience=17)
    with pytest.raises(KeyboardInterrupt):
        run_suite(first, ["toy_sampled"], settings, tmp_path)
    second = Counting()
    resumed = run_suite(second, ["toy_sampled"], settings, tmp_path)
    assert len(first.asked) == 17 and len(second.asked) == 42 - 17 and not set(first.asked) & set(second.asked)
    third = Counting()
    again = run_suite(third, ["toy_sampled"], settings, tmp_path)
    assert third.asked == [] and plain(again) == plain(resumed)
    assert plain(run_suite(Counting(), ["toy_sampled"], settings, tmp_path / "new")) == plain(resumed)


def test_runs_with_a_limit_and_more_samples_share_answers(path, tmp_path):
    lm = Counting()
    run_suite(lm, ["toy_sampled"], SuiteSettings(tasks_path=path, limit=2, samples=2), tmp_path)
    assert len(lm.asked) == 4
    run_suite(lm, ["toy_sampled"], SuiteSettings(tasks_path=path, limit=3, samples=4), tmp_path)
    assert len(lm.asked) == len(set(lm.asked)) == 12
    found = run_suite(lm, ["toy_sampled"], SuiteSettings(tasks_path=path, limit=2, samples=2), tmp_path)
    assert len(lm.asked) == 12 and found["toy_sampled"]["rows"] == 2 and found["toy_sampled"]["rows_full"] == 7
    run_suite(lm, ["toy_sampled"], SuiteSettings(tasks_path=path, limit=3, samples=4), tmp_path)
    assert len(lm.asked) == 12  # the smaller run kept what it did not need
    for changed in ({"seed": 1}, {"temperature": 0.5}, {"chat": True}):
        lm.check_chat = lambda system_prompt: None
        run_suite(lm, ["toy_sampled"], SuiteSettings(tasks_path=path, limit=1, samples=1, **changed), tmp_path)
    assert len(lm.asked) == 15
    lm.identity = "another"
    run_suite(lm, ["toy_sampled"], SuiteSettings(tasks_path=path, limit=1, samples=1), tmp_path)
    assert len(lm.asked) == 16


def test_log_likelihoods_are_kept_too(lm, tmp_path, monkeypatch):
    settings = SuiteSettings(limit=5, tasks_path="evals/tasks/tiny")
    first = run_suite(lm, TINY, settings, tmp_path)
    monkeypatch.setattr(lm, "_model_call", lambda *_: pytest.fail("asked again"))
    assert plain(run_suite(lm, TINY, settings, tmp_path)) == plain(first)


def test_prompts_that_do_not_fit_are_counted(tokenizer, tmp_path):
    settings = SuiteSettings(limit=5, tasks_path="evals/tasks/tiny")
    small, large = (tiny_model(3, max_position_embeddings=size) for size in (64, 1024))
    for model, share in ((small, 1.0), (large, 0.0)):
        for _ in range(2):  # from the model, and from what is kept
            lm = HFBackend(model, tokenizer, identity=str(share))
            found = run_suite(lm, ["cascade_tiny_continuation"], settings, tmp_path)
            assert found["cascade_tiny_continuation"]["cut_prompts"] == share


def test_a_longer_window_than_the_models_is_not_run(tokenizer, tmp_path):
    lm = HFBackend(tiny_model(3, max_position_embeddings=64), tokenizer, identity="64")
    tasks = ["cascade_retrieval_8k", "cascade_tiny_bits"]
    found = run_suite(lm, tasks, SuiteSettings(limit=2), tmp_path)
    assert {figures["status"] for figures in found.values()} == {"not run"}
    assert found[tasks[0]]["reason"] == "the model's window of 64 tokens is shorter than the one that is measured"
    assert "and the model 64 positions" in found[tasks[1]]["reason"]


def test_a_prompt_has_as_many_of_the_models_tokens_as_its_task_says(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    tokenizer = type(tokenizer).from_pretrained(tmp_path)
    manager = open_tasks(["cascade_retrieval_4k"], "evals/tasks", {"tokenizer": tokenizer.name_or_path})
    (task,) = manager.load(["cascade_retrieval_4k"])["tasks"].values()
    lengths = [len(tokenizer(task.doc_to_text(doc))["input_ids"]) for doc in task.eval_docs]
    assert len(lengths) == 20 and all(3700 < length <= 4096 - 32 for length in lengths)
    prompts = [task.doc_to_text(doc) for doc in task.eval_docs]
    places = [prompt.index(doc["number"]) / len(prompt) for prompt, doc in zip(prompts, task.eval_docs, strict=True)]
    assert all(abs(place - doc["depth"]) < 0.06 for place, doc in zip(places, task.eval_docs, strict=True))


def test_sampling_resumes_to_the_same_figures(model, tokenizer, path, tmp_path, monkeypatch):
    settings = SuiteSettings(tasks_path=path, samples=3)
    whole = run_suite(HFBackend(model, tokenizer, batch_size=8), ["toy_sampled"], settings, tmp_path / "a")
    stopping = HFBackend(model, tokenizer, batch_size=2)
    batches = iter(range(4))

    def generate(rows, decoding, own=stopping._generate):
        if next(batches, None) is None:
            raise KeyboardInterrupt
        return own(rows, decoding)

    monkeypatch.setattr(stopping, "_generate", generate)
    with pytest.raises(KeyboardInterrupt):
        run_suite(stopping, ["toy_sampled"], settings, tmp_path / "b")
    (kept,) = (tmp_path / "b/samples").iterdir()
    assert len(kept.read_text().splitlines()) == 8
    resumed = run_suite(HFBackend(model, tokenizer, batch_size=5), ["toy_sampled"], settings, tmp_path / "b")
    assert plain(resumed) == plain(whole) and whole["toy_sampled"]["distinct"] > 0.9


def test_what_cannot_be_run_says_why_and_the_others_go_on(lm, path, tmp_path, monkeypatch):
    for name in ("URL", "MODEL"):
        monkeypatch.delenv(f"HFC_JUDGE_{name}", raising=False)
    tasks = ["toy_missing", "toy_broken", "toy_image", "toy_judged", "toy_greedy"]
    found = run_suite(lm, tasks, SuiteSettings(tasks_path=path, limit=2), tmp_path)
    reasons = {task: entry["reason"] for task, entry in found.items() if entry["status"] == "not run"}
    assert list(found) == tasks and found["toy_greedy"]["status"] == "run"
    assert reasons["toy_missing"] == "no rows here: get them"
    assert reasons["toy_broken"] == "ZeroDivisionError: a fault"
    assert "reads text only" in reasons["toy_image"] and "HFC_JUDGE_URL" in reasons["toy_judged"]
    assert all("value" not in found[task] for task in reasons)


def test_samples_are_of_tasks_that_sample(path, tmp_path):
    lm = Counting()
    found = run_suite(lm, ["toy_greedy", "toy_sampled"], SuiteSettings(tasks_path=path, samples=3), tmp_path)
    assert found["toy_greedy"]["samples_per_row"] == 1 and found["toy_sampled"]["samples_per_row"] == 3
    warm = run_suite(lm, ["toy_greedy"], SuiteSettings(tasks_path=path, samples=3, temperature=0.7), tmp_path)
    assert warm["toy_greedy"]["status"] == "run" and warm["toy_greedy"]["protocol"]["temperature"] == 0.7
    cold = run_suite(lm, ["toy_sampled"], SuiteSettings(tasks_path=path, temperature=0), tmp_path)
    assert "greedy" in cold["toy_sampled"]["reason"] and "--samples 1" in cold["toy_sampled"]["reason"]


def test_answers_that_do_not_come_are_missing_not_wrong(path, tmp_path):
    """Row "sea" has none, the others lack the second of three."""
    lm = Counting(lambda context, repeat: None if "sea" in context or repeat == 1 else "e")
    settings = SuiteSettings(tasks_path=path, samples=3)
    found = run_suite(lm, ["toy_sampled"], settings, tmp_path)["toy_sampled"]
    assert (found["value"], found["rows"], found["samples"], found["samples_per_row"]) == (1.0, 6, 12, 3)
    assert (found["missing"], found["asked"]) == (9, 21)
    assert found["pass_at"] == {"1": 1.0, "2": 1.0}
    lines = [json.loads(line) for line in (tmp_path / "samples/toy_sampled.jsonl").read_text().splitlines()]
    assert [line["repeat"] for line in lines] == [0, 2] * 6 and all(line["correct"] == 1.0 for line in lines)
    healed = Counting()
    whole = run_suite(healed, ["toy_sampled"], settings, tmp_path)["toy_sampled"]
    assert len(healed.asked) == 21 - 12 and whole["samples"] == 21
    silent = Counting(lambda *_: None)
    mute = run_suite(silent, ["toy_greedy"], SuiteSettings(tasks_path=path), tmp_path)
    assert mute["toy_greedy"]["reason"].startswith("not one row has a verdict")
    silent.failure = "status 500"
    mute = run_suite(silent, ["toy_greedy"], SuiteSettings(tasks_path=path), tmp_path)
    assert mute["toy_greedy"]["reason"].endswith("the last error: status 500")


def test_any_lm_eval_model_can_be_run_and_is_never_taken_for_another(tmp_path):
    settings = SuiteSettings(limit=6, tasks_path="evals/tasks/tiny")
    for right in (True, False):
        found = run_suite(Knowing(right), ["cascade_tiny"], settings, tmp_path)
        assert found["cascade_tiny_copy"]["value"] == found["cascade_tiny_continuation"]["value"] == float(right)
        assert set(found) == set(TINY)
    with pytest.raises(ValueError, match="renders no chats"):
        run_suite(Knowing(True), TINY, SuiteSettings(chat=True, tasks_path="evals/tasks/tiny"), tmp_path)


def test_progress_tells_share_and_time_left(path, tmp_path):
    told = []
    tasks = ["toy_sampled", "toy_greedy"]
    run_suite(Counting(), tasks, SuiteSettings(tasks_path=path), tmp_path, lambda *args: told.append(args))
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] == 1.0 and 0.5 in shares
    assert told[5][1].startswith("toy_sampled: 5 of 42 answers, 0:0") and told[5][1].endswith(" left")


def test_settings_are_checked_and_the_environment_is_put_back(path, tmp_path, monkeypatch):
    for wrong in ({"samples": 0}, {"temperature": -1}, {"top_p": 0}, {"limit": 0}, {"system_prompt": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
            SuiteSettings(**wrong)
    monkeypatch.setenv("HFC_EVAL_DATA", "before")
    with SuiteSettings(data=str(tmp_path)).environment():
        assert os.environ["HFC_EVAL_DATA"] == str(tmp_path)
    assert os.environ["HFC_EVAL_DATA"] == "before"
    with pytest.raises(ValueError, match="no_such not in"):
        run_suite(Counting(), ["no_such"], SuiteSettings(tasks_path=path), tmp_path)


SCRIPT = """
import json, sys
from hf_cascade.evaluate.backends.opening import open_backend
from hf_cascade.evaluate.suite.run import run_suite
from hf_cascade.evaluate.suite.settings import SuiteSettings

model, tasks_path, folder = sys.argv[1:]
lm = open_backend(model, batch_size=4)
assert lm.world_size == 2, lm.world_size
found = run_suite(lm, ["toy_sampled", "toy_greedy", "toy_missing"], SuiteSettings(tasks_path=tasks_path), folder)
assert bool(found) == (lm.rank == 0)
if found:
    json.dump(found, open(folder + "/found.json", "w"))
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(model, tokenizer, path, tmp_path):
    from hf_cascade.evaluate.backends.opening import open_backend

    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "two").mkdir()
    # what `accelerate launch` starts, too, where there are GPUs; on CPUs it would want MPI
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "script.py"), str(tmp_path / "model"), path, str(tmp_path / "two")]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two/found.json").read_text())
    tasks = ["toy_sampled", "toy_greedy", "toy_missing"]
    lm = open_backend(str(tmp_path / "model"), batch_size=4)
    one = run_suite(lm, tasks, SuiteSettings(tasks_path=path), tmp_path / "one")
    assert plain(two) == json.loads(json.dumps(plain(one)))
    names = {folder: sorted(p.name for p in (tmp_path / folder / "samples").iterdir()) for folder in ("one", "two")}
    assert names["one"] == names["two"] == ["toy_greedy.jsonl", "toy_sampled.jsonl"]
    for name in names["one"]:
        assert (tmp_path / "one/samples" / name).read_text() == (tmp_path / "two/samples" / name).read_text()
    assert fmean(found["rows"] for found in two.values() if found["status"] == "run") == 7
