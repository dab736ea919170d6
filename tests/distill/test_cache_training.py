"""Training from a cached teacher beside training from the teacher itself."""

import copy

import pytest
import torch
from datasets import Dataset

from hf_cascade.distill.cache import CachedTeacher
from hf_cascade.distill.loss import fused_divergence
from hf_cascade.distill.teacher import LocalTeacher, TopKTargets
from tests.data import tiny
from tests.distill import setting
from tests.distill.caching import batches, build, conversations, write
from tests.prune import families

ROWS = conversations(16)
SETTINGS = {"max_length": 32, "optim": "sgd"}  # Adam's first steps are signs: rounding would decide them


@pytest.fixture(scope="module")
def parent():
    return build()


@pytest.fixture(scope="module")
def child():
    return build(hidden_size=48)


def train(folder, child, teacher, **settings):
    """Log of a run of three steps, and the student afterwards."""
    settings = {
        "max_length": 32,
        "optim": "sgd",
        **settings,
    }  # Adam's first steps are signs: rounding would decide them
    trainer = setting.distiller(folder, copy.deepcopy(child), teacher, Dataset.from_list(ROWS), **settings)
    trainer.train()
    return setting.losses(trainer), setting.weights(trainer.model)


@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"gradient_accumulation_steps": 2}, {"max_steps": 12}])
def test_with_the_whole_vocabulary_a_run_is_the_teachers_own(tmp_path, parent, child, settings):
    """Shuffled, in other batches than it was written in, packed, and in a second epoch."""
    write(tmp_path / "cache", parent, ROWS, k=families.VOCABULARY)
    own, weights = train(tmp_path / "own", child, copy.deepcopy(parent), **settings)
    read, from_cache = train(tmp_path / "read", child, CachedTeacher(tmp_path / "cache", tiny.tokenizer()), **settings)
    assert len(own) == settings.get("max_steps", 3)
    torch.testing.assert_close(torch.tensor(read), torch.tensor(own), rtol=2e-3, atol=1e-4)
    before = setting.weights(child)
    assert setting.differ(from_cache, weights) < 0.05 * setting.differ(weights, before)


def test_a_folder_named_in_the_settings_is_read(tmp_path, parent, child):
    write(tmp_path / "cache", parent, ROWS, k=8)
    given, _ = train(tmp_path / "given", child, CachedTeacher(tmp_path / "cache"))
    from hf_cascade.distill.config import CascadeDistillationConfig
    from hf_cascade.distill.trainer import CascadeDistillationTrainer

    args = CascadeDistillationConfig(
        **{**setting.COMMON, **SETTINGS, "output_dir": str(tmp_path / "named")},
        teacher_cache=str(tmp_path / "cache"),
    )
    trainer = CascadeDistillationTrainer(
        copy.deepcopy(child), args=args, train_dataset=Dataset.from_list(ROWS), processing_class=tiny.tokenizer()
    )
    trainer.train()
    assert setting.losses(trainer) == given


def test_data_that_was_not_cached_stops_the_run(tmp_path, parent, child):
    write(tmp_path / "cache", parent, ROWS[:8])
    with pytest.raises(ValueError, match="is not in the cache"):
        train(tmp_path / "out", child, CachedTeacher(tmp_path / "cache"), max_steps=8)
    write(tmp_path / "short", parent, ROWS)
    with pytest.raises(ValueError, match="is not in the cache"):  # truncated to other sequences
        train(tmp_path / "out2", child, CachedTeacher(tmp_path / "short"), max_length=5)


def test_the_tail_makes_the_gradient_several_times_better(tmp_path, parent):
    """For a student that is near its teacher, as one is after pruning and some training."""
    child = copy.deepcopy(parent)
    draw = torch.Generator().manual_seed(0)
    for part in child.parameters():
        part.data += 0.01 * part.std() * torch.randn(part.shape, generator=draw)
    write(tmp_path / "cache", parent, ROWS, k=30)
    ((inputs, counts_BT),) = batches(ROWS, 16)
    hidden = LocalTeacher(parent).targets(inputs, counts_BT)
    cached = CachedTeacher(tmp_path / "cache").targets(inputs, counts_BT)
    no_tail = TopKTargets(cached.ids_NK, cached.log_probs_NK.log_softmax(-1))
    labels_N = torch.zeros(len(cached.ids_NK), dtype=torch.long)
    gradients = []
    for targets in (hidden, cached, no_tail):
        student = copy.deepcopy(child).requires_grad_()
        hidden_ND = student.base_model(**inputs, use_cache=False).last_hidden_state[counts_BT]
        loss, _ = fused_divergence(
            hidden_ND, student.get_output_embeddings().weight, targets, labels_N, num_items=len(labels_N)
        )
        loss.backward()
        gradients.append(torch.cat([part.grad.flatten() for part in student.parameters()]))
    full, with_tail, without = gradients
    errors = [float((part - full).norm() / full.norm()) for part in (with_tail, without)]
    assert errors[0] < errors[1] / 3, errors
