"""What is refused where processes share rows, and what a step counts there; the engines themselves: test_engines.py."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import ParallelismConfig

from hf_cascade.data.packing import PackedCollator
from hf_cascade.distill.config import CascadeSFTConfig
from hf_cascade.distill.parallel import (
    PlainNumbers,
    attend_together,
    check_rows,
    check_teacher,
    row_processes,
    split_by,
)
from tests.data import tiny
from tests.distill import setting

CONTEXT, SEQUENCE, NEITHER = ({"cp_size": 2}, {"sp_size": 2}, {})


def accelerator(sizes: dict, stage: int = 3) -> SimpleNamespace:
    """As much of one as the checks read."""
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    return SimpleNamespace(parallelism_config=ParallelismConfig(**sizes), state=state)


def settings(rows: int = 1, accumulation: int = 1, processes: int = 2) -> SimpleNamespace:
    """Of a trainer."""
    return SimpleNamespace(
        per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation, world_size=processes
    )


def model(kernel: str = "sdpa", family: str = "llama", **changes):
    """A student that says it attends with `kernel`."""
    made = setting.student(family, **changes)
    made.config.get_text_config()._attn_implementation_internal = kernel
    return made


def test_split_by():
    assert split_by(SimpleNamespace(parallelism_config=None)) == (1, 1)
    assert [split_by(accelerator(sizes)) for sizes in (CONTEXT, SEQUENCE, NEITHER)] == [(2, 1), (1, 2), (1, 1)]


ALLOWED = {
    "whole rows": (NEITHER, "eager", True, True, settings(4)),
    "context": (CONTEXT, "sdpa", False, False, settings(4)),
    "sequence": (SEQUENCE, "sdpa", False, False, settings(4)),
    "packed": (SEQUENCE, "flash_attention_2", True, False, settings(accumulation=3)),
    "packed, a kernel of the Hub": (SEQUENCE, "kernels-community/flash-attn2", True, False, settings()),
    "packed, two groups": (SEQUENCE, "flash_attention_2", True, False, settings(accumulation=4, processes=4)),
}


@pytest.mark.parametrize(("sizes", "kernel", "packed", "images", "args"), ALLOWED.values(), ids=ALLOWED)
def test_allowed_rows(sizes, kernel, packed, images, args):
    check_rows(accelerator(sizes), args, model(kernel), packed, images)


REFUSED = {
    "context, packed": (CONTEXT, "sdpa", True, False, settings(), "documents would see each other: use sequence"),
    "context, kernel": (CONTEXT, "flash_attention_2", False, False, settings(), "context parallelism needs sdpa"),
    "context, images": (CONTEXT, "sdpa", False, True, settings(), "cp_size=2 splits rows, but not their images"),
    "sequence, images": (SEQUENCE, "sdpa", False, True, settings(), "sp_size=2 splits rows, but not their images"),
    "sequence, packed": (SEQUENCE, "sdpa", True, False, settings(), "packed text and attn_implementation=sdpa"),
    "sequence, rows": (SEQUENCE, "flash_attention_2", True, False, settings(2), "per_device_train_batch_size: 1"),
    "sequence, two groups": (
        SEQUENCE,
        "flash_attention_2",
        True,
        False,
        settings(accumulation=3, processes=4),
        "gradient_accumulation_steps=3.*multiples of 2",
    ),
}


@pytest.mark.parametrize(("sizes", "kernel", "packed", "images", "args", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_rows(sizes, kernel, packed, images, args, message):
    with pytest.raises(ValueError, match=message):
        check_rows(accelerator(sizes), args, model(kernel), packed, images)


def test_other_zero_stages_and_sliding_windows_are_refused():
    with pytest.raises(ValueError, match="ZeRO stage 2: use stage 3"):
        check_rows(accelerator(SEQUENCE, stage=2), settings(), model(), False, False)
    with pytest.raises(ValueError, match="sliding windows and attn_implementation=sdpa"):
        check_rows(accelerator(SEQUENCE), settings(), model(family="mistral_sliding"), False, False)
    check_rows(accelerator(SEQUENCE), settings(), model("flash_attention_2", "mistral_sliding"), False, False)


@pytest.mark.parametrize("sizes", [CONTEXT, SEQUENCE])
def test_teachers(sizes):
    check_teacher(accelerator(sizes), model(), setting.teacher())
    check_teacher(accelerator(NEITHER), model("eager"), None)
    with pytest.raises(ValueError, match="a teacher elsewhere would see parts of them"):
        check_teacher(accelerator(sizes), model(), None)
    with pytest.raises(ValueError, match="eager of the student and sdpa of the teacher"):
        check_teacher(accelerator(sizes), model("eager"), setting.teacher())
    other = setting.teacher(num_attention_heads=6, num_key_value_heads=2)
    if sizes is CONTEXT:
        check_teacher(accelerator(sizes), model(), other)
    else:
        with pytest.raises(ValueError, match=r"\[3, 1, 16\] in the student and \[6, 2, 16\] in the teacher"):
            check_teacher(accelerator(sizes), model(), other)


def test_trainer_asks(tmp_path, monkeypatch):
    """Both checks are made before training, with what the trainer was given."""
    monkeypatch.setattr("hf_cascade.distill.packed.split_by", lambda _: (1, 1))
    asked = []
    monkeypatch.setattr("hf_cascade.distill.packed.check_rows", lambda *given: asked.append(given[3:]))
    monkeypatch.setattr("hf_cascade.distill.trainer.check_teacher", lambda *given: asked.append(given[2]))
    parent = setting.teacher()
    setting.distiller(tmp_path, parent=parent)
    assert asked == [(True, False), parent]


def test_a_row_of_several_processes_counts_once(tmp_path, monkeypatch):
    config = CascadeSFTConfig(output_dir=str(tmp_path), **{**setting.COMMON, "max_steps": 1})
    monkeypatch.setattr(CascadeSFTConfig, "world_size", 16)
    assert row_processes(config) == 16 and config.tokens_per_step == 2 * 16 * 16
    monkeypatch.setenv("PARALLELISM_CONFIG_SP_SIZE", "8")
    assert row_processes(config) == 16, "accelerate does not look at it without the other variable"
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    assert row_processes(config) == 2 and config.tokens_per_step == 2 * 2 * 16
    monkeypatch.delenv("PARALLELISM_CONFIG_SP_SIZE")
    config.parallelism_config = ParallelismConfig(dp_shard_size=4, cp_size=4)
    assert row_processes(config) == 4


def test_account_of_a_batch_is_no_tensor():
    rows = list(tiny.packed(16).rows(3))
    plain, batch = PlainNumbers(PackedCollator())(rows), PackedCollator()(rows)
    assert plain["cursor"] == rows[-1]["cursor"] and plain["skipped"] == [0, 0]
    assert plain["lengths"] == [length for row in rows for length in row["seq_lengths"]]
    tensors = {name for name, value in plain.items() if isinstance(value, torch.Tensor)}
    assert tensors == {"input_ids", "labels", "position_ids"}
    assert all(torch.equal(plain[name], batch[name]) for name in tensors)


def test_only_attention_joins_in(tmp_path):
    parent = setting.teacher(attention_dropout=0.1).eval()
    attend_together(parent, True)
    joined = {name for name, module in parent.named_modules() if module.training}
    assert joined == {f"model.layers.{layer}.self_attn" for layer in range(2)}
    assert all(layer.self_attn.attention_dropout == 0 for layer in parent.model.layers)
    attend_together(parent, False)
    assert not any(module.training for module in parent.modules())
