r"""Final answers about images against the right ones: choices, numbers with units, words, lists; without a model.

An answer that names several where one is asked for equals none of them. What cannot be told here is an expression, for
`maths.py`. Every table and number here is ours: paper silent.
"""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

from hf_cascade.rewards.maths import FUNCTIONS, TEXT

YEARS = (1900, 2100)  # whole numbers for which a relative tolerance makes no sense
WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width letters, digits and marks
WIDE |= dict.fromkeys(map(ord, "−–—‐‑"), "-") | dict.fromkeys(map(ord, "\u00a0\u2009\u202f\u3000"), " ")
WIDE |= dict.fromkeys(map(ord, "‘’′"), "'") | dict.fromkeys(map(ord, "“”″"), '"')
LATEX = {r"\%": "%", r"\$": "$", r"\#": "#", r"\&": "&", "{,}": ",", r"\circ": "°", r"\degree": "°", "^°": "°"}
LATEX |= {"^{°}": "°", r"\,": " ", r"\;": " ", r"\:": " ", r"\!": "", r"\ ": " ", "~": " ", r"\left": "", r"\right": ""}
LEAD = re.compile(r"[A-Za-z] ?= ?|[≈=] ?|(?:about|around|approximately|approx\.?) +", re.I)
NUMBER = re.compile(
    r"(?P<sign>[-+]?) ?(?P<currency>[$€£¥₹]?) ?(?P<inner>[-+]?)"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?P<power>[eE][-+]?\d{1,3})?(?![\d.,]*\d)(?P<rest>.*)",
    re.DOTALL | re.ASCII,
)
GROUPS = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")  # 1 000
TIMES_TEN = re.compile(r" ?(?:\\times|\\cdot|×|·|x|\*) ?10 ?(?:\^|\*\*) ?(?:\{([-+]?\d{1,3})\}|([-+]?\d{1,3}))")
SIZES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "bn": 9, "K": 3, "M": 6, "B": 9}
SIZE = re.compile(r" ?((?i:thousand|million|billion|trillion|bn))(?!\w)|([KMB])(?!\w)")
SEVERAL = frozenset("or and to not versus vs oder und nicht bis ou et pas o y no e".split())
UNITS = {
    name: words.split()[0]
    for words in (
        "% percent percentage pct",
        "° deg degree degrees",
        "$ usd dollar dollars",
        "€ eur euro euros",
        "£ gbp pound pounds",
        "mm millimeter millimeters millimetre millimetres",
        "cm centimeter centimeters centimetre centimetres",
        "m meter meters metre metres",
        "km kilometer kilometers kilometre kilometres",
        'in inch inches "',
        "ft foot feet '",
        "mi mile miles",
        "g gram grams gramme grammes",
        "kg kilogram kilograms",
        "l liter liters litre litres",
        "ml milliliter milliliters millilitre millilitres",
        "s sec secs second seconds",
        "min mins minute minutes",
        "h hr hrs hour hours",
        "day days",
        "week weeks",
        "month months",
        "year years",
        "°c celsius",
        "°f fahrenheit",
        "¥ yen",
        "₹ rupee rupees",
        *"n j w v pa hz kj kw kn kv khz mhz ghz kpa mol kcal mph kwh mb gb tb".split(),
    )
    for name in words.split()
}
SMALL = ("of", "per", "sq", "cu")  # words beside units
EXPONENT = re.compile(r"\^?\{?(-?[123])\}?$")
WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
PUNCTUATION = ',;:!?"()[]{}-/\\_*|'
NUMERALS = {word: str(value) for value, word in enumerate(WORDS)}
ARTICLES = ("a", "an", "the")
KEPT = re.compile(r"(?<=\d)[.,:/-](?=\d)|(?<!\w)-(?=\.?\d)|\.(?=\d)")  # marks that are part of a number
PREFIX = re.compile(r"(?:(?:the )?(?:correct )?(?:option|answer|choice)(?: is)?:? )(?=\S)", re.I)
LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:]?", re.ASCII)
LETTERED = re.compile(r"(?:[(\[]([A-Za-z])[)\]][.:]?|([A-Za-z])[).:])\s*(\S.*)", re.DOTALL | re.ASCII)
BARE = re.compile(r"([A-Za-z])()\s+(\S.*)", re.DOTALL | re.ASCII)
OTHER = re.compile(r"(?<![\w.])(?:[B-HJ-Z](?![\w.'])|[A-Za-z]\)|\([A-Za-z]\)|[A-Z][.:](?!\w))")


