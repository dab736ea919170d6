"""`OnlineTrainer`: what Online DPO and GRPO do alike around TRL's GRPO trainer.

N responses of a generation batch on all processes, of which each process has a part, in order.
"""

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from torch import Tensor
from torch.nn import Module
from transformers import ProcessorMixin
from trl import GRPOTrainer

from hf_cascade.completions import is_looping
from hf_cascade.data.chat import ragged_prompts
from hf_cascade.data.missing_images import drop_no_images, list_images
from hf_cascade.distill.freezing import freeze_vision_tower
from hf_cascade.online.seams import check_seams
from hf_cascade.online.settings import OnlineConfig
from hf_cascade.online.tools import ToolLimits
from hf_cascade.pushing import AtomicPush
from hf_cascade.rewards.verifiable import check_columns

OWN_COLUMNS = ("prompt", "completion", "completion_ids")  # which TRL hands to no reward


class OnlineTrainer(AtomicPush, GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] with tools within limits, rows with and without images in one batch, infinite loops looked for,
    generated tokens counted, and an end where there is nothing to learn from. A base class.

    Args:
        model, reward_funcs, kwargs: as [`~trl.GRPOTrainer`].
        args (`OnlineConfig`): settings.
        tools (`list[Callable]`, *optional*): as the base, held to `args.tool_seconds` and `args.tool_max_characters`.
    """

    _prefix = ""  # first word of its metrics

    def __init__(self, model, reward_funcs=None, args: OnlineConfig | None = None, tools=None, **kwargs):
        check_prompts(kwargs.get("train_dataset"), args, tools)
        check_rewards(reward_funcs, kwargs.get("train_dataset"))
        self.tool_limits = ToolLimits(args.tool_seconds, args.tool_max_characters)
        tools = [self.tool_limits.wrap(tool) for tool in tools or []] or None
        super().__init__(model, reward_funcs, args=args, tools=tools, **kwargs)
        if isinstance(self.processing_class, ProcessorMixin):
            ragged_prompts(self.processing_class)
            for one in (self.model, self.ref_model):
                if one is not None:
                    one.register_forward_pre_hook(drop_no_images, with_kwargs=True)
        if args.freeze_vision_tower:
            freeze_vision_tower(self.model)
        self._tool_masks: list | None = None
        self._barren = self._timeouts = 0

    @property
    def generated(self) -> dict[str, int]:
        """Responses and tokens that all processes wrote in training so far; checkpoints keep them in the state."""
        nothing = {f"{self._prefix}/generated_{name}": 0 for name in ("responses", "tokens")}
        return self.state.stateful_callbacks.setdefault("generated", nothing)

    def _generate_and_score_completions(self, inputs):
        """As the base, on rows of which some have no images."""
        return super()._generate_and_score_completions(list_images(inputs))

    def _generate(self, prompts):
        """As the base; rows without an image have none rather than `None`, which processors refuse. Counts."""
        *first, images, tool_images = super()._generate(prompts)
        _, completion_ids, self._tool_masks, *_ = first
        if self.model.training:
            tokens = sum(map(sum, self._tool_masks)) if self._tool_masks else sum(map(len, completion_ids))
            written = torch.tensor([len(completion_ids), tokens], device=self.accelerator.device)
            for name, count in zip(self.generated, self.accelerator.reduce(written).tolist(), strict=True):
                self.generated[name] += count
                self._metrics["train"][name] = [self.generated[name]]  # not a mean
        return *first, images and [of_row or [] for of_row in images], tool_images

    def find_loops(self, completion_ids: list[list[int]], tool_masks: list | None) -> list[bool]:
        """Whether each response never ended and repeats itself, in what the policy wrote last."""
        masks, rule = tool_masks or [None] * len(completion_ids), self.args.loop_rule
        return [
            is_looping(ids, mask, self.eos_token_ids, rule) for ids, mask in zip(completion_ids, masks, strict=True)
        ]

    def _note(self, name: str, value: float) -> None:
        self._metrics["train" if self.model.training else "eval"][f"{self._prefix}/{name}"].append(value)

    def _log_endings(self, completion_ids: list[list[int]], looping: list[bool]) -> None:
        """Responses that were cut off and do not loop, tool calls that took too long, and a column of the table."""
        cut = [ids[-1] not in self.eos_token_ids for ids in completion_ids]
        cut = [is_cut and not loops for is_cut, loops in zip(cut, looping, strict=True)]
        self._note("truncated_not_loop_rate", self._rate(cut))
        if self.tools:
            before, self._timeouts = self._timeouts, self.tool_limits.counts["timeouts"]
            self._note("tool_timeouts", float(sum(gather_object([self._timeouts - before]))))
        self._log_completion_extra("looped", looping)

    def _rate(self, found: list[bool]) -> float:
        """Share of the responses of all processes."""
        return gather(torch.tensor(found, device=self.accelerator.device)).float().mean().item()

    def _of_this_process(self, of_all: Tensor) -> Tensor:
        per_process = len(of_all) // self.accelerator.num_processes
        return of_all[self.accelerator.process_index * per_process :][:per_process]

    def _refuse_barren(self, is_barren: bool, lack: str, rates: dict[str, float], advice: str) -> None:
        """Training on nothing must not go on unnoticed."""
        self._barren = self._barren + 1 if is_barren else 0
        if self._barren >= self.args.max_barren_batches:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in rates.items())
            raise ValueError(
                f"{self._barren} generation batches in a row had no {lack} (the last: {shown}). {advice}; or raise "
                "max_barren_batches"
            )


def check_start(args, kind: type[OnlineConfig]) -> None:
    """
    What must hold before anything is looked at: settings of the trainer's own kind, and the TRL it was written for.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(args, kind):
        raise ValueError(f"args is {type(args).__name__}: give a {kind.__name__}")
    check_seams()


def check_prompts(prompts, args: OnlineConfig, tools) -> None:
    """
    What the base would find out after it generated, or never: its sampler drops a generation batch not full.

    Raises:
        ValueError: too few prompts for one generation batch; text where tools need messages.
    """
    if not isinstance(prompts, Dataset):
        return
    needed = args.generation_batch_size // args.num_generations
    if len(prompts) < needed:
        raise ValueError(
            f"{len(prompts)} prompts, and one generation batch takes {needed}: give more prompts, or lower "
            "per_device_train_batch_size or steps_per_generation (gradient_accumulation_steps by default)"
        )
    if tools and isinstance(prompts[0].get("prompt"), str):
        raise ValueError('tools need prompts of messages, and they are text: [{"role": "user", "content": ...}]')


def check_rewards(rewards, prompts) -> None:
    """
    What the base would find out after it generated: every column that a reward function needs is there.

    Raises:
        ValueError: one is not.
    """
    if not isinstance(prompts, Dataset):
        return
    for reward in rewards if isinstance(rewards, list) else [rewards]:
        if callable(reward) and not isinstance(reward, Module):  # not a reward model, nor its name
            name = getattr(reward, "__name__", type(reward).__name__)
            check_columns(name, reward, [column for column in prompts.column_names if column not in OWN_COLUMNS])
