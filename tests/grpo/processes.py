"""GRPO on two CPU processes, for test_processes.py, which compares it with one.

    torchrun --nproc_per_node 2 tests/grpo/processes.py POLICY FOLDER

The responses are the same whichever process writes them: made from the prompt, not by the policy.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from datasets import Dataset

from hf_cascade.grpo.config import CascadeGRPOConfig
from hf_cascade.grpo.trainer import CascadeGRPOTrainer
from tests.online import processes
from tests.online.reference import drifted
from tests.online.scene import PROMPTS

ROWS = 16  # of a generation batch, on all processes: 4 groups of 4, or one of 16
# prompts of equal rewards: the first two are the first process's in the first batch
DEAD = {"none": (), "one": (0,), "a whole process": (0, 1), "one each": (1, 2)}
# name: rows of a micro-batch on all processes, rounds of refill, prompts of equal rewards
CASES = {
    "plain": (16, 0, "none"),
    "dead": (16, 0, "a whole process"),
    "accumulated": (4, 0, "one"),
    "one group on both": (16, 0, "none"),
    "refilled": (16, 4, "one each"),
    "refilled, accumulated": (4, 4, "a whole process"),
}


def run(policy: Path, folder: Path, case: str, count: int) -> None:
    """Two steps of SGD; leave the weights and the log."""
    rows, rounds, dead = CASES[case]
    equal = [PROMPTS[number] for number in DEAD[dead]]

    def reward(completions, prompts, **columns):
        found = [len(completion) % 5 / 3 for completion in completions]
        return [1.0 if prompt in equal else value for prompt, value in zip(prompts, found, strict=True)]

    args = CascadeGRPOConfig(
        output_dir=str(folder),
        num_generations=16 if case == "one group on both" else 4,
        per_device_train_batch_size=rows // count,
        gradient_accumulation_steps=ROWS // rows,
        max_completion_length=8,
        max_refill_rounds=rounds,
        length_penalty=0.0,  # equal rewards stay equal
        **processes.SETTINGS,
    )
    trainer = CascadeGRPOTrainer(
        drifted(policy),
        reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [*PROMPTS, *(f"Of {n} is" for n in range(40))]}),
    )
    before = trainer.accelerator.process_index  # a group may be on both

    def key(ids, number, rows, size):
        return ids, (before * rows + number) % size

    processes.respond(trainer, key)
    trainer.train()
    processes.leave(trainer, folder)


if __name__ == "__main__":
    for name in CASES:
        run(Path(sys.argv[1]), Path(sys.argv[2]) / name, name, 2)
