"""The packed text of a stage: with images where its dataset has a column of them, else without; and its identity."""

import hashlib

from datasets import Dataset, IterableDataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hf_cascade.data.config import TextArguments
from hf_cascade.data.documents import Documents
from hf_cascade.data.image_documents import ImageDocuments, check_processor, check_reads_images, image_column
from hf_cascade.data.image_packing import PackedImageText
from hf_cascade.data.image_text import load_processor
from hf_cascade.data.ledger import text_sha256
from hf_cascade.data.packing import PackedText


def open_stream(
    rows: Dataset | IterableDataset,
    settings: TextArguments,
    field: str,
    max_length: int,
    tokenizer: PreTrainedTokenizerBase,
    student: str,
    config: PreTrainedConfig,
) -> PackedText:
    """
    The packed text of a stage, from its first document on.

    Args:
        rows (`Dataset` or `IterableDataset`): of `load_mixture`.
        settings (`TextArguments`): order, passes, and what is passed over.
        field (`str`): the text column.
        max_length (`int`): tokens in a row.
        tokenizer (`PreTrainedTokenizerBase`): the student's.
        student (`str`): folder or Hub id, whose processor is opened for images.
        config (`PreTrainedConfig`): the student's.

    Raises:
        ValueError: what [`Documents`], [`ImageDocuments`] and the processor refuse.
    """
    if image_column(rows) is None:
        documents = Documents(rows, field, settings.document_seed, settings.passes)
        return PackedText(documents, tokenizer, max_length, min_document_tokens=settings.min_document_tokens)
    check_reads_images(config)
    processor = load_processor(student)
    check_processor(processor, config)
    documents = ImageDocuments(rows, field, settings.document_seed, settings.passes)
    return PackedImageText(documents, processor, max_length, min_document_tokens=settings.min_document_tokens)


def stream_sha256(stream: PackedText, datasets: list) -> str:
    """[`text_sha256`]; with images also what makes tokens of them: the processor's sizes, tokens and template."""
    identity = text_sha256(stream, datasets)
    if not isinstance(stream, PackedImageText):
        return identity
    processor, documents = stream.processor, stream.documents
    size = sorted(dict(processor.image_processor.size).items())
    tokens = (processor.patch_size, processor.spatial_merge_size, processor.image_token_ids)
    template = None if documents.field != "messages" else processor.chat_template
    return hashlib.sha256(repr((identity, documents.images, size, tokens, template)).encode()).hexdigest()
