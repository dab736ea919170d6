"""Judged benchmarks: a filter that asks a judge about all responses of a task at once, and what its verdicts add up to.

A benchmark's filter is a subclass of [`Judge`] that is registered with lm-eval. What it makes of a row's responses is a
list of records, which lm-eval logs with the sample: `response` (its place among the row's), `label` (which of the
benchmark's questions), `asked`, `verdict`, `score`, `weight`, `answer` (the judge's), `reason` (why there is no score,
or why nothing was asked), `prompt_tokens`, `completion_tokens`, `cost`. A failure has no score; it is never 0.
"""

import functools
import html
import logging
import re
from collections.abc import Callable
from typing import NamedTuple

from lm_eval.api.filter import Filter

from hf_cascade.evaluate.benchmarks.answers import answer_of, is_unfinished
from hf_cascade.evaluate.benchmarks.judge_settings import JudgeSettings, NoJudge
from hf_cascade.rewards.endpoint import ChatEndpoint, RequestBudgetError, UnusableAnswer, choices_of

UNFINISHED, EMPTY = "the thinking of the response is not finished", "the response has no answer"
WORDS = "my|the|final|overall|verdict|label|rating|score|is|choice|conclusion"  # beside a verdict without brackets
RATING = re.compile(r"\b(?:final|overall|verdict|label|rating|score|choice|conclusion)\b", re.I)  # those that name one
NUMBER = r"\d{1,2}(?:\.\d{1,3})?"
SHOWN_CHARACTERS = 500  # of an answer without a verdict, its end; ours
_MILLION = 1e6
_logger = logging.getLogger(__name__)


class Question(NamedTuple):
    """
    What a judge is asked.

    Args:
        label (`str`): which of a benchmark's questions about one response it is.
        messages (`list[dict]`): of a chat completion request.
    """

    label: str
    messages: list[dict]


class Figure(float):
    """A row's figure with a note that its aggregation needs: a weight, say, or the groups that the row is in."""

    def __new__(cls, value: float, note=None):
        figure = super().__new__(cls, value)
        figure.note = note
        return figure


