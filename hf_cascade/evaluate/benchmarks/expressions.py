"""A physicist's formula in LaTeX as a sympy expression, for PhyBench.

math-verify does not serve here: to it m and M are one symbol, \\gamma Euler's constant and I the imaginary unit. A
letter with its index, prime or accent is one symbol; `e` is Euler's number only where its exponent is no number.
"""

import re

import sympy

LONGEST = 2000  # characters; a longer formula is unreadable; ours
DEEPEST = 40  # brackets in brackets; ours
GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi "
GREEK += "chi psi omega"
LETTERS = {code: name for code, name in zip("αβγδεζηθικλμνξοπρστυφχψω", GREEK.split(), strict=True)}
LETTERS |= {code.upper(): name.title() for code, name in LETTERS.items()}
LETTERS |= {"ϵ": "epsilon", "ϕ": "phi", "ϑ": "theta", "ħ": "hbar", "ℏ": "hbar", "ℓ": "ell", "µ": "mu"}
NAMES = set(LETTERS.values()) | {"infty"}
SAME = {
    "varepsilon": "epsilon",
    "varphi": "phi",
    "vartheta": "theta",
    "varrho": "rho",
    "varsigma": "sigma",
    "hslash": "hbar",
}
FUNCTIONS = {name: getattr(sympy, name) for name in "sin cos tan cot sec csc sinh cosh tanh coth sech csch exp".split()}
FUNCTIONS |= {
    "arc" + name: getattr(sympy, "a" + name) for name in "sin cos tan cot sec csc sinh cosh tanh coth".split()
}
FUNCTIONS |= {"a" + name: getattr(sympy, "a" + name) for name in "sin cos tan sinh cosh tanh".split()}
FUNCTIONS |= {"ar" + name: getattr(sympy, "a" + name) for name in "sinh cosh tanh".split()}
FUNCTIONS |= {"ln": sympy.log, "log": sympy.log}
INVERSE = {name: FUNCTIONS["arc" + name] for name in "sin cos tan cot sec csc sinh cosh tanh coth".split()}
PLAIN = {"text", "mathrm", "mathit", "textrm", "textit", "mathsf", "rm", "mbox", "operatorname", "textbf"}
ACCENTS = {"vec", "hat", "bar", "dot", "ddot", "tilde", "overline", "mathbf", "boldsymbol", "bm", "mathcal", "mathscr"}
ACCENTS |= {"widetilde", "widehat", "underline", "mathbb", "pmb"}
MARKS = {
    "−": "-",
    "–": "-",
    "·": "*",
    "×": "*",
    "⋅": "*",
    "÷": "/",
    "√": r"\sqrt ",
    "²": "^2",
    "³": "^3",
    "°": r"^\circ ",
}
MARKS |= {r"\cdot": "*", r"\times": "*", r"\div": "/", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", "**": "^"}
MARKS |= {r"\{": "(", r"\}": ")", r"\lbrace": "(", r"\rbrace": ")", r"\lbrack": "[", r"\rbrack": "]", "′": "'"}
MARKS |= {r"\%": "/100", "%": "/100", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\prime": "'"}
WORDS = "|".join(sorted((name for name in [*FUNCTIONS, "sqrt"]), key=len, reverse=True))
WORD = re.compile(
    rf"(?<![A-Za-z\\])(?:({WORDS})(?=\s*\()|(pi|{'|'.join(name for name in GREEK.split() if len(name) > 2)})"
    r"(?![A-Za-z]))"
)
GONE = re.compile(
    r"\\(?:left|right|[bB]ig+[lr]?|displaystyle|limits|qquad|quad)(?![A-Za-z])|\\[,;:!> ]|[~$&]|\\\(|\\\)|\\\[|\\\]"
)
ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align\*?|equation\*?|gathered|split)\}")  # of one line
UNIT = re.compile(
    r"(?:[\s~*/]|\\[,;: !]|\\cdot)*\\(?:text|mathrm|rm|mbox)\s*\{(?![^{}]*\b(?:or|and|not)\b)[^{}]{0,40}\}"
    r"(?:\s*\^\s*\{?-?\d{1,2}\}?)?[\s.]*$"
)
SPACE = re.compile(r"\\[,;:!> ]")
CONDITION = re.compile(r"\\q?quad(?![A-Za-z])|\\text\s*\{[\s(,]*(?:for|where|when|with|if|at|as)\b")
EQUALS = re.compile(r"=|\\approx|\\equiv|\\simeq|≈")
TOKEN = re.compile(r"\s*(\\[A-Za-z]+|\\.|\d+(?:\.\d*)?|\.\d+|\S)")
OPEN = {"(": ")", "[": "]", "{": "}"}


