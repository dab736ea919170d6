"""fp8 is refused where it cannot be had, before any weight is read; where torchao is, its rounding is emulated."""

import copy
import dataclasses
import functools
import importlib.util
import os

import pytest
import torch

from hf_cascade.distill import fp8
from hf_cascade.distill.config import CascadeSFTConfig
from hf_cascade.loading import load_model
from tests.distill import setting

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed: pip install 'hf-cascade[fp8]'"
)


def give_gpu(monkeypatch, capability=(9, 0), torchao: bool = True) -> None:
    """Let the checks see a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    monkeypatch.setattr(fp8, "is_torchao_available", lambda: torchao)


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="teacher_dtype: fp8 needs a GPU of compute capability 8.9.*there is no GPU"):
        fp8.check_fp8("teacher_dtype: fp8")


@pytest.mark.parametrize("capability", [(8, 0), (8, 6)])
def test_old_gpu(monkeypatch, capability):
    give_gpu(monkeypatch, capability)
    with pytest.raises(ValueError, match=rf"a GPU has {capability[0]}\.{capability[1]}: use bf16"):
        fp8.check_fp8("fp8")


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
def test_new_gpu(monkeypatch, capability):
    give_gpu(monkeypatch, capability)
    fp8.check_fp8("fp8")


def test_no_torchao(monkeypatch):
    give_gpu(monkeypatch, torchao=False)
    with pytest.raises(ValueError, match=r"needs torchao: pip install 'hf-cascade\[fp8\]'"):
        fp8.check_fp8("fp8")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("ACCELERATE_USE_DEEPSPEED", "true", "with DeepSpeed"), ("ACCELERATE_FP8_BACKEND", "TE", "fp8_backend=TE")],
)
def test_other_engines(monkeypatch, name, value, message):
    give_gpu(monkeypatch)
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        fp8.check_fp8("fp8")


def test_refused_before_any_weight_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="teacher_dtype: fp8 needs a GPU"):
        setting.CascadeDistillationConfig(output_dir=str(tmp_path), teacher_dtype="fp8", **setting.COMMON)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="mixed_precision: fp8 needs a GPU"):
        CascadeSFTConfig(output_dir=str(tmp_path), **setting.COMMON)


@pytest.mark.parametrize("sharded", [False, True])
def test_launch_file_goes_before_bf16(tmp_path, monkeypatch, sharded):
    monkeypatch.setattr(fp8, "check_fp8", lambda setting: None)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(sharded))
    monkeypatch.setenv("ACCELERATE_FP8_ENABLE_FSDP_FLOAT8_ALL_GATHER", "")  # put back afterwards
    monkeypatch.delenv("ACCELERATE_FP8_ENABLE_FSDP_FLOAT8_ALL_GATHER")
    config = CascadeSFTConfig(output_dir=str(tmp_path), **{**setting.COMMON, "bf16": True})
    assert config.mixed_precision == "fp8" and config.bf16
    assert os.environ.get("ACCELERATE_FP8_ENABLE_FSDP_FLOAT8_ALL_GATHER") == (None if sharded else "false")


@needs_torchao
def test_teacher_multiplies_in_fp8(tmp_path, monkeypatch):
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear

    emulated = dataclasses.replace(Float8LinearConfig.from_recipe_name(fp8.RECIPE), emulate=True)
    monkeypatch.setattr(Float8LinearConfig, "from_recipe_name", lambda name: emulated)
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1, "dtype": torch.bfloat16}
    plain = setting.teacher(**shape)
    parent = fp8.multiply_in_fp8(copy.deepcopy(plain))
    kinds = {name: type(module) for name, module in parent.named_modules() if isinstance(module, torch.nn.Linear)}
    assert kinds.pop("lm_head") is torch.nn.Linear
    assert len(kinds) == 2 * 7 and set(kinds.values()) == {Float8Linear}

    batch = setting.first_batch()
    model = setting.student(dtype=torch.float32)
    trainer = setting.distiller(tmp_path, model, parent)
    loss = float(trainer.compute_loss(trainer.model, dict(batch)).detach())
    assert loss == pytest.approx(setting.plain_kl(model, parent, batch), rel=0.02)
    assert loss == pytest.approx(setting.plain_kl(model, plain, batch), rel=0.1) and loss > 0.1


@needs_torchao
def test_student_trains_in_fp8(tmp_path, monkeypatch):
    import torchao.float8
    from torchao.float8.float8_linear import Float8Linear

    monkeypatch.setattr(fp8, "check_fp8", lambda setting: None)
    monkeypatch.setenv("ACCELERATE_FP8_ENABLE_FSDP_FLOAT8_ALL_GATHER", "true")  # as by default; put back afterwards
    emulated = functools.partial(torchao.float8.Float8LinearConfig, emulate=True)
    monkeypatch.setattr(torchao.float8, "Float8LinearConfig", emulated)
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1, "dtype": torch.float32}
    losses = {}
    for precision in ("bf16", "fp8"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        model, parent = setting.student(**shape), setting.teacher(dtype=torch.bfloat16)
        trainer = setting.distiller(tmp_path / precision, model, parent, bf16=True, learning_rate=1e-3)
        trainer.train()
        trainer.save_model()
        losses[precision] = setting.losses(trainer)
        assert trainer.accelerator.mixed_precision == precision
    assert type(model.lm_head) is torch.nn.Linear and type(model.model.layers[1].mlp.up_proj) is Float8Linear
    assert losses["fp8"] == pytest.approx(losses["bf16"], rel=0.05) and losses["fp8"] != losses["bf16"]
    saved = load_model(str(tmp_path / "fp8"))
    assert setting.differ(setting.weights(model), setting.weights(saved)) == 0
