"""Heavy repetition anywhere in a text, for filtering chains of thought (paper section 5): loops, and text said again.

`completions.find_loop` looks at the end of a response that was cut off. Data is repetitive in other places too: a model
got out of its loop, or says the same paragraph again and again between others. Everything here is n-grams found by
sorting their hashes: time grows as tokens times their logarithm.

T tokens, G n-grams.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_cascade.completions import LoopRule

# Every number here is ours: paper silent.
NGRAM = 16  # tokens; text that is not repeated has few that came before, formulas and lists among it
LEAST_TOKENS = 256  # of a loop that does not stand at the end, or half of the text; shorter texts are lists
SAID_BEFORE = 0.5  # share of a text that stood in it before, from which on it is repetition
LINE_CHARACTERS = 20  # shorter lines (`}`, `---`, headings) tell nothing
LETTERS = 0.1  # of a loop's characters, tables left out; with fewer it is a table, a large number or a rule
CODE = re.compile(r"^[ \t]*```.*?^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
TABLE = re.compile(r"^[ \t]*\|.*$", re.MULTILINE)
EXCERPT = 200  # characters
RULE = LoopRule()
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd


@dataclass(frozen=True)
class Repetition:
    """
    Attributes:
        kind (`str`): "loop" where the same tokens follow each other, "counter" where a few of them change, "again"
            where most of the text stood in it before.
        excerpt (`str`): beginning of what is repeated.
    """

    kind: str
    excerpt: str


def find_repetition(
    text: str, tokenizer: PreTrainedTokenizerBase, rule: LoopRule = RULE, ids: list[int] | None = None
) -> Repetition | None:
    """
    The first heavy repetition in a text that is found.

    A loop is an exact one of [`LoopRule`]: at the end of `min_tokens`, elsewhere of 256 or of half the text. One of
    tables, or with hardly a letter in it, must have 256 at the end and `window_tokens` elsewhere. A counter loop is the
    rule's, in any window or half window. Both it and what is said again, by 16 tokens or by whole lines, are looked for
    outside of closed code blocks and Markdown tables, and in 256 tokens or more.

    Args:
        text (`str`): thinking or an answer, without EOS.
        tokenizer (`PreTrainedTokenizerBase`): its tokens are the rule's.
        rule ([`LoopRule`]): what counts as a loop.
        ids (`list[int]`, *optional*): the text's tokens, where they are known.

    Returns:
        [`Repetition`] or `None`.
    """
    ids_T = _ids(tokenizer, text) if ids is None else np.asarray(ids, dtype=np.int64)
    for start, end in runs(ids_T, rule):
        excerpt, is_text = _read(tokenizer, ids_T[start:end])
        at_end = end == len(ids_T)
        if is_text:
            least = 0 if at_end else min(LEAST_TOKENS, len(ids_T) // 2)
        else:
            least = LEAST_TOKENS if at_end else rule.window_tokens
        if end - start >= max(least, rule.min_tokens):
            return Repetition("loop", excerpt)
    prose = TABLE.sub("", CODE.sub("", text))
    ids_T = ids_T if prose == text else _ids(tokenizer, prose)
    if len(ids_T) < rule.window_tokens // 4:
        return None
    for window in (rule.window_tokens, rule.window_tokens // 2):  # half: a loop that ended has less weight
        shares = window_shares(ids_T, replace(rule, window_tokens=window))
        start = int(shares.argmax())
        excerpt, is_text = _read(tokenizer, ids_T[start : start + window])
        if is_text and shares[start] >= rule.ngram_fraction:
            return Repetition("counter", excerpt)
    again_G = _last_places(ids_T, NGRAM) >= 0
    if again_G.mean() >= SAID_BEFORE and _read(tokenizer, ids_T[: len(again_G)][again_G])[1]:
        start = int(again_G.argmax())
        return Repetition("again", _read(tokenizer, ids_T[start : start + 2 * NGRAM])[0])
    return _lines_again(prose)


def runs(ids_T: np.ndarray, rule: LoopRule) -> list[tuple[int, int]]:
    """
    Stretches in which the same tokens follow each other, by the rule's `min_repeats`, `min_tokens` and `max_period`.

    Args:
        ids_T (`np.ndarray`): tokens.
        rule ([`LoopRule`]): what counts.

    Returns:
        `list[tuple[int, int]]`: first token and the one after the last, in the order of the text.
    """
    before_G = _last_places(ids_T, NGRAM)
    period_G = np.where(before_G >= 0, np.arange(len(before_G)) - before_G, 0)
    period_G[period_G > rule.max_period] = 0
    if not len(period_G):
        return []
    found = set()
    # one period for all, and several below the longest: n-grams may stand in a period twice
    for changes_G in (period_G[1:] != period_G[:-1], (period_G[1:] > 0) != (period_G[:-1] > 0)):
        first = np.concatenate([[0], np.flatnonzero(changes_G) + 1])
        longest = np.maximum.reduceat(period_G, first)
        start, end = np.maximum(first - longest, 0), np.append(first[1:], len(period_G)) + NGRAM - 1
        loops = (longest > 0) & (end - start >= np.maximum(rule.min_tokens, rule.min_repeats * longest))
        found |= set(zip(start[loops].tolist(), end[loops].tolist(), strict=True))
    return sorted(found)


def window_shares(ids_T: np.ndarray, rule: LoopRule) -> np.ndarray:
    """
    For every window of the rule's `window_tokens`, the share of its n-grams that came before in it (seq-rep-n).

    Args:
        ids_T (`np.ndarray`): tokens; of a shorter text there is one window.
        rule ([`LoopRule`]): `window_tokens` and `ngram`.

    Returns:
        `np.ndarray`: shares, by the window's first token.
    """
    before_G = _last_places(ids_T, rule.ngram)
    count = min(rule.window_tokens, len(ids_T)) - rule.ngram + 1
    if count < 1:
        return np.zeros(1)
    places = np.arange(len(before_G))
    windows = len(before_G) - count + 1
    # an n-gram came before in the windows that begin where its last place is or earlier, and that it is still in
    first, last = np.maximum(places - count + 1, 0), np.minimum(before_G, windows - 1)
    inside = first <= last
    steps = np.zeros(windows + 1, dtype=np.int64)
    np.add.at(steps, first[inside], 1)
    np.add.at(steps, last[inside] + 1, -1)
    return steps.cumsum()[:windows] / count


def _last_places(ids_T: np.ndarray, ngram: int) -> np.ndarray:
    """For every n-gram, by its first token, where the same one began last before; -1: nowhere."""
    count = len(ids_T) - ngram + 1
    if count < 1:
        return np.zeros(0, dtype=np.int64)
    hashes_G = np.zeros(count, dtype=np.uint64)
    for place in range(ngram):  # modulo 2 ** 64
        hashes_G = hashes_G * BASE + (ids_T[place : place + count].astype(np.uint64) + np.uint64(1))
        hashes_G ^= hashes_G >> np.uint64(29)
    order = np.argsort(hashes_G, kind="stable")
    same = hashes_G[order[1:]] == hashes_G[order[:-1]]
    before_G = np.full(count, -1, dtype=np.int64)
    before_G[order[1:][same]] = order[:-1][same]
    return before_G


def _lines_again(prose: str) -> Repetition | None:
    """Whole lines that make up most of a text and stood in it before."""
    seen, again, first = set(), 0, None
    for line in map(str.strip, prose.splitlines()):
        if len(line) >= LINE_CHARACTERS and line in seen:
            again, first = again + len(line), first or line
        seen.add(line)
    return Repetition("again", first[:EXCERPT]) if first and again >= SAID_BEFORE * len(prose) else None


def _read(tokenizer: PreTrainedTokenizerBase, ids_T: np.ndarray) -> tuple[str, bool]:
    """Beginning of a stretch as text, and whether it has letters enough outside of tables."""
    text = tokenizer.decode(ids_T)
    return text[:EXCERPT], sum(map(str.isalpha, TABLE.sub("", text))) >= LETTERS * len("".join(text.split()))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
