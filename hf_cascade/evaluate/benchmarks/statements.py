r"""How models say that something is the answer: words of the languages that benchmarks are asked in, and `\boxed{}`."""

import re

from hf_cascade.rewards.maths import BRACES

EAST = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # Japanese, Chinese and Korean words follow without a space
START = rf"(?<![^\W{EAST}])"
ANSWER = r"(?:answers?|ans|antwort|réponse|reponse|respuesta|risposta|resposta)"
KIND = r"(?:\s(?:correct[ae]?|corretta|correta|exacte?|esatta|finale?|definitiva|choice|option|letter))?"
VERB = r"(?:is|are|(?:would|must|should|will) (?:therefore |thus |then |hence )?be|has to be|appears to be|seems to be"
VERB += r"|equals|(?:comes out|turns out|works out)(?: to be| to| as)|ist|lautet|wäre|est|serait|es|sería|seria|è|é"
VERB += r"|sarebbe)"
EAST_ANSWER = r"(?:正确的?选项|正確的?選項|答案|正しい(?:選択肢|答え)|適切なの|答え|解答|回答|正解|正答|정답|답안|답)"
EAST_ANSWER += r"[\])】\"]?\s?"
EAST_IS = r"(?:[:：=→是为為选選はが]|应该?是|應該?是|[은는이가])\s?[:：]?"
UNREAL = re.compile(  # before "answer": it is supposed or denied
    r"(?:\b(?:if|whether|suppose|supposing|assume|assuming|unless|wenn|falls|si|se)\s(?:\w+\s){0,3}"
    r"|(?:n't|\bnot|\bnever)\s"
    r"(?:(?:think|believe|say|mean|sure|true|conclude|the case|choose|pick)\b[^.,;\n]{0,20})?)$",
    re.I,
)


def is_unreal(text: str, start: int) -> str | None:
    """The words before a statement, in its sentence, where they suppose or deny it."""
    before = re.split(r"[.!?\n]", text[max(0, start - 60) : start])[-1]
    return before if UNREAL.search(before) else None


def boxes(text: str) -> list[tuple[re.Match, re.Match]]:
    r"""Opening `\boxed{` and closing brace of all boxes that are closed, in the order in which they close; one pass."""
    found, openings = [], []
    for mark in BRACES.finditer(text):
        if mark[0].endswith("{") and not mark[0].startswith(r"\{"):
            openings.append(mark)
        elif mark[0] == "}" and openings:
            opening = openings.pop()
            if opening[0] != "{":
                found.append((opening, mark))
    return found
