r"""What a response about mathematics gives as its answer: a box, or what it says its answer is (ours).

The last of both counts. It looks for the answer's place alone; whether it is right is for the benchmark.
"""

import re

from hf_cascade.evaluate.benchmarks.final_part import last_sentence
from hf_cascade.evaluate.benchmarks.statements import ANSWER, EAST_ANSWER, EAST_IS, KIND, START, VERB, boxes, is_unreal
from hf_cascade.rewards.maths import LONGEST, NUMBER

BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*(?=\{)|\s*([^\s{}$\\]+))")
GAP = r"(?:[\s$]|\\[,;:!()\[\] ]|\\q?quad(?![A-Za-z])){0,12}"
OTHER = r"(?:\\(?:text|mathrm|mbox)\{\s*)?(?:and|or|und|oder|et|ou|y|e|o|和|或|及|と|또는)\s*\}?"
BETWEEN = re.compile(rf"{GAP}(?:[,;]{GAP}(?:{OTHER})?|{OTHER}){GAP}(?:[A-Za-z]\s?=\s?)?")  # boxes of one answer
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
    r"|, (?:not|so|giving)\b|,? and (?:we|this|that|it)\b|\s\((?=[A-Za-z])|です|입니다"
)
DELIMITERS = (("$$", r"\$\$"), ("$", r"(?<!\\)\$"), (r"\(", r"\\\)"), (r"\[", r"\\\]"))  # opening, regex of its end
FIRST = r"(?:\$|\\\()?(?:\\left)?[(\[]?(?:[-+]?\d|\\d?frac)"  # a value's first marks
LEAD = re.compile(
    r"(?:(?:therefore|thus|then|simply|just|exactly|indeed|clearly|hence|donc|also|daher|quindi|portanto"
    r"|entonces)[ ,:]+)?"
    rf"(?:the\s(?:ordered\s)?(?:point|pair|triple|vector|interval|set|value|number)\s(?={FIRST}))?[*_ ]*",
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
    r"|times|plus|minus|maybe|perhaps|up to|bounds?|no)\b|n't\b|[<>≤≥≠~–]",
    re.I,
)
VALUE = r"(?>\$[^$\n]{1,200}\$|\\\(.{1,200}?\\\)|\([^()\n]{0,60}\d[^()\n]{0,60}\)|[-+]?[\d.,]*\d(?:/\d+)?(?:\\?%)?)"
NAMED = re.compile(  # where a sentence ends with "is 5 square units"
    rf"(?:\b(?:is|are|was|were|equals|becomes)\s|=)\s*(?:(?:then|thus|therefore|exactly|simply|just|equal to)\s+)?"
    rf"[*_]{{0,2}}(?P<value>{VALUE}(?:(?:,\s?|,?\sand\s){VALUE}){{0,8}})[*_]{{0,2}}(?:\s[A-Za-z]{{2,}}){{0,3}}$"
)
PLACED = re.compile(r"\b(?:for|at|in|on|to|from|by|of|with|mod|modulo|over|each|more|here|now|already)\b", re.I)
WORDS = re.compile(r"(?:[^\W\d_]{2,}[,:]?|an?|I)", re.I)
EQUATION = re.compile(
    r"(?:(?:we|this|that|which|it)\s(?:get|have|obtain|find|conclude|gives?|yields?|implies|means)\s(?:that\s)?)?"
    rf"(?P<value>\$?[A-Za-z]\s?=\s?{VALUE}\$?)"
)
THERE = re.compile(
    r"there\s(?:is|are|were)\s(?:(?:exactly|only|a total of|in total)\s)?(?P<value>\d[\d,]*)(?:\s[A-Za-z-]{2,}){1,12}",
    re.I,
)
AND = re.compile(r",?\s(?:and|or)\s")
COMMAND = re.compile(r"\\[A-Za-z]+")
CONCLUDING = re.compile(
    r"\b(?:therefore|thus|hence|consequently|so(?!\s(?:far|that|long|many|much)\b)|conclude that|in conclusion"
    r"|it follows that)\b,?\s",
    re.I,
)
DOUBTED = re.compile(  # in a conclusion: it is denied, supposed, of one case alone, or more is to come
    r"\?|n't\b|\b(?:cannot|fail\w*|impossible|false|wrong|incorrect|mistaken?|contradict\w*|too|could|might|may|would|can"
    r"|maybe|perhaps|possibly|guess|suspect|seems?|check|try|verify|consider|suppose\w*|assum\w+|let|cases?|candidates?"
    r"|so far|for now|at first|initially|never|hardly|without|when|whenever|while|until|because|since|although|though"
    r"|where \S+ (?:is|are|was|were))\b",
    re.I,
)
SUPPOSED = re.compile(r"\b(?:if|suppose|supposing|assume|assuming|unless|(?:step|case|part)\s[\dIVA-D]+)\b", re.I)
LAST_BOLD = re.compile(r"\n\s*\*\*\s?([^*\n]{1,60}?)\s?\*\*[.!]?\s*$")
TURN = re.compile(  # the response ends
    r"(?<=\S)\s*(?:<\|(?:im_start|im_end|eot_id|end_?of_?text|user)\|>|<｜(?:end▁of▁sentence|User)｜>|</s>|\[INST\])"
)
WRAPPED = re.compile(
    r"\\(?:textbf|mathbf|boldsymbol|bm|underline|displaystyle|(?:text)?color\s*\{[^{}]*\})\s*\{(.*)\}", re.DOTALL
)
TITLE = re.compile(
    rf"\\text(?:bf)?\{{[^{{}}]{{0,20}}{ANSWER}[^{{}}]{{0,20}}(?:[:=]|\bis)\s*\}}"
    r"|^\\text(?:bf)?\{\s*\([A-E]\)[\s:.]*\}(?:\s|~|\\[,;:! ]|\\q?quad)*(?=\S)",  # an option's letter
    re.I,
)
LETTERLESS = re.compile(r"\\(?:text|textbf|textnormal|mathrm|mbox)\{([^{}A-Za-z]*)\}")
LISTED = 64  # boxes of one answer; ours
STATEMENTS = 200  # looked at from the end, so that a loop of them is read in no time; ours
SHORT = 100  # characters of a response that is nothing but an answer; ours


