"""The token ledger: which stage read which text, carried from manifest to manifest, so that nothing is read twice."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from hf_cascade import manifest
from hf_cascade.data.packing import PackedText, document_tokens


def text_sha256(stream: PackedText, datasets: list) -> str:
    """
    Hash of everything that numbers the tokens: the mixture, its size, the order's seed, and the tokenizer.

    Of a local file its name and size count, not its folder, so a project may move.
    """
    documents, tokenizer = stream.documents, stream.tokenizer
    parts = [sorted((name, _identity(value)) for name, value in vars(part).items()) for part in datasets]
    size = len(documents.dataset) if isinstance(documents.dataset, Dataset) else "streamed"
    tokens = (sorted(tokenizer.get_vocab().items()), document_tokens(tokenizer, ""))
    return hashlib.sha256(repr((parts, size, documents.field, documents.seed, tokens)).encode()).hexdigest()


def _identity(value) -> str:
    """A setting of the mixture as text; a path that exists here is its name and its size in bytes."""
    if isinstance(value, dict):
        return repr(sorted((name, _identity(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return repr([_identity(item) for item in value])
    path = Path(value) if isinstance(value, str) else None
    if path is None or not path.exists():
        return repr(value)
    return repr((path.resolve().name, path.stat().st_size if path.is_file() else None))


@dataclass
class Ledger:
    """
    Entries `{"stage", "start": [document, token], "end": [document, token], "tokens", ...}`, oldest first.

    `tokens` were trained on. Beside them an entry has what else the trainer counted: `skipped`, documents and tokens
    between start and end that were passed over, and `lengths`, those of the sequences trained on.

    Args:
        text (`str`): `text_sha256` of the text all entries speak of.
        entries (`list[dict]`): what was read so far.
    """

    text: str
    entries: list[dict] = field(default_factory=list)

    @classmethod
    def after(cls, folder: str | None, text: str) -> "Ledger":
        """
        The ledger a stage continues: empty without `folder`, else that of the finished stage in it.

        Raises:
            ValueError: the stage read other text, or the same text in another order, so its cursor means nothing here.
        """
        if folder is None:
            return cls(text)
        data = manifest.read(folder).get("data")
        if not data:
            raise ValueError(f"data_after={folder}: that stage read no text; name the last stage that trained")
        if data["text"] != text:
            raise ValueError(
                f"data_after={folder}: that stage read other text, in another order, or with another tokenizer; "
                "give both stages the same `datasets:`, `document_seed`, `dataset_text_field` and tokenizer, "
                "or leave data_after unset to begin with the first document"
            )
        return cls(text, list(data["ledger"]))

    @property
    def end(self) -> tuple[int, int]:
        """Document and token that come next."""
        return tuple(self.entries[-1]["end"]) if self.entries else (0, 0)

    def close(self, stage: str, data_state: dict) -> dict:
        """The manifest's `data`, with this stage's reading (`data_state` of the trainer) as the newest entry."""
        counted = {name: value for name, value in data_state.items() if name != "cursor"}
        entry = {"stage": stage, "start": list(self.end), "end": list(data_state["cursor"]), **counted}
        return {
            "text": self.text,
            "cursor": dict(zip(("document", "token"), entry["end"], strict=True)),
            "tokens": entry["tokens"],
            "ledger": [*self.entries, entry],
        }
