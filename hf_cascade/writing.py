"""How long a policy takes to write responses at best: what vLLM reads, at the full bandwidth of its GPUs' memory.

A token reads the keys and values of all before it, whatever the batch; the weights are read once for all rows that are
written together. An engine reaches less than the full bandwidth, and reads more: a lower bound, not measured.
"""

from dataclasses import dataclass
from math import ceil

from hf_cascade.machines import Machine
from hf_cascade.memory import Setup
from hf_cascade.online_costs import cache_bytes
from hf_cascade.shape import count_total

SHORT = 0.25  # mean length of responses, as a share of the longest, for which times are given too; ours: paper silent
# 10^12 bytes a second of a card's memory, from the data sheets in machines.py
BANDWIDTH = {
    "h100-80gb": 3.35,
    "h100-pcie-80gb": 2.0,
    "h200-141gb": 4.8,
    "b200-180gb": 7.7,
    "a100-80gb": 2.039,
    "a100-40gb": 1.555,
    "l40s-48gb": 0.864,
    "l4-24gb": 0.3,
    "rtx4090-24gb": 1.008,
    "mi300x-192gb": 5.3,
}


@dataclass(frozen=True)
class Engine:
    """
    vLLM on the GPUs that train.

    Attributes:
        share (`float`): what it takes of each GPU's memory (`vllm_gpu_memory_utilization`).
        together (`int`): GPUs that hold one copy of the policy (`vllm_tensor_parallel_size`).
    """

    share: float
    together: int = 1

    def rows_at_once(self, policy: dict, setup: Setup, machine: Machine) -> int:
        """Whole rows whose keys and values fit beside one copy of the policy; with none vLLM does not start."""
        room = self.together * self.share * machine.memory_bytes - setup.compute_bytes * count_total(policy)
        return max(0, int(room // cache_bytes(policy, setup, 1)))

    def seconds(self, policy: dict, setup: Setup, machine: Machine, rows: int) -> float:
        """
        Seconds to write `rows` rows of `setup.max_length` tokens on all GPUs, at least.

        Copies write equally many. A copy writes as many together as fit whole, batch after batch.

        Args:
            policy (`dict`): its config.json.
            setup (`Setup`): `max_length` is a row's tokens, `compute_bytes` what a number takes.
            machine (`Machine`): a card of [`BANDWIDTH`].
            rows (`int`): responses.

        Raises:
            ValueError: not one row fits.
        """
        at_once = self.rows_at_once(policy, setup, machine)
        if not at_once:
            raise ValueError(f"{self}: no room for a row of {setup.max_length} tokens beside the policy")
        each = ceil(rows * self.together / machine.gpus)
        batches = ceil(each / at_once)
        weights = batches * setup.max_length * setup.compute_bytes * count_total(policy)
        attended = each * cache_bytes(policy, setup, 1) * (setup.max_length + 1) / 2
        return (weights + attended) / (self.together * BANDWIDTH[machine.card.name] * 1e12)


@dataclass(frozen=True)
class Times:
    """
    Seconds of a GRPO stage, where every response has its longest.

    Attributes:
        writing (`float`): at least, by memory bandwidth or arithmetic.
        passes (`float`): training on the responses, and their log-probabilities before.
        short (`float`): of all, where responses have a share `SHORT` of their longest on average.
        refilled (`float`): of all, where every group is replaced as often as it may be.
    """

    writing: float
    passes: float
    short: float
    refilled: float

    @property
    def total(self) -> float:
        """All of it, with no group replaced."""
        return self.writing + self.passes
