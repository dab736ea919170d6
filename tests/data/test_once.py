"""Once through the text: over stages, pruning, epochs, workers, ranks and stops, each token is trained on exactly once.

Tokens are recorded where they are trained on, in `training_step`, and compared with the documents' own.
"""

import copy
from itertools import islice

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import DatasetMixtureConfig

from hf_cascade import PruneConfig, manifest, prune_model
from hf_cascade.context import extend_context
from hf_cascade.data.documents import Documents, load_mixture
from hf_cascade.data.ledger import Ledger
from hf_cascade.data.packing import PackedCollator, PackedText
from tests.data import tiny
from tests.distill import setting
from tests.prune import families

# name, window, what is done to the model before, settings: 96, 64, 96 and 96 tokens
STAGES = (
    ("big-short", 16, None, {"max_steps": 3}),
    ("small-short", 16, "prune", {"max_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}),
    ("small-long", 24, "extend", {"max_steps": 2, "per_device_train_batch_size": 2}),
    ("last-short", 12, None, {"max_steps": 4}),
)
TOKENS = (96, 64, 96, 96)


class Recorder(TrainerCallback):
    """What each optimizer step trained on; a step that is done again replaces what was lost with the first try."""

    def __init__(self):
        self.steps: dict[int, list[int]] = {}

    def watch(self, trainer) -> None:
        step = trainer.training_step

        def recorded(model, inputs, num_items_in_batch=None):
            self.steps[trainer.state.global_step] += inputs["input_ids"].flatten().tolist()
            return step(model, inputs, num_items_in_batch)

        trainer.training_step = recorded
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps[state.global_step] = []

    @property
    def tokens(self) -> list[int]:
        return [token for _, step in sorted(self.steps.items()) for token in step]


class Stop(TrainerCallback):
    """Saves and stops after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def distiller(*args, **kwargs):
    """As `setting.sft`, with the KL to a teacher."""
    return setting.distiller(*args, parent=setting.teacher(dtype=torch.float32), **kwargs)


def train(folder, model, documents, start, settings, stops=(), make=setting.sft):
    """Train a copy of `model`, in a new trainer after every stop; returns the model, its `data_state`, its tokens."""
    recorder, length = Recorder(), settings["max_length"]
    for number, stop in enumerate((*stops, None)):
        stream = PackedText(documents, tiny.tokenizer(), length, start)
        trained = copy.deepcopy(model)  # a resumed run begins with other weights than those of the checkpoint
        trainer = make(folder, trained, dataset=stream, lr_scheduler_type="cosine", **settings)
        recorder.watch(trainer)
        if stop is not None:
            trainer.add_callback(Stop(stop))
        trainer.train(resume_from_checkpoint=number > 0)
    return trained, trainer.data_state, recorder.tokens


def prepared(model, what: str | None):
    """The model as the next stage starts from it."""
    if what == "prune":
        return prune_model(model, PruneConfig(hidden_size=36, intermediate_size=48), families.ids(8, 16))
    if what == "extend":
        longer = AutoModelForCausalLM.from_config(extend_context(model.config, 24, 16))
        longer.load_state_dict(model.state_dict())
        return longer
    return model


def cascade(folder, documents, stopping: bool, **loader):
    """All `STAGES`; returns the weights after each, all tokens trained on, and the ledger."""
    model, weights, tokens, before = setting.student("ministral3", torch.float32, attention_dropout=0.1), [], [], None
    for name, length, what, settings in STAGES:
        ledger = Ledger.after(before, "text")
        stops = range(1, settings["max_steps"]) if stopping else ()
        settings = {"max_length": length, "weight_decay": 0.1, **settings, **loader}
        model = prepared(model, what)
        model, state, read = train(folder / "run" / name, model, documents, ledger.end, settings, stops)
        weights.append(setting.weights(model))
        tokens += read
        before = folder / name
        before.mkdir()
        data = ledger.close(name, state)
        manifest.write(before, stage=name, run="distill", config={}, inputs={}, metrics={}, data=data)
    return weights, tokens, data["ledger"]


def mixture(folder, **kwargs) -> Documents:
    """Two datasets of three files in all, as TRL's block names them."""
    texts = tiny.texts(45)
    (folder / "two").mkdir(parents=True)
    for number, file in enumerate(("one-a.jsonl", "one-b.jsonl", "two/c.jsonl")):
        part = texts[number * 15 : (number + 1) * 15]
        Dataset.from_dict({"text": part, "other": list(range(15))}).to_json(folder / file)
    files = [str(folder / "one-a.jsonl"), str(folder / "one-b.jsonl")]
    block = [
        {"path": "json", "data_files": files, "split": "train", "columns": ["text"]},
        {"path": "json", "data_dir": str(folder / "two"), "split": "train[:80%]" if not kwargs else "train"},
    ]
    block[1]["columns"] = ["text"]
    return Documents(load_mixture(DatasetMixtureConfig(datasets=block, **kwargs)))


def even() -> Documents:
    """Documents of 8, 16 and 32 tokens, so that many rows end with a document."""
    letters = [text[:length] for text in tiny.texts(80) for length in (6, 14, 30) if len(text) >= 30]
    return Documents(Dataset.from_dict({"text": letters}))


TEXTS = {
    "indexed": lambda folder: tiny.documents(),
    "two passes": lambda folder: tiny.documents(count=6, passes=2),
    "mixture": mixture,
    "streamed": lambda folder: mixture(folder, streaming=True),
}


SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in (("mixture", 2), ("streamed", 0), ("streamed", 1))]


@pytest.mark.parametrize(("text", "workers"), [("two passes", 0), ("streamed", 2), *SLOW])
def test_each_token_once_over_a_cascade_that_stops_at_every_step(tmp_path, text, workers):
    documents = TEXTS[text](tmp_path / "text")
    expected = tiny.all_tokens(documents)
    _, tokens, ledger = cascade(tmp_path, documents, stopping=True, dataloader_num_workers=workers)
    assert tokens == expected[: sum(TOKENS)]
    assert [entry["tokens"] for entry in ledger] == list(TOKENS)
    assert ledger[0]["start"] == [0, 0]
    assert all(entry["start"] == before["end"] for before, entry in zip(ledger, ledger[1:], strict=False))
    if text == "two passes":
        boundary = len(expected) // 2
        ends = [sum(TOKENS[:count]) for count in range(1, 5)]
        assert boundary not in ends and ends[0] < boundary < ends[-1], "inside a stage"


def test_the_cascade_that_stops_ends_with_bitwise_the_same_weights(tmp_path):
    straight, tokens, ledger = cascade(tmp_path / "straight", even(), stopping=False)
    stopped, again, ledger_again = cascade(tmp_path / "stopped", even(), stopping=True)
    assert tokens == again == tiny.all_tokens(even())[: sum(TOKENS)] and ledger == ledger_again
    assert 0 < sum(token == 0 for _, token in (entry["end"] for entry in ledger)) < len(STAGES)
    assert [setting.differ(*pair) for pair in zip(straight, stopped, strict=True)] == [0] * len(STAGES)


@pytest.mark.parametrize("make", [setting.sft, distiller])
def test_stopped_at_any_step_it_ends_with_bitwise_the_same_weights(tmp_path, make):
    settings = {"max_length": 16, "max_steps": 5, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    model = setting.student(dtype=torch.float32, attention_dropout=0.1)
    straight, state, tokens = train(tmp_path / "straight", model, tiny.documents(), (0, 0), settings, make=make)
    assert tokens == tiny.all_tokens(tiny.documents())[:160]
    for stop in range(1, 5):
        resumed = train(tmp_path / str(stop), model, tiny.documents(), (0, 0), settings, [stop], make)
        assert setting.differ(setting.weights(straight), setting.weights(resumed[0])) == 0, stop
        assert resumed[1:] == (state, tokens), stop


# --- ranks: accelerate's own loaders, as the Trainer prepares them, without processes


def rank_batches(stream: PackedText, rows: int, ranks: int, size: int = 2) -> list[list[dict]]:
    """Batches of every rank."""
    loaders = [
        prepare_data_loader(
            DataLoader(stream.dataset(rows), batch_size=size, collate_fn=PackedCollator()),
            num_processes=ranks,
            process_index=rank,
            dispatch_batches=False,  # SFTTrainer sets it for streams
            put_on_device=False,
        )
        for rank in range(ranks)
    ]
    return [list(loader) for loader in loaders]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("text", ["indexed", "streamed"])
def test_ranks_share_the_text_and_may_be_fewer_after_a_resume(tmp_path, text, ranks):
    documents, kit = TEXTS[text](tmp_path / "text"), tiny.tokenizer()
    expected = tiny.all_tokens(documents)
    steps, tokens, start = 4, [], (0, 0)
    for count in (ranks, ranks, 1):  # stopped twice, the last time resumed on one process
        stream = PackedText(documents, kit, 16, start)
        batches = rank_batches(stream, steps * count * 2, count)
        assert [len(part) for part in batches] == [steps] * count
        tokens += [t for step in zip(*batches, strict=True) for b in step for t in b["input_ids"].flatten().tolist()]
        start = max(tuple(part[-1]["cursor"].tolist()) for part in batches)
    assert tokens == expected[: len(tokens)] and len(tokens) == steps * 2 * 16 * (2 * ranks + 1)


# --- documents of a row never attend to each other


def batch_of_documents(padding_free: bool = False) -> tuple[dict, list[tuple[int, int, int]]]:
    """A batch [4, 24] and the row, first and last position of every piece in it."""
    rows = list(islice(tiny.packed(24, longest=14).rows(), 4))
    pieces = []
    for number, row in enumerate(rows):
        ends = torch.tensor(row["seq_lengths"]).cumsum(0).tolist()
        pieces += [(number, end - length, end) for end, length in zip(ends, row["seq_lengths"], strict=True)]
    assert len(pieces) > 8
    return PackedCollator(padding_free)(rows), pieces


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_no_gradient_crosses_documents(family, attention):
    """Of what a document's last token predicts with respect to every embedding; before and after extension."""
    plain = families.build(family, num_hidden_layers=2)
    config = extend_context(plain.config, 64, 16)
    auto = type(plain) if "mistral3" in family else AutoModelForCausalLM
    longer = (auto._from_config(config) if "mistral3" in family else auto.from_config(config)).double()
    longer.load_state_dict(plain.state_dict())
    batch, pieces = batch_of_documents()
    for model in (plain, longer):
        model.set_attn_implementation(attention)
        embedded = []
        model.get_input_embeddings().register_forward_hook(lambda module, args, out, kept=embedded: kept.append(out))
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        for row, first, end in pieces:
            grad = torch.autograd.grad(hidden[row, end - 1].square().sum(), embedded[0], retain_graph=True)[0]
            reached = grad.abs().sum(-1) > 0
            assert reached[row, end - 1] and int(reached.sum()) == int(reached[row, first:end].sum())
            if "sliding" not in family:
                assert reached[row, first:end].all()


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("distilled", [False, True])
def test_a_batchs_loss_is_that_of_its_documents_one_by_one(tmp_path, distilled, padding_free):
    batch, pieces = batch_of_documents(padding_free)
    model, ids = setting.student(), batch["input_ids"].reshape(4, 24)
    kind = {"padding_free": padding_free, "max_length": 24, "dataset": tiny.packed(24)}
    teacher = setting.teacher() if distilled else None
    if distilled:
        trainer = setting.distiller(tmp_path, model, copy.deepcopy(teacher), **kind)
    else:
        trainer = setting.sft(tmp_path, model, **kind)
    total, expected = sum(end - first - 1 for _, first, end in pieces), 0.0
    with torch.no_grad():
        for row, first, end in pieces:
            alone = ids[row : row + 1, first:end]
            log_q = model(input_ids=alone, use_cache=False).logits[0, :-1].log_softmax(-1)
            if teacher is None:
                expected -= float(log_q.gather(1, alone[0, 1:, None]).sum())
            else:
                log_p = teacher(input_ids=alone, use_cache=False).logits[0, :-1].log_softmax(-1)
                expected += float((log_p.exp() * (log_p - log_q)).sum())
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("cursor", "skipped")}
        loss = float(trainer.compute_loss(model, inputs, num_items_in_batch=torch.tensor(total)))
    assert loss == pytest.approx(expected / total, rel=1e-6)
