"""`CascadeODPOTrainer`: TRL's GRPO trainer, which generates, calls tools and scores, with Online DPO's loss (paper 4).

B responses of a micro-batch, N of a generation batch, T completion tokens, P pairs.
"""

import contextlib

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from torch import Tensor
from transformers import ProcessorMixin
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid, use_adapter

from hf_cascade.completions import is_looping, without_thinking
from hf_cascade.data.chat import ragged_prompts
from hf_cascade.data.missing_images import drop_no_images, list_images
from hf_cascade.distill.freezing import freeze_vision_tower
from hf_cascade.odpo.config import CascadeODPOConfig
from hf_cascade.odpo.judging import Judgement, judge, win_probabilities
from hf_cascade.odpo.loss import pair_loss, row_weights
from hf_cascade.odpo.progress import StartingAnswers
from hf_cascade.odpo.seams import check_seams
from hf_cascade.odpo.tools import ToolLimits
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


class CascadeODPOTrainer(GRPOTrainer):
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

    def __init__(self, model, reward_funcs=None, args: CascadeODPOConfig | None = None, tools=None, **kwargs):
        if not isinstance(args, CascadeODPOConfig):
            raise ValueError(f"args is {type(args).__name__}: give a CascadeODPOConfig")
        check_seams()
        _check_reference(model, kwargs.get("peft_config"))
        _check_prompts(kwargs.get("train_dataset"), args, tools)
        self.tool_limits = ToolLimits(args.tool_seconds, args.tool_max_characters)
        tools = [self.tool_limits.wrap(tool) for tool in tools or []] or None
        args.generation_kwargs = {"temperature": args.sampling_temperature, **(args.generation_kwargs or {})}
        super().__init__(model, reward_funcs, args=args, tools=tools, **kwargs)
        if isinstance(self.processing_class, ProcessorMixin):
            ragged_prompts(self.processing_class)
            for one in (self.model, self.ref_model):
                if one is not None:
                    one.register_forward_pre_hook(drop_no_images, with_kwargs=True)
        if args.freeze_vision_tower:
            freeze_vision_tower(self.model)
        self._pairwise_F = torch.tensor([isinstance(reward, PairwisePreference) for reward in self.reward_funcs])
        self._judgement: Judgement | None = None
        self._tool_masks: list | None = None
        self._barren = self._timeouts = 0
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

    def _generate(self, prompts):
        """As the base; rows without an image have none rather than `None`, which processors refuse."""
        *first, images, tool_images = super()._generate(prompts)
        self._tool_masks = first[2]
        return *first, images and [of_row or [] for of_row in images], tool_images

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
            self._refuse_barren(self._judgement)
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

    def find_loops(self, completion_ids: list[list[int]], tool_masks: list | None) -> list[bool]:
        """Whether each response never ended and repeats itself, in what the policy wrote last."""
        masks, rule = tool_masks or [None] * len(completion_ids), self.args.loop_rule
        return [
            is_looping(ids, mask, self.eos_token_ids, rule) for ids, mask in zip(completion_ids, masks, strict=True)
        ]

    def _log_judgement(self, judgement: Judgement, lengths_N: Tensor, looping: list[bool], completion_ids) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in judgement.metrics.items():
            metrics[f"odpo/{name}"].append(value)
        cut = [ids[-1] not in self.eos_token_ids for ids in completion_ids]
        cut_N = gather(
            torch.tensor([c and not loop for c, loop in zip(cut, looping, strict=True)]).to(lengths_N.device)
        )
        metrics["odpo/truncated_not_loop_rate"].append(cut_N.float().mean().item())
        sides_P = torch.sign(judgement.probability_P - 0.5)
        differences_P = (lengths_N[0::2] - lengths_N[1::2]) * sides_P  # tokens by which winners are longer
        if judgement.keep_P.any():
            metrics["odpo/winner_longer_tokens"].append(differences_P[judgement.keep_P].float().mean().item())
        if self.tools:
            before, self._timeouts = self._timeouts, self.tool_limits.counts["timeouts"]
            metrics["odpo/tool_timeouts"].append(float(sum(gather_object([self._timeouts - before]))))
        probabilities = self._of_this_process(judgement.probability_P).repeat_interleave(2)
        first_row = torch.arange(len(probabilities), device=probabilities.device) % 2 == 0
        self._log_completion_extra("looped", looping)
        self._log_completion_extra("win_probability", torch.where(first_row, probabilities, 1 - probabilities).tolist())

    def _of_this_process(self, of_pairs: Tensor) -> Tensor:
        per_process = len(of_pairs) // self.accelerator.num_processes
        return of_pairs[self.accelerator.process_index * per_process :][:per_process]

    def _refuse_barren(self, judgement: Judgement) -> None:
        """A policy that always loops, or a judge that never answers, must not train on nothing unnoticed."""
        self._barren = 0 if judgement.keep_P.any() else self._barren + 1
        if self._barren >= self.args.max_barren_batches:
            rates = ", ".join(f"{name} {value:.2f}" for name, value in judgement.metrics.items())
            raise ValueError(
                f"{self._barren} generation batches in a row had no pair to learn from (the last: {rates}). A policy "
                "that always loops needs more SFT or a longer max_completion_length; without judgements look at the "
                "reward model; or raise max_barren_batches"
            )

    def _generate_and_score_completions(self, inputs):
        """As the base, with what each pair teaches: its win probability, whether it counts, and how many do."""
        output = super()._generate_and_score_completions(list_images(inputs))
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
            metrics = self._metrics["train" if self.model.training else "eval"]
            metrics["odpo/margin"].append(margin / count)
            metrics["odpo/accuracy"].append(right / count)

    def _log_tokens(self, ratios_B: Tensor, mask_BT: Tensor, entropies_BT: Tensor) -> None:
        """KL to the reference, estimated on the policy's own responses: nats a response, and nats a token."""
        totals = [ratios_B.sum(), mask_BT.sum(), (entropies_BT * mask_BT).sum(), torch.ones_like(ratios_B).sum()]
        kl, tokens, entropy, rows = self.accelerator.reduce(torch.stack(totals).double(), reduction="sum").tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["odpo/kl"].append(kl / rows)
        metrics["odpo/kl_per_token"].append(kl / max(tokens, 1))
        metrics["entropy"].append(entropy / max(tokens, 1))


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


def _check_prompts(prompts, args: CascadeODPOConfig, tools) -> None:
    """What the base would find out after it generated, or never: its sampler drops a generation batch not full."""
    needed = args.generation_batch_size // 2
    if isinstance(prompts, Dataset) and len(prompts) < needed:
        raise ValueError(
            f"{len(prompts)} prompts, and one generation batch takes {needed}: give more prompts, or lower "
            "per_device_train_batch_size or steps_per_generation (gradient_accumulation_steps by default)"
        )
    if tools and isinstance(prompts, Dataset) and isinstance(prompts[0].get("prompt"), str):
        raise ValueError('tools need prompts of messages, and they are text: [{"role": "user", "content": ...}]')
