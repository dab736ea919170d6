r"""Which option a free-form answer names, or none: it never guesses (ours; the forms are those that models write).

The first of these that is there counts: the last thing said to be the answer (`Answer: C`, `\boxed{C}`, a letter alone
in the last line); the one option said to be correct; an answer that is nothing but an option, its letter or its text.
Who names two options there, denies, asks, or names a letter that no option has, names none.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from hf_cascade.evaluate.benchmarks.statements import (
    ANSWER,
    EAST,
    EAST_ANSWER,
    EAST_IS,
    KIND,
    START,
    VERB,
    boxes,
    is_unreal,
)
from hf_cascade.rewards.maths import TEXT

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LINE = 400  # characters after "Answer:" that are looked at; this and the next two are ours
LONGEST = 200  # statements looked at from the end, so that a loop of them is read in no time
BETWEEN = 60  # characters between two statements that contradict each other
BEGIN, END = "\ue000", "\ue001"  # around what stands in \boxed{}; private characters, removed from answers

ALPHABETS = (0x1D400, 0x1D434, 0x1D468, 0x1D5A0, 0x1D5D4, 0x1D608, 0x1D63C, 0x1D670)  # bold, italic, sans, ...
ALPHABETS += (0x24B6, 0x1F110, 0x1F130, 0x1F150, 0x1F170)  # in circles and squares
PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full width
PLAIN |= {first + place: letter for first in ALPHABETS for place, letter in enumerate(LETTERS)}
PLAIN |= dict.fromkeys(map(ord, "\u00a0\u2009\u202f\u3000\t"), " ") | dict.fromkeys(map(ord, "−–‐‑"), "-")
PLAIN |= dict.fromkeys(map(ord, "‘’′"), "'") | dict.fromkeys(map(ord, "“”″„«»「」『』"), '"')
PLAIN |= {
    ord(mark): plain for mark, plain in zip("。、【】⇒➡∴—", [".", ",", "[", "]", "→", "→", "→", " - "], strict=True)
}
REMOVED = [*range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF, 0xFE0F, ord(BEGIN), ord(END)]
PLAIN |= dict.fromkeys([*map(ord, "*`$\r"), *REMOVED])
UNBRACED = re.compile(r"\\boxed\s{1,4}([A-Za-z])(?![A-Za-z])")
MARKUP = re.compile(
    r"\\[()\[\],;:! ]|\\(?:left|right|displaystyle|quad|bf|rm)(?![A-Za-z])|</?(?:b|i|u|p|s|em|br|code|span|strong)>"
    r"|<\|[a-z_]{1,20}\|>|__|(?<![\w\\])_(?=[A-Z(])|(?<=[A-Z).])_(?!\w)"
)

STOP = rf"(?![^\W{EAST}]|'\w|[+#^=]|-\w)"  # after a letter: no word goes on, as in C-terminal or C++
WORD = r"(?:the|la|el|le|lo|il|die|der|das|option|choice|answer|letter|opción|opcion|opção|opzione|lettre|letra|lettera"
WORD += r"|alternativa|antwort|buchstabe|therefore|thus|hence|then|clearly|definitely|likely|probably|most|indeed"
WORD += r"|simply|just|actually|either|both|donc|quindi|portanto|logo|also|only|correct|certainly|surely|for sure"
WORD += r"|i think|i believe|i'd say|it's|it is)"
LEAD = re.compile(
    rf"(?:\s|[:→✅✔☑👉•-](?=\s)|{WORD}\b[\s:,]{{0,3}}|{BEGIN}(?={WORD}\b)|l'|选项|選項|選択肢|선택지"
    rf"|(?-i:[ao])\s(?=(?-i:[A-Z]){STOP}|letra|alternativa|op)){{0,8}}",
    re.I,
)
NOUN = rf"(?:{ANSWER}|choice|option|solution|conclusion|verdict|final|guess|lösung|solución|soluzione|solução"
NOUN += r"|alternativa|opción|opção|opzione|gabarito|response|statement|alternative|result|letter|match)"
DENIAL = r"(?:isn't|is not|can't be|cannot be|can not be|ist nicht|n'est pas|no es|non è|não é)"
LABEL = re.compile(
    rf"{START}{NOUN}{KIND}(?:\s(?:to|for|of|here|in|among|from)\b[^.:?!\n]{{0,60}}?)?[\"')\]]{{0,2}}"
    r"(?:,\s(?:therefore|then|thus|hence),)?\s{0,2}"
    rf"(?:[:=→]|-(?=\s)|\b(?P<denied>{DENIAL})\b|\b{VERB}\b(?:\s?:)?)"
    r"|\b(?:correct|most likely|most appropriate|closest)\s(?:\w+\s){1,2}"
    r"(?:(?:that|to|for|of|in|among|from|with)\b(?:[^.:?!\n]|\.(?=\d)){0,80}?\s)?(?:is|are|would be)\b(?:\s?:)?"
    rf"|^[# >]{{0,6}}(?:(?:the|my|final|correct)\s){{0,2}}{NOUN}\s?\n|<answer>|{EAST_ANSWER}(?:{EAST_IS})?"
    r"|[故应應]?[选選][择擇]?(?![项項])\s?:?"
    rf"|\b(?:choose|pick|select|going with|go with|opt for|richtig ist|ist die Antwort)\b"
    rf"|\bI(?:'d| would) (?:answer|say)\b|\b(?:sure|confident|certain) (?:that )?it(?:'s| is)\b|{START}ans\.|{BEGIN}",
    re.I | re.M,
)
CLOSE = rf"[)\]}}>\"'{END}]"
NAMED = re.compile(
    rf"(?P<open>[(\[{{<\"'{BEGIN} ]{{0,4}})(?P<letter>[A-Za-z]){STOP}(?P<close>(?: ?{CLOSE})?{CLOSE}{{0,3}})"
)
DENIED = re.compile(r"(?:(?:not|nicht|pas|non)\b|不是|不)\s?(?:option|choice|answer)?\s?", re.I)
REFUSED = re.compile(
    r"(?:none|neither|unknown|unclear|n/a\b|i (?:don't|do not|cannot|can't)|cannot|can't|not (?:sure|possible|enough)"
    r"|insufficient|it depends|无法|不知道|keine|aucune|ninguna|nessuna|nenhuma)",
    re.I,
)
GOES_ON = re.compile(  # after a letter without brackets, in capitals
    rf"\s?[,;:)\n{END}]|\.(?=[\s\"{EAST}]|$)|\s-\s|\s?\(|\s?[{EAST}]|\s(?:because|since|as|is|which|due|given|based|for|by|from|rather|instead"
    r"|weil|denn|da|car|parce|puisque|porque|pues|perché|poiché|pois|and|or|und|oder|et|ou|y|e|not|non|nicht|no|não|here)\b"
    r"|\s?[/&|]",
)
JOIN = r"(?:\b(?:and/or|or|and|nor|vs|ou|oder|o|y|e|et|und)\b|[/&|+]|或|和|及|または|또는)\s{0,2}"
AND = re.compile(
    rf"[\s.,;)\]}}{END}(-]{{0,6}}{JOIN}(?:(?:possibly|maybe|perhaps|also|even|option|choice)\s){{0,2}}"
    rf"[(\[\"'{BEGIN}]{{0,3}}(?P<letter>[A-Z]){STOP}(?!\)?\s(?:is|are|was)\s(?:wrong|incorrect|false|not|too))"
)
COMMA = re.compile(rf"\s?,\s?\(?(?P<letter>[A-Z]){STOP}\)?,?\s{JOIN}")
LIST = re.compile(
    rf"[\s.,:;|)\]}}{END}(\"'{BEGIN}-]{{1,6}}(?P<letter>[A-Z]){STOP}"
    rf"(?=[\s.,;|)\]}}\"'{END}-]{{0,6}}(?:$|[(\[\"']?[A-Z]{STOP}(?!\s[a-z])))"
)
MAYBE = re.compile(
    rf"\b(?:could|might|may|can)\s(?:also\s)?be\s(?:option\s|choice\s)?\(?(?P<a>[A-Z]){STOP}"
    rf"|\b(?P<b>[A-Z])\)?\s(?:is|are|could be|might be|may be|works|fits)\s(?:also|equally|too|as well|possible)\b"
    rf"|\b(?:or|oder|ou)\s(?:possibly\s|maybe\s|perhaps\s|even\s)?(?:option\s)?\(?(?P<c>[A-Z])\)?(?=[\s.,;)!?]{{0,4}}$)"
)
WRONG = re.compile(r"\s(?:is|are|was)\s(?:not|wrong|incorrect|false)\b|\s(?:isn|wasn)'t|,?\s?(?:or|oder|ou)\b", re.I)
REVISED = re.compile(  # "no wait, it's B"
    r"\b(?:no|wait|actually|sorry|correction|oops|rather)\b\W{1,3}(?:(?:no|wait|actually|sorry|i mean|it's|it is"
    rf"|it should be|make that|option)\b\W{{1,3}}){{0,4}}\(?(?P<letter>(?-i:[A-Z])){STOP}(?!\s[a-z])",
    re.I,
)
NEGATIVE = re.compile(r"\b(?:not|nor|neither|rather|instead|unlike|over|eliminat\w*|excludes?)\b|n't", re.I)
SMALL_TALK = re.compile(
    r"(?:[\W_]|\b(?:or|and|the|my|final|correct|best|right|so|thus|therefore|answer|option|is)\b)*", re.I
)
CORRECT = re.compile(
    r"(?:^|[.,;:!?(]|\b(?:option|choice|statement|answer|only|so|thus|hence|therefore|that|think|believe|then|means"
    r"|conclude|but|antwort|réponse|opción|respuesta|opzione|risposta|resposta|opção|alternativa|letra)\b|选项|選項|選択肢)\s{0,3}"
    r"[(\[\"']{0,2}(?P<letter>(?-i:[A-Z]))[)\]\"']{0,2}(?:\s(?:is|ist|est|es|è|é|(?:seems|appears)(?: to be)?|must be"
    r"|would be|remains)\s"
    r"(?:(?:the|my|clearly|definitely|most|likely|probably|therefore|thus|la|le|die|der|only)\s){0,3}"
    r"(?:correct|right|best|answer|most appropriate|richtig|korrekt|correct[ae]|corretta|correta|exacte?)\b"
    r"(?!\s(?:about|that|in|for|if|only|but|except|as far)\b)|\s?(?:是正确|正确|が正しい|が正解|가 정답|이 정답))",
    re.I | re.M,
)
ONLY = re.compile(
    r"\bonly\s(?:(?:option|choice|statement|answer)\s)?[(\[]?(?P<letter>(?-i:[A-Z]))[)\]]?\s"
    r"(?:fits|satisfies|works|matches|meets|agrees|remains|survives)\b",
    re.I,
)
LONELY = re.compile(rf"[\s#>-]{{0,9}}(?:(?:{NOUN}|letra|lettre)\s)?{NAMED.pattern}[\s.!]{{0,9}}", re.I)
ITEM = re.compile(r"^[\s#>-]{0,9}(?:(?i:option|choice)\s)?[(\[\"']?([A-Z])(?:[)\].:]|\s*$)", re.M)
REASON = re.compile(
    r"(?:\)?[,;:.]?\s(?:-\s)?|\s?\()(?:because|since|as|given|due|the|this|it|in|not|weil|denn|car|parce|porque|pois)\b"
    r"|,\s?因为|[,.]?\s?不是",
    re.I,
)
SO = r"(?:therefore|thus|hence|so|it is|it's|it (?:must|should) be|i guess|donc|also|daher|quindi"
SO += r"|por (?:lo )?tanto|portanto|by (?:process of )?elimination|(?:this|that|which) leaves|leaving|we are left with"
SO += r"|i\.e\.|=>|(?:this|that|which|it) (?:corresponds to|matches|agrees with|points to)|因此|所以|よって|따라서|→)"
CONCLUSION = re.compile(rf"\s{{0,9}}(?:{SO}[,:]?\s?){{1,2}}", re.I)
LATER = re.compile(  # in a sentence
    rf"(?<=[,;])\s{{0,9}}(?:{SO}[,:]?\s?){{1,2}}|(?<!\bnot )(?<!n't )\b(?:corresponds? to|match(?:es)?|agrees? with"
    r"|points? to|(?:which|this|that) is)\s(?=(?:option|choice)\b)|\((?=(?:option|choice)\s(?-i:[A-Z])\))",
    re.I,
)
CLAUSE = re.compile(r"[:;]|,(?=\s|$)|\b(?:and|but|so)\s")
ASIDE = re.compile(r",\s[^,]{1,20},\s?$")  # "does not, however, "
UNREAL = re.compile(  # before a letter, in its clause
    r"(?i)\b(?:never|hardly|barely|scarcely|rarely|none|nothing|neither|nor|not?|cannot|would|could|might|may|fails?"
    r"|unlike|doubts?|(?:rul(?:e[ds]?|ing)|cross(?:e[ds]|ing)?) out|eliminat\w*|exclud\w*|discard\w*|reject\w*)\b|n't\b"
)
IF = re.compile(r"\b(?:if|unless|whether|suppose|assum(?:e|ing))\b", re.I)  # in its sentence


class Reading(NamedTuple):
    """What one statement says: `letter` is "" where it names no single option; `end` is where it does, in the text."""

    letter: str
    end: int = 0
    denied: bool = False


def letter_of(answer: str, options: list[str]) -> str | None:
    """
    The letter of the option that an answer names.

    A letter is a letter, even where an option's text is one.

    Args:
        answer (`str`): a model's, without its thinking.
        options (`list[str]`): the options' texts, the first of which is A; their own letters before them are left out.

    Returns:
        `str` or `None`: a capital letter; `None`: none, or more than one.

    Raises:
        ValueError: no options, or more than there are letters.
    """
    if not 1 <= len(options) <= len(LETTERS):
        raise ValueError(f"{len(options)} options: give 1 to {len(LETTERS)}")
    text = _plain(answer)
    bare = [_unlettered(_bare(_plain(option)), LETTERS[place]) for place, option in enumerate(options)]
    found = _stated(text, bare)
    if found is None:
        found = _correct(text, bare) or _alone(text, bare)
    return found or None


def _plain(text: str) -> str:
    r"""Text without emphasis, LaTeX around words and unusual characters; a \boxed{} becomes a pair of marks."""
    text = text.translate(PLAIN).replace(r"\fbox", r"\boxed").replace("</answer>", "\n")
    text = _boxes(UNBRACED.sub(r"\\boxed{\1}", text))
    for _ in range(3):  # nested, but no deeper
        text = TEXT.sub(r"\1", text)
    return MARKUP.sub("", text)


def _boxes(text: str) -> str:
    """Boxes that are closed, with marks in place of their command and braces."""
    changes = [(*mark.span(), put) for pair in boxes(text) for mark, put in zip(pair, (BEGIN, END), strict=True)]
    pieces, place = [], 0
    for start, end, mark in sorted(changes):
        pieces += [text[place:start], mark]
        place = end
    return "".join([*pieces, text[place:]])


def _bare(text: str) -> str:
    """Text for comparison: small letters, single spaces, no quotation marks, "the" and full stop around it."""
    text = " ".join(text.casefold().split()).strip(f" \"'{BEGIN}{END}").rstrip(".,;").strip()
    return text.removeprefix("the ")


def _unlettered(option: str, letter: str) -> str:
    """An option without its own letter before it, as in AGIEval's `(A)5`."""
    letter = letter.casefold()
    lead = next((lead for lead in (f"({letter})", f"{letter})", f"{letter}. ") if option.startswith(lead)), "")
    return option[len(lead) :].strip()


