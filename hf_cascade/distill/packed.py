"""`CascadeSFTTrainer`: TRL's SFT trainer on packed text that knows, at every checkpoint, which token comes next."""

import json
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTTrainer

from hf_cascade import progress
from hf_cascade.data.packing import PackedCollator, PackedText

CURSOR_FILE = "data_cursor.json"


class CursorCallback(TrainerCallback):
    """Writes the place in the text into every checkpoint: what was trained on, not what was read ahead."""

    def __init__(self, trainer: "CascadeSFTTrainer"):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        """Save the cursor beside the optimizer's state of the same step."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / CURSOR_FILE).write_text(json.dumps(self.trainer.data_state))


class ProgressCallback(TrainerCallback):
    """Tells whoever started this process how far it is: loss, tokens per second, steps to go."""

    def __init__(self, trainer: "CascadeSFTTrainer"):
        self.trainer = trainer
        self.loss = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Remember the newest loss."""
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args, state, control, **kwargs):
        """Report the step."""
        tokens = self.trainer.data_state["tokens"] if self.trainer.stream is not None else None
        progress.report(state.global_step, state.max_steps, tokens=tokens, loss=self.loss, label=self.trainer.loss_name)


class CascadeSFTTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`] that also takes a [`PackedText`] as `train_dataset`.

    Every batch of packed text carries the place that follows it, so the trainer always knows the first token it has
    not trained on: `data_state` is `{"cursor": [document, token], "tokens": tokens trained on}`. Checkpoints hold it,
    a resumed run starts reading there, and the next stage of a cascade starts where this one ended.

    Args:
        train_dataset (`PackedText`, `Dataset` or `IterableDataset`): packed text, or anything `SFTTrainer` takes.
        kwargs: as [`~trl.SFTTrainer`].
    """

    _name = "Cascade SFT"
    _tag_names = ["trl", "sft", "hf-cascade"]
    loss_name = "loss"

    def __init__(self, *args, train_dataset=None, **kwargs):
        self.stream = train_dataset if isinstance(train_dataset, PackedText) else None
        self.data_state = None
        if self.stream is not None:
            config = kwargs.get("args") or (args[1] if len(args) > 1 else None)
            if config is None or config.max_steps < 1:
                raise ValueError("packed text has no length: set `train_tokens` (or `max_steps`)")
            # The rows are final, and the cursor replaces the Trainer's re-reading of everything before a checkpoint.
            config.dataset_kwargs = {**(config.dataset_kwargs or {}), "skip_prepare_dataset": True}
            config.ignore_data_skip = True
            kwargs.setdefault("data_collator", PackedCollator(padding_free=config.padding_free))
            self.data_state = {"cursor": list(self.stream.start), "tokens": 0}
            train_dataset = self.stream.dataset()
        super().__init__(*args, train_dataset=train_dataset, **kwargs)
        self.add_callback(ProgressCallback(self))
        if self.stream is not None:
            self.add_callback(CursorCallback(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As the base; packed text goes on from the checkpoint's cursor."""
        if self.stream is not None and resume_from_checkpoint:
            if resume_from_checkpoint is True:
                resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
                if resume_from_checkpoint is None:
                    raise ValueError(f"no checkpoint to resume from in {self.args.output_dir}")
            self.data_state = json.loads((Path(resume_from_checkpoint) / CURSOR_FILE).read_text())
            self.stream.start = tuple(self.data_state["cursor"])
            self.train_dataset = self.stream.dataset()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As the base; afterwards the batch counts as trained on."""
        cursor = inputs.pop("cursor", None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if cursor is not None:
            tokens = torch.tensor(inputs["input_ids"].numel(), device=loss.device)
            # Ranks read neighbouring rows of one stream: the furthest document and token is where the step ended.
            places = self.accelerator.gather(cursor.to(loss.device).view(1, 2)).tolist()
            self.data_state["cursor"] = max(places)
            self.data_state["tokens"] += int(self.accelerator.reduce(tokens, reduction="sum"))
        return loss

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self.stream is not None and "cursor" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "cursor"]
