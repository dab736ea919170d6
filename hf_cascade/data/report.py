"""How long the text of a stage is, from the stage's own YAML, before it costs GPU hours.

    hf-cascade lengths --config recipes/ministral3/long.yaml --model_name_or_path CHILD

Only the tokenizer is opened. Not under trainers/: nothing is trained, and the training arguments in the file, which may
ask for a GPU, are not read.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

import yaml

from hf_cascade import assets
from hf_cascade.data.lengths import LengthCounter, of_rows, short_text_warning
from hf_cascade.data.packing import PackedText, document_tokens

# what a stage's file says about its text, and what each is unless it says so
SETTINGS = {
    "datasets": [],
    "streaming": False,
    "test_split_size": None,
    "dataset_text_field": "text",
    "document_seed": 0,
    "passes": 1,
    "max_length": None,
    "min_document_tokens": 0,
    "original_context_length": None,
    "data_after": None,
    "model_name_or_path": None,
    "tokenizer": None,
}


def make_parser() -> argparse.ArgumentParser:
    """Flags: the stage's file, how much to read, and what is not in the file or is to be tried otherwise."""
    parser = argparse.ArgumentParser(prog="hf-cascade lengths", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="the YAML file of a distill or pretrain stage")
    parser.add_argument("--model_name_or_path", help="folder or Hub id whose tokenizer is used")
    parser.add_argument("--rows", type=int, default=100, help="rows of max_length tokens to read; default 100")
    parser.add_argument("--data_after", help="folder of the finished stage whose text this one continues")
    for name in ("max_length", "min_document_tokens", "original_context_length"):
        parser.add_argument(f"--{name}", type=int, help="tokens, instead of the file's")
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Print the report.

    Args:
        argv (`list[str]`, *optional*): arguments. Unset, the command line's.

    Returns:
        `int`: exit status, 0.

    Raises:
        ValueError, FileNotFoundError: no file, text or tokenizer, or settings that a stage would refuse too.
    """
    arguments = vars(make_parser().parse_args(argv))
    rows = arguments.pop("rows")
    if rows < 1:
        raise ValueError(f"rows={rows}: give at least 1")
    file = assets.find(arguments.pop("config"))
    settings = yaml.safe_load(Path(file).read_text())
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds no settings of a stage: give the YAML file of a distill or pretrain stage")
    given = {name: value for name, value in arguments.items() if value is not None}
    settings = {name: {**settings, **given}.get(name, default) for name, default in SETTINGS.items()}
    print(report(open_text(settings), rows, settings["original_context_length"]))
    return 0


def open_text(settings: dict) -> PackedText:
    """The text that a stage of these `SETTINGS` reads, where it begins to."""
    from trl import DatasetMixtureConfig

    from hf_cascade.data.config import TextArguments
    from hf_cascade.data.documents import load_mixture
    from hf_cascade.data.image_documents import image_column
    from hf_cascade.data.ledger import Ledger
    from hf_cascade.data.streams import open_stream, stream_sha256
    from hf_cascade.loading import load_config, load_tokenizer

    model = settings["model_name_or_path"] or settings["tokenizer"]
    if model is None:
        raise ValueError("lengths are counted in tokens: give --model_name_or_path, a folder or Hub id")
    mixture = DatasetMixtureConfig(settings["datasets"], settings["streaming"], settings["test_split_size"])
    rows = load_mixture(mixture)
    order = TextArguments(
        **{name: settings[name] for name in ("document_seed", "passes", "min_document_tokens", "data_after")}
    )
    config = None if image_column(rows) is None else load_config(model)  # text needs a tokenizer only
    field, length = settings["dataset_text_field"], settings["max_length"]
    stream = open_stream(rows, order, field, length, load_tokenizer(model), model, config)
    stream.start = Ledger.after(order.data_after, stream_sha256(stream, mixture.datasets)).end
    return stream


def report(stream: PackedText, rows: int, window: int | None = None) -> str:
    """
    Lengths of the documents in the first `rows` rows of `stream`, and of their pieces as packed.

    Args:
        stream (`PackedText`): the text.
        rows (`int`): how many rows to read; the text may end before.
        window (`int`, *optional*): tokens of the window before it is extended.

    Raises:
        ValueError: the text does not fill one row.
    """
    read = list(islice(stream.rows_to_the_end(), rows))
    if not read:
        raise ValueError(
            f"the text does not fill one row of {stream.max_length} tokens: shorten max_length or add text"
        )
    documents = _documents(stream, tuple(read[-1]["cursor"]), window)
    pieces = of_rows(read, window)
    skipped = [sum(row["skipped"][place] for row in read) for place in (0, 1)]
    parts = [
        documents.table("documents"),
        pieces.table(f"as packed in {len(read):,} rows of {stream.max_length:,}: sequences"),
    ]
    if stream.min_document_tokens:
        share = skipped[1] / (skipped[1] + pieces.total_tokens)
        parts.append(
            f"passed over, of fewer than {stream.min_document_tokens:,} tokens: {skipped[0]:,} documents, "
            f"{skipped[1]:,} tokens, {share:.1%} of the text"
        )
    warning = short_text_warning(pieces)
    return "\n\n".join([*parts, *([f"warning: {warning}"] if warning else [])])


def _documents(stream: PackedText, end: tuple[int, int], window: int | None) -> LengthCounter:
    """Whole documents that begin before the place `end`, passed over or not."""
    counter = LengthCounter(window)
    first = stream.start[0] + (stream.start[1] > 0)
    for number, content in stream.documents.read(first):
        if (number, 0) >= end:
            break
        text_alone = isinstance(content, str)  # else text and images
        ids = document_tokens(stream.tokenizer, content) if text_alone else stream.tokens(number, *content)[0]
        counter.add([len(ids)])
    return counter


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"hf-cascade: error: {error}", file=sys.stderr)
        sys.exit(2)