def _stated(text: str, options: list[str]) -> str | None:
    """The last letter said to be the answer; "": there is none, or two; `None`: nothing is said to be the answer."""
    statements = [*LABEL.finditer(text)]
    if (last := _last_line(text)) and statements[-1:] and statements[-1].end() > last[0]:
        last = None  # a statement stands in it
    read = ((start, reading) for start, reading in _readings(text, statements[-LONGEST:], last, options))
    denied, found = set(), None
    for _, (start, reading) in zip(range(LONGEST), read, strict=False):
        if found is None:
            if reading.denied:
                denied.add(reading.letter)
                continue
            if not reading.letter or reading.letter in denied:
                return ""
            found, before = reading.letter, start
            for other in REVISED.finditer(text, reading.end, reading.end + 2 * BETWEEN):
                if other["letter"] in LETTERS[: len(options)].replace(found, ""):
                    return ""
        elif len(between := text[reading.end : before]) > BETWEEN or not SMALL_TALK.fullmatch(between):
            break
        elif reading.letter != found and not reading.denied:
            return ""
        else:
            before = start
    return found if found or not denied else None


def _readings(text: str, statements: list[re.Match], last, options: list[str]) -> Iterator[tuple[int, Reading]]:
    """Where each statement begins and what it says, the last first; those that say nothing are left out."""
    if last is not None and (reading := _named(text[last[0] : last[1]], last[0], options)):
        yield last[0], reading
    for found in reversed(statements):
        boxed = found[0] == BEGIN
        if not boxed and (before := is_unreal(text, found.start())):
            if "not" in before or "n't" in before:
                reading = _said(text, found.end(), options)
                if reading and reading.letter:
                    yield found.start(), reading._replace(denied=True)
            continue
        reading = _said(text, found.start() if boxed else found.end(), options)
        if reading and found["denied"]:
            reading = reading._replace(denied=True)
        if reading:
            yield found.start(), reading


