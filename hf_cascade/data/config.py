"""The text a stage reads: order of the documents and where to begin. A cascade reads its mix once (paper Figure 2)."""

from dataclasses import dataclass, field


@dataclass
class TextArguments:
    """
    Parameters that control which text a stage reads, beside TRL's `datasets:` block.

    Args:
        data_after (`str`, *optional*):
            Folder of the finished stage whose text this one continues: reading begins at the first token that stage
            did not train on. Unset, reading begins with the first document.
        document_seed (`int`, *optional*, defaults to `0`):
            Seed of the documents' order. All stages of one cascade share it; another seed than `data_after`'s is
            refused, since tokens would be repeated. Ours: paper silent.
        passes (`int`, *optional*, defaults to `1`):
            How often the text may be read. `1` is the paper's single pass (Figure 2); a stage that would need more
            stops with an error instead of repeating tokens.
        min_document_tokens (`int`, *optional*, defaults to `0`):
            Documents of fewer tokens are passed over by this stage: a long stage learns its new positions from long
            documents only. Ours: paper silent. What a stage passes over is lost for the stages after it that go on
            where it stopped; their ledger says how many tokens. To lose nothing, give the long stage a `datasets:` of
            its own and let the next stage's `data_after` name the last stage on the common text.
    """

    data_after: str | None = field(
        default=None,
        metadata={"help": "Finished stage's folder: read on where it stopped. Unset: from the first document."},
    )
    document_seed: int = field(default=0, metadata={"help": "Seed of the documents' order, one for a whole cascade."})
    passes: int = field(default=1, metadata={"help": "How often the text may be read; 1 is the paper's single pass."})
    min_document_tokens: int = field(
        default=0,
        metadata={
            "help": "Documents of fewer tokens are passed over, and lost to stages that read on after it. 0: none."
        },
    )
