r"""What a response about mathematics gives as its answer: a box, or what it says its answer is (ours).

The last of both counts. It looks for the answer's place alone; whether it is right is for the benchmark.
"""

import re

from hf_cascade.evaluate.benchmarks.statements import ANSWER, EAST_ANSWER, EAST_IS, KIND, START, VERB, boxes, is_unreal
from hf_cascade.rewards.maths import LONGEST, NUMBER

BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*(?=\{)|\s*([^\s{}$\\]+))")
BETWEEN = re.compile(r"[\s$]{0,8}(?:,|;|and|or|und|et)[\s$]{0,8}(?:and|or)?[\s$]{0,8}")
MARKS = r"[*_\"')\]]{0,4}"  # emphasis, brackets and quotation marks around a label
LABEL = re.compile(
    rf"{START}{ANSWER}{KIND}{MARKS}(?:\s(?:to|for|here|in)\b[^.:?!\n$\\]{{0,60}}?)?\s{{0,3}}"
    rf"(?:[:：=→]|\b{VERB}(?!\w)\s?:?|of(?=\s[$\\\d]))(?!\w)"
    rf"|^[#>*_ ]{{0,9}}(?:(?:the|my|final|correct)\s){{0,2}}{ANSWER}{KIND}[*_ ]{{0,9}}\n|{START}ans\.|\({ANSWER}\)"
    rf"|<answer>|{EAST_ANSWER}{EAST_IS}|^\#{{4}}\s(?=[-$\d\\(\[])",
    re.I | re.M,
)
ENDS = re.compile(  # an answer without formula
    r"(?:[.?]|(?<![\d)}\\])!)(?=\s|$)|[。！？]|\*\*|</answer>|\"\s?[,}]|;"
    r"|,? (?:since|because|which|where|when|as|but|weil|denn|car|porque)\b"
    r"|, (?:not|so|giving|and (?:we|this|that|it))\b|\s\((?=[A-Za-z])|です|입니다"
)
DELIMITERS = (("$$", r"\$\$"), ("$", r"(?<!\\)\$"), (r"\(", r"\\\)"), (r"\[", r"\\\]"))  # opening, regex of its end
LEAD = re.compile(
    r"(?:(?:therefore|thus|then|simply|just|exactly|indeed|clearly|hence|donc|also|daher|quindi|portanto"
    r"|entonces)[ ,:]+)?[*_ ]*",
    re.I,
)
LIST = re.compile(r"\s*(?:,|;|\band\b|\bor\b)\s*(?:and\b\s*|or\b\s*)?")
SAME = re.compile(r"(?:equivalently|about|approximately|roughly|simply)\b", re.I)  # after "or"
OPERATED = re.compile(r"\s*(?:(?:times|plus|minus|divided|multiplied|over)\b|[-+*/×÷^](?=[\s\d$\\]))")
CHECK = re.compile(r"[^\s=]\s*[^\s=][^=]*=|=.*=|\\equiv|≡", re.DOTALL)  # an equation after a box, but for x = 5
RETRACTED = re.compile(
    r"[*_ ]{0,3},?\s(?:but|which|that|this|is|yet)\b[^.\n$]{0,40}"
    r"\b(?:wrong|incorrect|impossible|false|mistake|not (?:right|correct|possible))\b",
    re.I,
)
FORMULA = re.compile(r"\$([^$\n]{1,200})\$|\\\((.{1,200}?)\\\)")
HEDGE = re.compile(
    r"\b(?:not|or|either|neither|between|than|least|most|less|more|fewer|greater|multiples?|factors?|divisors?|if|unless"
    r"|times|plus|minus|maybe|perhaps|up to|no)\b|n't\b|[<>≤≥≠~–]",
    re.I,
)
WORDS = re.compile(r"(?:[^\W\d_]{2,}[,:]?|an?|I)", re.I)
WRAPPED = re.compile(r"\\(?:textbf|mathbf|boldsymbol|bm|underline|displaystyle)\s*\{(.*)\}", re.DOTALL)
TITLE = re.compile(rf"\\text(?:bf)?\{{[^{{}}]{{0,20}}{ANSWER}[^{{}}]{{0,20}}[:=]\s*\}}", re.I)
LISTED = 64  # boxes of one answer; ours
STATEMENTS = 200  # looked at from the end, so that a loop of them is read in no time; ours
SHORT = 100  # characters of a response that is nothing but an answer; ours


def gold_of(solution: str) -> str | None:
    """The content of the last box of a worked solution, be it `\\boxed 2` or `\\fbox{2}`; `None`: there is none."""
    found = _contents(BARE_BOX.sub(_braced, solution))
    return found[-1][2] if found else None