def _said(text: str, start: int, options: list[str]) -> Reading | None:
    """What follows "Answer:", to the end of its line or of the first line that is not empty."""
    line = re.compile(rf"\s{{0,8}}([^\n]{{0,{LINE}}})").match(text, start)
    return _named(line[1], line.start(1), options)


def _named(said: str, start: int, options: list[str]) -> Reading | None:
    """The option that begins a text; a reading without a letter for two or none of them; `None`: it says nothing."""
    whole = _bare(said.split(END)[0])
    if len(whole) > 1 and options.count(whole) == 1:  # such as "both A and B"
        return Reading(LETTERS[options.index(whole)], start + len(whole))
    lead = LEAD.match(said).end()
    denied = DENIED.match(said, lead)
    lead = denied.end() if denied else lead
    found = NAMED.match(said, lead) or NAMED.match(said)
    if found and _is_letter(found, said[found.end() :], options):
        letter, rest, end = found["letter"].upper(), said[found.end() :], start + found.end()
        if re.match(r"\s?\?", rest):
            return None
        if denied:
            return Reading(letter, end, True)
        if LETTERS.index(letter) >= len(options):
            return Reading("", end) if found["letter"].isupper() else None
        return Reading("" if _is_doubtful(letter, rest, options) else letter, end)
    content = said[lead:].split(END)[0]
    if letter := _by_text(content, options):
        return Reading(letter, start + lead + len(options[LETTERS.index(letter)]), denied is not None)
    return Reading("", start + len(said)) if REFUSED.match(said, lead) else None


