"""Are two formulas equal, and how far apart are they: PhyBench's accuracy and EED score (arXiv 2504.16074); run as a
script it is a worker, as `rewards/comparing.py` is one, and the kernel ends it when its time is over.

EED score: r is the least cost of making the right formula's tree of the given one's, over the right one's number of
nodes; 100 for r = 0, 60 - 100 r down to 0 otherwise. To insert, delete or change a node costs 1; to insert or delete a
subtree of s > 5 nodes at once costs 5 + 0.6 (s - 5).
"""

import json
import logging
import os
import random
import resource
import signal
import sys
from contextlib import contextmanager
from itertools import islice

import sympy

from hf_cascade.evaluate.benchmarks.expressions import Unreadable, read

MEMORY_BYTES = 2**31  # address space of a worker; ours
POINTS = 4  # places at which formulas must agree; ours
ATTEMPTS = 48  # places that are tried; ours: a formula may have no value, or no real one, somewhere
PARTIAL = (sympy.log, sympy.asin, sympy.acos, sympy.acosh, sympy.atanh, sympy.acoth)
DIGITS = 30
TOLERANCE = 1e-12  # relative
SIMPLIFY_SECONDS = 4.0  # of a process, then the formula stays as it is; ours (30 in the benchmark's own code)
WHOLE, SHARE = 5, 0.6  # the paper's: subtrees up to 5 nodes cost their size, what is above counts 0.6


def compare(right: str, given: str) -> dict:
    """
    Compare a response's formula with the right one.

    Returns:
        `dict`: `equal`, whether they agree at all of `POINTS` random places, to 12 digits, under one of both readings
        of functions without brackets; `eed`, 0 to 100; `form`, the given formula in sympy's notation. `None` where the
        given one cannot be read.

    Raises:
        Unreadable: the right one.
    """
    rights = [read(right, greedy) for greedy in (True, False)]
    try:
        givens = [read(given, greedy) for greedy in (True, False)]
    except Unreadable:
        return {"equal": False, "eed": 0.0, "form": None}
    if any(same(one, other) for one in dict.fromkeys(rights) for other in dict.fromkeys(givens)):
        return {"equal": True, "eed": 100.0, "form": None}
    one, other = simpler(rights[0]), simpler(givens[0])
    return {"equal": False, "eed": score(tree(other), tree(one)), "form": str(other)}


def same(one: sympy.Expr, other: sympy.Expr) -> bool:
    """
    Whether two expressions have one value wherever both have one: at random places, all symbols being positive.

    Where there are such, places at which all roots and logarithms are real: elsewhere 1 / sqrt(a - b) and
    sqrt(1 / (a - b)) differ in sign. But at all places where one side alone has an absolute value, as sqrt(a - b) and
    sqrt(|a - b|) differ only there.
    """
    if one == other:
        return True
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    draw = random.Random(0)
    places = [
        {symbol: sympy.Rational(draw.randint(300, 3000), 1009) for symbol in symbols}
        for _ in range(ATTEMPTS if symbols else 1)
    ]
    partial = [part for side in (one, other) for part in side.atoms(sympy.Pow, sympy.Function) if _is_partial(part)]
    partial = partial if one.has(sympy.Abs) == other.has(sympy.Abs) else []
    real = [*islice((place for place in places if _is_real(partial, place)), POINTS)] if partial else []
    agreed = 0
    for place in real or places:
        left, right = (sympy.N(side, DIGITS, subs=place) for side in (one, other))
        if not all(value.is_number and value.is_finite for value in (left, right)):
            continue
        if abs(left - right) > TOLERANCE * max(abs(left), abs(right)):
            return False
        agreed += 1
        if agreed == POINTS or not symbols:
            return True
    return bool(real) and agreed > 0


def _is_real(parts: list[sympy.Expr], place: dict) -> bool:
    return all(sympy.N(part, subs=place).is_real for part in parts)


def _is_partial(part: sympy.Expr) -> bool:
    """Whether a power or function may have no real value."""
    return not part.exp.is_integer if part.is_Pow else isinstance(part, PARTIAL)


