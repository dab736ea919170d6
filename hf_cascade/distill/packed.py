"""`CascadeSFTTrainer`: TRL's SFT trainer on packed text that knows, at every checkpoint, which token comes next."""

import math
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import TrainOutput
from trl import SFTTrainer

from hf_cascade import progress
from hf_cascade.data.checkpoints import STATE_FILE, last_checkpoint
from hf_cascade.data.image_packing import PackedImageText
from hf_cascade.data.lengths import LengthCounter, sequence_lengths, tally
from hf_cascade.data.packing import PackedText
from hf_cascade.distill.blank_images import keep_ranks_in_step
from hf_cascade.distill.checkpoint_weights import load_saved, saved_names
from hf_cascade.distill.freezing import freeze_projector, freeze_vision_tower
from hf_cascade.distill.image_labels import without_image_labels
from hf_cascade.distill.parallel import PlainNumbers, check_rows, row_processes, split_by
from hf_cascade.pushing import AtomicPush

ACCOUNT = ("cursor", "skipped", "lengths")  # what a batch holds beside the model's inputs


class CursorCallback(TrainerCallback, ExportableState):
    """Puts the place in the text into every checkpoint's state: what was trained on, not what was read ahead."""

    def __init__(self, trainer: "CascadeSFTTrainer"):
        self.trainer = trainer

    def state(self) -> dict:
        """For `trainer_state.json`, so that the place and the weights are of one step or of none."""
        return {"args": {}, "attributes": self.trainer.data_state}

    @classmethod
    def read(cls, checkpoint: str | Path) -> dict:
        """
        The `data_state` in a checkpoint.

        Raises:
            ValueError: it was made without packed text.
        """
        saved = TrainerState.load_from_json(str(Path(checkpoint) / STATE_FILE)).stateful_callbacks.get(cls.__name__)
        if saved is None:
            raise ValueError(f"{checkpoint} holds no place in packed text: it was made by another trainer; start anew")
        return saved["attributes"]


class ProgressCallback(TrainerCallback):
    """Tells whoever started this process how far it is: loss, tokens per second, steps to go."""

    def __init__(self, trainer: "CascadeSFTTrainer"):
        self.trainer = trainer
        self.loss = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Remember the newest loss; stop on a gradient that is no number."""
        self.loss = (logs or {}).get("loss", self.loss)
        check_finite("norm of the gradient", (logs or {}).get("grad_norm", 0.0), state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        """Report the step."""
        tokens = self.trainer.data_state["tokens"] if self.trainer.stream is not None else None
        label = None if self.loss is None else self.trainer.loss_name
        progress.report(state.global_step, state.max_steps, tokens=tokens, loss=self.loss, label=label)


def check_finite(what: str, value, step: int) -> None:
    """Raise `FloatingPointError` for NaN and infinity, which transformers leaves out of its log and trains on with."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {what} is {float(value)} at step {step}: the run has diverged. Lower learning_rate, lengthen the "
            "warm-up or set max_grad_norm; the checkpoints in output_dir are from before"
        )


