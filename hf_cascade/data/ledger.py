"""The token ledger: which stage read which text, carried from manifest to manifest, so that nothing is read twice."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hf_cascade import manifest
from hf_cascade.data.packing import PackedText


def text_sha256(stream: PackedText, datasets: list) -> str:
    """Hash of everything that numbers the tokens: the mixture, the order's seed, and the tokenizer's vocabulary."""
    tokenizer: PreTrainedTokenizerBase = stream.tokenizer
    parts = [sorted(vars(part).items()) for part in datasets]
    parts = [[(name, Path(value).name if name == "data_files" else value) for name, value in part] for part in parts]
    identity = (parts, stream.documents.field, stream.documents.seed, sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(repr(identity).encode()).hexdigest()


@dataclass
class Ledger:
    """
    Entries `{"stage", "start": [document, token], "end": [document, token], "tokens"}`, oldest first.

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
        entry = {
            "stage": stage,
            "start": list(self.end),
            "end": list(data_state["cursor"]),
            "tokens": data_state["tokens"],
        }
        return {
            "text": self.text,
            "cursor": dict(zip(("document", "token"), entry["end"], strict=True)),
            "tokens": entry["tokens"],
            "ledger": [*self.entries, entry],
        }