def simpler(expression: sympy.Expr) -> sympy.Expr:
    """sympy's simplification with all symbols positive; the expression itself where that takes too long."""
    positive, names = sympy.posify(expression)
    try:
        with _seconds(SIMPLIFY_SECONDS):
            return sympy.simplify(positive).subs(names)
    except TimeoutError:
        return expression


def tree(expression: sympy.Expr) -> tuple:
    """(label, children) of an expression: numbers, symbols, functions, and the operators Add, Mul, Pow."""
    if expression.is_Symbol or expression.is_Number or expression.is_NumberSymbol or not expression.args:
        return str(expression), ()
    return expression.func.__name__, tuple(tree(part) for part in expression.args)


def score(given: tuple, right: tuple) -> float:
    """EED score of two trees, 0 to 100."""
    distance = edit_distance(given, right)
    return 100.0 if distance == 0 else max(0.0, 100 * SHARE - 100 * distance / size(right))


def size(root: tuple) -> int:
    """Nodes of a tree."""
    return 1 + sum(map(size, root[1]))


def whole_cost(nodes: int) -> float:
    """Cost of a subtree that is inserted or deleted at once."""
    return min(nodes, SHARE * (nodes - WHOLE) + WHOLE)


def edit_distance(one: tuple, other: tuple) -> float:
    """
    Least cost of making one ordered tree of another (Zhang and Shasha, 1989, with whole subtrees besides).

    Nodes are in post-order. `first[i]` is the first node of the subtree at i. `trees[i][j]` is the distance of the
    subtrees at i and j; `table[i][j]` that of the forests before i and before j, inside a pair of subtrees.
    """
    (labels, first), (others, start) = _post_order(one), _post_order(other)
    trees = [[0.0] * len(others) for _ in labels]
    for last_i in _roots(first):
        for last_j in _roots(start):
            low_i, low_j = first[last_i], start[last_j]
            table = {(low_i, low_j): 0.0}
            for i in range(low_i, last_i + 1):
                table[i + 1, low_j] = table[first[i], low_j] + whole_cost(i + 1 - first[i])
            for j in range(low_j, last_j + 1):
                table[low_i, j + 1] = table[low_i, start[j]] + whole_cost(j + 1 - start[j])
            for i in range(low_i, last_i + 1):
                for j in range(low_j, last_j + 1):
                    best = min(
                        table[i, j + 1] + 1,
                        table[i + 1, j] + 1,
                        table[first[i], j + 1] + whole_cost(i + 1 - first[i]),
                        table[i + 1, start[j]] + whole_cost(j + 1 - start[j]),
                    )
                    if first[i] == low_i and start[j] == low_j:
                        best = trees[i][j] = min(best, table[i, j] + (labels[i] != others[j]))
                    else:
                        best = min(best, table[first[i], start[j]] + trees[i][j])
                    table[i + 1, j + 1] = best
    return trees[-1][-1]


def _post_order(root: tuple) -> tuple[list[str], list[int]]:
    labels, first = [], []

    def visit(node: tuple) -> None:
        begin = len(labels)
        for child in node[1]:
            visit(child)
        labels.append(node[0])
        first.append(begin)

    visit(root)
    return labels, first


def _roots(first: list[int]) -> list[int]:
    """The last node of each chain of nodes with one first leaf."""
    return sorted({begin: node for node, begin in enumerate(first)}.values())


@contextmanager
def _seconds(limit: float):
    """TimeoutError after so much CPU time; the wall-clock timer is the kernel's, for what Python cannot end."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def main() -> None:
    """Answer [right, given] line by line; the kernel ends this process when one comparison takes too many seconds."""
    seconds = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    compare(r"\frac{a}{b}", "2a")  # tables that are built at first use
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # no handler: the default action kills, whatever runs
        try:
            verdict = compare(*json.loads(line))
        except Unreadable:
            verdict = {"equal": None, "eed": None, "form": None}
        except Exception:  # whatever sympy raises, MemoryError among it: the two were not found equal
            verdict = {"equal": False, "eed": 0.0, "form": None}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=answers, flush=True)


if __name__ == "__main__":
    main()