@dataclass(frozen=True)
class Number:
    """A value, and its unit in one spelling, "" where it has none; `known`: other units are another quantity."""

    value: Decimal
    unit: str = ""
    known: bool = False


def plain(text: str) -> str:
    r"""Text without LaTeX's marks around words, unusual dashes, spaces and quotation marks, and a final full stop."""
    text = unicodedata.normalize("NFC", text).translate(WIDE).strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$")
    for begin, end in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(begin) and text.endswith(end):
            text = text[2:-2]
    for _ in range(4):  # nested, but no deeper
        text = TEXT.sub(r"\1", text)
    for mark, meant in LATEX.items():
        text = text.replace(mark, meant)
    text = " ".join(text.split())
    return text.removesuffix(".").strip() if not text.endswith("..") else text


def number_of(text: str) -> Number | None:
    """A single number with its unit: thousands in groups, powers of ten, percents, millions; `None`: it is none."""
    text = plain(text)
    if lead := LEAD.match(text):
        text = text[lead.end() :]
    found = NUMBER.fullmatch(NUMERALS.get(text.casefold(), GROUPS.sub("", text)))
    if found is None or (found["sign"] and found["inner"]):
        return None
    value, rest = Decimal(found["sign"] + found["inner"] + found["digits"].replace(",", "")), found["rest"]
    power = int(found["power"][1:]) if found["power"] else 0
    if scaled := TIMES_TEN.match(rest):
        power, rest = power + int(scaled[1] or scaled[2]), rest[scaled.end() :]
    if size := SIZE.match(rest):
        power, rest = power + SIZES[size[2] or size[1].casefold()], rest[size.end() :]
    unit = _unit(rest.strip(" .-"), found["currency"])
    return unit and Number(value.scaleb(power) if power else value, *unit)


def _unit(rest: str, currency: str) -> tuple[str, bool] | None:
    """A unit in one spelling, and whether it is one that is known here; `None`: what follows the number is no unit."""
    if not rest:
        return currency, bool(currency)
    found, known = [], True
    for word in re.split(r"(?<=%)|[ /·*()-]+", rest.casefold().replace("²", "^2").replace("³", "^3")):
        exponent = EXPONENT.search(word)
        name = word[: exponent.start()] if exponent else word
        noun = len(name) > 2 and name.isalpha() and not FUNCTIONS.fullmatch(name)
        if not word or name in SMALL:
            continue
        if name in SEVERAL or name in NUMERALS or not (name in UNITS or noun):
            return None
        known = known and name in UNITS
        found.append(UNITS.get(name, name) + (exponent[1] if exponent else ""))
    return (" ".join(found), known) if 0 < len(found) <= 4 else None


def names_several(text: str) -> bool:
    """Whether text that is no number here names more than one value in words, `7 or eight`."""
    found = set(re.findall(r"[^\W\d_]{2,}", plain(text).casefold()))
    return bool(found & SEVERAL or found & set(NUMERALS))


def same_number(right: Number, given: Number, tolerance: float = 0.0, precision: int | None = None) -> bool:
    """
    Whether a number is the right one. Of a missing unit nothing is said; known units must agree, none is converted.

    Args:
        right ([`Number`]): the right one.
        given ([`Number`]): the answer.
        tolerance (`float`, *optional*): relative, as ChartQA's 0.05; not for years, whole numbers in `YEARS`.
        precision (`int`, *optional*): decimals to which the answer is rounded first.
    """
    if right.unit and given.unit and right.known and given.known and right.unit != given.unit:
        return False
    readings = [(right.value, given.value)]
    if (right.unit == "%") != (given.unit == "%"):  # 50% is 50 without its unit, and 0.5
        readings.append(tuple(n.value / 100 if n.unit == "%" else n.value for n in (right, given)))
    for wanted, value in readings:
        year = not right.unit and wanted == wanted.to_integral_value() and YEARS[0] <= wanted <= YEARS[1]
        margin = Decimal(0) if year else abs(wanted) * Decimal(str(tolerance))
        if precision is not None:
            margin = max(margin, Decimal(5).scaleb(-precision - 1))
        if wanted == value or abs(wanted - value) <= margin and margin:
            return True
    return False


