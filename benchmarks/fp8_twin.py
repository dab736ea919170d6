"""FP8 twins: what the weights cost, what the inputs cost, how much text their scales need, and seconds a GB.

    OMP_NUM_THREADS=1 python benchmarks/fp8_twin.py > benchmarks/results/fp8_twin_cpu.md
    python benchmarks/fp8_twin.py --models DIR --calibration FILE --calibration_field messages

Models are converted as `hf-cascade fp8` does, opened with transformers and compared with their BF16 twin on text that
the scales did not see. Inputs are rounded as an FP8 engine rounds them, in fp32 arithmetic; no FP8 product is run.
Rows beside what is published: inputs alone; scales of inputs made anew for every token; and weights with scales of
their own, as they are and after vLLM has joined q, k, v and gate, up to one product, where it rounds their codes again
by the largest of their scales (read in its source). The published ones share that scale, and joining changes nothing.
The last table writes a random model in several files, against a plain copy of them, each best of three.
"""

import argparse
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import Ministral3Config

from hf_cascade.anatomy import READERS
from hf_cascade.evaluate.heldout import Scorer, measure
from hf_cascade.loading import load_tokenizer
from hf_cascade.prune.parent import skeleton
from hf_cascade.prune.shards import ShardWriter
from hf_cascade.publish import e4m3, fp8
from hf_cascade.publish.activations import converted_layers, input_maxima, static_inputs
from hf_cascade.publish.fp8_command import Fp8Arguments, documents
from hf_cascade.publish.fp8_weights import stored_layers, weight_files, weight_scales, write_files

TEXT = "recipes/tiny/data"
MODELS = {  # folder -> its text, and the columns
    "recipes/tiny/parent": (f"{TEXT}/calibration.jsonl.gz", ["text"]),
    "runs/reasoning/reasoning-sft": (f"{TEXT}/reasoning_sft.jsonl.gz", ["prompt", "completion"]),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[model for model in MODELS if Path(model).is_dir()])
    parser.add_argument("--calibration", help="text; every eighth window of it is measured on")
    parser.add_argument("--calibration_field", nargs="+", default=["text"])
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 8, 64, 128], help="windows to calibrate on")
    parser.add_argument("--gigabytes", type=float, default=0.4, help="of the random model, in bf16; 0 leaves it out")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"# FP8 twins, on a CPU\n\n{threads} thread(s); torch {torch.__version__}.\n")
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as scratch:
            compare(model, Path(scratch) / "twin", arguments)
    if arguments.gigabytes:
        with tempfile.TemporaryDirectory() as scratch:
            speed(Path(scratch), arguments.gigabytes)


def compare(source: str, target: Path, arguments) -> None:
    """The table of one model."""
    tokenizer, most = load_tokenizer(source), max(arguments.samples)
    given = (arguments.calibration, arguments.calibration_field)
    file, columns = given if arguments.calibration else MODELS[source]
    texts = documents(file, Fp8Arguments(source, str(target), file, columns, calibration_samples=most), tokenizer)
    record = fp8.convert(source, target, texts, samples=most, max_length=arguments.length)
    metrics = record["metrics"]
    twin, model = fp8.bf16_twin(source), fp8.open_dequantised(target)
    windows = fp8.read_text(tokenizer, texts, None, most, arguments.length).held_out
    teacher = Scorer(twin, windows, 1, keep=True)
    share, parameters = metrics["tensor_bytes"] / metrics["bf16_tensor_bytes"], record["output"]["num_parameters"]
    print(f"## {source}\n")
    print(
        f"{parameters:,} parameters, {metrics['converted_layers']} layers in FP8, {share:.0%} of the BF16 twin's bytes."
    )
    print(f"Perplexity of the BF16 twin: {metrics['perplexity']:.3f}, {windows.tokens:,} tokens.\n")
    print("| what is in FP8 | calibrated on | KL to the BF16 twin | top-1 agreement | perplexity | saturated inputs |")
    print("|---|---|---|---|---|---|")

    def row(label: str, subject, tokens: int | None = None, saturated: float | None = None) -> None:
        found = measure(Scorer(subject, windows, 1), teacher, windows)
        seen = "–" if tokens is None else f"{tokens:,} tokens"
        beyond = "–" if saturated is None else f"{saturated:.1e}"
        agreed = f"{found.top1_agreement:.2%}"
        print(f"| {label} | {seen} | {found.kl:.2e} | {agreed} | {found.perplexity:.3f} | {beyond} |", flush=True)

    row("weights", model)
    for count in arguments.samples:
        text = fp8.read_text(tokenizer, texts, None, count, arguments.length)
        scales = {name: e4m3.scale_of(largest) for name, largest in input_maxima(twin, text.fitted).items()}
        with static_inputs(model, scales) as saturation:
            measure(Scorer(model, windows, 1), None, windows)
        with static_inputs(model, scales):
            row("weights and inputs", model, text.tokens, saturation.share)
    with static_inputs(twin, scales):
        # the teacher's states are kept
        row("inputs alone", twin, text.tokens)
    with dynamic_inputs(model):
        row("weights and inputs, a scale for each token", model)
    own = fp8.bf16_twin(source)
    round_weights(own, joined=False)
    row("weights with scales of their own", own)
    round_weights(own, joined=True)
    row("the same, joined as in vLLM", own)
    with static_inputs(own, scales):
        row("the same and inputs", own, text.tokens)
    print()


