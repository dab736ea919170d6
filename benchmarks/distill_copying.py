"""When token routing helps: copying from the context, on a language whose true probabilities are known.

    OMP_NUM_THREADS=1 python benchmarks/distill_copying.py > benchmarks/results/distill_copying_cpu.md

Distilled models are said to copy from their context worse than models trained on the next token, since a teacher's
soft labels blur what copying needs (arXiv 2509.01649, which routes the tokens with low teacher entropy to the plain
next-token loss). Rows here are a random phrase three times, whose second and third time are certain to whoever looks
back, and then words of a Markov source. A teacher is trained on the next token, for a short or a long time, and
students of its own shape are trained from a random start on the same text in several ways, each from the same seeds.
"""

import argparse
import statistics
import tempfile

import torch
from datasets import Dataset
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import SFTTrainer

from hf_cascade.distill.config import CascadeDistillationConfig, CascadeSFTConfig
from hf_cascade.distill.trainer import CascadeDistillationTrainer

SPECIAL, WORDS = 3, 32  # padding, end, and the mark before a phrase
MARK = 2
PHRASE, TIMES, LENGTH = 12, 3, 64  # tokens, of a phrase and of a row
SOURCE_FROM = TIMES * (PHRASE + 1) + 1  # where the words are the source's alone
LAYERS, WIDTH, BATCH, RATE = 2, 64, 32, 3e-3
METHODS = {
    "next token alone": {"next_token_weight": 1.0},
    "forward KL (the default)": {},
    "mixed, half next token": {"next_token_weight": 0.5},
    "routed below 0.5 nats": {"route_below_nats": 0.5},
    "routed below 1.5 nats": {"route_below_nats": 1.5},
}

# R rows, T tokens of a row, V vocabulary


def source() -> Tensor:
    """Probabilities of the next word, [WORDS, WORDS], some words much more certain than others."""
    return torch.softmax(3.0 * torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(0)), -1)


def rows(count: int, chances_VV: Tensor, seed: int) -> Tensor:
    """Token ids [R, T]: mark and phrase, three times, then the source."""
    generator = torch.Generator().manual_seed(seed)
    ids_RT = torch.empty(count, LENGTH, dtype=torch.long)
    ids_RT[:, 0] = torch.randint(WORDS, (count,), generator=generator)
    for place in range(1, LENGTH):
        chances_RV = chances_VV[ids_RT[:, place - 1]]
        ids_RT[:, place] = torch.multinomial(chances_RV, 1, generator=generator).squeeze(1)
    ids_RT += SPECIAL
    phrase = torch.randint(WORDS, (count, PHRASE), generator=generator) + SPECIAL
    for time in range(TIMES):
        start = time * (PHRASE + 1)
        ids_RT[:, start] = MARK
        ids_RT[:, start + 1 : start + 1 + PHRASE] = phrase
    return ids_RT


def model(seed: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS + SPECIAL,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def tokenizer() -> PreTrainedTokenizerFast:
    """The trainer wants one; the rows are ids already."""
    from tokenizers import Tokenizer, models

    words = {"<pad>": 0, "</s>": 1, **{f"w{number}": number for number in range(2, WORDS + SPECIAL)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def train(student, ids_RT: Tensor, settings: dict, teacher=None, seed: int = 0):
    """One pass over the rows."""
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder,
            "per_device_train_batch_size": BATCH,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 10**6,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "log_level": "error",
            "seed": seed,
            "max_length": None,
        }
        shared = {"train_dataset": Dataset.from_dict({"input_ids": ids_RT.tolist()}), "processing_class": tokenizer()}
        if teacher is None:
            trainer = SFTTrainer(student, args=CascadeSFTConfig(**common), **shared)
        else:
            args = CascadeDistillationConfig(**common, **settings)
            trainer = CascadeDistillationTrainer(student, teacher, args=args, **shared)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return student.eval()


@torch.no_grad()
def measure(student, ids_RT: Tensor, chances_VV: Tensor) -> dict[str, float]:
    """Accuracy and loss where the phrase comes again (not its first word), and KL from the source's truth."""
    log_q = student(input_ids=ids_RT, use_cache=False).logits.log_softmax(-1)
    targets, log_q = ids_RT[:, 1:], log_q[:, :-1]
    nll = -log_q.gather(2, targets.unsqueeze(2)).squeeze(2)
    copied = torch.zeros(LENGTH - 1, dtype=torch.bool)
    for time in range(1, TIMES):
        copied[time * (PHRASE + 1) + 1 : (time + 1) * (PHRASE + 1) - 1] = True
    p = chances_VV[ids_RT[:, SOURCE_FROM:-1] - SPECIAL]
    kl = (torch.xlogy(p, p) - p * log_q[:, SOURCE_FROM:, SPECIAL:]).sum(-1)
    return {
        "accuracy": float((log_q.argmax(-1) == targets)[:, copied].float().mean()),
        "copied": float(nll[:, copied].mean()),
        "source": float(kl.mean()),
    }


def cells(runs: list[dict[str, float]]) -> str:
    """Mean and half the range over seeds."""
    shown = []
    for key in ("accuracy", "copied", "source"):
        values = [run[key] for run in runs]
        half = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
        shown.append(f"{statistics.mean(values):.3f}{half}")
    return " | ".join(shown)


def main() -> None:
    """Train the teachers, then every student, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher_rows", type=int, nargs="+", default=[2_400, 2_600, 2_900, 19_200])
    parser.add_argument("--student_rows", type=int, nargs="+", default=[3_200, 6_400])
    parser.add_argument("--seeds", type=int, default=3)
    settings = parser.parse_args()
    chances_VV = source()
    held_out_RT = rows(1_000, chances_VV, seed=10**6)
    print("# Copying from the context\n")
    print(
        f"Mean and half the range of {settings.seeds} seeds. Copied: accuracy and next-token loss (nats) where a phrase"
    )
    print("comes again. Source: KL (nats) from the true probabilities.")
    for teacher_rows in settings.teacher_rows:
        teacher = train(model(0), rows(teacher_rows, chances_VV, seed=1), {})
        found = cells([measure(teacher, held_out_RT, chances_VV)])
        for student_rows in settings.student_rows:
            print(f"\n## A teacher of {teacher_rows:,} rows, students of {student_rows:,}\n")
            print("| trained on | copied: accuracy | copied: loss | source: KL |\n|---|---|---|---|")
            print(f"| *the teacher* | {found} |", flush=True)
            for name, options in METHODS.items():
                runs = []
                for seed in range(settings.seeds):
                    ids_RT = rows(student_rows, chances_VV, seed=100 + seed)
                    student = train(model(10 + seed), ids_RT, options, teacher, seed)
                    runs.append(measure(student, held_out_RT, chances_VV))
                print(f"| {name} | {cells(runs)} |", flush=True)


if __name__ == "__main__":
    main()