def words(text: str) -> str:
    """Words for comparison: case, articles and punctuation left out, small numbers in digits."""
    text = re.sub(r"(?<=\d) ?([:/]) ?(?=\d)", r"\1", plain(text).casefold())
    kept = {place for mark in KEPT.finditer(text) for place in range(*mark.span())}
    bare = [
        character if place in kept else "" if character in "'.`" else " " if character in PUNCTUATION else character
        for place, character in enumerate(text)
    ]
    found = [NUMERALS.get(word, word) for word in "".join(bare).split()]
    return " ".join([word for word in found if word not in ARTICLES] or found[-1:])


def same_text(right: str, given: str) -> bool:
    """Whether two answers are the same words, or the same text where there are no words."""
    return words(right) == words(given) if words(right) else plain(right) == plain(given)


def same_item(right: str, given: str, tolerance: float = 0.0, precision: int | None = None) -> bool:
    """Whether two answers are the same words or the same number."""
    numbers = number_of(right), number_of(given)
    if None not in numbers:
        return same_number(*numbers, tolerance, precision)
    return same_text(right, given)


def option_of(answer: str, options: list[str]) -> int | None:
    """
    The place of the option that an answer names, from 0; `None`: none, or more than one.

    An option's text goes before its letter: options may be letters.

    Args:
        answer (`str`): the letter, the letter with its text, or the text.
        options (`list[str]`): texts; empty where they are not known.
    """
    answer = PREFIX.sub("", plain(answer), count=1)
    options = [_unlettered(place, plain(option)) for place, option in enumerate(options)]
    equal = _by_text(answer, options)
    if equal:
        return equal[0] if len(equal) == 1 else None
    if letter := LETTER.fullmatch(answer):
        return _place(letter[1], options)
    lettered = LETTERED.fullmatch(answer) or (options and BARE.fullmatch(answer))
    if not lettered:
        return None
    place = _place(lettered[1] or lettered[2], options)
    if place is None:
        return None
    rest = _unlettered(place, lettered[3])
    agrees = place in _by_text(rest, options) if options else not OTHER.search(rest)
    return place if agrees else None


def _by_text(answer: str, options: list[str]) -> list[int]:
    """Places of the options whose text an answer is; those with exactly its text where there are such."""
    equal = [place for place, option in enumerate(options) if words(option) and same_item(option, answer)]
    return [place for place in equal if options[place] == answer] or equal


def _unlettered(place: int, option: str) -> str:
    """An option without its own letter before it."""
    lettered = LETTERED.fullmatch(option)
    return lettered[3] if lettered and _place(lettered[1] or lettered[2], []) == place else option


def _place(letter: str, options: list[str]) -> int | None:
    place = ord(letter.upper()) - ord("A")
    return place if not options or place < len(options) else None


def items_of(answer: str | list) -> list[str]:
    """The items of a list, or of a text what stands between its commas or semicolons, in brackets or not."""
    if not isinstance(answer, str):
        return [str(item) for item in answer]
    text = plain(answer).replace(r"\{", "{").replace(r"\}", "}").strip()
    depth, cuts = 0, []
    if text[:1] + text[-1:] in ("[]", "{}", "()") and _closes_last(text):
        text = text[1:-1]
    mark = ";" if ";" in text else ","
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        group = re.match(r",\d{3}(?!\d)", text[place:]) and text[:place][-1:].isdigit() and ", " in text
        if character == mark and depth == 0 and not group:
            cuts.append(place)
    parts = [text[start:end] for start, end in zip([0, *(cut + 1 for cut in cuts)], [*cuts, len(text)], strict=True)]
    parts[-1] = re.sub(r"^\s*and\s+", "", parts[-1])
    if len(parts) == 1 and " and " in text:
        parts = text.split(" and ")
    elif " and " in parts[-1]:
        parts[-1:] = parts[-1].split(" and ")
    return [part.strip(" '\"") for part in parts]


def _closes_last(text: str) -> bool:
    """Whether the first bracket closes at the end of the text, and not before."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return place == len(text) - 1
    return False


def same_items(right: list[str], given: list[str], ordered: bool, tolerance: float = 0.0, precision=None) -> bool:
    """Whether two lists have the same items, each as often, in this order or any; for others see [`same_item`]."""
    if len(right) != len(given):
        return False
    if ordered:
        return all(same_item(a, b, tolerance, precision) for a, b in zip(right, given, strict=True))
    left = list(given)
    for item in right:
        found = next((place for place, other in enumerate(left) if same_item(item, other, tolerance, precision)), None)
        if found is None:
            return False
        del left[found]
    return True