class CascadeSFTTrainer(AtomicPush, SFTTrainer):
    """
    [`~trl.SFTTrainer`] that also takes a [`PackedText`] as `train_dataset`.

    Every batch of packed text carries the place that follows it, so the trainer always knows the first token it has
    not trained on. `data_state` is `{"cursor": [document, token], "tokens": tokens trained on, "skipped": [documents,
    tokens] passed over, "lengths": the sequences' lengths as in [`LengthCounter`]}`. Checkpoints hold it, a resumed run
    starts reading there, and the next stage of a cascade starts where this one ended.

    Args:
        train_dataset (`PackedText`, `Dataset` or `IterableDataset`): packed text, or anything `SFTTrainer` takes.
        eval_dataset (*optional*): `PackedText` (all of it is read) beside packed text, else what `SFTTrainer` takes.
        kwargs: as [`~trl.SFTTrainer`].

    Raises:
        ValueError: settings that packed text does not go with.
        FloatingPointError: in training, when the loss is not finite.
    """

    _name = "Cascade SFT"
    _tag_names = ["trl", "sft", "hf-cascade"]
    loss_name = "loss"

    def __init__(self, *args, train_dataset=None, eval_dataset=None, **kwargs):
        self.stream = train_dataset if isinstance(train_dataset, PackedText) else None
        self.data_state = None
        self._resumed_from = None
        if self.stream is None:
            super().__init__(*args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        else:
            config = kwargs.get("args") or (args[1] if len(args) > 1 else None)
            self._check_packed(config)
            # The rows are final, and the cursor replaces the Trainer's re-reading of everything before a checkpoint.
            config.dataset_kwargs = {**(config.dataset_kwargs or {}), "skip_prepare_dataset": True}
            config.ignore_data_skip = True
            kwargs.setdefault("data_collator", self.stream.collator(config.padding_free))
            if isinstance(self.stream, PackedImageText):
                kwargs.setdefault("processing_class", self.stream.processor)
            self.data_state = {"cursor": list(self.stream.start), "tokens": 0, "skipped": [0, 0]}
            # The collator does it; TRL refuses `padding_free` beside any collator but its own.
            padding_free, config.padding_free = config.padding_free, False
            rows = self._rows_left(config)
            eval_rows = self._eval_rows(eval_dataset)
            super().__init__(*args, train_dataset=self.stream.dataset(rows), eval_dataset=eval_rows, **kwargs)
            config.padding_free = padding_free
            rope = getattr(self.model.config.get_text_config(), "rope_parameters", None) or {}
            self.data_state["lengths"] = LengthCounter(rope.get("original_max_position_embeddings")).as_dict()
            self.check_attention(self.model)
            self.add_callback(CursorCallback(self))
        self._settle_vision()
        self._settle_rows()
        self.add_callback(ProgressCallback(self))

    def _settle_vision(self) -> None:
        """Freeze what the paper does not train, and what this data cannot; no token of an image is a label."""
        if getattr(self.args, "freeze_vision_tower", True):  # a plain SFTConfig has no such field
            freeze_vision_tower(self.model)
        if not self._is_vision_dataset:
            freeze_projector(self.model)
            return
        self.data_collator = without_image_labels(self.data_collator)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            keep_ranks_in_step(self.model)

    def _settle_rows(self) -> None:
        """Rows that several processes share: what cannot be is refused, and what is no token is not split."""
        packed = self.stream is not None or self.args.packing or self.args.padding_free
        check_rows(self.accelerator, self.args, self.model, packed, self._is_vision_dataset)
        self._sp_size = split_by(self.accelerator)[1]
        if self._sp_size > 1 and self.stream is not None:
            self.data_collator = PlainNumbers(self.data_collator)

    def _check_packed(self, config) -> None:
        if config is None or config.max_steps < 1:
            raise ValueError("packed text has no length: set `train_tokens` (or `max_steps`)")
        if config.max_length != self.stream.max_length:
            raise ValueError(
                f"max_length={config.max_length}, and the packed text has rows of {self.stream.max_length}: make them "
                "equal"
            )
        if config.packing or config.enable_jit_checkpoint:
            raise ValueError(
                "packed text excludes `packing` (it is packed already) and `enable_jit_checkpoint` (it can save "
                "between a batch and its optimizer step): leave both unset"
            )

    def check_attention(self, model) -> None:
        """Raise `ValueError` where `model`'s attention kernel would let the documents of packed text see each other."""
        kernel = str(model.config.get_text_config()._attn_implementation)
        if self.stream is not None and "flash" in kernel and not self.args.padding_free:
            if self.args.per_device_train_batch_size > 1:
                raise ValueError(
                    f"attn_implementation={kernel} sees documents only in a batch of one row: set padding_free: true "
                    "(or per_device_train_batch_size: 1)"
                )

    def _rows_left(self, config) -> int:
        """Rows of all processes from here to the last step."""
        step_rows = config.train_batch_size * config.gradient_accumulation_steps * row_processes(config)
        return config.max_steps * step_rows - self.data_state["tokens"] // self.stream.max_length

    def _eval_rows(self, dataset):
        """Packed text for evaluation as a dataset of rows; nothing else has the collator's columns."""
        if self.stream is None or dataset is None or isinstance(dataset, str):
            return dataset
        if isinstance(dataset, dict):
            return {name: self._eval_rows(part) for name, part in dataset.items()}
        rows = dataset.held_out() if isinstance(dataset, PackedText) else dataset
        if not isinstance(rows, Dataset) or "seq_lengths" not in rows.column_names or len(rows) == 0:
            raise ValueError("a trainer on packed text evaluates on packed text: give a PackedText with a full row")
        return rows

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As the base; packed text goes on from the checkpoint's cursor, and after the last step nothing is trained."""
        if self.stream is None or not resume_from_checkpoint:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"no checkpoint to resume from in {self.args.output_dir}")
        # a checkpoint of an older version lacks what is counted beside the place
        self.data_state = {**self.data_state, **CursorCallback.read(resume_from_checkpoint)}
        self.stream.start = tuple(self.data_state["cursor"])
        left = self._rows_left(self.args)
        if left <= 0:  # the base would train one step more
            self._load_from_checkpoint(resume_from_checkpoint)
            self.state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / STATE_FILE))
            return TrainOutput(self.state.global_step, math.nan, {})
        self.train_dataset = self.stream.dataset(left)
        self._resumed_from = resume_from_checkpoint
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """As the base, which finds no weight of a model that is saved under other names (Mistral3) and goes on."""
        named = self._saved_names()
        if named is None:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        return load_saved(named, resume_from_checkpoint)

    def _load_best_model(self):
        named = self._saved_names()
        return super()._load_best_model() if named is None else load_saved(named, self.state.best_model_checkpoint)

    def _saved_names(self) -> dict[str, Tensor] | None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not isinstance(self.model, PreTrainedModel):
            return None  # engines load files of their own, PEFT its adapters
        return saved_names(self.model)

    def evaluate(self, eval_dataset=None, **kwargs):
        """As the base; beside packed text `eval_dataset` is a `PackedText`."""
        return super().evaluate(eval_dataset=self._eval_rows(eval_dataset), **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As the base; afterwards the batch counts as trained on."""
        if self._resumed_from is not None:  # the base did it before the data loader drew its seed: dropout would differ
            self._load_rng_state(self._resumed_from)
            self._resumed_from = None
        account = {name: inputs.pop(name) for name in ACCOUNT if name in inputs}
        loss = super().training_step(model, inputs, num_items_in_batch)
        check_finite("loss", loss, self.state.global_step + 1)
        if account:
            account = {name: torch.as_tensor(numbers, device=loss.device) for name, numbers in account.items()}
            self._account(inputs, **account)
        return loss

    def _account(self, inputs: dict, cursor: Tensor, skipped: Tensor, lengths: Tensor | None = None) -> None:
        """Add a batch of every process, which was trained on, to `data_state`."""
        counter = LengthCounter(**self.data_state["lengths"])
        if lengths is None:
            lengths = sequence_lengths(inputs["position_ids"].to(cursor.device))
        once = self.accelerator.process_index % self._sp_size == 0  # of processes that share a row, one speaks for it
        tokens = cursor.new_tensor([inputs["input_ids"].numel()])
        ends = self.accelerator.gather(torch.cat([cursor, lengths.max().view(1)]).view(1, 3)).tolist()
        sums = torch.cat([tokens, once * skipped, once * tally(lengths, counter.window)])
        tokens, *sums = self.accelerator.reduce(sums, reduction="sum").tolist()
        counter.add_tally(sums[2:], max(longest for *_, longest in ends))
        # Ranks read neighbouring rows of one stream: the furthest document and token is where the step ended.
        self.data_state["cursor"] = max(place for *place, _ in ends)
        self.data_state["tokens"] += tokens
        self.data_state["skipped"] = [old + new for old, new in zip(self.data_state["skipped"], sums[:2], strict=True)]
        self.data_state["lengths"] = counter.as_dict()
        # TRL counts one row of a batch that has no attention mask.
        self._metrics["train"]["num_tokens"] = [self.data_state["tokens"]]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As the base; the place in the text is no input of the model."""
        for name in ACCOUNT:
            inputs.pop(name, None)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self.stream is not None and "cursor" not in self._signature_columns:
            self._signature_columns = [*dict.fromkeys([*self._signature_columns, *self.stream.features])]