class Judge(Filter):
    """
    Asks a judge, which [`JudgeSettings`] names, about each response. Unfinished thinking and empty answers are the
    worst there is, without asking.

    Attributes:
        max_tokens (`int`), temperature (`float`): of the judge's answers, where the settings have none.
    """

    max_tokens = 2048
    temperature = 0.0

    def questions(self, doc: dict, answer: str, settings: JudgeSettings) -> list[Question]:
        """The questions about one answer, which is free of thinking."""
        raise NotImplementedError

    def verdict(self, text: str) -> str:
        """
        The verdict of a judge's answer, which is free of thinking.

        Raises:
            UnusableAnswer: none is clear.
        """
        raise NotImplementedError

    def score(self, verdict: str, label: str) -> tuple[float, float]:
        """The score and its weight."""
        raise NotImplementedError

    def worst(self, label: str) -> str:
        """The verdict on a response that is not shown to the judge."""
        raise NotImplementedError

    def apply(self, resps, docs) -> list[list[dict]]:
        """
        Records about all responses, see the module.

        Raises:
            NoJudge: no judge is named, not one answer came, or its requests are used up.
        """
        settings = JudgeSettings.from_environment()
        records, bodies, asked = [], [], []
        for doc, responses in zip(docs, resps, strict=True):
            records.append([])
            for place, response in enumerate(responses):
                answer = clean(answer_of(response)).strip()
                for label, messages in self.questions(doc, answer, settings):
                    record = self._record(place, label, answer, is_unfinished(response))
                    records[-1].append(record)
                    if record["asked"]:
                        asked.append(record)
                        bodies.append(self._body(messages, settings))
        self._ask(asked, bodies, settings)
        return records

    def _record(self, place: int, label: str, answer: str, unfinished: bool) -> dict:
        record = {"response": place, "label": label, "asked": bool(answer), "verdict": None, "score": None}
        record |= {"weight": 1.0, "answer": None, "reason": None}
        record |= {"prompt_tokens": 0, "completion_tokens": 0, "cost": None}
        if not answer:
            verdict = self.worst(label)
            score, weight = self.score(verdict, label)
            record |= {"verdict": verdict, "score": score, "weight": weight}
            record["reason"] = UNFINISHED if unfinished else EMPTY
        return record

    def _body(self, messages: list[dict], settings: JudgeSettings) -> dict:
        given = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
        body = {"messages": messages, "max_tokens": self.max_tokens, "temperature": self.temperature}
        body |= {name: value for name, value in given.items() if value is not None}
        return body | ({"chat_template_kwargs": settings.chat_template_kwargs} if settings.chat_template_kwargs else {})

    def _ask(self, records: list[dict], bodies: list[dict], settings: JudgeSettings) -> None:
        """Complete the records of what is asked."""
        reasons, came = {}, []

        def read(answer: dict) -> dict:
            came.append(True)
            return self._read(answer, settings)

        try:
            found = _endpoint(settings).ask(bodies, read, reasons)
        except RequestBudgetError as error:
            raise NoJudge(
                f"HFC_JUDGE_MAX_REQUESTS={settings.max_requests} are used up, and {len(reasons)} of {len(bodies)} "
                "verdicts are missing: raise it; where HFC_JUDGE_CACHE names a file, what was judged is not asked again"
            ) from error
        except ConnectionError as error:
            if not came:
                raise NoJudge(
                    f"the judge {settings.model} at {settings.url} answered none of {len(bodies)} questions "
                    f"({reasons[min(reasons)]}): see whether its server runs and serves this model"
                ) from error
            found = [None] * len(bodies)  # it answers, without verdicts
        for place, (record, answer) in enumerate(zip(records, found, strict=True)):
            if answer is None:
                record["reason"] = reasons[place]
                continue
            score, weight = self.score(answer["verdict"], record["label"])
            record |= {**answer, "score": score, "weight": weight}
        if reasons:
            first = reasons[min(reasons)]
            _logger.warning("%d of %d questions have no verdict; the first: %s", len(reasons), len(bodies), first)

    def _read(self, answer: dict, settings: JudgeSettings) -> dict:
        """Verdict, text, tokens and cost of an answer."""
        choice = choices_of(answer)[0]
        text = choice["message"].get("content") or ""
        end = f"...{text[-SHOWN_CHARACTERS:]!r}"
        if choice.get("finish_reason") == "length":
            raise UnusableAnswer(f"the judge's answer was cut off; raise HFC_JUDGE_MAX_TOKENS: {end}")
        try:
            verdict = self.verdict(answer_of(text))
        except UnusableAnswer as error:
            raise UnusableAnswer(f"{error}: {end}") from None
        usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        tokens = {name: _count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")}
        cost = None
        if settings.prompt_price is not None:
            prompt, completion = tokens["prompt_tokens"], tokens["completion_tokens"]
            cost = (prompt * settings.prompt_price + completion * settings.completion_price) / _MILLION
        return {"verdict": verdict, "answer": text, **tokens, "cost": cost}


def need_judge() -> None:
    """
    For a task's loader: fail before anything is generated.

    Raises:
        NoJudge: no judge is named, or it cannot be asked as it is described.
    """
    try:
        _endpoint(JudgeSettings.from_environment())
    except ValueError as error:
        raise NoJudge(str(error)) from error


def figures_of(records: list[dict]) -> dict[str, float]:
    """
    What all judged tasks report about a row.

    Returns:
        `dict`: `unparsed`, `unfinished`; of rows about which the judge was asked `judge_failures` (share of questions),
        `judge_prompt_tokens`, `judge_completion_tokens`, and with prices `judge_cost`. An answer that came from the
        cache counts as if it had been asked now; one without a verdict does not count.
    """
    figures = {"unparsed": _mean([record["reason"] == EMPTY for record in records])}
    figures["unfinished"] = _mean([record["reason"] == UNFINISHED for record in records])
    asked = [record for record in records if record["asked"]]
    if asked:
        figures["judge_failures"] = _mean([record["score"] is None for record in asked])
        for name in ("prompt_tokens", "completion_tokens"):
            figures[f"judge_{name}"] = float(sum(record[name] for record in asked))
        costs = [record["cost"] for record in asked if record["cost"] is not None]
        figures |= {"judge_cost": sum(costs)} if costs else {}
    return figures


def mean_score(records: list[dict]) -> float | None:
    """The mean of a row's scores; `None` without any."""
    scores = [record["score"] for record in records if record["score"] is not None]
    return sum(scores) / len(scores) if scores else None


def total(values: list[float]) -> float:
    """Aggregation of tokens and costs: the sum over all rows."""
    return float(sum(values))


def last_label(text: str, *patterns: re.Pattern, alone: str, plain: Callable[[str], str] = str) -> str:
    """
    The label in the last line that has one.

    Args:
        text (`str`): a judge's answer without thinking.
        *patterns (`re.Pattern`): each with one group, the label; a later one is tried where an earlier finds nothing.
        alone (`str`): a pattern without groups; such a label counts without brackets too, as a value in JSON, or where
            it is all that the last line says, but for words such as "my final verdict is". A number needs one of them
            that names a rating, or "/10" behind it, and is neither negative nor the mark of a list.
        plain (`Callable[[str], str]`): one spelling for all labels that are the same.

    Raises:
        UnusableAnswer: no label, or several different ones in that line.
    """
    text = html.unescape(text).replace("\\[", "[").replace("\\]", "]")
    named = re.compile(rf'"(?:{WORDS})"\s*:\s*"?({alone})"?\s*(?:[,}}]|$)', re.I)  # in JSON
    for pattern in (*patterns, named):
        for line in reversed(text.splitlines()):
            labels = set(map(plain, pattern.findall(line)))
            if len(labels) > 1:
                raise UnusableAnswer(f"several verdicts in the last line that has one ({', '.join(sorted(labels))})")
            if labels:
                return labels.pop()
    last = text.rstrip(" \n`}").rpartition("\n")[2]  # of a fenced JSON object too
    words, end = rf"\W*(?:\b(?:{WORDS})\b\W*)*", r"\W*(?:out\W+of\W+10\W*|(?<=/)10\W*)?"
    whole = last.count("[") == last.count("]")
    found = re.fullmatch(f"(?P<lead>{words})(?P<label>{alone})(?P<end>{end})", last, re.I) if whole else None
    if found and (alone != NUMBER or _is_rating(found["lead"], found["end"])):
        return plain(found["label"])
    raise UnusableAnswer("an answer without a verdict")


def _is_rating(lead: str, end: str) -> bool:
    """Whether a number between these is a rating: not -3, #3, 3), nor one of which nothing is said."""
    before = re.split(r"\w", lead)[-1]
    if any(mark in before for mark in "-−–#") or (end.lstrip().startswith(")") and "(" not in lead):
        return False
    return "10" in end or bool(RATING.search(lead))


def clean(text: str) -> str:
    """Text without lone surrogates, which no server takes."""
    return text.encode("utf-8", "replace").decode()


def _endpoint(settings: JudgeSettings) -> ChatEndpoint:
    """One object for all tasks of a process that ask the same judge: requests are counted together."""
    names = ("url", "model", "key_variable", "concurrency", "timeout_seconds", "retries", "cache", "max_requests")
    return _opened(*(getattr(settings, name) for name in names))


@functools.cache
def _opened(url, model, key_variable, concurrency, timeout_seconds, retries, cache, max_requests) -> ChatEndpoint:
    return ChatEndpoint(
        url,
        model,
        api_key_variable=key_variable,
        concurrency=concurrency,
        timeout_seconds=timeout_seconds,
        retries=retries,
        cache=cache,
        max_requests=max_requests,
    )


def _count(value) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _mean(values: list) -> float:
    return sum(values) / len(values) if values else 0.0
