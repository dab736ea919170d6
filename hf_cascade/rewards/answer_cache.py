"""`AnswerCache`: answers of an endpoint in a file, found again by what was asked (ours)."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

WAIT_SECONDS = 60.0  # for another process that writes; ours
AT_ONCE = 500  # keys in one query; SQLite takes 999 and more; ours


class AnswerCache:
    """
    A file that several processes may read and write, and that is whole after one of them was killed.

    A connection is opened for each use, so that the object can be shared by threads, forked and pickled.

    Args:
        path (`str` or `Path`): made with its folder where it does not exist.

    Raises:
        ValueError: the path holds something else, or cannot be written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as file, file:
                file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
                file.execute("SELECT key, answer FROM answers LIMIT 1")
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"cache={path} cannot be used ({error}): name a file that is new, or made so") from error

    def read(self, keys: Iterable[str]) -> dict[str, dict]:
        """Those of the answers that are there, by key."""
        keys, found = [*dict.fromkeys(keys)], {}
        with closing(self._open()) as file:
            for start in range(0, len(keys), AT_ONCE):
                some = keys[start : start + AT_ONCE]
                query = f"SELECT key, answer FROM answers WHERE key IN ({', '.join('?' * len(some))})"
                found |= file.execute(query, some).fetchall()
        return {key: json.loads(answer) for key, answer in found.items()}

    def write(self, key: str, answer: dict) -> None:
        """Keep an answer; it is on disk when this returns."""
        with closing(self._open()) as file, file:
            file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=WAIT_SECONDS)


def key_of(url: str, body: dict) -> str:
    """A hash of what was asked, and where; the order of keys does not count."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()