class Unreadable(ValueError):
    """No formula, or one with an integral, a sum, a relation."""


def read(text: str, greedy: bool = True) -> sympy.Expr:
    """
    The value of a formula: what follows its last equals sign, without a unit in `\\text` or `\\mathrm`.

    Args:
        text (`str`): LaTeX, or near to it.
        greedy (`bool`): whether a function without brackets takes the product that follows (sin ωt), or its next
            factor alone; both are written.

    Raises:
        Unreadable: see there.
    """
    if len(text) > LONGEST:
        raise Unreadable(f"{len(text)} characters; up to {LONGEST} are read")
    if r"\\" not in text:
        text = ENVIRONMENT.sub("", text)
    text = SPACE.sub(" ", CONDITION.split(text.strip(), maxsplit=1)[0]).rstrip(" ,;")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    _no_list(text)
    text = EQUALS.split(text)[-1].strip().rstrip(".")
    while (unit := UNIT.search(text)) and (head := text[: unit.start()].rstrip()) and head[-1] not in "_^{(":
        text = head
    text = WORD.sub(lambda word: f"\\{word[0]} ", text)
    for mark, latex in MARKS.items():
        text = re.sub(
            re.escape(mark) + ("(?![A-Za-z])" if mark[-1].isalpha() and mark[0] == "\\" else ""),
            lambda _, latex=latex: latex,
            text,
        )
    text = GONE.sub(" ", text)
    text = "".join(f"\\{LETTERS[letter]} " if letter in LETTERS else letter for letter in text)
    tokens = TOKEN.findall(text)
    reader = _Reader(tokens, greedy)
    value = reader.sum()
    if reader.token is not None:
        raise Unreadable(f"{reader.token!r} after {' '.join(tokens[: reader.place])!r:.80}")
    return value


def _no_list(text: str) -> None:
    level = 0
    for mark in text:
        level += (mark in OPEN) - (mark in OPEN.values())
        if level > DEEPEST:
            raise Unreadable(f"more than {DEEPEST} brackets in brackets")
        if level == 0 and mark in ",;":
            raise Unreadable("several formulas, of which only one can be the answer")


