"""`CascadePairwiseTrainer`: TRL's SFT trainer on comparisons of two responses, hard or soft (paper section 4)."""

import sys
from collections import Counter

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from hf_cascade.pushing import AtomicPush
from hf_cascade.rewards.comparison import LABELS, QUESTION, Comparison
from hf_cascade.rewards.pairs import check_columns, read_pair
from hf_cascade.rewards.pairwise import label_logits, pad_left

KEPT, EQUAL, LONG = "kept", "equal", "long"
# what has no meaning for one label a row; the chat template is read before TRL would exchange it
EXCLUDED = ("packing", "padding_free", "assistant_only_loss", "label_smoothing_factor", "chat_template_path")

# B comparisons, V vocabulary


def comparisons(
    rows: Dataset, comparison: Comparison, num_proc: int | None = None, name: str = "train"
) -> tuple[Dataset, dict[str, int]]:
    """
    Both orders of every pair as tokens: rows of `input_ids` and `probability` (of the response shown first).

    Pairs of equal responses, and pairs longer than the comparison's `max_length`, are left out with a warning.

    Args:
        rows (`Dataset`): as [`read_pair`] takes them.
        comparison (`Comparison`): writes them.
        num_proc (`int`, *optional*): processes.
        name (`str`, *optional*): of the rows, for messages.

    Returns:
        The rows, and how many pairs were `kept`, `equal` and `long`.

    Raises:
        ValueError: no pair is left, or rows that are no pairs.
    """
    if not isinstance(rows, Dataset):
        raise ValueError(f"the {name} rows are a {type(rows).__name__}: pairs cannot be streamed, set streaming: false")
    check_columns(rows.column_names)

    def write(batch: dict, numbers: list[int]) -> dict:
        """Both orders of each pair as token ids, and what became of the pair: kept, equal or too long."""
        written = {"input_ids": [], "probability": [], "fate": []}
        for place, number in enumerate(numbers):
            pair = read_pair({key: values[place] for key, values in batch.items()}, number)
            both = comparison.encode_both(pair.history, pair.first, pair.second)
            fate = KEPT
            if pair.first == pair.second:
                fate = EQUAL
            elif comparison.max_length and max(map(len, both)) > comparison.max_length:
                fate = LONG
            written["input_ids"] += both if fate == KEPT else ([], [])
            written["probability"] += [pair.probability, 1 - pair.probability]
            written["fate"] += [fate, fate]
        return written

    with PartialState().main_process_first():
        made = rows.map(write, batched=True, with_indices=True, num_proc=num_proc, remove_columns=rows.column_names)
    fates = made["fate"][:]
    counts = {fate: Counter(fates)[fate] // 2 for fate in (KEPT, EQUAL, LONG)}
    dropped = (
        f"{counts[EQUAL]} pairs of equal responses and {counts[LONG]} longer than max_length="
        f"{comparison.max_length} are left out of {len(rows)} {name} pairs"
    )
    if counts[KEPT] == 0:
        raise ValueError(f"no pair to learn from: {dropped}")
    if counts[KEPT] < len(rows) and PartialState().is_main_process:
        print(f"hf-cascade: warning: {dropped}", file=sys.stderr)
    kept = made.select([number for number, fate in enumerate(fates) if fate == KEPT])
    return kept.remove_columns("fate"), counts


class ComparisonCollator:
    """Left-padded comparisons; `labels`, one a row, are what the Trainer counts for `num_items_in_batch`."""

    def __init__(self, padding: int):
        self.padding = padding

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = pad_left([row["input_ids"] for row in rows], self.padding)
        # two columns: the Trainer counts from the second on
        return batch | {
            "labels": torch.tensor([[-100, 0]] * len(rows)),
            "probability": torch.tensor([row["probability"] for row in rows]),
        }


class CascadePairwiseTrainer(AtomicPush, SFTTrainer):
    """
    [`~trl.SFTTrainer`] of a pairwise reward model: after both responses, the next token is the better one's label.

    The loss of a comparison is -p log q(first label) - (1 - p) log q(second label), q over the whole vocabulary: SFT on
    the label where p is 0 or 1. Every pair is in the data in both orders. What it saves, [`PairwiseRewardModel`] and
    `pipeline("decision")` open.

    Args:
        model (`str` or `PreTrainedModel`): as [`~trl.SFTTrainer`].
        args (`SFTConfig`): settings; pairs longer than `max_length` are left out.
        train_dataset (`Dataset`): TRL's preference rows, or `prompt`, `first`, `second`, `probability`.
        eval_dataset (`Dataset` or `dict`, *optional*): alike.
        processing_class (`PreTrainedTokenizerBase`): the model's tokenizer.
        labels (`tuple[str, str]`, *optional*, defaults to `("A", "B")`): the answers, each one token.
        question (`str`, *optional*): what is asked.
        kwargs: as [`~trl.SFTTrainer`].

    Attributes:
        comparison (`Comparison`): writes the comparisons.
        counts (`dict[str, int]`): training pairs that were `kept`, `equal` and `long`.

    Raises:
        ValueError: settings or rows that do not go with it.
    """

    _name = "Cascade Pairwise"
    _tag_names = ["trl", "sft", "pwrm", "hf-cascade"]

    def __init__(
        self,
        model,
        args: SFTConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class=None,
        labels: tuple[str, str] = LABELS,
        question: str = QUESTION,
        **kwargs,
    ):
        given = [name for name in EXCLUDED if getattr(args, name)]
        given += ["loss_type"] * (args.loss_type != "nll")
        if given:
            raise ValueError(
                f"{', '.join(given)} do not go with comparisons, which have one label a row: leave them unset"
            )
        if processing_class is None:
            raise ValueError("give processing_class: the model's tokenizer")
        self.comparison = Comparison.new(processing_class, tuple(labels), question, args.max_length)
        prepared, self.counts = self._prepare(args, train_dataset, "train")
        if isinstance(eval_dataset, dict):
            held_out = {name: self._prepare(args, rows, name)[0] for name, rows in eval_dataset.items()}
        else:
            held_out = eval_dataset and self._prepare(args, eval_dataset, "eval")[0]
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__init__(
            model,
            args=args,
            train_dataset=prepared,
            eval_dataset=held_out,
            processing_class=processing_class,
            data_collator=ComparisonCollator(processing_class.pad_token_id or 0),
            **kwargs,
        )
        split = self.accelerator.parallelism_config
        if split is not None and (split.cp_enabled or split.sp_enabled):
            raise ValueError(
                "context and sequence parallelism split rows, whose last token is all that counts: use neither"
            )

    def _prepare(self, args: SFTConfig, rows: Dataset, name: str) -> tuple[Dataset, dict[str, int]]:
        return comparisons(rows, self.comparison, args.dataset_num_proc, name)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["input_ids", "probability"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of this batch's comparisons, summed, divided by `num_items_in_batch`."""
        first_B = inputs["probability"].float()
        logits_BV, labels_B2 = label_logits(model, inputs, self.comparison.label_ids)
        log_q_B2 = labels_B2 - logits_BV.logsumexp(-1, keepdim=True)
        loss_B = -(first_B * log_q_B2[:, 0] + (1 - first_B) * log_q_B2[:, 1])
        loss = loss_B.sum() / (len(loss_B) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # over which gradients are averaged
        right_B = ((labels_B2[:, 0] > labels_B2[:, 1]) == (first_B > 0.5)).float()
        mode = "train" if self.model.training else "eval"
        right_B, mass_B = self.accelerator.gather_for_metrics((right_B, log_q_B2.detach().exp().sum(-1)))
        self._metrics[mode]["pairwise_accuracy"].append(right_B.mean().item())
        self._metrics[mode]["label_mass"].append(mass_B.mean().item())  # probability of the labels together
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As the base, loss only."""
        return super().prediction_step(model, inputs, True, ignore_keys)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As the base, and the comparison beside it."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.comparison.save_pretrained(output_dir or self.args.output_dir)