def gold_of(solution: str) -> str | None:
    """The content of the last box of a worked solution, be it `\\boxed 2` or `\\fbox{2}`; `None`: there is none."""
    found = _contents(BARE_BOX.sub(_braced, solution))
    return found[-1][2] if found else None


def stated(answer: str, concluding: bool = True) -> str | None:
    """
    What a response gives as its answer; `None` where it gives none, though numbers stand in it.

    The last box with something in it, with those listed before it ("1, and 2"), unless a value is said to be the
    answer after it; without boxes the last "answer is", "Answer:"; a whole response that is a number or one
    formula; what the last sentence concludes with ("Therefore, there are 5 ways"), or a last line in bold.

    Args:
        answer (`str`): a response without its thinking.
        concluding (`bool`, *optional*): whether a conclusion that is not said to be the answer is one.
    """
    text = BARE_BOX.sub(_braced, TURN.split(answer, maxsplit=1)[0])
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
    if len(whole) <= SHORT and "\n" not in whole and _is_value(whole.strip("*_. ")):
        return _said(whole, 0)[0]
    return _concluded(whole) if concluding else None


def continued(answer: str) -> str | None:
    """What a response gives first that goes on where the prompt ends with "The answer is"."""
    return _said(answer.strip(), 0, loose=False)[0]


def _is_value(bare: str) -> bool:
    """Whether a text is a number or a formula in its delimiters."""
    for begin, end in DELIMITERS:
        if bare.startswith(begin):
            closing = re.compile(end).search(bare, len(begin))
            return closing is not None and closing.end() == len(bare)
    return bool(NUMBER.fullmatch(bare.replace("$", "").replace("−", "-")))


def _concluded(text: str) -> str | None:
    """The value that the last sentence concludes with, or that is the last line, in bold; `None`: there is none."""
    bold = LAST_BOLD.search(text[-SHORT:])
    if bold and _is_value(bold[1]):
        return _said(bold[1], 0)[0]
    *before, conclusion = CONCLUDING.split(last_sentence(text).replace("**", ""))
    if not before or re.search(r"(?::|\d!)\s*$", text):  # cases follow; 7!
        return None
    if DOUBTED.search(conclusion) or SUPPOSED.search(" ".join(before)):
        return None
    said, is_formula, end = _said(conclusion, 0)
    if is_formula:
        return None if conclusion[end:].strip(" .!") else said  # "$48$ men and $12$ women", "$5$ is the first"
    if HEDGE.search(conclusion):
        return None
    if whole := EQUATION.fullmatch(conclusion) or THERE.fullmatch(conclusion):
        return _listed(whole)
    named = NAMED.search(conclusion)
    if named is None or named[0][0] == "=" or PLACED.search(conclusion, named.end("value")):
        return None
    return _listed(named)


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
    answer = LETTERLESS.sub(r"\1", TITLE.sub("", answer.replace("~", " "), count=1)).strip()
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
    while start < len(text) and text[start] in " \t\r\n*_`:：=\"'":
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
    said = line.strip(" *_`\"'").removesuffix(".")
    if said.count("$") % 2 or said.count("$") == 2 and said[0] == said[-1]:
        said = said.strip("$")
    if said.endswith("}") and said.count("{") < said.count("}"):  # of JSON
        said = said[:-1].rstrip()
    number = bool(NUMBER.fullmatch(said))
    return (_one_of(said) if loose and not number else said) or None, number, start + len(line)


def _listed(found: re.Match) -> str:
    """The values of a match, with commas between them, without delimiters."""
    return re.sub(r"\$|\\[()]", "", AND.sub(", ", found["value"])).strip()


def _one_of(sentence: str) -> str:
    """The value that a sentence ends with, its one formula or number, or its values; a hedging sentence as it is."""
    listed = AND.sub(", ", sentence)
    if not re.search(r"[^\W\d_]{2,}", COMMAND.sub("", listed)):
        return listed
    if HEDGE.search(sentence):
        return sentence
    if named := NAMED.search(sentence):
        return _listed(named)
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
