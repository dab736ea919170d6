"""Caches of a tiny teacher and conversations to put into them, for the tests of this folder."""

import copy

import torch
from torch.nn import functional
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hf_cascade.distill.cache_format import CacheIdentity
from hf_cascade.distill.cache_writer import CacheWriter
from hf_cascade.distill.teacher import LocalTeacher
from tests.data import tiny
from tests.prune import families

K = 8
HALF = 2.0**-11  # largest relative error of fp16's rounding


class Counting(LocalTeacher):
    """Knows how many positions it was asked for."""

    asked = 0

    def targets(self, inputs, counts_BT):
        self.asked += int(counts_BT.sum())
        return super().targets(inputs, counts_BT)


def build(**changes):
    return families.build(
        "llama", seed=2, dtype=torch.float32, **{"num_hidden_layers": 2, "hidden_size": 60, **changes}
    )


def identity(model, k: int = K) -> CacheIdentity:
    return CacheIdentity.of(model, "parent", tiny.tokenizer(), k)


def conversations(count: int = 12, seed: int = 0) -> list[dict]:
    """Token ids of 3 to 20 tokens; about half of them count."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        ids = torch.randint(4, families.VOCABULARY, (int(torch.randint(3, 21, (1,), generator=draw)),), generator=draw)
        labels = ids.masked_fill(torch.rand(len(ids), generator=draw) < 0.5, -100)
        labels[-1] = ids[-1]
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def batches(rows: list[dict], size: int, **collator):
    """(inputs, counts_BT) as the trainer makes them."""
    collate = DataCollatorForLanguageModeling(pad_token_id=0, **collator)
    for start in range(0, len(rows), size):
        inputs = collate(rows[start : start + size])
        labels_BT = inputs.pop("labels")
        yield inputs, functional.pad(labels_BT[:, 1:], (0, 1), value=-100) != -100


def write(folder, model, rows, k: int = K, size: int = 4, **kwargs) -> dict:
    """A finished cache; returns its index."""
    with CacheWriter(folder, LocalTeacher(model), identity(model, k), **kwargs) as writer:
        for inputs, counts_BT in batches(rows, size):
            writer.add(inputs, counts_BT)
        return writer.finish()


@torch.no_grad()
def expected(model, row: dict, k: int = K):
    """(ids, log probabilities) [N, K] of the positions of one row that count, in float64 from all logits."""
    model = copy.deepcopy(model).double()
    log_probs_TV = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0].log_softmax(-1)
    counts_T = torch.tensor(row["labels"][1:] + [-100]) != -100
    top = log_probs_TV[counts_T].topk(k)
    return top.indices, top.values


def check(targets, model, rows, k: int = K) -> None:
    """`targets` are the teacher's for `rows`, one after the other."""
    ids, log_probs = (torch.cat(parts) for parts in zip(*[expected(model, row, k) for row in rows], strict=True))
    torch.testing.assert_close(targets.ids_NK, ids, rtol=0, atol=0)
    assert targets.log_probs_NK.dtype == torch.float32
    # rounding of the value itself, and of those that decide the sum
    torch.testing.assert_close(targets.log_probs_NK.double(), log_probs, rtol=1.01 * HALF, atol=2e-3)
