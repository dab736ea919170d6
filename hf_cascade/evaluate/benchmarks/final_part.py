r"""The part of a response that states its answer: what is boxed, what follows "the answer is", or its last sentence.

Where a benchmark's own evaluation asks a judge to find the answer, or reads numbers from all of a response, this is the
rule here (ours). It looks for the answer's place alone; whether it is right is for the benchmark.
"""

import re

from hf_cascade.evaluate.benchmarks.letters import ITEM
from hf_cascade.evaluate.benchmarks.statements import is_unreal
from hf_cascade.rewards.matching import NUMERALS, number_of, option_of
from hf_cascade.rewards.maths import LONGEST, boxed

TAIL = 20_000  # characters that are read: an answer stands at the end; ours
MARKER = re.compile(
    r"(?:\b(?:answer|result|solution|résultat|réponse|Antwort|respuesta)\b|答案|答え)"
    r"(?: (?:to|of|for|in|here)\b[^.:?!\n]{0,60}?)?[ \t*_]*"
    r"(?:(?:(?:is|are|ist|est|es)(?=[\W_])|=|为|是|は)[ \t*_]*|[:：][ \t*_]*)+[ \t]*\n?",
    re.I,
)
ABBREVIATED = r"(?<!\b[A-Z]\.)(?<!\b[MDS][rst]\.)(?<!\bMrs\.)(?<!\bProf\.)(?<!\b[Ff]ig\.)(?<!\bNo\.)(?<!\bvs\.)"
SENTENCE = re.compile(rf"(?<=[.!?。！？]){ABBREVIATED}[\"'”)*_]*\s+(?=[^\s\da-z])|\n+|(?<=[。！？])")
INDICATOR = re.compile(r"\b(?:so|is|are|thus|therefore|final|result) |=|≈|→|\\approx", re.I)
COURTESY = re.compile(
    r"\b(?:hope (?:th|it is)|let me know|feel free|anything else|happy to help"
    r"|(?:any|have) (?:other |more |further )?questions)",
    re.I,
)
UNSURE = re.compile(
    r"\b(?:cannot|can't|can not|couldn't|could not|unable to) (?:\w+ )?(?:determine|tell|say|know|decide|answer)\b"
    r"|\b(?:don't|do not) know\b|\bnot sure\b",
    re.I,
)
NOTE = re.compile(  # at the end
    r"\n[ \t]{0,8}\W{0,4}(?:note|nb|n\.b\.|remark)\b.*|\n[ \t]{0,8}\*{0,2}\([^()]{1,400}\)\*{0,2}\s{0,9}$",
    re.I | re.DOTALL,
)
YES_NO = ("yes", "no", "true", "false")  # words that sentences have without answering
ANSWERING = re.compile(rf"^({'|'.join(YES_NO)})[,.;:]|[,;:] (?:so )?({'|'.join(YES_NO)})$")  # there they do answer
NUMBER = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?(?!\d)(?!,\d)")
BEFORE = " \t$€£¥₹≈~("  # what may stand before a number that an answer begins with
FIRST = re.compile(rf"[{re.escape(BEFORE)}]{{0,9}}({NUMBER.pattern})[*_]{{0,2}}[,;] (?=[a-z])")  # all that is stated
NEXT = re.compile(r"[^\w\s]{0,2}\s*(?:(?:or|to|and|oder|bis|ou|y|e)\b|[,;/–~-])\s*[^\w\s]{0,2}-?\.?\d", re.I)
BETWEEN = re.compile(r"\d\W{0,3}\s(?:or|to|oder|bis|and)\s\W{0,3}\d|\d\s?[–~]\s?\d|\bbetween\b", re.I)
FROM_TO = re.compile(rf"\bfrom\s\W{{0,3}}{NUMBER.pattern}[^\d,;.]{{0,20}}\bto\s\W{{0,3}}{NUMBER.pattern}")  # a change
DENIED = re.compile(r"(?:\b(?:not|no|never|nor|neither)|n't)\s[^\w]*$", re.I)  # before a number
BOLD = re.compile(r"\*\*([^*\n]{1,60})\*\*")
ASIDE = re.compile(
    r"\W*(?:in|on|at|from|after|before|by|since|with|during|for|using|if)\b", re.I
)  # "In 2010 there are 5"
ALTERNATIVES = re.compile(r"\b(?:or|either|neither|oder|ou)\b")
BEFORE_NAMED = r"\s+(?:an?\s+|the\s+)?[^\w\s]{0,3}"
DENIAL = rf"(?:\b(?:not|no|nor|neither|never|cannot be|than|instead of)|n't){BEFORE_NAMED}"
REASON = rf"\b(?:unlike|except|since|because){BEFORE_NAMED}"  # it says nothing of what it names
NEAR = 4  # words before the number that an answer names first; ours
ROUND = ' \t\r\n*_`#>"“”'  # marks around an answer


def final_part(answer: str) -> str:
    """
    What an answer states at its end; "" where it states nothing.

    The content of the last `\\boxed{}`; else what stands after the last "answer is" or "Answer:", to the end of its
    sentence; else a first line that is a number; else of the last sentence that is no courtesy and no note the shortest
    part after "is", "so", "=" and the like; a last sentence without these is the answer itself.
    """
    answer = answer[-TAIL:]
    stated = _marked(answer)
    if stated is not None:
        return stated
    first = _bare(answer.strip().partition("\n")[0])
    if number_of(first) is not None:
        return first
    return _shortest_tail(last_sentence(answer))


