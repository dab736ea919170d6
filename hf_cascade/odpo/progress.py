"""The win-rate of a policy in training against the policy it started from, on held-out prompts."""

import contextlib
import copy
import hashlib
from collections import defaultdict

import torch
from accelerate import logging
from accelerate.utils import gather

from hf_cascade.completions import without_thinking
from hf_cascade.odpo.judging import win_rate

logger = logging.get_logger(__name__)


class StartingAnswers:
    """
    What the starting policy answers to the held-out prompts, written once, and how today's answers compare.

    Logs `odpo/win_rate` (0.5: as good as the start), `odpo/length_drift_tokens` and `odpo/start_loop_rate`.

    Args:
        trainer (`CascadeODPOTrainer`): whose evaluation asks.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._written: dict[str, tuple] = {}
        self._warned = False

    def compare(self, inputs: list[dict], prompts: list, answers: list, completion_ids: list, looping: list) -> None:
        """
        Rank this evaluation batch's answers, each against one of the starting policy's to the same prompt.

        Args:
            inputs (`list[dict]`): rows of the dataset, two of each.
            prompts (`list`): their prompts, as the trainer generated from.
            answers (`list`): today's responses, without thinking.
            completion_ids (`list[list[int]]`): their tokens.
            looping (`list[bool]`): whether they loop.
        """
        trainer = self.trainer
        start = self._answers(inputs, prompts, answers, completion_ids, looping)
        if start is None:
            return
        their_answers, their_ids, their_looping = start
        twice = [[row for row in rows for _ in range(2)] for rows in (inputs, prompts)]
        extra, pending = copy.copy(trainer._pending_extra_logs), copy.copy(trainer._pending_metrics)
        trainer._pending_extra_logs, trainer._pending_metrics = defaultdict(list), defaultdict(list)
        rewards_NF = trainer.score(*twice, _interleave(answers, their_answers), _interleave(completion_ids, their_ids))
        trainer._pending_extra_logs, trainer._pending_metrics = extra, pending  # of today's answers alone
        looping_N = gather(torch.tensor(_interleave(looping, their_looping), device=rewards_NF.device))
        lengths = [len(ours) - len(theirs) for ours, theirs in zip(completion_ids, their_ids, strict=True)]
        drift = gather(torch.tensor(lengths, device=rewards_NF.device)).float().mean().item()
        metrics = trainer._metrics["eval"]
        metrics["odpo/win_rate"].append(win_rate(trainer.probabilities(rewards_NF), looping_N))
        metrics["odpo/length_drift_tokens"].append(drift)
        metrics["odpo/start_loop_rate"].append(looping_N[1::2].float().mean().item())

    def _answers(self, inputs, prompts, answers, completion_ids, looping) -> tuple[list, list, list] | None:
        """The starting policy's answers, tokens and loops for these rows; `None` where they cannot be had."""
        trainer = self.trainer
        if trainer.environments is not None:
            return self._without("environments")
        keys = [f"{_key(row)} {number % 2}" for number, row in enumerate(inputs)]
        missing = torch.tensor(any(key not in self._written for key in keys), device=trainer.accelerator.device)
        if trainer.accelerator.reduce(missing.int(), reduction="sum").item():  # all processes generate, or none
            if not trainer.use_vllm:
                answers, completion_ids, looping = self._ask(prompts)
            elif trainer.state.global_step > 0:
                return self._without("vLLM, which holds the policy alone, unless eval_on_start is set")
            for key, *answer in zip(keys, answers, completion_ids, looping, strict=True):
                self._written[key] = answer
        return tuple(list(part) for part in zip(*(self._written[key] for key in keys), strict=True))

    def _ask(self, prompts: list) -> tuple[list, list, list]:
        """Let the starting policy answer; the metrics of generation stay those of today's policy."""
        trainer = self.trainer
        metrics, masks = copy.deepcopy(trainer._metrics["eval"]), trainer._tool_masks
        with trainer.starting_policy(), _drawing_alone(trainer.args.seed, trainer.accelerator):
            _, completion_ids, tool_masks, completions, *_ = trainer._generate(prompts)
        trainer._metrics["eval"], trainer._tool_masks = metrics, masks
        answers = [without_thinking(part) for part in completions] if trainer.args.strip_thinking else completions
        return answers, completion_ids, trainer.find_loops(completion_ids, tool_masks)

    def _without(self, reason: str) -> None:
        if not self._warned:
            logger.warning(f"No win-rate against the starting policy: it cannot answer again with {reason}.")
        self._warned = True


@contextlib.contextmanager
def _drawing_alone(seed: int, accelerator):
    """Random numbers of their own, the same in a resumed run; training's stay as if nothing had been drawn."""
    device = accelerator.device
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed + accelerator.process_index)
        yield


def _interleave(ours: list, theirs: list) -> list:
    """Each of ours, then theirs: a pair."""
    return [part for pair in zip(ours, theirs, strict=True) for part in pair]


def _key(row: dict) -> str:
    """Names a prompt, with its images, between evaluations."""
    images = row.get("images") or ([row["image"]] if row.get("image") is not None else [])
    seen = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    return f"{row.get('prompt')!r} {seen}"
