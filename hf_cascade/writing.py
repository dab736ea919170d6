"""How long a policy takes to write responses at best: what is read of a GPU's memory, at its full bandwidth.

A token reads the keys and values of all before it, whatever the batch; the weights are read once for all rows that are
written together. What writes reaches less than the full bandwidth, and reads more: a lower bound, not measured.
"""

from dataclasses import dataclass
from math import ceil

from hf_cascade.costs import end_parameters, head_parameters
from hf_cascade.machines import Machine
from hf_cascade.memory import Setup
from hf_cascade.online_costs import cache_bytes
from hf_cascade.shape import count_parameters, count_total

SHORT = 0.25  # mean length of responses, as a share of the longest, for which times are given too; ours: paper silent


@dataclass(frozen=True)
class Writer:
    """
    What writes responses on the GPUs that train: vLLM, or transformers.

    Attributes:
        share (`float`): what vLLM takes of each GPU's memory (`vllm_gpu_memory_utilization`).
        together (`int`): GPUs that hold one copy of the policy (`vllm_tensor_parallel_size`).
        rows (`int`): rows that transformers writes at once on each GPU; 0 with vLLM.
    """

    share: float = 0.0
    together: int = 1
    rows: int = 0

    def rows_at_once(self, policy: dict, setup: Setup, machine: Machine) -> int:
        """Whole rows whose keys and values fit beside one copy of the policy; with none vLLM does not start."""
        if self.rows:
            return self.rows
        room = self.together * self.share * machine.memory_bytes - setup.compute_bytes * count_total(policy)
        return max(0, int(room // cache_bytes(policy, setup, 1)))

    def seconds(self, policy: dict, setup: Setup, machine: Machine, rows: int) -> float:
        """
        Seconds to write `rows` rows of `setup.max_length` tokens on all GPUs, at least.

        Copies write equally many. A copy writes as many together as fit whole, batch after batch. FSDP2 gathers the
        weights again for every token that transformers writes; where that takes longer than to read them, it counts.

        Args:
            policy (`dict`): its config.json.
            setup (`Setup`): `max_length` is a row's tokens, `compute_bytes` what a number takes.
            machine (`Machine`): GPUs whose memory's bandwidth is known.
            rows (`int`): responses.

        Raises:
            ValueError: not one row fits.
        """
        at_once = self.rows_at_once(policy, setup, machine)
        if not at_once:
            raise ValueError(f"{self}: no room for a row of {setup.max_length} tokens beside the policy")
        each = ceil(rows * self.together / machine.gpus)
        passes, width = ceil(each / at_once) * setup.max_length, setup.compute_bytes
        weights = (
            count_parameters(policy) - end_parameters(policy) + head_parameters(policy)
        )  # one row of the embedding
        attended = each * cache_bytes(policy, setup, 1) * (setup.max_length + 1) / 2
        read = (passes * width * weights + attended) / (self.together * machine.card.memory_tb_per_second * 1e12)
        if not self.rows or setup.sharding != "fsdp2" or machine.card.link_gb_per_second is None:
            return read
        others = width * count_parameters(policy) * (machine.gpus - 1) / machine.gpus
        return max(read, passes * others / (machine.card.link_gb_per_second * 1e9))


@dataclass(frozen=True)
class Times:
    """
    Seconds of an Online DPO or GRPO stage, where every response has its longest.

    Attributes:
        writing (`float`): at least, by memory bandwidth, links or arithmetic.
        passes (`float`): the policy's over the responses, in training and beforehand, and the reference's.
        judging (`float`): the reward model's in this process, over both orders of a pair.
        short (`float`): of all, where responses have a share `SHORT` of their longest on average.
        refilled (`float`, *optional*): of all, where every group of GRPO's is replaced as often as it may be.
    """

    writing: float
    passes: float
    judging: float
    short: float
    refilled: float | None

    @property
    def total(self) -> float:
        """All of it, with no group replaced."""
        return self.writing + self.passes + self.judging
