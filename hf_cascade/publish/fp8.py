"""The FP8 twin of a finished model: weights and inputs of the decoder's linear layers in e4m3 (paper section 7).

Embedding, norms, head, vision tower and projector stay in bf16. The scale of a weight is its largest magnitude over
448, or that of all layers that read its norm; scales of inputs come from a text. The folder opens with transformers,
dequantised where there is no GPU for FP8; on a GPU, and with vLLM, whose source has the same names, it has not been
tried.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_cascade import manifest
from hf_cascade.evaluate.heldout import IGNORED, Scorer, Windows, make_windows, measure
from hf_cascade.loading import copy_companions, load_config, load_model, load_tokenizer
from hf_cascade.prune.draft import Draft
from hf_cascade.publish import e4m3
from hf_cascade.publish.activations import converted_layers, input_maxima, kept_modules, static_inputs
from hf_cascade.publish.fp8_weights import stored_layers, weight_files, weight_scales, write_files

RUN = "fp8"
SAMPLES = 128  # windows to calibrate on; ours: paper silent
LENGTH = 1024  # tokens of a window at most; ours
MULTIPLE = 16  # what FP8 products want dimensions to be of (torch._scaled_mm)
HELD_OUT = 16  # full windows that only measure, at most; ours


def quantization_config(model_type: str) -> dict:
    """The entry of config.json, as the released instruct models have it."""
    return {
        "activation_scheme": "static",
        "dequantize": False,
        "modules_to_not_convert": kept_modules(model_type),
        "quant_method": "fp8",
        "weight_block_size": None,
    }


@dataclass(frozen=True)
class Text:
    """
    What a conversion reads.

    Attributes:
        fitted (`list[Tensor]`): [1, T] token ids that scales come from.
        held_out (`Windows`): what the divergence is measured on.
    """

    fitted: list[torch.Tensor]
    held_out: Windows

    @property
    def tokens(self) -> int:
        """Tokens that scales come from."""
        return sum(ids.numel() for ids in self.fitted)

    @property
    def sha256(self) -> str:
        """Hash of their ids."""
        return hashlib.sha256(b"".join(ids.contiguous().numpy().tobytes() for ids in self.fitted)).hexdigest()


def read_text(
    tokenizer, texts: list[str], heldout: list[str] | None = None, samples: int = SAMPLES, max_length: int = LENGTH
) -> Text:
    """
    Cut documents into windows, each from one document and begun as the tokenizer begins it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        texts (`list[str]`): calibration documents.
        heldout (`list[str]`, *optional*): documents to measure on. Unset, every eighth window is left aside.
        samples (`int`, *optional*, defaults to `128`): windows to calibrate on at most, from all over the text.
        max_length (`int`, *optional*, defaults to `1024`): tokens of a window at most.

    Raises:
        ValueError: no text, or too little to measure on some of it.
    """
    if samples < 1 or max_length < 2:
        raise ValueError(f"samples={samples}, max_length={max_length}: give at least 1 window of 2 tokens")
    windows = make_windows(tokenizer, texts, max_length)
    rows = list(range(len(windows.inputs)))
    if heldout:
        measured = make_windows(tokenizer, heldout, max_length)
        aside, kept = list(range(len(measured.inputs))), rows
    else:
        measured, aside = windows, rows[::8]
        kept = [row for row in rows if row % 8]
    if not kept:
        raise ValueError("the calibration text is a single window: give more text, or held-out text of its own")
    lengths = (windows.labels != IGNORED).sum(dim=1)
    fitted = [windows.inputs[row : row + 1, : lengths[row]] for row in _spread(kept, samples)]
    measured_tokens = int((measured.labels[aside] != IGNORED).sum())
    aside = _spread(aside, max(1, HELD_OUT * max_length * len(aside) // measured_tokens))
    held_out = Windows(measured.inputs[aside], measured.labels[aside], max_length, len(aside), 1)
    return Text(fitted, held_out)


def _spread(rows: list[int], count: int) -> list[int]:
    """At most `count` of the rows, evenly."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def check(folder: str | Path, output_dir: str | Path) -> bool:
    """
    Whether there is anything to do: not where `output_dir` is the twin of exactly these weights already.

    Raises:
        ValueError: `folder` is no 16-bit or 32-bit model folder, or `output_dir` holds something else.
    """
    folder, target = Path(folder), Path(output_dir)
    if not (folder / "config.json").is_file():
        raise ValueError(f"model={folder} is no model folder: it has no config.json")
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config.get("text_config") or {}):
        if part.get("quantization_config"):
            method = part["quantization_config"].get("quant_method")
            raise ValueError(f"model={folder} is quantised already ({method}): give its 16-bit or 32-bit folder")
    weight_files(folder)
    if target.is_file():
        raise ValueError(f"output_dir={target} is a file: name a folder that is new or empty")
    if not target.is_dir() or not any(target.iterdir()):
        return True
    if manifest.is_finished(target):
        record = manifest.read(target)
        if record["run"] == RUN and record["metrics"]["source_sha256"] == manifest.weights_sha256(folder):
            return False
    raise ValueError(f"output_dir={target} is not empty, and not the FP8 twin of {folder}: name a new or empty folder")


