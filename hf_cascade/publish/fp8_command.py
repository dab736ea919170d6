"""`hf-cascade fp8`: a finished model folder in, its FP8 twin out, with the divergence from the BF16 twin measured.

hf-cascade fp8 --model runs/instruct/8b --output_dir runs/instruct/8b-fp8 --calibration chats.jsonl.gz
"""

import sys
from dataclasses import dataclass, field

import torch
from jinja2 import TemplateError
from transformers import HfArgumentParser, PreTrainedTokenizerBase
from trl import TrlParser

from hf_cascade.data.text_files import load_texts
from hf_cascade.loading import load_tokenizer
from hf_cascade.publish import fp8

DOCUMENTS = 16  # documents read for each window: enough for short ones, and a streamed dataset is not read to its end


@dataclass
class Fp8Arguments:
    """
    Parameters of `hf-cascade fp8`.

    Args:
        model (`str`): folder of the model, in bf16, fp16 or fp32.
        output_dir (`str`): folder for the twin; new or empty.
        calibration (`str`): what the scales of activations come from: a `.txt`, `.jsonl`, `.json`, `.parquet` or `.csv`
            file (also `.gz`), or a dataset's Hub id. Best is what the model will read: conversations.
        calibration_field (`list[str]`, *optional*, defaults to `["text"]`): the column of text, or columns of messages
            (`messages`; `prompt completion`), which follow each other and are rendered by the model's chat template.
        calibration_split (`str`, *optional*, defaults to `"train"`): split of a dataset from the Hub.
        calibration_samples (`int`, *optional*, defaults to `128`): windows of text at most. Ours: paper silent.
        calibration_length (`int`, *optional*, defaults to `1024`): tokens of a window at most. Ours: paper silent.
        heldout (`str`, *optional*): what the divergence is measured on, as `calibration`: 16 full windows of it, or as
            many tokens in shorter ones. Unset, every eighth window of the calibration text, which the scales then do
            not see.
        device (`str`, *optional*, defaults to `"auto"`): where to compute: `cpu`, `cuda`, `cuda:1`; `auto` is a GPU
            where there is one.
    """

    model: str = field(metadata={"help": "Folder of the model, in bf16, fp16 or fp32."})
    output_dir: str = field(metadata={"help": "Folder for the twin; new or empty."})
    calibration: str = field(
        metadata={"help": "Text or conversations that scales of inputs come from: a file or dataset id."}
    )
    calibration_field: list[str] = field(
        default_factory=lambda: ["text"],
        metadata={"help": "Its column of text, or columns of messages (messages; prompt completion)."},
    )
    calibration_split: str = field(default="train", metadata={"help": "Split of the calibration dataset."})
    calibration_samples: int = field(default=fp8.SAMPLES, metadata={"help": "Windows of calibration text at most."})
    calibration_length: int = field(default=fp8.LENGTH, metadata={"help": "Tokens of a window at most."})
    heldout: str | None = field(
        default=None, metadata={"help": "Text the divergence is measured on. Unset: every eighth calibration window."}
    )
    device: str = field(default="auto", metadata={"help": "Where to compute: auto, cpu, cuda, cuda:1."})


def make_parser() -> HfArgumentParser:
    """Flags of `hf-cascade fp8`; `--config FILE` reads them from YAML."""
    return TrlParser((Fp8Arguments,), prog="hf-cascade fp8", description=__doc__)


def main(argv: list[str]) -> int:
    """
    Convert, and say how far the twin is from the model.

    Raises:
        ValueError, FileNotFoundError: bad input, nothing written.
        OSError: the disk is full.
    """
    (arguments,) = make_parser().parse_args_and_config(argv)
    if not fp8.check(arguments.model, arguments.output_dir):
        print(f"hf-cascade: {arguments.output_dir} is already finished; delete it to make it again", file=sys.stderr)
        return 0
    device = _device(arguments.device)
    tokenizer = load_tokenizer(arguments.model)
    texts = documents(arguments.calibration, arguments, tokenizer)
    heldout = documents(arguments.heldout, arguments, tokenizer) if arguments.heldout else None
    record = fp8.convert(
        arguments.model,
        arguments.output_dir,
        texts,
        heldout,
        samples=arguments.calibration_samples,
        max_length=arguments.calibration_length,
        device=device,
        settings={"calibration": arguments.calibration, "calibration_field": arguments.calibration_field}
        | ({"heldout": arguments.heldout} if arguments.heldout else {}),
    )
    print(sentence(arguments.output_dir, record["metrics"]))
    return 0


def documents(source: str, arguments: Fp8Arguments, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """
    Texts of a source; conversations as the model's chat template writes them.

    Raises:
        ValueError, FileNotFoundError: no text, or conversations that cannot be rendered.
    """
    limit = arguments.calibration_samples * DOCUMENTS
    columns = [load_texts(source, name, arguments.calibration_split, limit) for name in arguments.calibration_field]
    if len(columns) == 1 and isinstance(columns[0][0], str):
        return columns[0]
    if not all(isinstance(column[0], list) for column in columns):
        raise ValueError(f"{source}: {arguments.calibration_field} are not a column of text, nor columns of messages")
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"{source}: some rows lack one of {arguments.calibration_field}: give whole conversations")
    if tokenizer.chat_template is None:
        raise ValueError(f"{source} holds conversations and {arguments.model} has no chat template to render them with")
    try:
        rendered = [
            tokenizer.apply_chat_template(sum(parts, []), tokenize=False) for parts in zip(*columns, strict=True)
        ]
    except TemplateError as error:
        raise ValueError(f"{source}: the chat template of {arguments.model} refuses a conversation: {error}") from error
    # the tokenizer puts its own BOS in front
    return [text.removeprefix(tokenizer.bos_token or "") for text in rendered]


def sentence(folder: str, metrics: dict) -> str:
    """What the manifest says, in three lines."""
    smaller = metrics["tensor_bytes"] / metrics["bf16_tensor_bytes"]
    lines = [f"{folder}: {metrics['converted_layers']} layers in FP8, {smaller:.0%} of the BF16 twin's bytes"]
    for name, said in (("weights", "weights alone"), ("weights_and_activations", "weights and activations")):
        found = metrics[name]
        lines.append(
            f"{said}: KL {found['kl']:.2e} to the BF16 twin, top-1 agreement {found['top1_agreement']:.2%}, perplexity "
            f"{found['perplexity']:.4g} ({metrics['perplexity']:.4g}), {metrics['heldout_tokens']:,} held-out tokens"
        )
    return "\n".join(lines)


def _device(name: str) -> str:
    """
    The device to compute on.

    Raises:
        ValueError: it is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(f"device={name}: it is not here; give auto or cpu")
    return name


if __name__ == "__main__":
    from hf_cascade.stage import BAD_INPUT

    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as problem:
        print(f"hf-cascade: error: {problem}", file=sys.stderr)
        sys.exit(BAD_INPUT)
