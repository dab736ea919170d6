"""`CascadeDistillationTrainer`: TRL's SFT trainer with the paper's loss, forward KL to a frozen teacher's logits."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from trl.models.utils import _ForwardRedirection, prepare_deepspeed, prepare_fsdp

from hf_cascade.distill.config import CascadeDistillationConfig
from hf_cascade.distill.loss import fused_forward_kl
from hf_cascade.distill.packed import CascadeSFTTrainer
from hf_cascade.loading import load_model

# Config entries of families whose logits are more than hidden states times head.
SCALED_LOGITS = ("logits_scaling", "logit_scale")


def check_head(model: PreTrainedModel, role: str) -> None:
    """Raise `ValueError` unless `model`'s logits are its final hidden states times a matrix (soft cap allowed)."""
    head, decoder = model.get_output_embeddings(), model.config.get_text_config()
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"the {role} ({type(model).__name__}) needs a linear language-model head without bias")
    for name in SCALED_LOGITS:
        if getattr(decoder, name, None) not in (None, 1, 1.0):
            raise ValueError(f"the {role}'s family scales its logits ({name}), which is not supported")


def final_hidden(model: PreTrainedModel, inputs: dict) -> Tensor:
    """What the head reads: [B, T, D]."""
    return model.base_model(**inputs, use_cache=False).last_hidden_state


