"""One distillation step of the trainer on two processes with `fully_shard`ed models, against one process.

torchrun --nproc_per_node 2 tests/distill/sharded_step.py
"""

import copy
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.distill import setting


def main() -> None:
    """Accelerate cannot shard on a CPU, so the models are sharded after the trainer is made."""
    for tied in (False, True):
        model, parent = setting.student(tie_word_embeddings=tied), setting.teacher()
        with tempfile.TemporaryDirectory() as folder:
            single = setting.distiller(folder, copy.deepcopy(model), copy.deepcopy(parent))
            trainer = setting.distiller(folder, model, parent)
        whole = setting.first_batch(2)
        count = (whole["labels"][:, 1:] != -100).sum()
        expected = single.compute_loss(single.model, dict(whole), num_items_in_batch=count) / 2  # times the processes
        expected.backward()

        mesh = init_device_mesh("cpu", (2,))
        for part in (trainer.model, trainer.teacher.model):
            for layer in part.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(part, mesh=mesh)
        rank = trainer.accelerator.process_index
        own = {name: tensor[rank : rank + 1] for name, tensor in whole.items() if name != "cursor"}
        loss = trainer.compute_loss(trainer.model, own, num_items_in_batch=count)
        loss.backward()
        total = trainer.accelerator.reduce(loss.detach() / 2, reduction="sum")
        assert abs(float(total - expected.detach())) < 1e-9, (tied, total, expected)
        for (name, one), other in zip(trainer.model.named_parameters(), single.model.parameters(), strict=True):
            difference = (one.grad.full_tensor() - other.grad).abs().max()
            assert difference < 1e-9, (tied, name, difference)
    print(f"process {rank}: equal")


if __name__ == "__main__":
    main()
