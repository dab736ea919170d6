"""N-grams of words as 64-bit numbers: rolled over an array, looked up in a bit table. Legend: T tokens, N grams."""

import hashlib
import re
import unicodedata

import numpy as np

LONGEST, SHORTEST = 13, 8  # words; GPT-3's appendix C (arXiv 2005.14165): a row of 8 to 12 words is one gram
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word is lost; the golden ratio's 64 bits
TABLE_BITS = 24  # of a gram's hash; 16 MB, and a million grams leave 6% of other text to look up; ours
# A word; of scripts without spaces (Chinese, Japanese, Thai) each character is one.
WORD = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    r"|[^\W_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)


class _Numbers(dict):
    """Word to 64-bit number, the same in every process."""

    def __missing__(self, word: str) -> int:
        number = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        if len(self) < 2_000_000:  # of a hundred megabytes of web text about one; ours
            self[word] = number
        return number


_numbers = _Numbers()


def words_of(text: str) -> list[str]:
    """Words in lower case and one Unicode form, without punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def numbers_of(words: list[str]) -> np.ndarray:
    """(T,) uint64."""
    return np.fromiter((_numbers[word] for word in words), dtype=np.uint64, count=len(words))


def roll(numbers_T: np.ndarray, length: int) -> np.ndarray:
    """Hashes of all runs of `length` words: (T - length + 1,) uint64, empty where there are fewer words."""
    count = len(numbers_T) - length + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashes_N = np.zeros(count, np.uint64)
    for place in range(length):  # overflow is the modulus
        hashes_N *= MULTIPLIER
        hashes_N += numbers_T[place : place + count]
    return _mixed(hashes_N)


def _mixed(hashes_N: np.ndarray) -> np.ndarray:
    """Spread over all bits (splitmix64's finish), since the table is indexed by some of them."""
    hashes_N ^= hashes_N >> np.uint64(30)
    hashes_N *= np.uint64(0xBF58476D1CE4E5B9)
    hashes_N ^= hashes_N >> np.uint64(27)
    hashes_N *= np.uint64(0x94D049BB133111EB)
    return hashes_N ^ (hashes_N >> np.uint64(31))


class GramIndex:
    """
    Finds known grams of one length in text.

    Args:
        hashes_N (`np.ndarray`): uint64 hashes of the known grams, any order.
    """

    def __init__(self, hashes_N: np.ndarray):
        self.hashes_N = np.unique(hashes_N)
        self._table = np.zeros(1 << TABLE_BITS, bool)
        self._table[self.hashes_N >> np.uint64(64 - TABLE_BITS)] = True

    def find(self, hashes_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in `hashes_T` that hold a known gram, and which of `self.hashes_N` each is."""
        places = np.flatnonzero(self._table[hashes_T >> np.uint64(64 - TABLE_BITS)])
        found = hashes_T[places]
        which = np.minimum(np.searchsorted(self.hashes_N, found), len(self.hashes_N) - 1)
        known = self.hashes_N[which] == found
        return places[known], which[known]
