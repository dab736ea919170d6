"""`PairwiseRewardModel`: scores pairs of responses with the two label tokens' logits (paper section 4)."""

import sys
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_cascade.loading import load_model, load_tokenizer
from hf_cascade.rewards.comparison import Comparison
from hf_cascade.rewards.pairs import history_text, response_text
from hf_cascade.rewards.preference import PairwisePreference

ADAPTER_CONFIG = "adapter_config.json"

# B comparisons, T tokens, V vocabulary, N pairs


def label_logits(model, batch: dict[str, Tensor], label_ids: list[int]) -> tuple[Tensor, Tensor]:
    """
    Logits after the last token of left-padded rows: [B, V], and [B, 2] of the two labels.

    Args:
        model (`PreTrainedModel` or a wrapper of one): causal language model.
        batch (`dict`): `input_ids` and `attention_mask`, [B, T].
        label_ids (`list[int]`): of the first and the second response's label.
    """
    mask_BT = batch["attention_mask"]
    # positions count from a row's own first token: with YaRN and its kin absolute positions matter
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask_BT, "position_ids": positions_BT}
    logits_BV = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()
    return logits_BV, logits_BV[:, label_ids]


def pad_left(rows: list[list[int]], padding: int) -> dict[str, Tensor]:
    """Rows of one length: `input_ids` and `attention_mask`, [B, T]. The last column is every row's last token."""
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }


class PairwiseRewardModel(PairwisePreference):
    """
    P(first preferred) of a trained pairwise reward model, averaged over both orders, at its calibrated temperature.

    The log-odds are (l(a, b) - l(b, a)) / 2 / T, with l(x, y) the first label's logit minus the second's where x stands
    first. After `compare`, `last_metrics` holds `position_disagreement` (share of pairs whose winner is decided by the
    order), `position_bias` (mean probability of the response shown first, minus 0.5), `truncated_rate` and
    `failed_rate` (always 0). As a TRL reward function it takes pairs of rows, see [`PairwisePreference`].

    Args:
        model (`PreTrainedModel`): causal language model.
        comparison (`Comparison`): writes what the model was trained on.
        batch_size (`int`, *optional*, defaults to `8`): comparisons in a forward pass, two a pair.
        max_length (`int`, *optional*): most tokens of a comparison; longer ones lose history, then the responses'
            middles, and are counted. Unset, the longest that training allowed, or the model's window.

    Raises:
        ValueError: a number that is too small.
    """

    def __init__(
        self, model: PreTrainedModel, comparison: Comparison, batch_size: int = 8, max_length: int | None = None
    ):
        super().__init__("pwrm")
        window = model.config.get_text_config().max_position_embeddings
        self.max_length = max_length or comparison.max_length or window
        if batch_size < 1 or self.max_length < 1:
            raise ValueError(f"batch_size={batch_size}, max_length={max_length}: both must be at least 1")
        comparison.encode_within(self.max_length, "", "", "")
        self.model, self.comparison, self.batch_size = model.eval(), comparison, batch_size
        self._has_warned = False

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        batch_size: int = 8,
        max_length: int | None = None,
    ) -> "PairwiseRewardModel":
        """
        Open a folder or Hub id that trainers/pwrm.py or [`CascadePairwiseTrainer`] saved, or an adapter of one.

        Args:
            folder (`str` or `Path`): holds model, tokenizer and decision.json.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): of the weights; `auto` is their own.
            device (`str` or `torch.device`, *optional*): unset, the current accelerator, or the CPU.
            batch_size (`int`, *optional*, defaults to `8`): comparisons in a forward pass.
            max_length (`int`, *optional*): most tokens of a comparison.

        Raises:
            ValueError: it is no pairwise reward model, or does not open.
        """
        folder = str(folder)
        tokenizer = load_tokenizer(folder)
        comparison = Comparison.from_pretrained(folder, tokenizer)
        if (Path(folder) / ADAPTER_CONFIG).is_file() and not (Path(folder) / "config.json").is_file():
            from peft import PeftConfig, PeftModel

            base = load_model(PeftConfig.from_pretrained(folder).base_model_name_or_path, dtype)
            model = PeftModel.from_pretrained(base, folder).merge_and_unload()
        else:
            model = load_model(folder, dtype)
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        return cls(model.to(device), comparison, batch_size, max_length)

    def compare(self, prompts: list, first: list, second: list, **columns) -> list[float]:
        """P(first preferred) of each pair; columns of the dataset are not read."""
        texts = [
            (history_text(prompt), response_text(one), response_text(other))
            for prompt, one, other in zip(prompts, first, second, strict=True)
        ]
        return torch.sigmoid(self.log_odds(texts) / self.comparison.temperature).tolist()

    def log_odds(self, texts: list[tuple[str, str, str]]) -> Tensor:
        """
        Log-odds of the first response of each (history, first, second) at temperature 1, [N] in float64 on the CPU.

        Sets `last_metrics`.
        """
        rows, cut = [], 0
        for text in texts:
            both, was_cut = self.comparison.encode_within(self.max_length, *text)
            rows += both
            cut += was_cut
        if not texts:
            self.last_metrics = {}
            return torch.zeros(0, dtype=torch.float64)
        if cut and not self._has_warned:
            self._has_warned = True
            print(
                f"hf-cascade: warning: {cut} of {len(texts)} comparisons are longer than {self.max_length} tokens and "
                "lost text (pwrm/truncated_rate); set max_length",
                file=sys.stderr,
            )
        shown_N, swapped_N = self._differences(rows).view(-1, 2).unbind(1)
        first_shown_N2 = torch.sigmoid(torch.stack([shown_N, swapped_N], 1) / self.comparison.temperature)
        self.last_metrics = {
            "position_disagreement": fmean(((shown_N > 0) == (swapped_N > 0)).tolist()),
            "position_bias": float(first_shown_N2.mean()) - 0.5,
            "truncated_rate": cut / len(texts),
            "failed_rate": 0.0,
        }
        return (shown_N - swapped_N) / 2

    @torch.no_grad()
    def _differences(self, rows: list[list[int]]) -> Tensor:
        """First label's logit minus the second's, of each row; rows of like length share a forward pass."""
        padding = self.comparison.tokenizer.pad_token_id or 0  # masked, so that any id does
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        differences = torch.zeros(len(rows), dtype=torch.float64)
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            batch = pad_left([rows[number] for number in numbers], padding)
            batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            _, labels_B2 = label_logits(self.model, batch, self.comparison.label_ids)
            differences[numbers] = (labels_B2[:, 0] - labels_B2[:, 1]).double().cpu()
        return differences