def last_sentence(answer: str) -> str:
    """
    The last sentence that is no courtesy, no note, and no question after another.

    Returns:
        `str`: "" where there is none, or it says that it does not know.
    """
    sentences = [sentence.strip() for sentence in SENTENCE.split(NOTE.sub("", answer[-TAIL:]))]
    sentences = [sentence for sentence in sentences if sentence.strip(ROUND) and not COURTESY.search(sentence)]
    while len(sentences) > 1 and sentences[-1].rstrip(ROUND).endswith("?"):
        sentences.pop()
    return _bare(sentences[-1]) if sentences and not UNSURE.search(sentences[-1]) else ""


def option_in(answer: str, options: list[str]) -> int | None:
    """
    The place of the one option that an answer names at its end by its text.

    It is in the part that states the answer. All of the last sentence counts only where that part is but its end, and
    names no value of its own: "since 15 is more than 13, the answer is 17" names no 15. `None` too where an answer ends
    in a list of options.
    """
    answer = answer[-TAIL:]
    if len([line for line in answer.rstrip().split("\n")[-2:] if ITEM.match(line)]) == 2:
        return None
    stated = final_part(answer)
    place = named_option(stated, options)
    first = FIRST.match(stated)
    if first and option_of(first[1], options) is None:  # "17, as 15 is too small"
        return None
    if place is not None or _marked(answer) is not None or (_counts(stated) and any(map(number_of, options))):
        return place
    return named_option(last_sentence(answer), options)


def named_option(stated: str, options: list[str]) -> int | None:
    """
    The place of the one option whose text, or whose text alone, is in the part that states the answer.

    Args:
        stated (`str`): of [`final_part`].
        options (`list[str]`): their texts.
    """
    place = option_of(stated, options)
    if place is not None:
        return place
    said = ANSWERING.search(plain(stated))
    if said and (place := option_of(said[1] or said[2], options)) is not None:
        return place
    named = [
        option for option in options if len(option) > 1 and option.casefold() not in YES_NO and says(stated, option)
    ]
    named = [option for option in named if not any(option != other and says(other, option) for other in named)]
    return options.index(named[0]) if len(named) == 1 else None


def number_in(stated: str) -> str:
    """
    The one number that the stating part of a response gives: the one in bold, at its beginning, or else the last.

    Args:
        stated (`str`): of [`final_part`].

    Returns:
        `str`: "" where there is none, or where several are given for one (`3 or 4`, `3, 4, 5`).
    """
    stated = stated.replace("−", "-")
    numbers = [found for found in NUMBER.finditer(stated) if not DENIED.search(stated[: found.start()][-20:])]
    if not numbers:
        named = {word for word in re.findall(r"[a-z]+", stated.casefold()) if word in NUMERALS}
        return NUMERALS[named.pop()] if len(named) == 1 else ""
    bold = [inside for inside in BOLD.findall(stated) if NUMBER.search(inside)]
    if len(bold) == 1 and bold[0] != stated:
        return number_in(bold[0])
    first, lead = numbers[0], stated[: numbers[0].start()]
    several = NEXT.match(stated, first.end())
    if not lead.strip(BEFORE):
        return "" if several else first[0]
    if not several and len(lead.split()) <= NEAR and not ASIDE.match(lead):
        return first[0]
    if len(rest := FROM_TO.sub(" ", stated)) < len(stated) and NUMBER.search(rest):
        return number_in(rest)
    if len({number[0] for number in numbers}) > 1 and BETWEEN.search(stated):
        return ""
    return numbers[-1][0]


def plain(text: str) -> str:
    """Text for comparison: without Markdown around it and a final full stop, case and spaces left out."""
    return " ".join(_bare(text).casefold().split()).rstrip(".")


def says(stated: str, words: str) -> bool:
    """
    Whether words are in the stating part of a response: whole, not denied, and not one of alternatives.

    Args:
        stated (`str`): of [`final_part`].
        words (`str`): any text; case and spaces do not count.
    """
    text, words = (plain(one) for one in (stated, words))
    if not words or text == words:
        return bool(words)
    signs = "./-" if words[0].isdigit() else ""  # 1/64 is not in -1/64
    inside = rf"(?<![\w{signs}])(?<!\w-){re.escape(words)}(?!\w|-[a-z])"  # no Impressionism in Post-Impressionism
    text = re.sub(REASON + inside, " ", text)
    if not re.search(inside, text) or re.search(DENIAL + re.escape(words), text):
        return False
    return not ALTERNATIVES.search(re.sub(inside, " ", text))


def _marked(answer: str) -> str | None:
    """What stands in the last box or after the last "answer is"; "" where the box is no answer, `None` without them."""
    inside = boxed(answer)
    if inside is not None:
        return inside if len(inside) <= LONGEST else ""
    markers = [marker for marker in MARKER.finditer(answer) if not is_unreal(answer, marker.start())]
    return (markers and _first_sentence(answer[markers[-1].end() :])) or None


def _counts(stated: str) -> bool:
    """Whether a number is in it, in digits or as a word."""
    return bool(NUMBER.search(stated.replace("−", "-"))) or not NUMERALS.keys().isdisjoint(
        re.findall(r"[a-z]+", stated.casefold())
    )


def _shortest_tail(sentence: str) -> str:
    """The shortest part after one of the indicators."""
    tails = [_bare(sentence[found.end() :]) for found in INDICATOR.finditer(sentence)]
    return min((tail for tail in tails if tail.strip(".,:;!?'")), key=len, default=sentence)


def _first_sentence(text: str) -> str:
    return next((_bare(part) for part in SENTENCE.split(text.strip()) if part.strip(ROUND)), "")


def _bare(text: str) -> str:
    """Without Markdown around it, a colon before it, and a full stop after it."""
    text = text.strip(ROUND).lstrip(":： ").strip(ROUND)
    return text.removesuffix(".").rstrip(ROUND + "!。") if not text.endswith("..") else text
