"""TriviaQA and NaturalQuestions without a document: short answers, right if they equal an alias (paper section 6).

Prompt of LLaMA (arXiv 2302.13971, appendix A): "Answer these questions:", then `Q:` and `A:` lines. Each benchmark has
the rule of its own scorer; both compare after lower case and without articles and punctuation.
"""

import re
import string
import unicodedata
from collections.abc import Callable
from functools import partial

from hf_cascade.evaluate.benchmarks.answers import answer_of
from hf_cascade.evaluate.benchmarks.data import need, read
from hf_cascade.evaluate.benchmarks.sampled import Verdict, once
from hf_cascade.evaluate.conformance.case import Case

# Five of the first questions of each train split on the Hub; paper Tables 2 and 3, "5-shot".
TRIVIAQA_SHOTS = (
    ("Which American-born Sinclair won the Nobel Prize for Literature in 1930?", "Sinclair Lewis"),
    ("Where in England was Dame Judi Dench born?", "York"),
    ("In which decade did Billboard magazine first publish and American hit chart?", "30s"),
    ("From which country did Angola achieve independence in 1975?", "Portugal"),
    ("Which city does David Soul come from?", "Chicago"),
)
NQ_SHOTS = (
    ("where did they film hot tub time machine", "Fernie Alpine Resort"),
    ("who has the right of way in international waters", "Neither vessel"),
    ("who does annie work for attack on titan", "Marley"),
    ("when was the immigration reform and control act passed", "November 6, 1986"),
    ("when was puerto rico added to the usa", "1950"),
)
QUOTES = "‘’´`"  # TriviaQA's scorer takes them for punctuation
QUOTED = "“”„«» ."  # around an answer; neither benchmark's scorer knows them
PREFIX = re.compile(
    r"[\s#*]*(?:(?:a|(?:(?:the|final|correct) ){0,3}answer)[\s*]*:|(?:(?:the|final|correct) ){1,3}answer is\b:?"
    r"|(?:final )?answer[\s*]*$)[\s*]*",
    re.I,
)
LONGEST = 10_000  # characters of an answer that are read; TriviaQA's longest alias has a few hundred


def triviaqa(repo: str, split: str, config: str, **metadata) -> dict:
    """Validation rows of TriviaQA with their prompts."""
    rows = read(repo, split, config)
    need(rows, f"{repo} {config}", ("question", "answer"), filled=("question", "answer"))
    need([rows[0]["answer"]], f"{repo} {config}, answer", ("value", "aliases"))
    return {"test": _prompted(rows, TRIVIAQA_SHOTS)}


def nq_open(repo: str, split: str, config: str | None = None, **metadata) -> dict:
    """Validation rows of NQ-Open with their prompts."""
    rows = read(repo, split, config)
    need(rows, repo, ("question", "answer"), filled=("question", "answer"))
    return {"test": _prompted(rows, NQ_SHOTS)}


def score_triviaqa(doc: dict, results: list) -> dict[str, float]:
    """`process_results` of TriviaQA: [`once`], and `contains`."""
    given = doc["answer"]
    names = ("aliases", "normalized_aliases")
    aliases = [given[name] for name in ("value", "normalized_value") if given.get(name)]
    return _figures([*aliases, *(alias for name in names for alias in given.get(name) or ())], results, trivia_form)


def score_nq_open(doc: dict, results: list) -> dict[str, float]:
    """`process_results` of NQ-Open: [`once`], and `contains`."""
    answers = doc["answer"]
    return _figures([answers] if isinstance(answers, str) else answers, results, nq_form)


def trivia_form(text: str) -> str:
    """Text as TriviaQA's scorer compares it: punctuation and underscores become spaces, articles go."""
    return _form(text, str.maketrans(dict.fromkeys(string.punctuation + QUOTES, " ")))


def nq_form(text: str) -> str:
    """Text as the scorer of SQuAD compares it, which NQ-Open took over: punctuation goes, articles go."""
    return _form(text, str.maketrans(dict.fromkeys(string.punctuation)))


def first_line(answer: str) -> str:
    """The first line of an answer that says something, without `A:`, `Answer:` or "The answer is" before it."""
    for line in answer[:LONGEST].splitlines():
        for _ in range(2):  # "A: The answer is ..."
            line = line[found.end() if (found := PREFIX.match(line)) else 0 :].strip()
        if line:
            return line
    return ""


def _form(text: str, marks: dict) -> str:
    """
    Lower case, without marks, articles, and needless spaces.

    Where nothing is left (the answer is `A`, `A+`, or `!!!`) the text in lower case: the scorers' own rule would make
    it equal to an empty answer.
    """
    lower = unicodedata.normalize("NFC", text).lower().strip()
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lower.translate(marks)).split()) or lower.strip("*_. ") or lower


def _figures(aliases: list[str], results: list, form: Callable[[str], str]) -> dict[str, float]:
    """`acc`: the first line equals an alias. `contains`: an alias stands in the answer, as whole words."""
    known = {form(alias) for alias in aliases} - {""}
    figures = once(results, partial(_verdict, known=known, form=form))
    if not known:  # no verdict
        return figures
    response = results[0] if isinstance(results[0], str) else results[0][0]
    words = f" {form(answer_of(response)[:LONGEST])} "
    return {**figures, "contains": float(any(f" {alias} " in words for alias in known))}


def _verdict(answer: str, known: set[str], form: Callable[[str], str]) -> Verdict:
    line = first_line(answer)
    given = form(line)
    correct = given in known or form(line.strip(QUOTED)) in known
    return Verdict(float(correct) if known else None, given or None)


def _prompted(rows, shots: tuple):
    """Rows with `question`, `answer`, and `context`."""
    head = "Answer these questions:\n" + "".join(f"Q: {asked}\nA: {answer}\n" for asked, answer in shots)
    rows = rows.select_columns(["question", "answer"])
    return rows.add_column("context", [f"{head}Q: {asked.strip()}\nA:" for asked in rows["question"]])


def _right(answer: str) -> list[str]:
    """Ways in which models write one right answer."""
    plain = [
        answer,
        f" {answer}\n",
        f"{answer}.",
        f"**{answer}**",
        f"Answer: {answer}",
        f"\n\n{answer}\n\nQ: Why?\nA: No",
    ]
    return [*plain, answer.upper(), f"The {answer}", f'"{answer}"', f"A: {answer}\nIt is well known."]


def _wrong(answer: str) -> list[str]:
    """Wrong ones: another answer, then the right one where the rule is that it does not count."""
    hedges = [f"{answer} or Xanadu", f"not {answer}", f"x{answer}x", f"Xanadu\n{answer}", f"Xanadu\nAnswer: {answer}"]
    return ["Xanadu", *hedges, f"I do not know. {answer}?", "", "the", "...", f"{answer} {answer}"]


CASES = {
    "cascade_triviaqa": Case(
        right=lambda doc: _right(doc["answer"]["value"]) + list(doc["answer"]["aliases"]),
        wrong=lambda doc: _wrong(doc["answer"]["value"]),
    ),
    "cascade_nq_open": Case(
        right=lambda doc: _right(doc["answer"][0]) + list(doc["answer"]), wrong=lambda doc: _wrong(doc["answer"][0])
    ),
}
