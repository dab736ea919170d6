"""A whole training step of `CascadeDistillationTrainer` beside TRL's trainers on the same rows: time and memory.

    OMP_NUM_THREADS=1 python benchmarks/distill_step.py > benchmarks/results/distill_step_cpu.md
    python benchmarks/distill_step.py --device cuda --hidden 4096 --teacher_hidden 5120 --layers 16 --tokens 16384

Peers: TRL's SFT trainer with the usual few lines of KL on all logits, and TRL's GKD trainer off-policy (lmbda 0) at
beta 0, which is the forward KL. All read the same full rows of tokens, so tokens a step are equal; their losses are
printed and must agree. Each runs in a process of its own. The floor, timed there too in turns with the steps, is what
no distillation can do without: both decoders forward, the student's backward, and the four products with the heads.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

from distill_loss import Memory, processor

# B rows, T tokens of a row


def build(settings, width: int, seed: int):
    """A Llama with random weights on the device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=settings.layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 256),
        max_position_embeddings=settings.tokens,
        initializer_range=0.05,
    )
    dtype = torch.float32 if settings.device == "cpu" else torch.bfloat16
    return LlamaForCausalLM(config).to(settings.device, dtype)


def tokenizer():
    """The trainers want one; the rows are ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def arguments(settings, folder: str) -> dict:
    """What all trainers share."""
    return {
        "output_dir": folder,
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.rows,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "max_length": settings.tokens,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": settings.device == "cpu",
        "bf16": settings.device != "cpu",
        "gradient_checkpointing": settings.device != "cpu",
        "disable_tqdm": True,
        "log_level": "error",
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
    }


def collate(rows: list[dict]) -> dict:
    """Full rows: the ids are the labels, and nothing is padding."""
    import torch

    ids_BT = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": ids_BT.clone()}


def naive(student, teacher, folder, settings, **kwargs):
    """`SFTTrainer` with KL on all logits, as scripts do it."""
    import torch
    from torch.nn import functional
    from trl import SFTConfig, SFTTrainer

    class NaiveTrainer(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            with torch.no_grad():
                theirs = teacher(input_ids=ids, attention_mask=mask).logits[:, :-1]
            log_q, log_p = logits.flatten(0, 1).log_softmax(-1), theirs.flatten(0, 1).log_softmax(-1)
            return functional.kl_div(log_q, log_p, reduction="sum", log_target=True) / num_items_in_batch

    return NaiveTrainer(student, args=SFTConfig(**arguments(settings, folder)), **kwargs)


def gkd(student, teacher, folder, settings, **kwargs):
    """TRL's GKD trainer, off-policy."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    args = GKDConfig(**arguments(settings, folder), lmbda=0.0, beta=0.0)
    return GKDTrainer(student, teacher_model=teacher, args=args, **kwargs)


def ours(student, teacher, folder, settings, **kwargs):
    """`CascadeDistillationTrainer`."""
    from hf_cascade import CascadeDistillationConfig, CascadeDistillationTrainer

    kernel = "torch" if settings.device == "cpu" else "triton"
    args = CascadeDistillationConfig(**arguments(settings, folder), loss_kernel=kernel)
    return CascadeDistillationTrainer(student, teacher, args=args, **kwargs)


METHODS = {
    "naive": (naive, "TRL SFTTrainer, KL on all logits"),
    "gkd": (gkd, "TRL GKDTrainer, off-policy, beta 0"),
    "ours": (ours, "hf-cascade CascadeDistillationTrainer"),
}


def floor(student, teacher, ids_BT) -> None:
    """Both decoders and the products with the heads, through one buffer of logits a thousand rows long at most."""
    import torch

    with torch.no_grad():
        theirs_ND = teacher.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state.flatten(0, 1)
    hidden_ND = student.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state.flatten(0, 1)
    head, their_head = student.lm_head.weight.detach(), teacher.lm_head.weight
    grads = []
    for ours_CD, theirs_CD in zip(hidden_ND.detach().split(1024), theirs_ND.split(1024), strict=True):
        with torch.no_grad():
            logits_CV = torch.mm(theirs_CD, their_head.t())
            torch.mm(ours_CD, head.t(), out=logits_CV)
            grads.append(logits_CV @ head)
            logits_CV.t() @ ours_CD
    hidden_ND.backward(torch.cat(grads).mul_(1e-6))
    student.zero_grad(set_to_none=True)


def measure(name: str, settings) -> dict:
    """Seconds of a step and of the floor, peak memory beyond both models, and the first losses, in this process."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    student, teacher = build(settings, settings.hidden, 1), build(settings, settings.teacher_hidden, 2).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (settings.rows * settings.steps, settings.tokens)
    ids = torch.randint(2, settings.vocabulary, shape, generator=generator)
    steps, floors = [], []

    def wait() -> float:
        if settings.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.began = wait()

        def on_step_end(self, *args, **kwargs):
            steps.append(wait() - self.began)
            began = wait()
            floor(student, teacher, ids[: settings.rows].to(settings.device))
            floors.append(wait() - began)

    with tempfile.TemporaryDirectory() as folder:
        trainer = METHODS[name][0](
            *(student, teacher.requires_grad_(False), folder, settings),
            train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
            processing_class=tokenizer(),
            data_collator=collate,
        )
        trainer.remove_callback(PrinterCallback)
        if settings.memory:
            memory = Memory(settings.device)
            trainer.train()
            return {"megabytes": memory.peak()}
        trainer.add_callback(Clock())
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    ratios = [own / least for own, least in zip(steps[1:], floors[1:], strict=True)]  # the first step warms up
    return {"seconds": statistics.median(steps[1:]), "ratio": statistics.median(ratios), "loss": losses[0]}


def main() -> None:
    """Run every trainer in processes of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--hidden", type=int, default=256, help="of the student")
    parser.add_argument("--teacher_hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8, help="of both")
    parser.add_argument("--rows", type=int, default=1, help="of a step")
    parser.add_argument("--tokens", type=int, default=1024, help="of a row")
    parser.add_argument("--steps", type=int, default=4, help="the first is not timed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.one:
        print(json.dumps(measure(settings.one, settings)))
        return
    import torch
    import trl

    machine = torch.cuda.get_device_name() if settings.device == "cuda" else processor()
    kind = "bf16" if settings.device == "cuda" else f"{torch.get_num_threads()} thread(s); fp32"
    print(f"# A training step of {settings.rows} x {settings.tokens:,} tokens, vocabulary {settings.vocabulary:,}\n")
    print(
        f"Student {settings.layers} x {settings.hidden}, teacher {settings.layers} x {settings.teacher_hidden}; ",
        end="",
    )
    print(f"{machine}; {kind}; torch {torch.__version__}, trl {trl.__version__}.")
    print(f"Median of {settings.steps - 1} steps; memory beyond both models, in 10^6 bytes, AdamW's states included.\n")
    print("| trainer | x floor | seconds | extra peak MB | loss of the first step |\n|---|---|---|---|---|", flush=True)
    for name, (_, title) in METHODS.items():
        row = {}
        for extra in ([], ["--memory"]):
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name, *extra]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode:
                row = {"error": (answer.stderr.strip().splitlines() or ["?"])[-1]}
                break
            row |= json.loads(answer.stdout.splitlines()[-1])
        if "error" in row:
            print(f"| {title} | failed: {row['error'][:90]} | | | |", flush=True)
            continue
        numbers = f"{row['ratio']:.2f} | {row['seconds']:.2f} | {row['megabytes']:,.0f} | {row['loss']:.5f}"
        print(f"| {title} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