class CascadeDistillationTrainer(CascadeSFTTrainer):
    """
    [`~trl.SFTTrainer`] whose loss is the forward KL to a teacher, on packed text or any dataset `SFTTrainer` takes.

    Positions that count, prompts that do not, images, and PEFT are the base's business: only the loss differs. Neither
    model's [tokens, vocabulary] logits exist (see `distill/loss.py`).

    ```python
    >>> trainer = CascadeDistillationTrainer(
    ...     "child", args=CascadeDistillationConfig(output_dir="out", teacher_model_name_or_path="parent"),
    ...     train_dataset=dataset,
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or `PreTrainedModel`): the student.
        teacher_model (`PreTrainedModel`, *optional*): the teacher; unset, `args.teacher_model_name_or_path` is loaded.
        args (`CascadeDistillationConfig`): settings.
        kwargs: as [`CascadeSFTTrainer`] and [`~trl.SFTTrainer`].

    Raises:
        ValueError: no teacher; vocabularies of other sizes; a head that is not linear; `max_length` beyond the
            teacher's window with `teacher_window="refuse"`.
    """

    _name = "Cascade Distillation"
    _tag_names = ["trl", "sft", "distillation", "cascade-distillation", "hf-cascade"]
    loss_name = "KL"

    def __init__(
        self,
        model: str | PreTrainedModel,
        teacher_model: PreTrainedModel | None = None,
        args: CascadeDistillationConfig | None = None,
        **kwargs,
    ):
        if args is None or not isinstance(args, CascadeDistillationConfig):
            raise ValueError(f"args is {type(args).__name__}: give a CascadeDistillationConfig")
        if teacher_model is None:
            if args.teacher_model_name_or_path is None:
                raise ValueError("no teacher: give teacher_model, or set teacher_model_name_or_path")
            teacher_model = load_model(args.teacher_model_name_or_path, dtype=args.teacher_dtype)
        super().__init__(model, args=args, **kwargs)
        if any(part.is_prompt_learning for part in getattr(self.model, "peft_config", {}).values()):
            raise ValueError("prompt learning adds positions that the teacher lacks: use LoRA or another PEFT method")
        self._check_models(self._student(), teacher_model)
        self.check_attention(teacher_model)
        self._redirect = _ForwardRedirection()
        self.teacher = self._place(teacher_model.eval().requires_grad_(False))

    def _check_models(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        check_head(student, "student")
        check_head(teacher, "teacher")
        sizes = [part.get_output_embeddings().weight.shape[0] for part in (student, teacher)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"student and teacher have vocabularies of {sizes[0]} and {sizes[1]}: they must be equal")
        self.teacher_length = teacher.config.get_text_config().max_position_embeddings
        if self.args.teacher_window == "refuse" and (self.args.max_length or 0) > self.teacher_length:
            raise ValueError(
                f"max_length={self.args.max_length} is beyond the teacher's window of {self.teacher_length}: shorten "
                "it, or set teacher_window to 'mask' or 'extrapolate'"
            )

    def _place(self, teacher: PreTrainedModel) -> nn.Module:
        """The teacher on the student's devices, sharded when the student is."""
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(teacher, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(teacher, self.accelerator)
        return self.accelerator.prepare_model(teacher, evaluation_mode=True)

    def _student(self) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The forward KL, summed over the labels of this batch and divided by `num_items_in_batch`."""
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        labels_BT = inputs.pop("labels")
        # Sequence parallelism shifts before it splits the batch.
        targets_BT = inputs.pop("shift_labels", None)
        if targets_BT is None:
            targets_BT = nn.functional.pad(labels_BT[:, 1:], (0, 1), value=-100)
        counts_BT = targets_BT != -100
        if self.args.teacher_window == "mask":
            counts_BT = counts_BT & (self._positions(inputs, labels_BT) < self.teacher_length)
        num_items = counts_BT.sum() if num_items_in_batch is None else num_items_in_batch

        # DDP and FSDP act in the forward of what they wrap, and must see every use of its weights there.
        unwrap = self.accelerator.unwrap_model
        with torch.no_grad():
            teacher_side = self._redirect(self.teacher, unwrap(self.teacher), self._teacher_side, inputs, counts_BT)
        loss, parts = self._redirect(
            model, unwrap(model), self._student_loss, inputs, counts_BT, targets_BT[counts_BT], teacher_side, num_items
        )
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self._record(mode, parts, num_items, counts_BT.sum(), inputs.get("attention_mask", torch.ones_like(labels_BT)))
        return (loss, {"loss": loss}) if return_outputs else loss

    def _teacher_side(self, inputs: dict, counts_BT: Tensor) -> tuple[Tensor, Tensor]:
        teacher = self.accelerator.unwrap_model(self.teacher)
        hidden_NE, head_VE = final_hidden(teacher, inputs)[counts_BT], teacher.get_output_embeddings().weight
        return hidden_NE, head_VE.full_tensor() if isinstance(head_VE, DTensor) else head_VE

    def _student_loss(self, inputs: dict, counts_BT: Tensor, labels_N: Tensor, teacher_side: tuple, num_items):
        student, teacher = self._student(), self.accelerator.unwrap_model(self.teacher)
        return fused_forward_kl(
            final_hidden(student, inputs)[counts_BT],
            student.get_output_embeddings().weight,
            *teacher_side,
            labels_N,
            num_items=num_items,
            temperature=self.args.temperature,
            next_token_weight=self.args.next_token_weight,
            chunk=self.args.loss_chunk_tokens,
            softcap=getattr(student.config.get_text_config(), "final_logit_softcapping", None),
            teacher_softcap=getattr(teacher.config.get_text_config(), "final_logit_softcapping", None),
        )

    @staticmethod
    def _positions(inputs: dict, labels_BT: Tensor) -> Tensor:
        if "position_ids" in inputs:
            return inputs["position_ids"]
        return torch.arange(labels_BT.shape[1], device=labels_BT.device).expand_as(labels_BT)

    def _record(self, mode: str, parts: Tensor, num_items, counted: Tensor, mask_BT: Tensor) -> None:
        """KL (and NLL) a token of this batch, over all processes, and the tokens read so far, for the log."""
        sums = torch.cat([parts.double() * num_items, counted.view(1), mask_BT.sum().view(1)])
        kl, nll, tokens, read = self.accelerator.reduce(sums, reduction="sum").tolist()
        if mode == "train":
            self._total_train_tokens += int(read) // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._metrics[mode]["distill/kl"].append(kl / max(tokens, 1))
        if self.args.next_token_weight > 0:
            self._metrics[mode]["distill/next_token"].append(nll / max(tokens, 1))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As the base, loss only: the logits it would return are never made."""
        return super().prediction_step(model, inputs, True, ignore_keys)