def stated(answer: str) -> str | None:
    """
    What a response gives as its answer; `None` where it gives none, though numbers stand in it.

    The last box with something in it, with those listed before it ("1, and 2"), unless a value is said to be the
    answer after it; without boxes the last "answer is", "Answer:"; a whole response that is a number or one
    formula.
    """
    text = BARE_BOX.sub(_braced, answer)
    found = [box for box in _contents(text) if box[2]]
    last = found[-1][1] if found else 0
    for statement in [*LABEL.finditer(text, last)][: -STATEMENTS - 1 : -1]:
        said, is_formula, end = _said(text, statement.end())
        if said is None or is_unreal(text, statement.start()) or RETRACTED.match(text, end):
            continue
        if not found or is_formula and not CHECK.search(said):
            return _unwrapped(said)
    if found:
        listed = [found[-1]]
        for box in reversed(found[-LISTED:-1]):
            if not BETWEEN.fullmatch(text[box[1] : listed[0][0]]):
                break
            listed.insert(0, box)
        return ", ".join(dict.fromkeys(_unwrapped(content) for *_, content in listed))
    whole = text.strip()
    if not whole or len(whole) > SHORT or "\n" in whole:
        return None
    bare = whole.strip("*_. ")
    closed = any(bare.startswith(begin) and re.search(f"(?:{end})$", bare[1:]) for begin, end in DELIMITERS)
    return _said(whole, 0)[0] if closed or NUMBER.fullmatch(bare.replace("$", "")) else None


def continued(answer: str) -> str | None:
    """What a response gives first that goes on where the prompt ends with "The answer is"."""
    return _said(answer.strip(), 0, loose=False)[0]


def _braced(box: re.Match) -> str:
    if box[1] is None:
        return r"\boxed"
    bare = box[1].rstrip(".,;:*")
    return f"\\boxed{{{bare}}}{box[1][len(bare) :]}" if bare else box[0]


def _contents(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of all boxes that are closed, in the order in which they start."""
    return sorted((one.start(), other.end(), text[one.end() : other.start()].strip()) for one, other in boxes(text))


def _unwrapped(answer: str) -> str:
    """An answer without emphasis around all of it, and without "Answer:" in it."""
    answer = TITLE.sub("", answer.replace("~", " "), count=1).strip()
    while (inside := WRAPPED.fullmatch(answer)) and "}" not in inside[1].partition("{")[0]:
        answer = inside[1].strip()
    return answer


def _said(text: str, start: int, loose: bool = True) -> tuple[str | None, bool, int]:
    """
    The answer that begins somewhere: a formula, or words up to the sentence's end; a list with commas.

    Args:
        text (`str`): a response.
        start (`int`): where it begins.
        loose (`bool`, *optional*): whether of a whole sentence ("There are 5 ways") its one number or formula is taken.

    Returns:
        `tuple[str | None, bool, int]`: it, whether it is formulas or a number, and where it ends.
    """
    text = text[: start + 2 * LONGEST]
    while start < len(text) and text[start] in " \t\r\n*_:：=\"'":
        start += 1
    place = start = LEAD.match(text, start).end()
    pieces = []
    while opening := next((pair for pair in DELIMITERS if text.startswith(pair[0], place)), None):
        closing = re.compile(opening[1]).search(text, place + len(opening[0]))
        if closing is None:
            break
        pieces.append(text[place + len(opening[0]) : closing.start()].strip().rstrip("."))
        end = closing.end()
        joint = LIST.match(text, end)
        if not joint or not joint[0].strip():
            break
        place = joint.end()
        other = re.compile(r"[-+]?\d|\$|\\[(\[]").match(text, place)
        if not other and ("or" not in joint[0] or SAME.match(text, place)):
            break
        if not other or other[0][-1].isdigit():
            line = text[place:].partition("\n")[0]
            pieces.append(line[: stop.start() if (stop := ENDS.search(line)) else SHORT].strip(" *_"))
            end = place
            break
    if pieces and not OPERATED.match(text, end):
        return ", ".join(filter(None, pieces)) or None, True, end
    line = text[start:].partition("\n")[0]
    line = line[: stop.start() if (stop := ENDS.search(line)) else len(line)]
    said = line.strip(" *_$\"'").removesuffix(".")
    number = bool(NUMBER.fullmatch(said))
    return (_one_of(said) if loose and not number else said) or None, number, start + len(line)


def _one_of(sentence: str) -> str:
    """The one formula or number of a sentence that hedges nothing; else the sentence."""
    if HEDGE.search(sentence):
        return sentence
    formulas = [one or other for one, other in FORMULA.findall(sentence)]
    words = sentence.split()
    if formulas:
        return (
            formulas[0].strip()
            if len(formulas) == 1 and not any(map(str.isdigit, FORMULA.sub("", sentence)))
            else sentence
        )
    numbers = [word for word in words if NUMBER.fullmatch(word.strip("*_,"))]
    if len(numbers) == 1 and all(WORDS.fullmatch(word) for word in words if word not in numbers):
        return numbers[0].strip("*_,")
    return sentence