def _is_letter(found: re.Match, rest: str, options: list[str]) -> bool:
    """Whether a letter at the beginning is an option's, no article, initial, variable or part of a name."""
    opened, closed = found["open"].strip(), found["close"].strip()
    closed = closed if "<" in opened else closed.replace(">", "")  # A > B
    if (opened and closed) or not re.search(r"[\w?+=^/&|<>#-]", rest):
        return True
    if found["letter"].islower():
        return closed.startswith(")")
    place = LETTERS.index(found["letter"])
    own = options[place] if place < len(options) else ""
    return bool(closed or GOES_ON.match(rest)) or bool(own) and _bare(rest.lstrip(" .:-")).startswith(own)


def _is_doubtful(letter: str, rest: str, options: list[str]) -> bool:
    """Whether what follows a letter names another option beside it, or is another option's text."""
    text, own = _bare(rest.lstrip(f" .,:;)-{END}")), options[LETTERS.index(letter)]
    if text and text == own:
        return False
    if WRONG.match(rest) or (text and text in options):
        return True
    others = {place: other for place, other in zip(LETTERS, options, strict=False) if place != letter}
    for joined in (AND.match(rest), COMMA.match(rest), LIST.match(rest)):
        if joined and joined["letter"] in others:
            return True
    for maybe in MAYBE.finditer(rest):
        if (maybe["a"] or maybe["b"] or maybe["c"]) in others and not NEGATIVE.search(rest, 0, maybe.start()):
            return True
    listed = rest.casefold()
    for place, other in others.items():  # the options, one after another
        found = [listed.find(f"{place.casefold()}{mark} {other}") for mark in ").:"] if other else []
        if any(at >= 0 and not NEGATIVE.search(rest, 0, at) for at in found):
            return True
    return False


