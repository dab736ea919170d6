"""Errors of the distillation trainer, and guards on every method of TRL and transformers that it overrides."""

import inspect

import pytest
import torch
import transformers
import trl
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from hf_cascade.distill.config import CascadeDistillationConfig
from hf_cascade.distill.packed import CascadeSFTTrainer
from hf_cascade.distill.trainer import CascadeDistillationTrainer
from hf_cascade.rewards.trainer import CascadePairwiseTrainer
from tests.data import tiny
from tests.distill import setting


def test_no_teacher(tmp_path):
    args = CascadeDistillationConfig(output_dir=str(tmp_path), **setting.COMMON)
    with pytest.raises(ValueError, match="no teacher"):
        CascadeDistillationTrainer(setting.student(), args=args, train_dataset=tiny.packed())


def test_teacher_is_loaded_from_a_folder(tmp_path):
    parent = setting.teacher()
    parent.save_pretrained(tmp_path / "parent")
    tiny.tokenizer().save_pretrained(tmp_path / "parent")
    args = CascadeDistillationConfig(
        output_dir=str(tmp_path / "out"), teacher_model_name_or_path=str(tmp_path / "parent"), **setting.COMMON
    )
    trainer = CascadeDistillationTrainer(
        setting.student(), args=args, train_dataset=tiny.packed(), processing_class=tiny.tokenizer()
    )
    assert setting.differ(setting.weights(parent), setting.weights(trainer.teacher.model)) == 0


@pytest.mark.parametrize("given", [True, False])
def test_teacher_with_other_tokens(tmp_path, given):
    setting.teacher().save_pretrained(tmp_path / "parent")
    tiny.tokenizer("zyxwvutsrqponmlkjihgfedcba .\n").save_pretrained(tmp_path / "parent")
    setting.student().save_pretrained(tmp_path / "child")
    tiny.tokenizer().save_pretrained(tmp_path / "child")
    args = CascadeDistillationConfig(
        output_dir=str(tmp_path / "out"), teacher_model_name_or_path=str(tmp_path / "parent"), **setting.COMMON
    )
    kit = {"processing_class": tiny.tokenizer()} if given else {}
    with pytest.raises(ValueError, match="different tokenizers: 26 tokens differ"):
        CascadeDistillationTrainer(str(tmp_path / "child"), args=args, train_dataset=tiny.packed(), **kit)


def test_one_teacher_only():
    with pytest.raises(ValueError, match="teacher_url and teacher_cache are set"):
        CascadeDistillationConfig(
            output_dir="unused", **setting.COMMON, teacher_url="http://127.0.0.1:1", teacher_cache="folder"
        )


@pytest.mark.parametrize("args", [None, SFTConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none")])
def test_args_of_another_class(args):
    with pytest.raises(ValueError, match="give a CascadeDistillationConfig"):
        CascadeDistillationTrainer(setting.student(), setting.teacher(), args=args, train_dataset=tiny.packed())


def test_vocabularies_of_other_sizes(tmp_path):
    with pytest.raises(ValueError, match="vocabularies of 97 and 99"):
        setting.distiller(tmp_path, parent=setting.teacher(vocab_size=99))


def test_scaled_logits_and_heads_with_bias_are_refused(tmp_path):
    parent = setting.teacher()
    parent.config.logits_scaling = 8.0
    with pytest.raises(ValueError, match="the teacher's family scales its logits .logits_scaling"):
        setting.distiller(tmp_path, parent=parent)
    parent = setting.teacher()
    parent.lm_head.bias = torch.nn.Parameter(torch.zeros(97, dtype=torch.float64))
    with pytest.raises(ValueError, match="the teacher .LlamaForCausalLM. needs a linear"):
        setting.distiller(tmp_path, parent=parent)


WRONG = {
    "temperature": 0.0,
    "next_token_weight": 1.5,
    "loss_chunk_tokens": 0,
    "teacher_window": "ignore",
    "loss_kernel": "fast",
    "beta": 1.5,
    "route_below_nats": -1.0,
    "hidden_weight": -0.5,
    "train_tokens": 0,
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name}={WRONG[name]!r}"):
        CascadeDistillationConfig(output_dir="unused", **{**setting.COMMON, name: WRONG[name]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": -1}, "packed text has no length"),
        ({"packing": True}, "packed already"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint"),
    ],
)
def test_settings_that_packed_text_excludes(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        setting.distiller(tmp_path, **settings)


def test_window_of_text_and_settings_must_agree(tmp_path):
    with pytest.raises(ValueError, match="max_length=16, and the packed text has rows of 24"):
        setting.distiller(tmp_path, dataset=tiny.packed(24))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_flash_attention_needs_one_row(tmp_path, side):
    """Its kernels look for documents in a batch of one row only, and say nothing otherwise."""
    trainer = setting.distiller(tmp_path)
    model = {"student": trainer.model, "teacher": trainer.teacher.model}[side]
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="set padding_free: true"):
        trainer.check_attention(model)
    trainer.args.padding_free = True
    trainer.check_attention(model)


# --- what is overridden

EXPECTED = {
    (SFTTrainer, "compute_loss"): ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    (SFTTrainer, "prediction_step"): ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    (SFTTrainer, "training_step"): ["self", "args", "kwargs"],
    (Trainer, "training_step"): ["self", "model", "inputs", "num_items_in_batch"],
    (SFTTrainer, "evaluate"): ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    (SFTTrainer, "_set_signature_columns_if_needed"): ["self"],
    (Trainer, "train"): ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    (Trainer, "_load_from_checkpoint"): ["self", "resume_from_checkpoint", "model"],
    (Trainer, "_load_rng_state"): ["self", "checkpoint"],
    (Trainer, "_load_best_model"): ["self"],
    (Trainer, "_get_num_items_in_batch"): ["self", "batch_samples", "device"],
    (Trainer, "save_model"): ["self", "output_dir", "_internal_call"],
    (SFTTrainer, "log"): ["self", "logs", "start_time"],
}
OURS = (CascadeSFTTrainer, CascadeDistillationTrainer, CascadePairwiseTrainer)


@pytest.mark.parametrize("trainer", OURS)
def test_every_overridden_method_is_known(trainer):
    known = {name for _, name in EXPECTED} | {"__init__", "__doc__", "__module__", "_name", "_tag_names"}
    overridden = {name for name in vars(trainer) if hasattr(SFTTrainer, name) and callable(getattr(trainer, name))}
    assert overridden and overridden <= known, overridden - known


@pytest.mark.parametrize(("base", "name"), EXPECTED, ids=lambda value: getattr(value, "__name__", value))
def test_overridden_methods_are_as_we_know_them(base, name):
    found = list(inspect.signature(getattr(base, name)).parameters)
    assert found == EXPECTED[base, name], (
        f"{base.__name__}.{name} has other parameters in trl {trl.__version__} (transformers "
        f"{transformers.__version__}): read it again and mend hf_cascade/distill/packed.py and trainer.py"
    )


def test_inner_parts_of_trl_are_as_we_know_them(tmp_path):
    trainer = setting.distiller(tmp_path)
    source = inspect.getsource(SFTTrainer)
    message = f"trl {trl.__version__} changed what hf_cascade/distill/ uses of SFTTrainer"
    assert trainer._total_train_tokens == 0 and trainer._tp_size == 1, message
    assert set(trainer._metrics) == {"train", "eval"}, message
    assert 'self._metrics[mode]["num_tokens"] = [self._total_train_tokens]' in source, message
    trainer._set_signature_columns_if_needed()
    assert trainer._signature_columns == ["input_ids", "labels", "seq_lengths", "cursor", "skipped"], message
