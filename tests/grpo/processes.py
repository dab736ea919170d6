"""GRPO on two CPU processes, for test_processes.py, which compares it with one.

    torchrun --nproc_per_node 2 tests/grpo/processes.py POLICY FOLDER

The responses are the same whichever process writes them: made from the prompt, not by the policy.
"""

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from datasets import Dataset
from safetensors.torch import save_file

from hf_cascade.grpo.config import CascadeGRPOConfig
from hf_cascade.grpo.trainer import CascadeGRPOTrainer
from tests.odpo.conftest import PROMPTS
from tests.odpo.reference import drifted

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


def respond(trainer):
    """Responses made from the prompt alone, and of unequal length."""

    def generate(prompt_ids, images, fields, num_generations, has_tool_images=False):
        completions = []
        before = len(prompt_ids) * trainer.accelerator.process_index  # a group may be on both
        for number, ids in enumerate(prompt_ids, before):
            draw = random.Random(repr((ids, number % num_generations)))
            completions.append([draw.randrange(20, 200) for _ in range(draw.randint(3, 8))])
        return completions, None

    trainer._generate_single_turn = generate


def run(policy: Path, folder: Path, case: str, processes: int) -> None:
    """Two steps of SGD; leave the weights and the log."""
    rows, rounds, dead = CASES[case]
    equal = [PROMPTS[number] for number in DEAD[dead]]

    def reward(completions, prompts, **columns):
        found = [len(completion) % 5 / 3 for completion in completions]
        return [1.0 if prompt in equal else value for prompt, value in zip(prompts, found, strict=True)]

    args = CascadeGRPOConfig(
        output_dir=str(folder),
        num_generations=16 if case == "one group on both" else 4,
        per_device_train_batch_size=rows // processes,
        gradient_accumulation_steps=ROWS // rows,
        max_completion_length=8,
        max_refill_rounds=rounds,
        length_penalty=0.0,  # equal rewards stay equal
        max_steps=2,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        shuffle_dataset=False,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = CascadeGRPOTrainer(
        drifted(policy),
        reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [*PROMPTS, *(f"Of {n} is" for n in range(40))]}),
    )
    respond(trainer)
    trainer.train()
    if trainer.accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.data for name, weight in trainer.model.named_parameters()}, folder / "weights")
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        (folder / "log.json").write_text(json.dumps([log, trainer.accelerator.num_processes]))


if __name__ == "__main__":
    for name in CASES:
        run(Path(sys.argv[1]), Path(sys.argv[2]) / name, name, 2)
