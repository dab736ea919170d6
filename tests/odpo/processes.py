"""Online DPO on two CPU processes, for test_processes.py, which compares it with one.

    torchrun --nproc_per_node 2 tests/odpo/processes.py POLICY FOLDER

The responses are the same whichever process writes them: made from the prompt, not by the policy.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from datasets import Dataset

from hf_cascade.odpo.config import CascadeODPOConfig
from hf_cascade.odpo.trainer import CascadeODPOTrainer
from tests.odpo.reference import Prefer, longer
from tests.online import processes
from tests.online.reference import drifted
from tests.online.scene import PROMPTS

ROWS = 8  # of a generation batch, on all processes
FORMS = {"pair": {}, "weight": {"loss_form": "weight", "per_device_train_batch_size": 1}}
# prompts of the first generation batch without a judgement: the first two are the first process's
DROPPED = {"none": (), "one": (0,), "a whole process": (0, 1)}
CASES = [(form, dropped) for form in FORMS for dropped in DROPPED]


def make(policy: Path, folder: Path, form: str, dropped: str, count: int):
    """Two steps of SGD, with held-out prompts."""
    settings = {"per_device_train_batch_size": ROWS // count, **FORMS[form]}
    rows = settings["per_device_train_batch_size"]
    silent = [PROMPTS[number] for number in DROPPED[dropped]]

    class Judge(Prefer):
        def compare(self, prompts, first, second, **columns):
            found = super().compare(prompts, first, second)
            return [None if prompt in silent else p for prompt, p in zip(prompts, found, strict=True)]

    args = CascadeODPOConfig(
        output_dir=str(folder),
        gradient_accumulation_steps=ROWS // count // rows,
        per_device_eval_batch_size=8 // count,
        **processes.SETTINGS,
        **settings,
    )
    data = Dataset.from_dict({"prompt": PROMPTS})
    trainer = CascadeODPOTrainer(
        drifted(policy), Judge(longer), args=args, train_dataset=data, eval_dataset=data.select(range(4))
    )
    # the starting policy's are others
    processes.respond(trainer, lambda ids, number, *_: (ids, number % 2, trainer.model_wrapped is trainer.ref_model))
    return trainer


def run(policy: Path, folder: Path, form: str, dropped: str, count: int) -> None:
    """Leave the weights and the log; the log of evaluations too."""
    trainer = make(policy, folder, form, dropped, count)
    trainer.train()
    processes.leave(trainer, folder, (trainer.evaluate(), trainer.evaluate(trainer.train_dataset.select(range(3)))))


if __name__ == "__main__":
    for form, dropped in CASES:
        run(Path(sys.argv[1]), Path(sys.argv[2]) / f"{form} {dropped}", form, dropped, 2)