def _by_text(said: str, options: list[str]) -> str | None:
    """The letter of the one option whose text this is, or begins with before a reason; `None`: none, or several."""
    said = _bare(said)
    equal = [place for place, option in enumerate(options) if option and option == said]
    if not equal:
        reason = r"(?:,\s(?!or|and|oder|und|ou|et|o\b|y\b|e\b)[a-z]|\.\s|;\s|\s?\(|\s(?:because|since|which|as)\b)"
        begun = [(len(o), place) for place, o in enumerate(options) if o and said.startswith(o)]
        if not begun:
            return None
        length, _ = max(begun)
        equal = [place for size, place in begun if size == length]
        rest = said[length:]
        if not re.match(reason, rest) or any(o and o in rest for p, o in enumerate(options) if p not in equal):
            return None
    return LETTERS[equal[0]] if len(equal) == 1 else None


def _correct(text: str, options: list[str]) -> str | None:
    """The one option that is said to be correct, or that the last line concludes with."""
    only = (match for match in ONLY.finditer(text) if not _is_denied(text, match.start()))
    found = {match["letter"] for match in (*CORRECT.finditer(text), *only)}
    if found:
        letter = found.pop()
        return letter if not found and letter in LETTERS[: len(options)] else ""
    last = re.split(r"(?<=[.!?])(?<!\bi\.e\.)(?<!\be\.g\.) ", text.rstrip().rpartition("\n")[2])[-1]
    so = CONCLUSION.match(last)
    if so and (reading := _named(last[so.end() :], 0, options)) and not reading.denied:
        return reading.letter
    for so in reversed([*LATER.finditer(last)]):  # "2 + 2 = 4, thus (B)."
        reading = _named(last[so.end() :], 0, options)
        if reading and reading.letter and not reading.denied:
            if _is_denied(last, so.start()):
                return None
            rest = _bare(last[so.end() + reading.end :].lstrip(" .:)-"))
            return reading.letter if rest in ("", options[LETTERS.index(reading.letter)]) else None
    return None


