"""When hidden-state matching helps: recovery from a deep cut of layers, with and without it.

    OMP_NUM_THREADS=1 python benchmarks/distill_depth.py > benchmarks/results/distill_depth_cpu.md

The shipped parent loses layers and nothing else, and the child is distilled from it on packed text with several weights
of the distance between hidden states beside the KL. The layers a student layer is to resemble are those its parent
kept. What counts is the KL on held-out text, on the logits alone.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from prune_measure import HeldOut
from transformers import PrinterCallback
from trl import DatasetMixtureConfig
from trl.scripts.utils import DatasetConfig

from hf_cascade import PruneConfig
from hf_cascade.data.documents import Documents, load_mixture
from hf_cascade.data.packing import PackedText, blocks
from hf_cascade.data.text_files import load_texts
from hf_cascade.distill.config import CascadeDistillationConfig
from hf_cascade.distill.hidden import kept_before
from hf_cascade.distill.trainer import CascadeDistillationTrainer
from hf_cascade.loading import load_model, load_tokenizer
from hf_cascade.prune.model import prune_with_report

DATA = [f"recipes/tiny/data/{name}.jsonl.gz" for name in ("openstax", "rust_book", "the_algorithms")]
LENGTH = 256  # tokens of a window, as recipes/tiny/short.yaml


def distil(child: Path, parent, tokenizer, tokens: int, weight: float, rate: float, seed: int):
    """The child after `tokens` tokens of training, in an order of the documents that the seed decides."""
    student = load_model(str(child), dtype="float32")
    parts = [DatasetConfig(path="json", data_files=file, split="train", columns=["text"]) for file in DATA]
    documents = Documents(load_mixture(DatasetMixtureConfig(datasets=parts)), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        args = CascadeDistillationConfig(
            output_dir=folder,
            train_tokens=tokens,
            max_length=LENGTH,
            per_device_train_batch_size=4,
            learning_rate=rate,
            lr_scheduler_type="linear",
            warmup_steps=10,
            adam_beta2=0.95,
            hidden_weight=weight,
            hidden_layers=kept_before(child) if weight else None,
            report_to="none",
            save_strategy="no",
            logging_steps=10**6,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            log_level="error",
            seed=seed,
        )
        text = PackedText(documents, tokenizer, LENGTH)
        trainer = CascadeDistillationTrainer(student, parent, args=args, train_dataset=text, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return student.eval()


def main() -> None:
    """Prune, distil, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parent", default="recipes/tiny/parent")
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 3], help="layers that stay")
    parser.add_argument("--method", choices=("compensated", "paper"), default="compensated", help="of pruning")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.3, 3.0], help="of the hidden distance")
    parser.add_argument("--tokens", type=int, nargs="+", default=[60_000, 180_000])
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3)
    settings = parser.parse_args()
    parent, tokenizer = load_model(settings.parent, dtype="float32").eval(), load_tokenizer(settings.parent)
    calibration, held_out = (
        blocks(tokenizer, load_texts(f"recipes/tiny/data/{name}.jsonl.gz"), LENGTH, count)
        for name, count in (("calibration", 128), ("heldout", 64))
    )
    measure = HeldOut(parent, held_out)
    whole = parent.config.num_hidden_layers
    print(f"# Recovery from a cut of layers, {settings.method} pruning of {settings.parent}\n")
    print(f"Held-out KL to the parent ({whole} layers), mean and half the range of {settings.seeds} seeds.\n")
    print("| layers | pruned | tokens | " + " | ".join(f"weight {weight:g}" for weight in settings.weights) + " |")
    print("|---" * (3 + len(settings.weights)) + "|", flush=True)
    for layers in settings.layers:
        with tempfile.TemporaryDirectory() as folder:
            config = PruneConfig(num_hidden_layers=layers, method=settings.method)
            child, report = prune_with_report(parent, config, calibration)
            child.save_pretrained(folder)
            (Path(folder) / "prune_report.json").write_text(json.dumps({"kept_layers": report["kept_layers"]}))
            pruned = measure(child)["kl"]
            for tokens in settings.tokens:
                cells = []
                for weight in settings.weights:
                    kls = [
                        measure(distil(Path(folder), parent, tokenizer, tokens, weight, settings.lr, seed))["kl"]
                        for seed in range(settings.seeds)
                    ]
                    cells.append(f"{statistics.mean(kls):.4f} ± {(max(kls) - min(kls)) / 2:.4f}")
                print(f"| {layers} | {pruned:.3f} | {tokens:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
