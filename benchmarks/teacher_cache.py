"""Size of a cached teacher, and what its gradient lacks of the whole teacher's, on real text.

    OMP_NUM_THREADS=1 python benchmarks/teacher_cache.py --student runs/tiny/8b-short \
        > benchmarks/results/teacher_cache_cpu.md

The cache is written and read as in training. The error of a gradient is the length of its difference to the one from
all the teacher's logits, over the length of that one: token by token, by the student's final hidden states, and summed
over the text, by all its weights (near a minimum the true sum is small, and what is wrong with each token is not).
Without a tail, the same K probabilities are made to sum to 1. The student is the teacher pruned here, with half its FFN
channels; folders of others may be given (`make demo` makes this one). Last, what matters: the pruned student's KL on
the held-out text after some steps on other text with each kind of target.

B rows, T tokens of a row, N positions, K tokens kept
"""

import argparse
import contextlib
import copy
import sys
import tempfile
import time
from pathlib import Path

ROWS_AT_ONCE = 8
STEP_ROWS = 4
TRAIN = ("openstax", "rust_book", "the_algorithms")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="recipes/tiny/parent")
    parser.add_argument("--student", nargs="*", default=[], help="folders of students, beside the pruned one")
    parser.add_argument("--prune_config", default="recipes/tiny/prune.yaml")
    parser.add_argument("--text", default="recipes/tiny/data/heldout.jsonl.gz")
    parser.add_argument("--tokens", type=int, default=4096, help="of text")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--k", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--train", nargs="+", default=[f"recipes/tiny/data/{name}.jsonl.gz" for name in TRAIN])
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of 4 sequences; 0 leaves this out")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate, constant; AdamW")
    arguments = parser.parse_args()

    import torch

    from hf_cascade.data.packing import blocks
    from hf_cascade.data.text_files import load_texts
    from hf_cascade.loading import load_model, load_tokenizer

    teacher, tokenizer = load_model(arguments.teacher, "float32"), load_tokenizer(arguments.teacher)
    rows_BT = blocks(tokenizer, load_texts(arguments.text), arguments.length, arguments.tokens // arguments.length)
    share = -(-STEP_ROWS * arguments.steps // len(arguments.train))
    parts = [blocks(tokenizer, load_texts(file), arguments.length, share) for file in arguments.train if share]
    with tempfile.TemporaryDirectory() as scratch:
        students = {"pruned here": pruned(arguments, Path(scratch) / "pruned")}
        students |= {name: load_model(name, "float32") for name in arguments.student}
        vocabulary = teacher.get_output_embeddings().weight.shape[0]
        print(f"# A cached teacher: {arguments.teacher}, {rows_BT.numel():,} tokens of {arguments.text}\n")
        print(f"Vocabulary {vocabulary:,}; sequences of {arguments.length} tokens; fp32, torch {torch.__version__}.")
        print("Errors: of the gradient, against the whole teacher's.\n")
        print("| K | bytes a token | at V = 131,072 | probability kept | error of log p | tokens/s written | read |")
        print("|---|---|---|---|---|---|---|")
        caches = {k: made(teacher, tokenizer, rows_BT, parts, k, Path(scratch) / f"cache-{k}") for k in arguments.k}
        print("\n| student | K | error token by token | without tail | error of the sum | without tail |")
        print("|---|---|---|---|---|---|")
        for name, student in students.items():
            full = gradients(student, whole(teacher), rows_BT)
            for k, cached in caches.items():
                with_tail, without = errors(student, full, cached, rows_BT)
                cells = [part for pair in zip(with_tail, without, strict=True) for part in pair]
                print(f"| {name} | {k} | " + " | ".join(f"{cell:.1%}" for cell in cells) + " |", flush=True)
        if parts:
            recover(students["pruned here"], whole(teacher), caches, torch.cat(parts), rows_BT, arguments)


def pruned(arguments, folder: Path):
    """The teacher with half its FFN channels, as the first hop of the tiny cascade."""
    from hf_cascade.loading import load_config, load_model
    from hf_cascade.prune.command import main as prune

    half = load_config(arguments.teacher).get_text_config().intermediate_size // 2
    flags = {"model": arguments.teacher, "config": arguments.prune_config, "intermediate_size": half}
    with contextlib.redirect_stdout(sys.stderr):
        prune([part for name, value in {**flags, "output_dir": folder}.items() for part in (f"--{name}", str(value))])
    return load_model(str(folder), "float32")


def whole(teacher):
    """The teacher itself."""
    from hf_cascade.distill.teacher import LocalTeacher

    return LocalTeacher(teacher)


def batches(rows_BT):
    """(inputs, counts_BT) of all rows; the last position of a row has no next token."""
    import torch

    for input_ids_BT in rows_BT.split(ROWS_AT_ONCE):
        counts_BT = torch.ones_like(input_ids_BT, dtype=torch.bool)
        counts_BT[:, -1] = False
        yield {"input_ids": input_ids_BT}, counts_BT


def whole_targets(targets):
    """As they are."""
    return targets


def without_tail(targets):
    """The K probabilities made to sum to 1."""
    from hf_cascade.distill.teacher import TopKTargets

    return TopKTargets(targets.ids_NK, targets.log_probs_NK.log_softmax(-1))


def loss(student, teacher, inputs, counts_BT, change=whole_targets):
    """Summed KL of a batch, and the final hidden states it was computed from."""
    from hf_cascade.distill.loss import fused_divergence

    hidden_ND = student.base_model(**inputs, use_cache=False).last_hidden_state[counts_BT]
    head_VD, targets = student.get_output_embeddings().weight, change(teacher.targets(inputs, counts_BT))
    value, _ = fused_divergence(hidden_ND, head_VD, targets, inputs["input_ids"][:, 1:].flatten(), num_items=1)
    return value, hidden_ND


def gradients(student, teacher, rows_BT, change=whole_targets):
    """The mean KL's gradient by the final hidden states of all positions, and by all weights, both flat."""
    import torch

    student.zero_grad()
    by_hidden = []
    for batch in batches(rows_BT):
        value, hidden_ND = loss(student, teacher, *batch, change)
        hidden_ND.retain_grad()
        (value / rows_BT[:, 1:].numel()).backward()
        by_hidden.append(hidden_ND.grad.flatten())
    return torch.cat(by_hidden), torch.cat([part.grad.flatten() for part in student.parameters()])


def recover(student, teacher, caches: dict, train_BT, held_out_BT, arguments) -> None:
    """Print the KL to the whole teacher on held-out text, before and after training on each kind of target."""
    import torch

    order = torch.randperm(len(train_BT), generator=torch.Generator().manual_seed(0))[: STEP_ROWS * arguments.steps]
    tokens = STEP_ROWS * train_BT.shape[1]
    print(f"\n| {arguments.steps} steps of {tokens:,} tokens with | KL on held-out text |\n|---|---|")
    print(f"| none | {divergence(student, teacher, held_out_BT):.4f} |", flush=True)
    ways = {"the whole teacher": (teacher, whole_targets)}
    for k, cached in caches.items():
        ways |= {f"K = {k} and the tail": (cached, whole_targets), f"K = {k} without it": (cached, without_tail)}
    for name, (source, change) in ways.items():
        trained = copy.deepcopy(student).train()
        optimizer = torch.optim.AdamW(trained.parameters(), lr=arguments.rate, betas=(0.9, 0.95), weight_decay=0.0)
        for rows in order.split(STEP_ROWS):
            gradients(trained, source, train_BT[rows], change)
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
        print(f"| {name} | {divergence(trained.eval(), teacher, held_out_BT):.4f} |", flush=True)


def divergence(student, teacher, rows_BT) -> float:
    """Mean KL(teacher || student) of all positions, in nats."""
    import torch

    with torch.no_grad():
        return sum(float(loss(student, teacher, *batch)[0]) for batch in batches(rows_BT)) / (rows_BT[:, 1:].numel())


def errors(student, full, cached, rows_BT) -> tuple[list[float], list[float]]:
    """Errors of both gradients against `full`, with the tail and without."""
    found = [gradients(student, cached, rows_BT), gradients(student, cached, rows_BT, without_tail)]
    return tuple([float((a - b).norm() / b.norm()) for a, b in zip(pair, full, strict=True)] for pair in found)


def made(teacher, tokenizer, rows_BT, more: list, k: int, folder: Path):
    """Write a cache of all rows, read `rows_BT` and print what was seen; returns the `CachedTeacher`."""
    import torch

    from hf_cascade.distill.cache import CachedTeacher
    from hf_cascade.distill.cache_format import CacheIdentity
    from hf_cascade.distill.cache_writer import CacheWriter
    from hf_cascade.distill.loss import head_logits

    of, local = CacheIdentity.of(teacher, "teacher", tokenizer, k), whole(teacher)
    started = time.perf_counter()
    with CacheWriter(folder, local, of) as writer:
        for part_BT in (rows_BT, *more):
            for batch in batches(part_BT):
                writer.add(*batch)
        index = writer.finish()
    written = time.perf_counter() - started
    cached, kept, wrong, read = CachedTeacher(folder, tokenizer), [], [], 0.0
    for inputs, counts_BT in batches(rows_BT):
        started = time.perf_counter()
        targets = cached.targets(inputs, counts_BT)
        read += time.perf_counter() - started
        hidden = local.targets(inputs, counts_BT)
        log_probs_NV = head_logits(hidden.hidden_NE.double(), hidden.head_VE.double(), hidden.softcap).log_softmax(-1)
        exact_NK = log_probs_NV.gather(1, targets.ids_NK)
        kept.append(exact_NK.exp().sum(-1))
        wrong.append((targets.log_probs_NK - exact_NK).abs().flatten())
    kept, wrong = torch.cat(kept).mean(), torch.cat(wrong)
    at_large = CacheIdentity("", "", "", k, 131072, 0).bytes_per_token
    print(
        f"| {k} | {index['bytes_per_token']:.1f} | {at_large} | {float(kept):.1%} | mean {float(wrong.mean()):.4f}, at "
        f"most {float(wrong.max()):.4f} | {index['tokens'] / written:,.0f} | {rows_BT[:, 1:].numel() / read:,.0f} |",
        flush=True,
    )
    return cached


if __name__ == "__main__":
    main()