def _is_denied(text: str, place: int) -> bool:
    """Whether what begins at a place is denied or supposed by words before it; ", so" begins a clause of its own."""
    before = re.split(r"[.!?](?=\s)|\n", text[max(0, place - LINE) : place])[-1]
    if text[place : place + 16].lstrip().startswith(("which", "that")):
        before = before.rstrip(" ,;")
    return bool(IF.search(before) or UNREAL.search(CLAUSE.split(ASIDE.sub(" ", before))[-1]))


def _last_line(text: str) -> tuple[int, int] | None:
    """Start and end of a letter that is the last line alone; `None` also where the line before it is such a letter."""
    end = len(text.rstrip())
    start = text.rfind("\n", 0, end) + 1
    line = LONELY.fullmatch(text, start, end)
    before = text[:start].rstrip()
    return (line.start("open"), end) if line and not LONELY.fullmatch(before, before.rfind("\n") + 1) else None


def _alone(text: str, options: list[str]) -> str | None:
    """The option that the answer is, with or without its text or a reason, or that is its first line alone."""
    text = text.strip()
    if letter := _by_text(text, options):
        return letter
    if len({match[1] for match in ITEM.finditer(text)} & set(LETTERS[: len(options)])) > 1:
        return None  # the options, one after another
    first, _, more = text.partition("\n")
    reading = _named(first.lstrip("#> -"), 0, options)
    if reading is None or reading.denied or not reading.letter:
        return _by_text(text.rpartition("\n")[2], options)
    rest = first.lstrip("#> -")[reading.end :]
    said = _bare(rest.lstrip(" .:)-"))
    if not said or said.startswith(options[LETTERS.index(reading.letter)] or "\n"):
        return reading.letter
    return reading.letter if not more and REASON.match(rest) else None