def convert(
    folder: str | Path,
    output_dir: str | Path,
    texts: list[str],
    heldout: list[str] | None = None,
    samples: int = SAMPLES,
    max_length: int = LENGTH,
    device: str = "cpu",
    settings: dict | None = None,
) -> dict:
    """
    Write the FP8 twin of `folder`, whole or not at all.

    Memory: the model in fp32 to calibrate, twice that to measure, one file of weights to write. Images do not
    calibrate: inputs that are larger because of them saturate.

    Args:
        folder (`str` or `Path`): model folder in bf16, fp16 or fp32. Written in bf16 it is the BF16 twin.
        output_dir (`str` or `Path`): folder of the twin; new or empty.
        texts (`list[str]`): calibration documents, as the model will read them: with its chat template.
        heldout, samples, max_length (*optional*): as [`read_text`].
        device (`str`, *optional*, defaults to `"cpu"`): where to compute.
        settings (`dict`, *optional*): for the manifest.

    Returns:
        `dict`: the manifest; its `metrics` hold [`divergences`].

    Raises:
        ValueError: as [`check`] and [`read_text`], or broken weights; nothing is written.
        OSError: the disk is full.
    """
    folder, target = Path(folder), Path(output_dir)
    if not check(folder, target):
        return manifest.read(target)
    started, source_sha256 = time.monotonic(), manifest.weights_sha256(folder)
    text = read_text(load_tokenizer(str(folder)), texts, heldout, samples, max_length)
    twin = bf16_twin(str(folder)).to(device)
    _warn_of_shapes(converted_layers(twin))
    draft = Draft(target, {"source": source_sha256, "text": text.sha256})
    try:
        draft.check_room(sum(file.stat().st_size for file in weight_files(folder)))
        metrics = {"source_sha256": source_sha256} | _fill(draft.folder, folder, twin, text)
        record = manifest.write(
            draft.folder,
            stage=target.name,
            run=RUN,
            config={"calibration_samples": samples, "calibration_length": max_length} | (settings or {}),
            inputs={"model": str(folder)},
            metrics=metrics | {"seconds": time.monotonic() - started},
            output=manifest.describe(draft.folder, twin.num_parameters()),
        )
    except BaseException:
        draft.discard()
        raise
    draft.publish()
    return record


def _fill(target: Path, source: Path, twin: PreTrainedModel, text: Text) -> dict:
    """Write everything but the manifest into a new folder; returns its metrics."""
    files = weight_files(source)
    places = stored_layers(twin, files, converted_layers(twin))
    weights = weight_scales(files, places)
    inputs = {name: e4m3.scale_of(largest) for name, largest in input_maxima(twin, text.fitted).items()}
    tensor_bytes = write_files(files, target, places, weights, inputs)
    _write_config(source, target)
    copy_companions(str(source), target)
    return {
        "converted_layers": len(places),
        "tensor_bytes": tensor_bytes,
        "bf16_tensor_bytes": 2 * twin.num_parameters(),
        "calibration_tokens": text.tokens,
        "calibration_sha256": text.sha256,
        **divergences(target, twin, inputs, text.held_out),
    }


def _warn_of_shapes(layers: dict[str, torch.nn.Linear]) -> None:
    odd = [name for name, layer in layers.items() if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE]
    if odd:
        print(
            f"hf-cascade: warning: {len(odd)} layers have dimensions that are no multiple of {MULTIPLE}, {odd[0]} "
            "among them: FP8 products of PyTorch and vLLM refuse them; the folder still opens dequantised",
            file=sys.stderr,
        )


def bf16_twin(folder: str) -> PreTrainedModel:
    """The model with its weights rounded to bf16, for arithmetic in fp32."""
    return load_model(folder, dtype="bfloat16").float().eval()


def open_dequantised(folder: str | Path) -> PreTrainedModel:
    """An FP8 folder with its weights' exact values in fp32, on any device."""
    config = load_config(str(folder))
    config.quantization_config = {**config.quantization_config, "dequantize": True}
    # what is not in FP8 stays as stored, whatever dtype says (transformers 5.23)
    return load_model(str(folder), dtype="float32", config=config).float().eval()


def divergences(folder: Path, twin: PreTrainedModel, scales: dict[str, torch.Tensor], windows: Windows) -> dict:
    """
    How far an FP8 folder is from its BF16 twin, on text.

    Args:
        folder (`Path`): the FP8 folder.
        twin (`PreTrainedModel`): of [`bf16_twin`].
        scales (`dict[str, Tensor]`): layer name to the scale of its inputs.
        windows (`Windows`): the text.

    Returns:
        `dict`: `heldout_tokens`, and `kl` (nats a token), `top1_agreement` and `perplexity` of `weights` and of
        `weights_and_activations`, whose `saturated` is the share of inputs beyond their layer's range.
    """
    model = open_dequantised(folder).to(twin.device)
    teacher = Scorer(twin, windows, 1, keep=True)
    found = {"heldout_tokens": windows.tokens, "perplexity": measure(teacher, None, windows).perplexity}
    weights = measure(Scorer(model, windows, 1), teacher, windows)
    with static_inputs(model, scales) as saturation:
        both = measure(Scorer(model, windows, 1), teacher, windows)
    names = ("kl", "top1_agreement", "perplexity")
    found["weights"] = {name: getattr(weights, name) for name in names}
    found["weights_and_activations"] = {name: getattr(both, name) for name in names} | {"saturated": saturation.share}
    return found


def _write_config(folder: Path, target: Path) -> None:
    """The source's config.json, with FP8 weights and the type of all others."""
    config = {"dtype": "bfloat16", **json.loads((folder / "config.json").read_text())}
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in {"dtype", "torch_dtype"} & part.keys():
            part[key] = "bfloat16"
    config["quantization_config"] = quantization_config(config["model_type"])
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