@contextmanager
def dynamic_inputs(model):
    """Inputs rounded by their own token's largest."""

    def hook(_, inputs):
        scale = e4m3.scale_of(inputs[0].abs().amax(-1, keepdim=True))
        return (e4m3.decode(e4m3.encode(inputs[0], scale), scale),)

    handles = [layer.register_forward_pre_hook(hook) for layer in converted_layers(model).values()]
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def round_weights(model, joined: bool) -> None:
    """Round weights to e4m3 by scales of their own, or by one scale for the layers that read one norm."""
    layers = converted_layers(model)
    for name, layer in layers.items():
        group = next((readers for readers in READERS.values() if name.endswith(readers)), None) if joined else None
        prefix = name if group is None else name.removesuffix(next(reader for reader in group if name.endswith(reader)))
        members = [layer] if group is None else [layers[prefix + reader] for reader in group]
        scale = e4m3.scale_of(torch.stack([member.weight.abs().max() for member in members]).max())
        layer.weight.copy_(e4m3.decode(e4m3.encode(layer.weight, scale), scale))


def speed(scratch: Path, gigabytes: float) -> None:
    """Seconds to write a random model's files again, and to copy them."""
    layers = max(1, round(gigabytes * 1e9 / 2 / (1024 * 1024 * 2.5 + 3 * 1024 * 4096)))
    config = Ministral3Config(
        vocab_size=1024, hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=2, head_dim=128,
    )  # fmt: skip
    model = skeleton(config)
    (scratch / "source").mkdir()
    writer = ShardWriter(scratch / "source", model, lambda name: torch.bfloat16, "100MB")
    writer.create()
    for name, value in model.state_dict().items():
        writer.write(name, torch.randn(value.shape) * 0.02)
    files = weight_files(scratch / "source")
    size, largest = sum(file.stat().st_size for file in files) / 1e9, max(file.stat().st_size for file in files) / 1e6
    places = stored_layers(model, files, converted_layers(model))
    scales = {name: torch.tensor(1.0) for name in places.values()}
    (scratch / "twin").mkdir()
    (scratch / "copy").mkdir()

    def copy() -> None:
        for file in files:
            shutil.copyfile(file, scratch / "copy" / file.name)

    def write() -> None:
        write_files(files, scratch / "twin", places, weight_scales(files, places), scales)

    rows = [("plain copy", best(copy))]
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    rows.append(("FP8", best(write)))
    grown = memory("VmHWM") - before
    print(f"## Writing the files of {size:.2f} GB in bf16, in {len(files)} files\n")
    print("| | seconds | seconds a GB | x floor |\n|---|---|---|---|")
    for label, seconds in rows:
        print(f"| {label} | {seconds:.2f} | {seconds / size:.2f} | {seconds / rows[0][1]:.1f} |")
    print(f"\nPeak memory, mapped files among it: {grown:,.0f} MB; the largest file has {largest:,.0f} MB.")


def memory(entry: str) -> float:
    """This process's memory, now (VmRSS) or at most (VmHWM), in 10^6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(entry))


def best(work) -> float:
    """Fewest seconds of three calls."""
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        work()
        seconds.append(time.monotonic() - started)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())
