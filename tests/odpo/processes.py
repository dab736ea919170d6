"""Online DPO on two CPU processes, for test_processes.py, which compares it with one.

    torchrun --nproc_per_node 2 tests/odpo/processes.py POLICY FOLDER

The responses are the same whichever process writes them: made from the prompt, not by the policy.
"""

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from datasets import Dataset
from safetensors.torch import save_file

from hf_cascade.odpo.config import CascadeODPOConfig
from hf_cascade.odpo.trainer import CascadeODPOTrainer
from tests.odpo.conftest import PROMPTS
from tests.odpo.reference import Prefer, drifted, longer

ROWS = 8  # of a generation batch, on all processes
FORMS = {"pair": {}, "weight": {"loss_form": "weight", "per_device_train_batch_size": 1}}
# prompts of the first generation batch without a judgement: the first two are the first process's
DROPPED = {"none": (), "one": (0,), "a whole process": (0, 1)}
CASES = [(form, dropped) for form in FORMS for dropped in DROPPED]


def respond(trainer):
    """Responses made from the prompt alone; the starting policy's are others."""

    def generate(prompt_ids, images, fields, num_generations, has_tool_images=False):
        start = trainer.model_wrapped is trainer.ref_model
        completions = []
        for number, ids in enumerate(prompt_ids):
            draw = random.Random(repr((ids, number % 2, start)))
            completions.append([draw.randrange(20, 200) for _ in range(draw.randint(3, 8))])
        return completions, None

    trainer._generate_single_turn = generate


def make(policy: Path, folder: Path, form: str, dropped: str, processes: int):
    """Two steps of SGD, with held-out prompts."""
    settings = {"per_device_train_batch_size": ROWS // processes, **FORMS[form]}
    rows = settings["per_device_train_batch_size"]
    silent = [PROMPTS[number] for number in DROPPED[dropped]]

    class Judge(Prefer):
        def compare(self, prompts, first, second, **columns):
            found = super().compare(prompts, first, second)
            return [None if prompt in silent else p for prompt, p in zip(prompts, found, strict=True)]

    args = CascadeODPOConfig(
        output_dir=str(folder),
        gradient_accumulation_steps=ROWS // processes // rows,
        per_device_eval_batch_size=8 // processes,
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
        **settings,
    )
    data = Dataset.from_dict({"prompt": PROMPTS})
    trainer = CascadeODPOTrainer(
        drifted(policy), Judge(longer), args=args, train_dataset=data, eval_dataset=data.select(range(4))
    )
    respond(trainer)
    return trainer


def run(policy: Path, folder: Path, form: str, dropped: str, processes: int) -> None:
    """Leave the weights and the log; the log of evaluations too."""
    trainer = make(policy, folder, form, dropped, processes)
    trainer.train()
    evaluations = [trainer.evaluate(), trainer.evaluate(trainer.train_dataset.select(range(3)))]
    if trainer.accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.data for name, weight in trainer.model.named_parameters()}, folder / "weights")
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        (folder / "log.json").write_text(json.dumps([log, evaluations, trainer.accelerator.num_processes]))


if __name__ == "__main__":
    for form, dropped in CASES:
        run(Path(sys.argv[1]), Path(sys.argv[2]) / f"{form} {dropped}", form, dropped, 2)
