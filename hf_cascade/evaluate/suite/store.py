"""`Store`: a task's answers on disk, one JSON line each, so that a run that was stopped goes on where it was.

Every process of a run has a file of its own, and reads those of all. When a task is scored, its first process makes one
file of them, with the verdicts.
"""

import hashlib
import json
import os
from pathlib import Path

FOLDER = "samples"


class Store:
    """
    Answers to the requests of one task, by what was asked.

    Args:
        folder (`Path`): of the run; files are in its folder `samples`.
        task (`str`): its name.
        rank (`int`): of this process.

    Attributes:
        damaged (`int`): lines that could not be read; what was in them is asked again.
    """

    def __init__(self, folder: str | Path, task: str, rank: int = 0):
        self.folder, self.task, self.rank = Path(folder) / FOLDER, task, rank
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{task}.jsonl"
        self._own = self.folder / f"{task}.rank{rank}.jsonl"
        self.damaged, self._file = 0, None
        self._records: dict[str, dict] = {}
        self.reload()

    def get(self, key: str) -> dict | None:
        """The record of an answer, `None` if there is none."""
        return self._records.get(key)

    def add(self, record: dict) -> None:
        """Keep an answer; it has a `key`. It survives the end of this process."""
        self._records[record["key"]] = record
        if self._file is None:
            torn = self._own.is_file() and self._own.stat().st_size and not self._own.read_bytes().endswith(b"\n")
            self._file = open(self._own, "a", encoding="utf-8", errors="surrogatepass")
            self._file.write("\n" * bool(torn))
        self._file.write(_line(record))
        self._file.flush()

    def close(self) -> None:
        """Close this process's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def reload(self) -> None:
        """Read what all processes have written."""
        for path in self._files():
            for line in path.read_bytes().split(b"\n"):
                if line:
                    try:
                        record = json.loads(line.decode("utf-8", "surrogatepass"))
                        self._records[record["key"]] = record
                    except (ValueError, LookupError, TypeError):  # a line that a killed process did not finish
                        self.damaged += 1

    def merge(self, records: list[dict]) -> None:
        """
        Make one file of all: the records of this run as given, then those that it did not need.

        To be called by one process, when the others have written everything.
        """
        self.close()
        self.reload()
        used = {record["key"] for record in records}
        others = [record for key, record in self._records.items() if key not in used]
        draft = self.path.with_name(f".{self.path.name}.partial")
        with open(draft, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.writelines(_line(record) for record in [*records, *others])
        os.replace(draft, self.path)
        for path in self._files():
            if path != self.path:
                path.unlink()

    def _files(self) -> list[Path]:
        ranks = sorted(self.folder.glob(f"{self.task}.rank*.jsonl"))
        return [self.path] * self.path.is_file() + ranks


def key_of(*asked) -> str:
    """A hash of what was asked: texts, numbers, dictionaries, and images."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=_pixels).encode()).hexdigest()


def _pixels(image) -> str:
    """A picture by its size, mode and pixels."""
    if not hasattr(image, "tobytes"):
        raise TypeError(f"{type(image).__name__} in a request: only text, numbers and images can be kept")
    head = f"{getattr(image, 'size', '')} {getattr(image, 'mode', '')} ".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def _line(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
