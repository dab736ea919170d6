"""`CascadeGRPOTrainer`: TRL's GRPO trainer with Magistral's advantages, lengths and refill (arXiv 2506.10910).

N responses of a generation batch, P groups of G responses to one prompt, F reward functions.
"""

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from torch import Tensor
from transformers import ProcessorMixin
from trl import GRPOTrainer

from hf_cascade.completions import is_looping
from hf_cascade.data.chat import ragged_prompts
from hf_cascade.data.missing_images import drop_no_images, list_images
from hf_cascade.distill.freezing import freeze_vision_tower
from hf_cascade.grpo.advantage import Lesson, drop_unjudged, learn, length_penalties, live_groups, total_rewards
from hf_cascade.grpo.config import CascadeGRPOConfig
from hf_cascade.grpo.refill import draw_prompts, replace_groups
from hf_cascade.odpo.seams import check_seams
from hf_cascade.odpo.tools import ToolLimits


class CascadeGRPOTrainer(GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] with Magistral's recipe (paper section 5): no reference, advantages normalised over the
    minibatch, token sums divided by the group's length, groups of equal rewards replaced and left out, clip-higher, and
    a soft length penalty.

    Generation (transformers or vLLM), tools, environments, images, PEFT, the clipped loss and logging are the base's.
    The completions table shows advantages before they are normalised. Replaced groups are in it and in logged rewards.

    ```python
    >>> trainer = CascadeGRPOTrainer(
    ...     "reasoning-sft", exact_match, args=CascadeGRPOConfig(output_dir="out"), train_dataset=problems
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): the policy.
        reward_funcs (`Callable` or `list`, *optional*): any rewards TRL takes. `None` for a response is no reward, and
            the response teaches nothing; `None` for a whole group: the function does not apply to it.
        args (`CascadeGRPOConfig`): settings.
        tools (`list[Callable]`, *optional*): as the base, held to `args.tool_seconds` and `args.tool_max_characters`.
        kwargs: as [`~trl.GRPOTrainer`].

    Raises:
        ValueError: settings that contradict the recipe; too few prompts for a generation batch.
    """

    _name = "Cascade GRPO"
    _tag_names = ["trl", "grpo", "hf-cascade"]
    _paper = {"title": "Magistral", "id": "2506.10910"}

    def __init__(self, model, reward_funcs=None, args: CascadeGRPOConfig | None = None, tools=None, **kwargs):
        if not isinstance(args, CascadeGRPOConfig):
            raise ValueError(f"args is {type(args).__name__}: give a CascadeGRPOConfig")
        check_seams()
        _check_prompts(kwargs.get("train_dataset"), args, tools)
        self.tool_limits = ToolLimits(args.tool_seconds, args.tool_max_characters)
        tools = [self.tool_limits.wrap(tool) for tool in tools or []] or None
        super().__init__(model, reward_funcs, args=args, tools=tools, **kwargs)
        if isinstance(self.processing_class, ProcessorMixin):
            ragged_prompts(self.processing_class)
            self.model.register_forward_pre_hook(drop_no_images, with_kwargs=True)
        if args.freeze_vision_tower:
            freeze_vision_tower(self.model)
        self._judges = len(self.reward_funcs)
        if args.length_penalty:  # a reward like the others, logged as one
            self.reward_funcs.append(self.penalize_length)
            self.reward_func_names.append("length_penalty")
            self.reward_processing_classes.append(None)
            self.reward_weights = torch.cat([self.reward_weights, self.reward_weights.new_ones(1)])
        self._rewards_N: Tensor | None = None
        self._tool_masks: list | None = None
        self._draws = (-1, 0)  # optimizer step, prompts drawn within it
        self._barren = self._timeouts = 0

    # --- rewards -----------------------------------------------------------------------------------------------------

    def penalize_length(self, completion_ids: list[list[int]], **columns) -> list[float]:
        """A TRL reward function: Magistral's soft length penalty."""
        lengths_N = torch.tensor([len(ids) for ids in completion_ids], dtype=torch.float32)
        args = self.args
        limits = (args.max_completion_length, args.penalty_tokens, args.length_penalty)
        return length_penalties(lengths_N, *limits).tolist()

    def _generate(self, prompts):
        """As the base; rows without an image have none rather than `None`, which processors refuse."""
        *first, images, tool_images = super()._generate(prompts)
        self._tool_masks = first[2]
        return *first, images and [of_row or [] for of_row in images], tool_images

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """As the base; a response that was not judged has no reward at all. Keeps the sums, of all processes."""
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        size = self.num_generations if self.model.training else self.num_generations_eval
        judged_NF = drop_unjudged(rewards_NF[:, : self._judges], size)
        unjudged_N = judged_NF.isnan().all(1)
        rewards_NF = torch.where(unjudged_N[:, None], torch.nan, rewards_NF)
        self._rewards_N = total_rewards(rewards_NF, self.reward_weights)
        self._log_responses(completion_ids_list, unjudged_N)
        return rewards_NF

    def _log_responses(self, completion_ids: list[list[int]], unjudged_N: Tensor) -> None:
        masks, rule = self._tool_masks or [None] * len(completion_ids), self.args.loop_rule
        looping = [
            is_looping(ids, mask, self.eos_token_ids, rule) for ids, mask in zip(completion_ids, masks, strict=True)
        ]
        cut = [ids[-1] not in self.eos_token_ids for ids in completion_ids]
        rates_N2 = gather(torch.tensor([looping, cut], device=unjudged_N.device).T.contiguous())
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["grpo/loop_rate"].append(rates_N2[:, 0].float().mean().item())
        metrics["grpo/truncated_not_loop_rate"].append((rates_N2[:, 1] & ~rates_N2[:, 0]).float().mean().item())
        metrics["grpo/unjudged_rate"].append(unjudged_N.float().mean().item())
        if self.tools:
            before, self._timeouts = self._timeouts, self.tool_limits.counts["timeouts"]
            metrics["grpo/tool_timeouts"].append(float(sum(gather_object([self._timeouts - before]))))
        self._log_completion_extra("looped", looping)

    # --- groups ------------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs):
        """As the base, with dead groups replaced, Magistral's advantages, and the tokens that count."""
        columns = [*inputs[0]]
        batch = self._generate_groups(inputs)
        if not self.model.training:
            return batch
        batch = self._refill(batch, columns)
        mask_NT = batch["completion_mask"] * batch.get("tool_mask", 1)
        rewards_PG, tokens_PG = (
            gather(of_rows.contiguous()).view(-1, self.num_generations)
            for of_rows in (batch["rewards"], mask_NT.sum(1))
        )
        lesson = learn(rewards_PG, tokens_PG, self.args.length_scope)
        # The clipped loss is proportional to the advantage: a token's weight goes into it.
        batch["advantages"] = self._of_this_process((lesson.advantages_PG * lesson.weights_PG).flatten())
        batch["num_items_in_batch"] = lesson.tokens
        metrics = self._metrics["train"]
        metrics["grpo/kept_groups"].append(lesson.live_P.sum().item())
        metrics["grpo/advantage_std"].append(lesson.std.item())
        self._refuse_barren(lesson)
        return batch

    def _generate_groups(self, inputs: list[dict]) -> dict:
        """The base's batch, with the reward of each of this process's responses."""
        batch = super()._generate_and_score_completions(list_images(inputs))
        return {**batch, "rewards": self._of_this_process(self._rewards_N)}

    def _refill(self, batch: dict, columns: list[str]) -> dict:
        """Replace dead groups in the places they have, a few rounds at most; all processes generate equally many."""
        rounds, dead, groups = 0, *self._count_dead()
        while rounds < self.args.max_refill_rounds:
            dead_P = ~self._live(batch)
            needed = gather(dead_P.sum()[None]).max().item()
            if not needed:
                break
            fresh = self._generate_groups(self._draw(needed, columns))
            counts = self._count_dead()
            rounds, dead, groups = rounds + 1, dead + counts[0], groups + counts[1]
            batch = replace_groups(batch, fresh, dead_P, self._live(fresh), self._tokenizer.pad_token_id)
        self._metrics["train"]["grpo/refill_rounds"].append(float(rounds))
        self._metrics["train"]["grpo/dead_rate"].append(dead / groups)
        return batch

    def _draw(self, count: int, columns: list[str]) -> list[dict]:
        """Rows of `count` prompts for this process, by seed and step: a resumed run draws the same."""
        step, total = self.state.global_step, count * self.accelerator.num_processes
        drawn = self._draws[1] if self._draws[0] == step else 0
        self._draws = (step, drawn + total)
        chosen = draw_prompts(len(self.train_dataset), drawn, total, self.args.seed, step)
        rows = [self.train_dataset[number] for number in chosen[self.accelerator.process_index * count :][:count]]
        rows = [{name: row[name] for name in columns} for row in rows]
        return [dict(row) for row in rows for _ in range(self.num_generations)]

    def _live(self, batch: dict) -> Tensor:
        return live_groups(batch["rewards"].view(-1, self.num_generations))

    def _count_dead(self) -> tuple[int, int]:
        """Of the groups last generated by all processes: how many are dead, and how many they are."""
        live_P = live_groups(self._rewards_N.view(-1, self.num_generations))
        return (~live_P).sum().item(), len(live_P)

    def _of_this_process(self, of_rows: Tensor) -> Tensor:
        per_process = len(of_rows) // self.accelerator.num_processes
        return of_rows[self.accelerator.process_index * per_process :][:per_process]

    def _refuse_barren(self, lesson: Lesson) -> None:
        """Problems that are all too easy or too hard, or rewards that fail, must not train on nothing unnoticed."""
        self._barren = 0 if lesson.live_P.any() else self._barren + 1
        if self._barren >= self.args.max_barren_batches:
            rates = {name: self._metrics["train"][f"grpo/{name}"][-1] for name in ("dead_rate", "unjudged_rate")}
            raise ValueError(
                f"{self._barren} generation batches in a row had no group whose rewards differ (the last: "
                f"{', '.join(f'{name} {value:.2f}' for name, value in rates.items())}). Take prompts that the policy "
                "solves sometimes, raise num_generations or max_refill_rounds; without rewards look at the reward "
                "functions; or raise max_barren_batches"
            )


def _check_prompts(prompts, args: CascadeGRPOConfig, tools) -> None:
    """What the base would find out after it generated, or never: its sampler drops a generation batch not full."""
    if args.max_refill_rounds and prompts is not None and not isinstance(prompts, Dataset):
        raise ValueError(
            f"train_dataset is {type(prompts).__name__}, of which no other prompts can be drawn: give a Dataset, "
            "or set max_refill_rounds to 0"
        )
    needed = args.generation_batch_size // args.num_generations
    if isinstance(prompts, Dataset) and len(prompts) < needed:
        raise ValueError(
            f"{len(prompts)} prompts, and one generation batch takes {needed}: give more prompts, or lower "
            "per_device_train_batch_size or steps_per_generation (gradient_accumulation_steps by default)"
        )
    if tools and isinstance(prompts, Dataset) and isinstance(prompts[0].get("prompt"), str):
        raise ValueError('tools need prompts of messages, and they are text: [{"role": "user", "content": ...}]')
