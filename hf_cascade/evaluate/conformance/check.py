"""The checks that prove one task: each is a run of lm-eval on the shipped rows with a model that knows the answers."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lm_eval import evaluate
from lm_eval.tasks import TaskManager

from hf_cascade import assets
from hf_cascade.completions import THINKING_TAGS
from hf_cascade.evaluate.conformance.case import Case
from hf_cascade.evaluate.conformance.knowing import Knowing, Positional, Responding

REAL = "evals/conformance"  # responses with known verdicts, a file a task
# What no task may count as right, or stumble over: nothing, control characters, brackets that never close, a megabyte.
HOSTILE = ("", " \n\t", "\x00\ufffd\u202e", "\\boxed{" * 300, "((((" * 5000, "A B C D E " * 20_000, "\ud83d", "}{][)(")
HOSTILE += ("[THINK][/THINK]", "</think>" * 50, "<think>" * 50, "Answer: ", "```python\n", "[INST] [/INST] </s>")


@dataclass(frozen=True)
class Finding:
    """
    One check of a task.

    Args:
        check (`str`): its name; several findings may share one.
        passed (`bool`): whether the score was the expected one.
        detail (`str`): what was given and what came out, for one that failed.
    """

    check: str
    passed: bool
    detail: str = ""


class Prover:
    """
    All checks of one task.

    Args:
        name (`str`): the task.
        case (`Case`): what is known about it.
        manager (`TaskManager`): of [`harness.open_tasks`].
    """

    def __init__(self, name: str, case: Case, manager: TaskManager):
        self.name, self.case, self.manager = name, case, manager
        self.task = self._load()

    def findings(self) -> list[Finding]:
        """Run every check that the task's kind has."""
        found = [self._stable()]
        found += self._likelihood() if self.case.gold else self._generation()
        return found

    def _likelihood(self) -> list[Finding]:
        """Checks of a task that is scored by log-likelihood."""
        case = self.case
        found = [self._scores("oracle", Knowing(True, case.gold), case.oracle, "the right continuation is likely")]
        if case.anti is not None:
            text = "the right continuation is the unlikeliest"
            found.append(self._scores("anti-oracle", Knowing(False, case.gold), case.anti, text))
        if self.task.OUTPUT_TYPE == "multiple_choice":
            found.append(self._one_option())
        return found

    def _one_option(self) -> Finding:
        """Of the models that always take one position, exactly one is right about each row."""
        counts = [len(self.task.doc_to_choice(doc)) for doc in self.task.eval_docs]
        right = [0.0] * len(counts)
        for position in range(max(counts)):
            _, samples = self._run(Positional(position))
            for sample in samples:
                if position < counts[sample["doc_id"]]:
                    right[sample["doc_id"]] += sample.get(self.case.metric, 0.0)
        odd = [row for row, total in enumerate(right) if total != self.case.oracle]
        return Finding("positions", not odd, f"rows {odd[:5]}: not exactly one option is right" if odd else "")

    def _generation(self) -> list[Finding]:
        """Checks of a task that is scored by its responses."""
        case, docs = self.case, list(self.task.eval_docs)
        right, wrong = [case.right(doc) for doc in docs], [case.wrong(doc) for doc in docs]
        if not all(right) or not all(wrong):
            return [Finding("oracle", False, "its case has no right, or no wrong response for some rows")]
        scored = partial(self._responds, right=right, wrong=wrong)
        found = [scored("oracle", lambda r, w: r[0], case.oracle), scored("anti-oracle", lambda r, w: w[0], case.anti)]
        for place in range(1, max(map(len, right))):
            found.append(scored("formats", lambda r, w, at=place: r[at % len(r)], case.oracle))
        for place in range(1, max(map(len, wrong))):
            found.append(scored("deceptions", lambda r, w, at=place: w[at % len(w)], case.anti))
        for text in HOSTILE:
            found.append(scored("hostile", lambda r, w, text=text: text, case.anti))
        if case.thinking:
            found += self._thinking(scored)
        if self.task.config.repeats > 1:
            found.append(self._half(right, wrong))
        return found + self._real()

    def _thinking(self, scored: Callable) -> list[Finding]:
        """The answer counts, not the thinking; without an end of the thinking there is no answer."""
        case, found = self.case, []
        stops = "".join((self.task.config.generation_kwargs or {}).get("until") or ())  # in thinking they are text
        for begin, end in THINKING_TAGS:
            for text, expected in (
                (lambda r, w, b=begin, e=end: f"{b}{w[0]}{stops} and so on{e}\n{r[0]}", case.oracle),
                (lambda r, w, b=begin, e=end: f"{b}{w[0]}{e}\n{r[0]}", case.oracle),
                (lambda r, w, b=begin, e=end: f"{b}{r[0]}{e}\n{w[0]}", case.anti),
                (lambda r, w, e=end: f"{w[0]}{e}{r[0]}", case.oracle),  # the prompt opened it
                (lambda r, w, e=end: f"{r[0]}{e}{w[0]}", case.anti),
                (lambda r, w, b=begin: f"{b}{r[0]}", case.anti),
                (lambda r, w, b=begin, e=end: f"{b}{r[0]}{e}", case.anti),  # thinking alone
            ):
                found.append(scored("thinking", text, expected))
        return found

    def _half(self, right: list, wrong: list) -> Finding:
        """Of a problem's samples every second one is right: all of them must reach the scorer."""
        docs, repeats = list(self.task.eval_docs), self.task.config.repeats
        rows = {_key(doc): row for row, doc in enumerate(docs)}
        model = Responding(lambda doc, sample: (right, wrong)[sample % 2][rows[_key(doc)]][0])
        share = math.ceil(repeats / 2) / repeats
        expected = self.case.anti + share * (self.case.oracle - self.case.anti)
        return self._scores("samples", model, expected, f"{share:.2f} of {repeats} samples are right")

    def _responds(self, check: str, choose: Callable, expected: float, right: list, wrong: list) -> Finding:
        """Score responses chosen from the right and wrong ones of each row."""
        rows = {_key(doc): row for row, doc in enumerate(self.task.eval_docs)}

        def respond(doc: dict, sample: int) -> str:
            row = rows[_key(doc)]
            return choose(right[row], wrong[row])

        return self._scores(check, Responding(respond), expected, choose(right[0], wrong[0]))

    def _scores(self, check: str, model: Knowing, expected: float, given: str) -> Finding:
        """One run; every row must have the expected score."""
        value, samples = self._run(model)
        odd = [sample["doc_id"] for sample in samples if not _equal(sample.get(self.case.metric), expected)]
        passed = _equal(value, expected) and (not odd or self.case.metric not in samples[0])
        detail = f"{self.case.metric} is {value}, not {expected}, rows {odd[:5]}; response {given[:200]!r}"
        return Finding(check, passed, "" if passed else detail)

    def _real(self) -> list[Finding]:
        """Responses whose verdict is known, each on its own."""
        path = assets.root() / REAL / f"{self.case.real or self.name}.jsonl"
        if not path.is_file():
            return [Finding("real responses", False, f"{REAL}/{path.name} is missing")]
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        task = self._load()
        docs = [self._document(line["doc"]) for line in lines]
        task.dataset = {**task.dataset, task.config.test_split: docs}
        responses = iter(lines)
        asked: dict[int, str] = {}

        def respond(doc: dict, sample: int) -> str:
            if id(doc) not in asked:
                asked[id(doc)] = next(responses)["response"]
            return asked[id(doc)]

        _, samples = self._run(Responding(respond), task)
        found = []
        for line, sample in zip(lines, sorted(samples, key=lambda sample: sample["doc_id"]), strict=True):
            expected = self.case.anti + line["correct"] * (self.case.oracle - self.case.anti)
            value = sample.get(self.case.metric)
            detail = f"{value}, not {expected}: {line['response'][-200:]!r} ({line['source']})"
            found.append(Finding("real responses", _equal(value, expected), detail))
        return found

    def _document(self, row: dict) -> dict:
        """A row as the task's documents are: what the loader adds is taken from the shipped row it equals in part."""
        for doc in self.task.eval_docs:
            shared = row.keys() & doc.keys()
            if shared and all(doc[column] == row[column] for column in shared):
                return {**doc, **row}
        return row

    def _stable(self) -> Finding:
        """The documents, options in their order too, are the same when they are loaded again."""
        first, second = ([_key(doc) for doc in task.eval_docs] for task in (self.task, self._load()))
        return Finding("stable", first == second, "" if first == second else "other documents when loaded again")

    def _load(self):
        return self.manager.load([self.name])["tasks"][self.name]

    def _run(self, model: Knowing, task=None) -> tuple[float, list[dict]]:
        """The task's score, and lm-eval's samples."""
        results = evaluate(model, {"tasks": {self.name: task or self.task}}, bootstrap_iters=0)
        return results["results"][self.name].get(f"{self.case.metric},none", math.nan), results["samples"][self.name]


def _key(doc: dict) -> str:
    return json.dumps(doc, sort_keys=True, default=lambda value: str(hash(value.tobytes())))


def _equal(value: float | None, expected: float) -> bool:
    return value is not None and math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9)
