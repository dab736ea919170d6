"""`CascadeGRPOTrainer`: TRL's GRPO trainer with Magistral's advantages, lengths and refill (arXiv 2506.10910).

N responses of a generation batch, P groups of G responses to one prompt, F reward functions.
"""

import torch
from accelerate.utils import gather
from datasets import Dataset
from torch import Tensor

from hf_cascade.grpo.advantage import drop_unjudged, learn, length_penalties, live_groups, total_rewards
from hf_cascade.grpo.config import CascadeGRPOConfig
from hf_cascade.grpo.refill import draw_prompts, replace_groups
from hf_cascade.online.trainer import OnlineTrainer, check_start


class CascadeGRPOTrainer(OnlineTrainer):
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
    _prefix = "grpo"

    def __init__(self, model, reward_funcs=None, args: CascadeGRPOConfig | None = None, tools=None, **kwargs):
        check_start(args, CascadeGRPOConfig)
        prompts = kwargs.get("train_dataset")
        if args.max_refill_rounds and prompts is not None and not isinstance(prompts, Dataset):
            raise ValueError(
                f"train_dataset is {type(prompts).__name__}, of which no other prompts can be drawn: give a Dataset, "
                "or set max_refill_rounds to 0"
            )
        super().__init__(model, reward_funcs, args=args, tools=tools, **kwargs)
        self._judges = len(self.reward_funcs)
        if args.length_penalty:  # a reward like the others, logged as one
            self.reward_funcs.append(self.penalize_length)
            self.reward_func_names.append("length_penalty")
            self.reward_processing_classes.append(None)
            self.reward_weights = torch.cat([self.reward_weights, self.reward_weights.new_ones(1)])
        self._rewards_N: Tensor | None = None
        self._draws = (-1, 0)  # optimizer step, prompts drawn within it

    # --- rewards -----------------------------------------------------------------------------------------------------

    def penalize_length(self, completion_ids: list[list[int]], **columns) -> list[float]:
        """A TRL reward function: Magistral's soft length penalty."""
        lengths_N = torch.tensor([len(ids) for ids in completion_ids], dtype=torch.float32)
        args = self.args
        limits = (args.max_completion_length, args.penalty_tokens, args.length_penalty)
        return length_penalties(lengths_N, *limits).tolist()

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """As the base; a response that was not judged has no reward at all. Keeps the sums, of all processes."""
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        size = self.num_generations if self.model.training else self.num_generations_eval
        judged_NF = drop_unjudged(rewards_NF[:, : self._judges], size)
        unjudged_N = judged_NF.isnan().all(1)
        rewards_NF = torch.where(unjudged_N[:, None], torch.nan, rewards_NF)
        self._rewards_N = total_rewards(rewards_NF, self.reward_weights)
        looping = self.find_loops(completion_ids_list, self._tool_masks)
        without_penalty_N = total_rewards(judged_NF, self.reward_weights[: self._judges])
        self._note("reward", without_penalty_N.nanmean().item())
        self._note("unjudged_rate", unjudged_N.float().mean().item())
        self._note("loop_rate", self._rate(looping))
        self._log_endings(completion_ids_list, looping)
        return rewards_NF

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
        self._note("kept_groups", lesson.live_P.sum().item())
        self._note("advantage_std", lesson.std.item())
        advice = (
            "Take prompts that the policy solves sometimes, raise num_generations or max_refill_rounds; without "
            "rewards look at the reward functions"
        )
        rates = {name: self._metrics["train"][f"grpo/{name}"][-1] for name in ("dead_rate", "unjudged_rate")}
        self._refuse_barren(not lesson.live_P.any(), "group whose rewards differ", rates, advice)
        return batch

    def _generate_groups(self, inputs: list[dict]) -> dict:
        """The base's batch, with the reward of each of this process's responses."""
        batch = super()._generate_and_score_completions(inputs)
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
        self._note("refill_rounds", float(rounds))
        self._note("dead_rate", dead / groups)
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