class _Reader:
    """Recursive descent; a method for each kind of part."""

    def __init__(self, tokens: list[str], greedy: bool):
        self.tokens, self.greedy, self.place = tokens, greedy, 0

    @property
    def token(self) -> str | None:
        """The next token; `None` at the end."""
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self, token: str | None = None) -> str:
        """Go past the next token, which must be `token` where that is given."""
        if self.token is None or token not in (None, self.token):
            raise Unreadable(f"{token or 'more'} expected, {self.token or 'nothing'} there")
        self.place += 1
        return self.tokens[self.place - 1]

    def sum(self) -> sympy.Expr:
        """Products joined by + and -."""
        total = sympy.S.Zero
        first = True
        while first or self.token in ("+", "-"):
            sign = 1
            while self.token in ("+", "-"):
                sign *= -1 if self.take() == "-" else 1
            total, first = total + sign * self.product(), False
        return total

    def product(self) -> sympy.Expr:
        """Powers joined by *, / or nothing."""
        value = self.power()
        while self.token is not None and self.token not in ("+", "-", ")", "]", "}", "|", ","):
            if self.token in ("*", "/"):
                divided, sign = self.take() == "/", 1
                while self.token in ("+", "-"):
                    sign *= -1 if self.take() == "-" else 1
                factor = sign * self.power()
                value = value / factor if divided else value * factor
            else:
                value = value * self.power()
        return value

    def power(self) -> sympy.Expr:
        """An atom with what follows it: exponents, factorials, degrees."""
        base = self.atom()
        while self.token in ("^", "!"):
            if self.take() == "!":
                base = sympy.factorial(base)
                continue
            if self.token == r"\circ":
                self.take()
                base = base * sympy.pi / 180
                continue
            exponent = self.argument()
            if self.token == "_" and base.is_Symbol:  # v^2_0
                base = sympy.Symbol(base.name + self.index())
            euler = base == sympy.Symbol("e") and not exponent.is_number
            base = sympy.exp(exponent) if euler else base**exponent
        return base

    def argument(self) -> sympy.Expr:
        """What `^`, `\\frac` and `\\sqrt` take: a group, or one token."""
        if self.token == "{":
            return self.group()
        if self.token == "-":
            self.take()
            return -self.argument()
        if self.token is not None and re.fullmatch(r"\d{2,}", self.token):  # \frac12, x^23
            digits = self.take()
            self.place -= 1
            self.tokens[self.place] = digits[1:]
            return sympy.Integer(digits[0])
        return self.atom()

    def group(self) -> sympy.Expr:
        """A sum in brackets, with both of them."""
        closing = OPEN[self.take()]
        value = self.sum()
        self.take(closing)
        return value

    def atom(self) -> sympy.Expr:
        """A number, symbol, function, root, fraction, or group."""
        token = self.token
        if token in OPEN:
            return self.group()
        if token == "|":
            self.take()
            value = self.sum()
            self.take("|")
            return sympy.Abs(value)
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return sympy.Rational(token.rstrip(".") or "0")
        if token == r"\frac":
            return self.argument() / self.argument()
        if token == r"\sqrt":
            degree = self.group() if self.token == "[" else 2
            return sympy.root(self.argument(), degree)
        name = token.removeprefix("\\")
        if token[0] == "\\" and name in PLAIN | ACCENTS:
            word = self.word()
            if name in PLAIN and word in FUNCTIONS:
                return self.function(word)
            return self.symbol(word if name in PLAIN else f"{name} {word}")
        if token[0] == "\\" and name in FUNCTIONS:
            return self.function(name)
        name = SAME.get(name, name)
        if name == "pi" and self.token != "_":
            return sympy.pi
        if token[0].isalpha() or name in NAMES:
            return self.symbol(name)
        raise Unreadable(f"{token!r}: no part of a formula that has one value")

    def symbol(self, name: str) -> sympy.Symbol:
        """A symbol with its indices and primes."""
        while self.token in ("_", "'") or (self.token == "^" and self.tokens[self.place + 1 : self.place + 2] == ["'"]):
            if self.token == "_":
                name += self.index()
            else:
                self.place += 1 + (self.token == "^")
                name += "'"
        return sympy.Symbol(name)

    def index(self) -> str:
        """`_` and what stands after it, in one notation."""
        self.take("_")
        word = self.word()
        return f"_{word}" if len(word) == 1 else f"_{{{word}}}"

    def word(self) -> str:
        """A group or token as letters: `max` of `{\\text{max}}`."""
        if self.token != "{":
            token = self.take()
            name = token.removeprefix("\\")
            return self.word() if token[0] == "\\" and name in PLAIN else SAME.get(name, name)
        level, parts = 0, []
        while level or not parts:
            token = self.take()
            level += (token == "{") - (token == "}")
            parts.append(token)
        names = (part.removeprefix("\\") for part in parts if part not in "{},")
        return "".join(SAME.get(name, name) for name in names if name not in PLAIN) or "?"

    def function(self, name: str) -> sympy.Expr:
        """A function of `FUNCTIONS` with its power, base and argument: `\\sin^2 x`, `\\log_2 8`."""
        function, power, base = FUNCTIONS[name], None, None
        while self.token in ("^", "_"):
            if self.token == "_":
                self.take()
                base = self.argument()
            else:
                self.take()
                power = self.argument()
        if power == -1 and name in INVERSE:
            function, power = INVERSE[name], None
        if self.token in OPEN:
            argument = self.group()
        else:
            argument = self.bare()
        value = function(argument) if base is None else function(argument, base)
        return value if power is None else value**power

    def bare(self) -> sympy.Expr:
        """A function's argument without brackets: numbers and one factor, or all factors up to a sign or a function."""
        sign = -1 if self.token == "-" and self.take() else 1
        value = self.power()
        number = value.is_Integer
        while (self.greedy or number) and self.token is not None:
            name = self.token.removeprefix("\\")
            letter = self.token[0].isalnum() or name in NAMES or name in ACCENTS or name in SAME or name == "frac"
            if not letter or name in FUNCTIONS:
                break
            factor = self.power()
            value, number = value * factor, factor.is_Integer
        return sign * value
