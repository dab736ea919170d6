"""`CascadeDistillationTrainer`: TRL's SFT trainer with the paper's loss, forward KL to a frozen teacher's logits."""

import contextlib
from functools import partial

import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_cascade.distill.blank_images import keep_ranks_in_step
from hf_cascade.distill.config import TEACHER_FLAGS, CascadeDistillationConfig
from hf_cascade.distill.fp8 import multiply_in_fp8
from hf_cascade.distill.freezing import check_same_images
from hf_cascade.distill.hidden import paired_layers, relative_distance
from hf_cascade.distill.loss import Parts, fused_divergence
from hf_cascade.distill.packed import CascadeSFTTrainer
from hf_cascade.distill.parallel import attend_together, check_teacher
from hf_cascade.distill.placement import head_rows, in_forward, place_teacher
from hf_cascade.distill.teacher import LocalTeacher, Teacher, check_head, final_softcap, hidden_states
from hf_cascade.distill.throughput import Throughput
from hf_cascade.loading import check_same_tokenizer, load_model, load_tokenizer


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
        teacher_model (`PreTrainedModel` or `Teacher`, *optional*): the teacher; unset, the one `args` names.
        args (`CascadeDistillationConfig`): settings.
        kwargs: as [`CascadeSFTTrainer`] and [`~trl.SFTTrainer`].

    Raises:
        ValueError: no teacher; vocabularies of other sizes; a head that is not linear; `max_length` beyond the
            teacher's window with `teacher_window="refuse"`; hidden states that cannot be compared.
    """

    _name = "Cascade Distillation"
    _tag_names = ["trl", "sft", "distillation", "cascade-distillation", "hf-cascade"]
    loss_name = "KL"

    def __init__(
        self,
        model: str | PreTrainedModel,
        teacher_model: PreTrainedModel | Teacher | None = None,
        args: CascadeDistillationConfig | None = None,
        **kwargs,
    ):
        if args is None or not isinstance(args, CascadeDistillationConfig):
            raise ValueError(f"args is {type(args).__name__}: give a CascadeDistillationConfig")
        named = teacher_model is None
        if named:
            teacher_model = load_teacher(args, kwargs.get("processing_class"))
        super().__init__(model, args=args, **kwargs)
        if any(part.is_prompt_learning for part in getattr(self.model, "peft_config", {}).values()):
            raise ValueError("prompt learning adds positions that the teacher lacks: use LoRA or another PEFT method")
        if named and kwargs.get("processing_class") is None:  # else `load_teacher` has done it
            check_tokens(args, self.processing_class)
        check_head(self._student(), "student")
        if args.torch_compile:
            self._compile(self._student(), *([teacher_model] if isinstance(teacher_model, PreTrainedModel) else []))
        self.matched_layers = self._matched_layers(teacher_model) if args.hidden_weight > 0 else ()
        local = None if isinstance(teacher_model, Teacher) else teacher_model
        check_teacher(self.accelerator, self._student(), local)
        if self._sp_size > 1:
            self.loss_is_scaled_for_ga = True  # the base takes it for a mean there
        if local is not None:
            if self._is_vision_dataset:
                check_same_images(self._student().config, local.config)
                if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                    keep_ranks_in_step(local)
            self.check_attention(teacher_model)
            place = partial(place_teacher, accelerator=self.accelerator)
            teacher_model = LocalTeacher(teacher_model, place, self._unwrap, self.matched_layers)
        self.teacher = teacher_model
        self._check_teacher()
        self.throughput = self._throughput()
        self.add_callback(self.throughput)

    def _throughput(self) -> Throughput:
        held, args = self.teacher.model, self.args
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else self._student().dtype
        return Throughput(
            self._student(),
            None if held is None else self._unwrap(held),
            device=self.accelerator.device,
            dtype=dtype,
            gather=self.accelerator.gather,
            copies=self._tp_size,
        )

    def _check_teacher(self) -> None:
        vocabulary = head_rows(self._student())
        if vocabulary != self.teacher.vocabulary:
            raise ValueError(
                f"student and teacher have vocabularies of {vocabulary} and {self.teacher.vocabulary}: they must be "
                "equal"
            )
        if self.args.teacher_window == "refuse" and (self.args.max_length or 0) > self.teacher.window:
            raise ValueError(
                f"max_length={self.args.max_length} is beyond the teacher's window of {self.teacher.window}: shorten "
                "it, or set teacher_window to 'mask' or 'extrapolate'"
            )

    def _matched_layers(self, teacher: PreTrainedModel | Teacher) -> tuple[int, ...]:
        if not isinstance(teacher, PreTrainedModel):
            raise ValueError("hidden_weight compares hidden states, which only a teacher in this process gives")
        ours, theirs = (model.config.get_text_config() for model in (self._student(), teacher))
        if ours.hidden_size != theirs.hidden_size or ours.num_hidden_layers < 2:
            raise ValueError(
                f"hidden_weight={self.args.hidden_weight} with hidden sizes of {ours.hidden_size} and "
                f"{theirs.hidden_size} and {ours.num_hidden_layers} student layers: hidden states are compared between "
                "models of one width, the student with at least 2 layers; leave it at 0"
            )
        return tuple(paired_layers(ours.num_hidden_layers, theirs.num_hidden_layers, self.args.hidden_layers))

    def _compile(self, *models: PreTrainedModel) -> None:
        """Compile the decoders. A compiled wrapper would see the redirected forward: all of `_student_loss`."""
        plugin = self.accelerator.state.dynamo_plugin
        for model in models:
            model.base_model.compile(**plugin.to_kwargs())
        plugin.backend = DynamoBackend.NO

    def _unwrap(self, model: nn.Module) -> PreTrainedModel:
        # With `keep_torch_compile` accelerate would take DDP out of a compiled model for good.
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def _student(self) -> PreTrainedModel:
        model = self._unwrap(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _get_num_items_in_batch(self, batch_samples, device):
        """As the base, which leaves sequence parallelism to a loss of its own; at least 1."""
        if self.args.teacher_window == "mask":
            for batch in batch_samples:
                self._leave_out_beyond(batch)
        if self._sp_size == 1 or not batch_samples or "shift_labels" not in batch_samples[0]:
            count = super()._get_num_items_in_batch(batch_samples, device)
        else:
            count = sum((batch["shift_labels"] != -100).sum() for batch in batch_samples)
            count = self.accelerator.reduce(count.to(device), reduction="sum")
        return None if count is None else count.clamp(min=1)

    def _leave_out_beyond(self, batch: dict) -> None:
        """Beyond the teacher's window nothing is a label, so that nothing there is counted."""
        name = "shift_labels" if "shift_labels" in batch else "labels"
        beyond_BT = self._positions(batch, batch[name]) >= self.teacher.window  # of the token that predicts
        if name == "labels":
            beyond_BT = nn.functional.pad(beyond_BT[:, :-1], (1, 0))
        batch[name] = batch[name].masked_fill(beyond_BT, -100)

    def _precision(self):
        """Mixed precision. Accelerate has it in the forward that `in_forward` stands in for; FSDP2 casts by itself."""
        return contextlib.nullcontext() if self.accelerator.is_fsdp2 else self.accelerator.autocast()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The divergence, summed over the labels of this batch and divided by `num_items_in_batch`."""
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        labels_BT = inputs.pop("labels", None)
        # Context and sequence parallelism shift before they split the batch.
        targets_BT = inputs.pop("shift_labels", None)
        if targets_BT is None:
            targets_BT = nn.functional.pad(labels_BT[:, 1:], (0, 1), value=-100)
        counts_BT = targets_BT != -100
        if self.args.teacher_window == "mask":
            counts_BT = counts_BT & (self._positions(inputs, targets_BT) < self.teacher.window)
        num_items = counts_BT.sum() if num_items_in_batch is None else num_items_in_batch

        if self._sp_size > 1:
            attend_together(self.teacher.model, self.model.training)
        with self._precision():
            with self.throughput.teacher():
                self.teacher.prefetch(inputs, counts_BT)
            student_loss = partial(self._student_loss, inputs, counts_BT, targets_BT[counts_BT], num_items)
            loss, parts, distance = in_forward(model, self._unwrap(model), student_loss)
        if num_items_in_batch is not None and (self.args.average_tokens_across_devices or self._sp_size > 1):
            loss = loss * self.accelerator.num_processes  # over which gradients are averaged
        read_BT = inputs.get("attention_mask", torch.ones_like(targets_BT))
        self._record(mode, [*parts, distance], num_items, counts_BT.sum(), read_BT.sum())
        return (loss, {"loss": loss}) if return_outputs else loss

    def _student_loss(
        self, inputs: dict, counts_BT: Tensor, labels_N: Tensor, num_items
    ) -> tuple[Tensor, Parts, Tensor]:
        student = self._student()
        hidden_BTD, layers_BTD = hidden_states(student, inputs, tuple(range(1, len(self.matched_layers) + 1)))
        with self.throughput.teacher():
            targets = self.teacher.targets(inputs, counts_BT)
        head = student.get_output_embeddings()

        def head_loss(hidden_ND: Tensor) -> tuple[Tensor, Parts]:
            return fused_divergence(
                hidden_ND,
                head.weight,
                targets,
                labels_N,
                num_items=num_items,
                objective=self.args.objective,
                chunk=self.args.loss_chunk_tokens,
                softcap=final_softcap(student),
                kernel=self.args.loss_kernel,
            )

        loss, parts = in_forward(head, head, head_loss, hidden_BTD[counts_BT])
        distance = torch.zeros_like(loss)
        if layers_BTD:
            ours_ND = [layer_BTD[counts_BT] for layer_BTD in layers_BTD]
            distance = relative_distance(ours_ND, targets.layers_NE) / torch.as_tensor(num_items).clamp(min=1)
            loss = loss + self.args.hidden_weight * distance
        return loss, parts, distance.detach().to(loss.dtype)

    @staticmethod
    def _positions(inputs: dict, targets_BT: Tensor) -> Tensor:
        if "position_ids" in inputs:
            return inputs["position_ids"]
        return torch.arange(targets_BT.shape[1], device=targets_BT.device).expand_as(targets_BT)

    def _record(self, mode: str, parts: list[Tensor], num_items, counted: Tensor, read: Tensor) -> None:
        """The loss's parts a token of this batch, over all processes, and the tokens read so far, for the log."""
        sums = torch.cat([torch.stack(parts).double() * num_items, counted.view(1), read.view(1)])
        *sums, tokens, read = self.accelerator.reduce(sums, reduction="sum").tolist()
        if mode == "train":
            self._total_train_tokens += int(read) // self._tp_size
        metrics, objective = self._metrics[mode], self.args.objective
        metrics["num_tokens"] = [self._total_train_tokens]
        wanted = {
            "kl" if objective.beta == 0 else "divergence": True,
            "next_token": objective.reads_labels,
            "routed": objective.route_below_nats > 0,
            "hidden": bool(self.matched_layers),
        }
        for (name, is_wanted), value in zip(wanted.items(), sums, strict=True):
            if is_wanted:
                metrics[f"distill/{name}"].append(value / max(tokens, 1))

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As the base; afterwards the batch is counted."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.throughput.step(inputs)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base, with tokens a second, model FLOP utilisation and the teacher's share of the time."""
        if "loss" in logs:
            logs.update(self.throughput.metrics())
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As the base, loss only: the logits it would return are never made."""
        return super().prediction_step(model, inputs, True, ignore_keys)


def load_teacher(args: CascadeDistillationConfig, processing_class=None, **kwargs) -> PreTrainedModel | Teacher:
    """
    The teacher that `args` names: a model, a server's, or a cache of logits.

    Args:
        args (`CascadeDistillationConfig`): settings.
        processing_class (*optional*): the student's tokenizer or processor, which the teacher's must equal.
        kwargs: to `from_pretrained`.

    Raises:
        ValueError: none is named, it does not open, or it has other tokens.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if args.teacher_url is not None:
        from hf_cascade.distill.remote import RemoteTeacher

        return RemoteTeacher(args.teacher_url, tokenizer)
    if args.teacher_cache is not None:
        from hf_cascade.distill.cache import CachedTeacher

        return CachedTeacher(args.teacher_cache, tokenizer)
    if args.teacher_model_name_or_path is None:
        raise ValueError(f"no teacher: give teacher_model, or set one of {', '.join(TEACHER_FLAGS)}")
    check_tokens(args, tokenizer)
    if args.teacher_dtype == "fp8":
        return multiply_in_fp8(load_model(args.teacher_model_name_or_path, dtype="bfloat16", **kwargs))
    return load_model(args.teacher_model_name_or_path, dtype=args.teacher_dtype, **kwargs)


def check_tokens(args: CascadeDistillationConfig, processing_class) -> None:
    """Raise `ValueError` where the teacher that `args` names has other tokens than a tokenizer or processor."""
    if processing_class is not None and args.teacher_model_name_or_path is not None:
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        check_same_tokenizer(tokenizer, load_tokenizer(args.teacher_model_name_or_path))
