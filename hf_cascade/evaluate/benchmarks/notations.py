r"""Notations of one answer of mathematics, where math-verify takes them for different ones (ours)."""

import re
import unicodedata

from hf_cascade.rewards.matching import NUMERALS
from hf_cascade.rewards.maths import SPACES, TEXT

INTEGER = re.compile(r"([-+]?)0*(\d{1,40})(?:\.0*)?")
BASED = re.compile(r"([\dA-Z]{1,60})_\{?(?:\\(?:text|mathrm)\{)?(\d{1,2}|[a-z]{3,6})\}{0,2}")
FRACTION = re.compile(r"(?<!\d)[¼½¾⅐-⅞](?!\d)")
ONE = r"(?:\{([^{}]*)\}|((?!\\sqrt|\\frac)\\[A-Za-z]+|[\dA-Za-z]))"  # what \frac takes
# words beside a number that make another of it
COUNTING = r"(?i:plus|minus|times|divided|multiplied|over|or|and|not|to|than|more|less|fewer|mod|modulo|base|squared"
COUNTING += r"|cubed|factorial|percent|dozen|hundred|thousand|million|billion|half|halves|thirds?|quarters?"
COUNTING += rf"|{'|'.join(NUMERALS)})\b"
REWRITTEN = [  # in this order
    (re.compile(written), read)
    for written, read in (
        (r"⁄", "/"),
        (r"(?<!\\)%", r"\\%"),
        (r"\\degree(?![A-Za-z])", r"^\\circ"),
        (r"\\[bB]igg?[lrm]?(?![A-Za-z])", ""),
        (r"(\\\\)\[-?[\d.]+(?:pt|em|ex|mm|cm)\]", r"\1"),  # room between a matrix's rows
        (r"(?<=\d)\\[,;:! ](?=\d{3}(?!\d))", ""),  # 10\,080
        (r"(?<!\\)\\(?: |$)", " "),
        (r"\\(?:mathrm|text|operatorname)\{([ie])\}", r"\1"),
        (rf"\\text\{{([-+]?\d[\d.,]*(?:\s+(?!{COUNTING})[A-Za-z]+)+)\}}", r"\1"),  # \text{2 real roots}
        (r"\\langle(.*?)\\rangle", r"(\1)"),
        (r"\\text\{((?:[A-Z],\s*)+[A-Z])\}", r"\1"),
        (rf"\\frac\s*{ONE}\s*{ONE}", r"\\frac{\1\2}{\3\4}"),  # \frac2\pi
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?:√|\\sqrt(?![A-Za-z]))\s*(\d+\.\d+|\d{2,})", r"\\sqrt{\1}"),  # to LaTeX a root of the first digit alone
        (r"^[A-Z]\s*(?=\([^()]*,[^()]*\)$)", ""),  # P(1,2)
        (r"\s*\\pmod\s*(?:\{[^{}]*\}|\d)$", ""),
        (r"^((?:\\text(?:bf)?\{)?)(?:an?|the)\s(?=[A-Za-z]{3,}(?:\s[A-Za-z]+)*\}?$)", r"\1"),  # an ellipse
    )
]
RECURRING = re.compile(r"(\d*)\.(\d*)\\overline\{(\d{1,20})\}")
SIGNS = {r"\pm": "+-", "±": "+-", r"\mp": "-+", "∓": "-+"}
SIGN = re.compile(r"\\[pm][pm](?![A-Za-z])|[±∓]")
COMMA = re.compile(r",(?![^(\[{]*[)\]}])")  # in no bracket
JOINED = re.compile(r",?\s*(?:\\text\{,?\s*(?:and|or)\s*\}|(?<=\d\s)(?:and|or)(?=\s[-+\d\\]))\s*")
COLUMN = re.compile(
    r"\\begin\{[pb]matrix\}([^&]*?)(?:\\\\\s*)?\\end\{[pb]matrix\}"
    r"|(?:\\left\s?)?[(\[]\s*\\begin\{array\}\{[clr]\}([^&]*?)(?:\\\\\s*)?\\end\{array\}\s*(?:\\right\s?)?[)\]]",
    re.DOTALL,
)
RELATION = re.compile(r"\s*(\\(?:leqslant|geqslant|leq?|geq?|lt|gt)(?![A-Za-z])|[<>]=?|[≤≥])\s*")
LESS = {"<": True, r"\lt": True} | dict.fromkeys(("<=", "≤", r"\le", r"\leq", r"\leqslant"), False)  # whether strict
MORE = {">": True, r"\gt": True} | dict.fromkeys((">=", "≥", r"\ge", r"\geq", r"\geqslant"), False)
VARIABLE = re.compile(r"(?!\\(?:pi|infty)|[ei]$)\\?[A-Za-z]+")
INTERVAL = re.compile(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]")
GAP = re.compile(r"(?:\\q?quad(?![A-Za-z])|\s)+")  # one space for it, so that what follows need not look at each
EITHER = re.compile(r" ?(?:\\(?:big)?cup(?![A-Za-z])|∪|\\lor|(?:\\text\{ ?)?(?:\bor\b|或) ?\}?) ?")
BOTH = re.compile(r"(?<=[)\]]) ?(?:,|(?:\\text\{ ?)?\band\b ?\}?) ?(?=[(\[])")
MEMBER = re.compile(r"([A-Za-z]) ?(?:\\in(?![A-Za-z])|∈) ?")
OF_INTERVALS = re.compile(rf"\\infty|∞|\\(?:big)?cup(?![A-Za-z])|∪|\\in(?![A-Za-z])|∈|{RELATION.pattern}")


