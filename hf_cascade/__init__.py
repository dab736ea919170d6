"""hf-cascade: Cascade Distillation (Ministral 3, arXiv 2601.08584) on transformers and TRL. Names load on first use."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_MODULES = {
    "CascadeDistillationConfig": "hf_cascade.distill.config",
    "CascadeDistillationTrainer": "hf_cascade.distill.trainer",
    "CascadeGRPOConfig": "hf_cascade.grpo.config",
    "CascadeGRPOTrainer": "hf_cascade.grpo.trainer",
    "CascadeODPOConfig": "hf_cascade.odpo.config",
    "CascadeODPOTrainer": "hf_cascade.odpo.trainer",
    "CascadeSFTTrainer": "hf_cascade.distill.packed",
    "CascadePairwiseTrainer": "hf_cascade.rewards.trainer",
    "ChatEndpoint": "hf_cascade.rewards.endpoint",
    "ChildShape": "hf_cascade.shape",
    "EndpointGrader": "hf_cascade.rewards.graders",
    "GenerativeJudge": "hf_cascade.rewards.judge",
    "LocalGrader": "hf_cascade.rewards.graders",
    "PairwisePreference": "hf_cascade.rewards.preference",
    "PairwiseRewardModel": "hf_cascade.rewards.pairwise",
    "PruneConfig": "hf_cascade.prune.config",
    "RubricReward": "hf_cascade.rewards.rubric",
    "extend_context": "hf_cascade.context",
    "filter_reasoning": "hf_cascade.distill.reasoning",
    "mix_chains": "hf_cascade.distill.reasoning",
    "prune_model": "hf_cascade.prune.model",
}
__all__ = ["__version__", *_MODULES]

if TYPE_CHECKING:
    from hf_cascade.context import extend_context as extend_context
    from hf_cascade.distill.config import CascadeDistillationConfig as CascadeDistillationConfig
    from hf_cascade.distill.packed import CascadeSFTTrainer as CascadeSFTTrainer
    from hf_cascade.distill.reasoning import filter_reasoning as filter_reasoning
    from hf_cascade.distill.reasoning import mix_chains as mix_chains
    from hf_cascade.distill.trainer import CascadeDistillationTrainer as CascadeDistillationTrainer
    from hf_cascade.grpo.config import CascadeGRPOConfig as CascadeGRPOConfig
    from hf_cascade.grpo.trainer import CascadeGRPOTrainer as CascadeGRPOTrainer
    from hf_cascade.odpo.config import CascadeODPOConfig as CascadeODPOConfig
    from hf_cascade.odpo.trainer import CascadeODPOTrainer as CascadeODPOTrainer
    from hf_cascade.prune.config import PruneConfig as PruneConfig
    from hf_cascade.prune.model import prune_model as prune_model
    from hf_cascade.rewards.endpoint import ChatEndpoint as ChatEndpoint
    from hf_cascade.rewards.graders import EndpointGrader as EndpointGrader
    from hf_cascade.rewards.graders import LocalGrader as LocalGrader
    from hf_cascade.rewards.judge import GenerativeJudge as GenerativeJudge
    from hf_cascade.rewards.pairwise import PairwiseRewardModel as PairwiseRewardModel
    from hf_cascade.rewards.preference import PairwisePreference as PairwisePreference
    from hf_cascade.rewards.rubric import RubricReward as RubricReward
    from hf_cascade.rewards.trainer import CascadePairwiseTrainer as CascadePairwiseTrainer
    from hf_cascade.shape import ChildShape as ChildShape


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'hf_cascade' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODULES))
