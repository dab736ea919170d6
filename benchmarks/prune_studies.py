"""Two further modes of `benchmarks/prune.py`: the recommended option piece by piece, and text of other kinds."""

from prune_measure import HeldOut, Subject, timed
from prune_methods import METHODS, variants
from prune_recovery import recover, spread

from hf_cascade.data.packing import blocks
from hf_cascade.data.text_files import load_texts

# first part of a document's `source` -> what kind of text it is; the file of the same name calibrates
KINDS = {"openstax": "textbook prose", "rust_book": "the Rust book", "the_algorithms": "Python"}
MIXED = "all three"
USUAL = {"8b", "mid"}  # shapes of the domain study where none is named


def ablation(folder: str, shape: dict, arguments) -> None:
    """Print one row a switched piece; `balance` leaves the outputs alone and shows after steps only."""
    subject = Subject.load(folder, arguments)
    held_out = HeldOut(subject.parent, subject.heldout_NT)
    after = f" KL after {arguments.steps} |" if arguments.steps else ""
    print(
        f"| piece | KL | change | loss | seconds | x forward |{after}\n|---|{'---:|' * (5 + bool(after))}", flush=True
    )
    first = None
    for method in variants(subject.parent.config, shape):
        child, time = timed(method, subject.parent, shape, subject.calibration_NT)
        found = held_out(child)
        first = first or found["kl"]
        cells = [f"{found['kl']:.4f}", f"{found['kl'] / first - 1:+.1%}", f"{found['nll']:.3f}"]
        cells += [f"{time['seconds']:.1f}", f"{time['seconds'] / time['forward']:.2f}"]
        if after:
            cells.append(spread(recover(child, held_out, subject.tokenizer, arguments), "kl"))
        print(f"| {method.label} | {' | '.join(cells)} |", flush=True)


def domains(folder: str, shapes: dict, arguments) -> None:
    """Print tables of KL: a row for the text a method was calibrated on, a column for the text it is measured on."""
    if not arguments.shapes and USUAL & set(shapes):
        shapes = {key: shape for key, shape in shapes.items() if key in USUAL}
    subject = Subject.load(folder, arguments)
    texts, sources = (load_texts(arguments.heldout, field) for field in ("text", "source"))
    held_out = {}
    for kind in KINDS:
        own = [text for text, source in zip(texts, sources, strict=True) if source.split("/")[0] == kind]
        ids_NT = blocks(subject.tokenizer, own, arguments.length, arguments.heldout_windows)
        held_out[kind] = HeldOut(subject.parent, ids_NT)
    calibrations = {MIXED: subject.calibration_NT}
    for kind in KINDS:
        texts = load_texts(f"recipes/tiny/data/{kind}.jsonl.gz")
        calibrations[kind] = blocks(subject.tokenizer, texts, arguments.length, arguments.windows)
    for key, shape in shapes.items():
        tables = {}
        for name in ("paper", "ours"):
            for kind, calibration_NT in calibrations.items():
                child = METHODS[name].prune(subject.parent, shape, calibration_NT)
                tables[name, kind] = [measured(child)["kl"] for measured in held_out.values()]
            _table(f"{folder}, {key}, KL of {METHODS[name].label}", {kind: tables[name, kind] for kind in calibrations})
        ratios = {
            kind: [own / other for own, other in zip(tables["ours", kind], tables["paper", kind], strict=True)]
            for kind in calibrations
        }
        _table(f"{folder}, {key}, ours over the paper's", ratios)


def _table(title: str, rows: dict[str, list[float]]) -> None:
    print(f"\n**{title}**\n\n| calibrated on, measured on | {' | '.join(KINDS.values())} |\n|---|---:|---:|---:|")
    for kind, values in rows.items():
        print(f"| {KINDS.get(kind, kind)} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)
