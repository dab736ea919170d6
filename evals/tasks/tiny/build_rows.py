"""Make the rows of the tiny tasks from the held-out text: every choice follows from sha256, so a rebuild is identical.

    python evals/tasks/tiny/build_rows.py

`continuation.jsonl`: a context, the text that follows and three passages that do not, of about equal length.
`copy.jsonl`: a context and the word after it, when the same two words stand in the context already.
`bits.jsonl`: passages.
Numbers are ours: small enough that ten models are measured on two CPU cores in minutes.
"""

import gzip
import hashlib
import json
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
HELDOUT = HERE.parents[2] / "recipes" / "tiny" / "data" / "heldout.jsonl.gz"
CONTEXT, CONTINUATION, PASSAGE = 300, 60, 800  # characters
ROWS = {"openstax": 80, "rust_book": 60, "the_algorithms": 60}
PASSAGES = 20  # of each source
CUT = re.compile(r"(?<=\S) (?=\S)")  # one space between words: no tokenizer joins letters across it


def order(*parts) -> str:
    """A key that orders anything, always the same way."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def documents() -> list[dict]:
    """The held-out documents, `{"text", "source"}`, with Unix line ends."""
    with gzip.open(HELDOUT, "rt", encoding="utf-8", newline="\n") as lines:
        rows = [json.loads(line) for line in lines]
    return [{**row, "text": row["text"].replace("\r\n", "\n")} for row in rows]


def apart(positions: list[int], *key, distance: int) -> list[int]:
    """Positions in hash order, those nearer than `distance` to an earlier one left out."""
    chosen: list[int] = []
    for position in sorted(positions, key=lambda position: order(*key, position)):
        if all(abs(position - other) >= distance for other in chosen):
            chosen.append(position)
    return chosen


def context(text: str, end: int) -> str:
    """Up to `CONTEXT` characters before `end`, beginning with a whole word."""
    start = max(0, end - CONTEXT)
    if start > 0:
        start = re.search(r"\s", text[start:]).end() + start
    return text[start:end].lstrip()


def continuation(text: str, start: int) -> str | None:
    """At least `CONTINUATION` characters from `start` on, to the end of the word; None near the document's end."""
    end = re.compile(r"(?<=\S)(?=\s)").search(text, start + CONTINUATION)
    return text[start : end.start()] if end and end.start() - start < CONTINUATION + 15 else None


def continuations(texts: list[dict]) -> list[dict]:
    """Rows of multiple choice: `context`, four `choices`, `answer` (index of the true one)."""
    candidates = {}
    for row in texts:
        cuts = [match.start() for match in CUT.finditer(row["text"]) if match.start() >= CONTEXT]
        cuts = [cut for cut in cuts if continuation(row["text"], cut)]
        candidates[row["source"]] = apart(cuts, row["source"], distance=CONTEXT + CONTINUATION)
    by_source = {row["source"]: row["text"] for row in texts}
    rows = []
    for origin, count in ROWS.items():
        places = [(name, cut) for name, cuts in candidates.items() if name.startswith(origin + "/") for cut in cuts]
        for name, cut in sorted(places, key=lambda place: order("row", *place))[:count]:
            # of the same document first: a model must follow the text, not guess the topic
            others = sorted(
                (place for place in places if place != (name, cut)),
                key=lambda place: (place[0] != name, order("distractor", name, cut, *place)),
            )
            true = continuation(by_source[name], cut)
            choices = [true]
            for other, start in others:
                text = continuation(by_source[other], start)
                if text not in choices and len(choices) < 4:
                    choices.append(text)
            choices.sort(key=lambda choice: order("choice", name, cut, choice))
            rows.append(
                {
                    "source": f"{name}:{cut}",
                    "context": context(by_source[name], cut),
                    "choices": choices,
                    "answer": choices.index(true),
                }
            )
    return rows


def copies(texts: list[dict]) -> list[dict]:
    """Rows of the cloze: `context` and `target`, the next word; the last word and it stand in the context already."""
    rows = []
    for origin, count in ROWS.items():
        places = []
        for row in (row for row in texts if row["source"].startswith(origin + "/")):
            text = row["text"]
            found = {}
            for match in re.finditer(r"(?<=[\w.])( [A-Za-z_]{4,})\b", text):
                before = context(text, match.start())
                previous = before.rsplit(maxsplit=1)[-1] if before.strip() else ""
                pair = rf"(?<!\w){re.escape(previous + match[1])}\b"
                if match.start() >= CONTEXT // 2 and re.search(pair, before):
                    found[match.start()] = {"context": before, "target": match[1]}
            chosen = apart(list(found), "copy", row["source"], distance=CONTEXT)
            places += [{"source": f"{row['source']}:{place}", **found[place]} for place in chosen]
        rows += sorted(places, key=lambda place: order("copy", place["source"]))[:count]
    return rows


def passages(texts: list[dict]) -> list[dict]:
    """Rows of at most `PASSAGE` characters from the beginning of a paragraph or line."""
    rows = []
    for origin in ROWS:
        places = []
        for row in (row for row in texts if row["source"].startswith(origin + "/")):
            text = row["text"]
            starts = [0] + [match.end() for match in re.finditer(r"\n+(?=\S)", text)]
            starts = [start for start in starts if start + PASSAGE <= len(text)]
            for start in apart(starts, "passage", row["source"], distance=PASSAGE):
                cut = text[start : start + PASSAGE]
                whole_lines = cut[: cut.rindex("\n")] if "\n" in cut[PASSAGE // 2 :] else cut
                places.append({"source": f"{row['source']}:{start}", "text": whole_lines.rstrip()})
        rows += sorted(places, key=lambda place: order("passage", place["source"]))[:PASSAGES]
    return rows


def write(name: str, rows: list[dict], folder: Path) -> None:
    """One JSON object a line."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / name).write_text("".join(lines), encoding="utf-8")


def build(folder: Path = HERE) -> None:
    """Write the three files into `folder`."""
    texts = documents()
    write("continuation.jsonl", continuations(texts), folder)
    write("copy.jsonl", copies(texts), folder)
    write("bits.jsonl", passages(texts), folder)


if __name__ == "__main__":
    build()