def notation(answer: str) -> str:
    """An answer in plainer notation: integers without leading zeros, LaTeX without spaces and sizes."""
    answer = answer.strip().strip("$").strip()
    if whole := INTEGER.fullmatch(
        answer.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+", answer) else answer
    ):
        return whole[1].replace("+", "") * (whole[2] != "0") + whole[2]
    return SPACES.sub("", re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])", "", answer)).replace("dfrac", "frac")


def based(answer: str) -> tuple[str, str] | None:
    r"""Digits and base of `2220_5` or `2220_{\text{five}}`; `None`: it is no number with a base."""
    found = BASED.fullmatch(notation(answer))
    return found and (found[1], NUMERALS.get(found[2].casefold(), found[2]))


def readable(answer: str) -> str:
    r"""
    An answer as math-verify reads what is meant.

    Numerals up to twelve as digits, `¾`, `\sqrt 15` and the like as LaTeX knows them, `\langle1,2\rangle` as a tuple,
    inequalities joined by "or" as a union of intervals, other values joined by words, or by `\pm`, as a list.
    """
    word = TEXT.sub(r"\1", answer).strip(" .$").casefold()
    if word in NUMERALS:
        return NUMERALS[word]
    answer = " ".join(answer.split())
    answer = FRACTION.sub(lambda one: unicodedata.normalize("NFKC", one[0]), answer)
    for written, read in REWRITTEN:
        answer = written.sub(read, answer)
    answer = RECURRING.sub(_fraction, answer).strip()
    return union(answer) or _signed(JOINED.sub(", ", answer))


def in_tuples(answer: str) -> str:
    """An answer with its columns as tuples."""
    return COLUMN.sub(lambda one: "(" + ", ".join(map(str.strip, (one[1] or one[2]).split(r"\\"))) + ")", answer)


def _fraction(decimal: re.Match) -> str:
    r"""`0.1\overline{6}` as `\frac{15}{90}`."""
    whole, start, period = decimal.groups()
    top = int(whole + start + period) - int(whole + start or "0")
    return rf"\frac{{{top}}}{{{(10 ** len(period) - 1) * 10 ** len(start)}}}"


def _signed(answer: str) -> str:
    r"""Each value with one `\pm`, and `\mp` with it, as two values."""
    inside = answer.removeprefix(r"\{").removesuffix(r"\}") if answer[:2] == r"\{" else answer
    values = []
    for value in COMMA.split(inside):
        found = [SIGNS[sign] for sign in SIGN.findall(value)]
        both = found.count("+-") == 1 and len(found) == len(set(found))
        values += [SIGN.sub(lambda sign, at=at: SIGNS[sign[0]][at], value) for at in (0, 1)] if both else [value]
    return answer.replace(inside, ",".join(values)) if inside else answer


def union(answer: str) -> str | None:
    r"""`x<-2 \text{ or } x>3` as a union of intervals; `None`: it is no such thing, points or two variables say."""
    bare = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", answer).replace("$", "")
    bare = GAP.sub(" ", bare).strip()
    if not OF_INTERVALS.search(bare):
        return None
    parts = EITHER.split(bare)
    if len(parts) == 1 and r"\infty" in bare and not RELATION.search(bare):
        parts = BOTH.split(bare)
    intervals = [_interval(part) for part in parts]
    if len(parts) == 1 or None in intervals or len({of for of, _ in intervals if of}) > 1:
        return None
    return r" \cup ".join(interval for _, interval in intervals)


def _interval(part: str) -> tuple[str, str] | None:
    """A variable, "" where none is named, and its interval, written as one or as inequalities with its bounds."""
    part = part.strip()
    member = MEMBER.match(part)
    part = part[member.end() :] if member else part
    pieces = RELATION.split(part)
    place = next((at for at in range(0, len(pieces), 2) if VARIABLE.fullmatch(pieces[at])), None)
    if place is None or len(pieces) not in (3, 5) or len(pieces) == 5 and place != 2:
        return (member[1] if member else "", part) if INTERVAL.fullmatch(part) else None
    low, high = r"(-\infty", r"\infty)"
    for at, sign in enumerate(pieces[1::2]):
        is_left = 2 * at == place  # the variable, of this sign
        bound, strict = pieces[2 * at + 2 if is_left else 2 * at], (LESS | MORE)[sign]
        if (sign in LESS) == is_left:
            high = bound + (")" if strict else "]")
        else:
            low = ("(" if strict else "[") + bound
    return pieces[place], f"{low}, {high}"
