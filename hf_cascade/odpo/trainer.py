"""`CascadeODPOTrainer`: TRL's GRPO trainer, which generates, calls tools and scores, with Online DPO's loss (paper 4).

B responses of a micro-batch, N of a generation batch, T completion tokens, P pairs.
"""

import contextlib

import torch
from accelerate.utils import gather
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid, use_adapter

from hf_cascade.completions import without_thinking
from hf_cascade.odpo.config import CascadeODPOConfig
from hf_cascade.odpo.judging import Judgement, judge, win_probabilities
from hf_cascade.odpo.loss import pair_loss, row_weights
from hf_cascade.odpo.progress import StartingAnswers
from hf_cascade.online.trainer import OnlineTrainer, check_start
from hf_cascade.rewards.preference import PairwisePreference

# what a vision-language model's forward takes beside tokens, as the base names it
VISION = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


class CascadeODPOTrainer(OnlineTrainer):
    """
    [`~trl.GRPOTrainer`] for Online DPO: two responses to each prompt by the current policy, ranked, and DPO's loss in
    both directions, weighted by the win probability (paper section 4).

    Generation (transformers or vLLM), tools, environments, images, PEFT and logging are the base's.

    ```python
    >>> trainer = CascadeODPOTrainer(
    ...     "instruct", PairwiseRewardModel.from_pretrained("pwrm"), args=CascadeODPOConfig(output_dir="out"),
    ...     train_dataset=prompts,
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): the policy. The reference is read from where it came from.
        reward_funcs (`PairwisePreference`, `Callable` or `list`): what ranks the responses: a pairwise reward model or
            judge, or any reward TRL takes, whose difference counts; several are averaged by `reward_weights`.
        args (`CascadeODPOConfig`): settings.
        tools (`list[Callable]`, *optional*): as the base, held to `args.tool_seconds` and `args.tool_max_characters`.
        kwargs: as [`~trl.GRPOTrainer`].

    Raises:
        ValueError: other settings than Online DPO's; a model in memory whose reference cannot be read.
    """

    _name = "Cascade ODPO"
    _tag_names = ["trl", "odpo", "online-dpo", "hf-cascade"]
    _paper = {"title": "Ministral 3", "id": "2601.08584"}
    _prefix = "odpo"

    def __init__(self, model, reward_funcs=None, args: CascadeODPOConfig | None = None, tools=None, **kwargs):
        check_start(args, CascadeODPOConfig)
        _check_reference(model, kwargs.get("peft_config"))
        args.generation_kwargs = {"temperature": args.sampling_temperature, **(args.generation_kwargs or {})}
        super().__init__(model, reward_funcs, args=args, tools=tools, **kwargs)
        self._pairwise_F = torch.tensor([isinstance(reward, PairwisePreference) for reward in self.reward_funcs])
        self._judgement: Judgement | None = None
        self.start = StartingAnswers(self)

    # --- responses ---------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch):
        """As the base, with pairs shuffled where it shuffles rows: two responses stay neighbours."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._step % self.args.steps_per_generation == 0 or self._buffered_inputs is None:
            batch = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            batch = shuffle_pairs(batch)
            parts = split_tensor_dict(batch, self.args.steps_per_generation)
            self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in parts]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_single_turn(self, *args, **kwargs):
        offline = self.args.sample_from == "reference" and self.model.training
        with self.starting_policy() if offline else contextlib.nullcontext():
            return super()._generate_single_turn(*args, **kwargs)

    @contextlib.contextmanager
    def starting_policy(self):
        """Generate with the reference, the policy that training started from."""
        if self.ref_model is None:
            model = self.accelerator.unwrap_model(self.model)
            with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                yield
            return
        policy, self.model_wrapped = self.model_wrapped, self.ref_model
        try:
            yield
        finally:
            self.model_wrapped = policy

    # --- judgement ---------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """As the base, on responses without their thinking; keeps what each pair teaches, of all processes."""
        answers = [without_thinking(part) for part in completions] if self.args.strip_thinking else completions
        looping = self.find_loops(completion_ids_list, self._tool_masks)
        rewards_NF = self.score(inputs, prompts, answers, completion_ids_list)
        device = rewards_NF.device
        looping_N = gather(torch.tensor(looping, device=device))
        same = [a == b for a, b in zip(completion_ids_list[0::2], completion_ids_list[1::2], strict=True)]
        identical_P = gather(torch.tensor(same, device=device))
        lengths_N = gather(torch.tensor([len(ids) for ids in completion_ids_list], device=device))
        self._judgement = judge(self.probabilities(rewards_NF), looping_N, identical_P, self.args.soft_labels)
        self._log_judgement(self._judgement, lengths_N, looping, completion_ids_list)
        if self.model.training:
            advice = (
                "A policy that always loops needs more SFT or a longer max_completion_length; without judgements look "
                "at the reward model"
            )
            is_barren = not self._judgement.keep_P.any()
            self._refuse_barren(is_barren, "pair to learn from", self._judgement.metrics, advice)
        else:
            self.start.compare(inputs, prompts, answers, completion_ids_list, looping)
        return rewards_NF

    def score(self, inputs, prompts, answers, completion_ids_list) -> Tensor:
        """Rewards [N, F] of the responses of all processes, as the base asks for them."""
        return super()._calculate_rewards(inputs, prompts, answers, completion_ids_list)

    def probabilities(self, rewards_NF: Tensor) -> Tensor:
        """P(first preferred) of every pair, from the rewards of its two responses."""
        pairwise_F = self._pairwise_F.to(rewards_NF.device)
        probability_P = win_probabilities(rewards_NF, self.reward_weights, pairwise_F, self.args.reward_scale)
        if ((probability_P < 0) | (probability_P > 1)).any():
            raise ValueError(f"a pairwise reward gave {probability_P.tolist()}: probabilities are from 0 to 1")
        return probability_P

    def _log_judgement(self, judgement: Judgement, lengths_N: Tensor, looping: list[bool], completion_ids) -> None:
        for name, value in judgement.metrics.items():
            self._note(name, value)
        self._log_endings(completion_ids, looping)
        sides_P = torch.sign(judgement.probability_P - 0.5)
        differences_P = (lengths_N[0::2] - lengths_N[1::2]) * sides_P  # tokens by which winners are longer
        if judgement.keep_P.any():
            self._note("winner_longer_tokens", differences_P[judgement.keep_P].float().mean().item())
        probabilities = self._of_this_process(judgement.probability_P).repeat_interleave(2)
        first_row = torch.arange(len(probabilities), device=probabilities.device) % 2 == 0
        self._log_completion_extra("win_probability", torch.where(first_row, probabilities, 1 - probabilities).tolist())

    def _generate_and_score_completions(self, inputs):
        """As the base, with what each pair teaches: its win probability, whether it counts, and how many do."""
        output = super()._generate_and_score_completions(inputs)
        judgement = self._judgement
        output["win_probability"] = self._of_this_process(judgement.probability_P).repeat_interleave(2)
        output["keep"] = self._of_this_process(judgement.keep_P).repeat_interleave(2)
        output["num_pairs"] = judgement.keep_P.sum()
        if self.args.loss_form == "weight" and self.model.training:
            output["weight"], output["pair_loss"] = self._weigh(output)
        return output

    # --- loss --------------------------------------------------------------------------------------------------------

    def _log_ratios(self, model, inputs: dict, **kwargs) -> tuple[Tensor, Tensor, Tensor | None]:
        """Policy-to-reference log-ratio of each response [B], its model tokens [B, T], and entropies [B, T]."""
        ids_BT, mask_BT = inputs["completion_ids"], inputs["completion_mask"]
        log_probs_BT, entropies_BT, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], ids_BT], dim=1),
            torch.cat([inputs["prompt_mask"], mask_BT], dim=1),
            ids_BT.size(1),
            **{name: inputs.get(name) for name in VISION},
            **kwargs,
        )
        mask_BT = mask_BT * inputs.get("tool_mask", 1)
        ratios_B = ((log_probs_BT - inputs["ref_per_token_logps"]) * mask_BT).sum(1)
        return ratios_B, mask_BT, entropies_BT

    def _weigh(self, batch: dict) -> tuple[Tensor, Tensor]:
        """In a pass without gradients: each response's weight, and its half of the pair's loss [N]."""
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            rows = self.args.per_device_train_batch_size
            ratios_N, _, _ = self._log_ratios(self.model, batch, batch_size=rows)
        difference_P, probability_P = ratios_N[0::2] - ratios_N[1::2], batch["win_probability"][0::2]
        settings = (difference_P, probability_P, self.args.beta, self.args.rescale_beta)
        self._log_margins(difference_P, probability_P, batch["keep"][0::2])
        weights_N = row_weights(*settings).flatten() * batch["keep"]
        return weights_N, pair_loss(*settings).repeat_interleave(2) * batch["keep"] / 2

    def _compute_loss(self, model, inputs):
        """The pairs' mean loss over all processes and accumulated micro-batches; dropped pairs count nowhere."""
        ratios_B, mask_BT, entropies_BT = self._log_ratios(model, inputs, compute_entropy=True)
        if "weight" in inputs:
            loss_B = inputs["weight"] * ratios_B
            loss_B = loss_B + (inputs["pair_loss"] - loss_B).detach()  # the pair's own value, the weight's gradient
        else:
            difference_P, keep_P = ratios_B[0::2] - ratios_B[1::2], inputs["keep"][0::2]
            probability_P = inputs["win_probability"][0::2]
            loss_B = pair_loss(difference_P, probability_P, self.args.beta, self.args.rescale_beta) * keep_P
            self._log_margins(difference_P.detach(), probability_P, keep_P)
        self._log_tokens(ratios_B.detach(), mask_BT, entropies_BT.detach())
        pairs = inputs["num_pairs"].clamp(min=1)
        if not self.model.training:  # of all processes: accelerate would keep the first one's alone
            return self.accelerator.reduce(loss_B.sum(), reduction="sum") / pairs
        # Gradients are averaged over processes, and a generation batch spans `steps_per_generation` micro-batches.
        micro_batches = self.args.steps_per_generation / self.current_gradient_accumulation_steps
        return loss_B.sum() / pairs * self.accelerator.num_processes * micro_batches

    def _log_margins(self, difference_P: Tensor, probability_P: Tensor, keep_P: Tensor) -> None:
        """Beta times the log-ratio by which the likelier winner leads, and how often it leads."""
        sides_P = torch.sign(probability_P - 0.5) * keep_P
        margins_P = self.args.beta * difference_P * sides_P
        sums = torch.stack([margins_P.sum(), (margins_P > 0).sum(), sides_P.abs().sum()])
        margin, right, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        if count:
            self._note("margin", margin / count)
            self._note("accuracy", right / count)

    def _log_tokens(self, ratios_B: Tensor, mask_BT: Tensor, entropies_BT: Tensor) -> None:
        """KL to the reference, estimated on the policy's own responses: nats a response, and nats a token."""
        totals = [ratios_B.sum(), mask_BT.sum(), (entropies_BT * mask_BT).sum(), torch.ones_like(ratios_B).sum()]
        kl, tokens, entropy, rows = self.accelerator.reduce(torch.stack(totals).double(), reduction="sum").tolist()
        self._note("kl", kl / rows)
        self._note("kl_per_token", kl / max(tokens, 1))
        self._metrics["train" if self.model.training else "eval"]["entropy"].append(entropy / max(tokens, 1))


def shuffle_pairs(batch: dict) -> dict:
    """Rows of a batch in a new order in which rows 2i and 2i + 1 stay neighbours, in their order."""
    pairs_P = torch.randperm(len(batch["completion_ids"]) // 2)
    rows = torch.stack([2 * pairs_P, 2 * pairs_P + 1], dim=1).flatten()

    def reorder(value):
        if value is None or (isinstance(value, Tensor) and value.ndim == 0):
            return value
        return value[rows.to(value.device)] if isinstance(value, Tensor) else [value[row] for row in rows]

    return {name: reorder(value) for name, value in batch.items()}


def _check_reference(model, peft_config) -> None:
    """The base reads the reference from `name_or_path`; a model made in memory has none."""
    if isinstance(model, str) or peft_config is not None or hasattr(model, "peft_config"):
        return
    if not model.config._name_or_path:
        raise ValueError(
            "the model has no name_or_path, from which the reference is read: save it with save_pretrained and give "
            "its folder, or train an adapter (peft_config), whose reference is the model without it"
        )
